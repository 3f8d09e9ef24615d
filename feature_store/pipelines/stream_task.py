"""One worker of a stream: takes messages of a source's topic, applies them to views online, and lands them in the log.

Online comes first, within milliseconds, and what is read again changes nothing there. Landing gathers rows for seconds,
and commits them with the positions behind them. A worker begins where the log ends: what was applied and not landed
when another was killed is read again, passed over online, and landed.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pyarrow as pa

from feature_store.definitions.catalog import BoundView, Catalog
from feature_store.engines.streams import Bad, Messages, Reject, TopicId
from feature_store.errors import ConflictError, FeatureStoreError, SourceError, StoreUnavailableError
from feature_store.expressions.instants import HOUR
from feature_store.expressions.ranges import Ints
from feature_store.materialization.events import Events, not_computable
from feature_store.materialization.landing import Landing
from feature_store.materialization.messages import Decoder
from feature_store.materialization.stream_log import StreamLog
from feature_store.materialization.stream_writer import StreamEvents, StreamWriter
from feature_store.pipelines.topics import decoder_of
from feature_store.registry.records import StreamWorker
from feature_store.store import FeatureStore

LAND_EVERY_S = 10.0
LAND_ROWS = 100_000
MOST_ROWS, MOST_BYTES = 1_000_000, 1 << 29
"""So much waits for the log at most, as when the offline store is away; then no more messages are taken."""

STALE = HOUR
"""A worker that was not heard of for so long is forgotten."""

COMPACT_EVERY_S = 600.0
_LOOK_EVERY_S = 2.0
_BEAT_EVERY_S = 1.0
_RETRY_S = (0.1, 5.0)
_GC_THRESHOLDS = (50_000, 20, 100)

T = TypeVar("T")

Read = Callable[[int, int, int], Iterator[Messages]]
"""The messages of a partition from one offset to before another."""

_UNKEPT: Reject = lambda messages, bad: None  # noqa: E731
"""For whoever keeps no bad messages."""


def spare_collections() -> None:
    """Make garbage collection rare in a process that is a worker and nothing else: what it keeps is hundreds of
    thousands of rows, and reference counts free the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


class StreamTask:
    """The handler of one worker (see `engines.streams.Member`); `close` it in the end.

    `latest`: where the log knows nothing of a topic, begin behind its last messages. `topic` and `read` are for an
    engine that itself knows where to begin: it reads that topic, and messages again that a worker before this one
    applied and did not land. Once `stop` is set, it waits for no store. `clock` gives the time in microseconds.
    """

    def __init__(
        self,
        store: FeatureStore,
        source: str,
        name: str,
        latest: bool = False,
        topic: TopicId | None = None,
        read: Read | None = None,
        stop: threading.Event | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.store, self.source, self.name = store, source, name
        self._clock = clock
        self._latest, self._read = latest, read
        self._topic, self._base = topic or TopicId(source), 0
        self._streams = store.registry.streams
        self._writer = StreamWriter(store.online_store, self._streams)
        self._log = StreamLog(store.offline_store, source)
        self._landing = Landing(self._log)
        self._working = threading.RLock()  # positions and what was applied move together
        self._looked_at = -_LOOK_EVERY_S
        self._catalog: Catalog | None = None
        self._decoder: Decoder | None = None
        self._views: list[BoundView] = []
        self._deposed: str | None = None
        self._said = self._told = StreamWorker(source, name)
        self._wrong: dict[str, FeatureStoreError] = {}
        self._ended = threading.Event()
        self._stop = stop or self._ended
        self._land_now = threading.Event()
        self._beside = [
            threading.Thread(target=work, name=f"{work.__name__} {source}", daemon=True)
            for work in (self._run_landing, self._run_beat)
        ]
        for thread in self._beside:
            thread.start()

    # What the engine calls

    def assigned(
        self, topic: TopicId, ranges: Mapping[int, tuple[int, int]], partitions: Collection[int]
    ) -> dict[int, int]:
        """Where to begin in partitions: where the log ends. `SourceError` where what comes next is not in the topic."""
        with self._working:
            self._topic = topic
            if not self._landing.positions:
                self._deposed = None
            starts = {partition: end if self._latest else first for partition, (first, end) in ranges.items()}
            landed = self._take_up({partition: ranges[partition][0] for partition in partitions}, starts)
            for partition in partitions:
                first, end = ranges[partition]
                if landed[partition] > end:
                    self._landing.drop([self._base + each for each in partitions])
                    raise SourceError(
                        f'partition {partition} of topic "{topic.name}" ends at offset {end}, and the log of source '
                        f'"{self.source}" at {landed[partition]}: the topic has lost messages, or is another one',
                        hint="Read it as another source, with a name of its own",
                    )
                if landed[partition] < first:
                    self._landing.skip({self._base + partition: first})
                    self._said = replace(self._said, lost=self._said.lost + first - landed[partition])
            return {partition: max(landed[partition], ranges[partition][0]) for partition in partitions}

    def revoked(self, partitions: Sequence[int], lost: bool) -> None:
        """Land what was taken of partitions, unless another reads them already, and let go of them."""
        with self._working:
            try:
                if not lost:
                    self._land()
            finally:
                self._landing.drop([self._base + partition for partition in partitions])
                self._writer.forget()

    def handle(self, messages: Messages, reject: Reject = _UNKEPT) -> Bad:
        """Apply messages, and have them landed later. Those that were taken before are passed over; bad ones are
        rejected before the position moves past them. It waits while a store is away. `ConflictError` where another
        worker has taken over."""
        with self._working:
            for partition, first in messages.firsts.items():
                if self._base + partition not in self._landing.positions:
                    self._join(partition, first)
            bad = self._take(messages, reject)
            if self._deposed:
                raise ConflictError(self._deposed, hint="It begins again with what is its own")
            return bad

    def catch_up(self, ranges: Mapping[int, tuple[int, int]], reject: Reject) -> None:
        """Take of partitions what is there after what is landed, no more than a worker before this one may have taken
        and not landed. Bad messages are rejected that no worker is known to have rejected."""
        with self._working:
            known: dict[int, int] = {}
            for worker in self._streams.workers(self.source):
                for number, at in worker.positions.items():
                    known[number] = max(at, known.get(number, at))
            for partition, (first, end) in ranges.items():
                landed = self._patiently(lambda at={partition: first}: self._take_up(at, at))[partition]  # type: ignore[misc]
                end = min(end, landed + LAND_ROWS)
                told = max(min(end, known.get(self._base + partition, landed)), landed)
                self._fill(partition, landed, told, None)
                self._fill(partition, told, end, reject)

    def failing(self, error: FeatureStoreError | None, what: str = "taking") -> None:
        """What the worker waits for, to be seen in the status; None: nothing. Taking messages may go on while landing
        them does not."""
        if error:
            self._wrong[what] = error
        else:
            self._wrong.pop(what, None)

    def abandon(self) -> None:
        """End, and leave what was not landed to the next worker."""
        self._ended.set()
        for thread in self._beside:
            thread.join()

    def close(self) -> None:
        """Land what was taken, and leave."""
        self.abandon()
        with suppress(FeatureStoreError):
            self._land()
        with suppress(FeatureStoreError):
            self._streams.leave(self._said, self._told)

    # Taking messages

    def _take(self, messages: Messages, reject: Reject | None) -> Bad:
        """Without `reject` they were taken before, and counted, and the bad ones rejected."""
        positions = self._landing.positions
        numbers = messages.partitions + self._base
        taken = np.array([positions[part] for part in numbers.tolist()], np.int64)
        fresh = np.flatnonzero(messages.offsets >= taken)
        if not len(fresh):
            return ()
        part = messages if len(fresh) == len(messages) else messages.take(fresh)
        given, late, bad = self._patiently(lambda: self._apply(part))
        if reject:
            self._patiently(lambda: reject(part, bad))
            self._tell(given.events, late, len(bad))
        nexts = {self._base + partition: at for partition, at in part.nexts.items()}
        self._landing.add(given.events.table, given.partitions, given.offsets, nexts)
        if self._landing.rows >= LAND_ROWS:
            self._land_now.set()
        if self._landing.rows >= MOST_ROWS or self._landing.bytes >= MOST_BYTES:
            self._patiently(self._land)
        return [(int(fresh[at]), reason) for at, reason in bad]

    def _apply(self, messages: Messages) -> tuple[StreamEvents, int, list[tuple[int, str]]]:
        """Write the events among messages to the views as they are now; how many were late, what is wrong with the
        other messages."""
        self._look()
        now = self._clock()
        events, places, bad = self._events(messages, now)
        given = StreamEvents(events, messages.partitions[places] + self._base, messages.offsets[places])
        return given, self._writer.apply(self._views, given, now), bad

    def _events(self, messages: Messages, now: int) -> tuple[Events, Ints, list[tuple[int, str]]]:
        """The events among messages, which message each was, and what is wrong with the others."""
        assert self._decoder is not None and self._catalog is not None
        decoded = self._decoder.decode(messages.values, messages.produced, now)
        events = Events(self._catalog.rows[self.source], decoded.rows)
        places, bad = decoded.places, list(decoded.bad)
        if wrong := not_computable(events, self._views):
            bad += [(int(places[at]), reason) for at, reason in wrong.items()]
            good = np.setdiff1d(np.arange(len(places)), np.fromiter(wrong, np.int64))
            events, places = Events(events.rows, events.table.take(pa.array(good))), places[good]
        return events, places, sorted(bad)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do it, again and again while a store is away; then what is kept of the stores is read anew."""
        pause = _RETRY_S[0]
        while True:
            try:
                done = work()
            except StoreUnavailableError as error:
                self.failing(error)
                if self._stop.wait(pause):
                    raise
                pause = min(2 * pause, _RETRY_S[1])
                self._writer.forget()
            else:
                if pause > _RETRY_S[0]:
                    self.failing(None)
                return done

    def _join(self, partition: int, first: int) -> None:
        """Take up a partition that the engine gives from `first` on: what is not landed before that is read again."""
        start = self._patiently(lambda: self._take_up({partition: first}, {partition: first}))[partition]
        self._fill(partition, start, first, None)

    def _fill(self, partition: int, start: int, end: int, reject: Reject | None) -> None:
        """Take the messages between two offsets of a partition, as far as the topic still holds them."""
        if start < end:
            there = self._patiently(lambda: self._take_again(partition, start, end, reject))
            if there > start:
                self._said = replace(self._said, lost=self._said.lost + there - start)
            self._landing.skip({self._base + partition: end})

    def _take_again(self, partition: int, start: int, end: int, reject: Reject | None) -> int:
        """Take the messages between two offsets. Where those begin that the topic still holds."""
        assert self._read is not None
        there = end
        for messages in self._read(partition, start, end):
            there = min(there, messages.firsts.get(partition, end))
            self._take(messages, reject)
        return there

    def _take_up(self, starts: Mapping[int, int], of_topic: Mapping[int, int]) -> dict[int, int]:
        """Take up partitions at the end of the log, or at these offsets where it has not met one: those `of_topic`
        where it has not met the topic. Where that is."""
        schema = self._defined().rows[self.source].schema
        self._log.check(schema)
        base = self._log.base(self._topic)
        self._base = self._log.meet(schema, self._topic, of_topic) if base is None else base
        landed = self._landing.begin(schema, {self._base + partition: at for partition, at in starts.items()})
        self._writer.forget()
        self._look_again()
        return {partition: landed[self._base + partition] for partition in starts}

    def _tell(self, events: Events, late: int, bad: int) -> None:
        said, times = self._said, events.times
        newest = [at for at in (said.newest, int(times.max()) if len(times) else None) if at is not None]
        self._said = replace(
            said,
            events=said.events + len(events),
            late=said.late + late,
            bad=said.bad + bad,
            newest=max(newest, default=None),
        )

    # What changes meanwhile

    def _look(self) -> None:
        """See, every two seconds, whether definitions changed, and settle where views begin. While the registry is
        away, nobody can change them: it goes on by what it knows."""
        if time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            try:
                self.store.refresh()
                self._look_again()
            except StoreUnavailableError as error:
                self.failing(error, "looking")
            else:
                self.failing(None, "looking")

    def _look_again(self) -> None:
        catalog = self._defined()
        if catalog is not self._catalog:
            if self._catalog and self._catalog.rows[self.source] != catalog.rows[self.source]:
                self._land()  # rows of one schema in a commit
                self._log.check(catalog.rows[self.source].schema)
            self._decoder = decoder_of(self.store, self.source)
            self._catalog = catalog
        self._views = self.store.receivers(self.source)
        positions = self._landing.positions
        if positions and self._writer.settle(self._views, positions):
            self._land_now.set()  # batch waits for it
        self._looked_at = time.monotonic()
        self.failing(None, "looking")

    def _defined(self) -> Catalog:
        """The definitions as they are now; `NotFoundError` or `InvalidInputError` where the source reads no topic."""
        catalog = self.store.catalog
        catalog.kafka(self.source)
        return catalog

    def _run_landing(self) -> None:
        landed = compacted = time.monotonic()
        self._quietly(lambda: self._streams.sweep(self.source, STALE), "telling")
        while not self._ended.wait(0.2):
            if self._land_now.is_set() or time.monotonic() - landed > LAND_EVERY_S:
                self._land_now.clear()
                landed = time.monotonic()
                self._quietly(self._land, "landing")
            if time.monotonic() - compacted > COMPACT_EVERY_S:
                compacted = time.monotonic()
                self._quietly(self._compact, "compacting")

    def _run_beat(self) -> None:
        """Say how it goes, and look for changes where no messages come."""
        while True:
            positions = self._landing.positions  # first: what they are behind of is counted in what is said
            wrong = next(map(str, list(self._wrong.values())), None)
            said = replace(self._said, positions=positions, error=self._deposed or wrong)
            self._quietly(lambda said=said: self._beat(said), "telling")  # type: ignore[misc]
            if self._ended.wait(_BEAT_EVERY_S):
                return
            if time.monotonic() - self._looked_at > _LOOK_EVERY_S and self._working.acquire(timeout=0.1):
                try:
                    if self._landing.positions:
                        self._quietly(self._look_again, "looking")
                finally:
                    self._working.release()

    def _beat(self, said: StreamWorker) -> None:
        self._streams.beat(said, self._told)
        self._told = said

    def _quietly(self, work: Callable[[], object], what: str) -> None:
        try:
            work()
        except FeatureStoreError as error:
            self.failing(error, what)
        else:
            self.failing(None, what)

    def _land(self) -> None:
        """Commit what has gathered. Where another has moved the positions, this worker was taken for dead."""
        if self._deposed:
            return
        try:
            self._landing.land()
        except ConflictError as error:
            self._deposed = f"another worker has taken over: {error}"

    def _compact(self) -> None:
        leases = self.store.registry.leases
        if lease := leases.acquire(f"compact {self._log.table}", self.name, COMPACT_EVERY_S):
            try:
                self._log.compact()
            finally:
                leases.release(lease)
