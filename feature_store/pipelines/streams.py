"""Streams of a store: started, stopped and looked at by anybody who shares its registry.

What is to run is in the registry; workers look there every second. A worker is a process of `fs stream start`, here or
wherever it is started, as many as the topic has partitions; with Flink a job that a cluster runs.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_store.definitions.catalog import BoundOnDemand
from feature_store.definitions.source import Source
from feature_store.errors import (
    ConflictError,
    FeatureStoreError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_store.expressions.instants import SECOND, to_iso
from feature_store.materialization.boundary import SILENT
from feature_store.materialization.stream_log import StreamLog
from feature_store.pipelines.stream_task import StreamTask
from feature_store.pipelines.topics import dead_letters_of, group_of
from feature_store.registry.leases import this_holder
from feature_store.registry.records import StreamState, StreamWorker
from feature_store.store import FeatureStore

if TYPE_CHECKING:
    from feature_store.engines.flink import Checkpoint
    from feature_store.engines.kafka import Topic
    from feature_store.pipelines.stream_jobs import FlinkStream

KAFKA, FLINK = "kafka", "flink"
LATEST = "latest"

_LOOK_EVERY_S = 0.5
_RUNNING = "RUNNING"
_JOB_EVERY_S = 5.0
_START_S, _STOP_S = 120.0, 120.0
_HEARD = 4 * SECOND
"""A worker says each second that it lives: one that was killed is not taken for one that runs."""

Notice = Callable[[str], object]
Failing = Callable[[FeatureStoreError | None], None]


@dataclass(frozen=True)
class Streams:
    """The streams of a store. `notice` takes what people should know of meanwhile."""

    store: FeatureStore
    notice: Notice = lambda text: None

    def sources(self, names: Sequence[str] = ()) -> list[str]:
        """The sources that read a topic: all, or those of these views (or sources). `InvalidInputError` where one reads
        none, `NotFoundError` where there is none of a name."""
        self.store.refresh()
        catalog = self.store.catalog
        if not names:
            return [name for name, source in catalog.sources.items() if source.stream and source.stream.kafka]
        found: dict[str, None] = {}
        for name in names:
            if name in catalog.sources:
                inputs = [name]
            else:
                view = catalog.view(name)
                if isinstance(view, BoundOnDemand):
                    raise NotFoundError(f'"{name}" is an on-demand view: no stream fills it', code="VIEW_NOT_FOUND")
                inputs = [rows.name for rows in view.inputs]
            for source in inputs:
                self.store.catalog.kafka(source)
                found[source] = None
        return list(found)

    def started(self, names: Sequence[str] = ()) -> list[str]:
        """As `sources`, and those that read a topic no more while their stream still runs."""
        reading = self.sources()
        gone = [name for name in self.store.registry.streams.all() if name not in reading and self._runs(name)]
        others = [name for name in names if name not in gone]
        of_names = self.sources(others) if others else [] if names else reading
        return of_names + [name for name in gone if name in names or not names]

    # Start and stop

    def want(self, source: str, running: bool, start: str | None = None) -> StreamState:
        """Say in the registry that a stream is to run, or not. `ConflictError` where it runs on another engine than is
        wanted now."""
        streams = self.store.registry.streams
        while True:
            known = streams.get(source) or StreamState(source, self.engine_of(source), False)
            if running and known.engine != self.engine_of(source) and self._runs(source):
                raise ConflictError(
                    f'the stream of "{source}" runs with engine {known.engine}, and is to run with '
                    f"{self.engine_of(source)} now",
                    hint=f"Run: fs stream stop {source}; fs stream start {source}",
                )
            wanted = replace(
                known,
                running=running,
                engine=self.engine_of(source) if running else known.engine,
                start=start or known.start,
                since=known.since if known.running == running else time.time_ns() // 1000,
            )
            if wanted == known:
                return known
            try:
                return streams.save(wanted)
            except ConflictError:
                continue

    def engine_of(self, source: str) -> str:
        """What reads the topic of a source: what its definition says, or Flink where the settings name one."""
        stream = self.store.catalog.definition(Source, source).stream
        named = stream.engine if stream else None
        return named or (FLINK if FLINK in self.store.settings.engines else KAFKA)

    def check(self, source: str, start: str | None = None) -> None:
        """`FeatureStoreError` where the topic is not there or may not be used, rows do not fit those read before, or it
        is another topic than was read before: unless `start` says where to begin in it. Makes that of dead letters."""
        topic, log = self.store.topic(source), StreamLog(self.store.offline_store, source)
        log.check(self.store.catalog.rows[source].schema)
        partitions = topic.check()
        topic.check_group(group_of(self.store, source))
        dead_letters_of(self.store, source).create(partitions)
        if start is None:
            log.base(topic.identity)
        else:
            starts = {
                partition: end if start == LATEST else first for partition, (first, end) in topic.ranges().items()
            }
            log.meet(self.store.catalog.rows[source].schema, topic.identity, starts)

    def start(self, source: str, start: str | None = None) -> None:
        """Have a stream run in the background: in a process of its own here, or as a job of a Flink cluster, where the
        settings name one. Returns when it works; nothing happens where it runs already."""
        self.check(source, start)
        state = self.want(source, True, start)
        if state.engine == FLINK and not self._flink(source).is_embedded:
            job = self._flink(source).start()
            self.notice(f'the stream of "{source}" is job {job} of {self._flink(source).jobs.address}')
        elif any(worker.silent < _HEARD for worker in self._alive(source)) or self._job_runs(source):
            self.notice(f'the stream of "{source}" runs already')
        else:
            self._spawn(source)

    def stop(self, source: str) -> None:
        """Have a stream end, and wait until it has; what it took is stored and landed then."""
        state = self.want(source, False)
        if state.engine == FLINK and not self._flink(source).is_embedded:
            self._end_job(self._flink(source))
        deadline = time.monotonic() + _STOP_S
        while alive := self._alive(source):
            if time.monotonic() > deadline:
                names = ", ".join(worker.name for worker in alive)
                raise StoreUnavailableError(
                    f'the stream of "{source}" has not ended within {_STOP_S:.0f} s: {names}',
                    hint="fs stream status says what it waits for",
                )
            time.sleep(_LOOK_EVERY_S)
        if state.engine == FLINK:
            self._flink(source).land()
        self.store.registry.streams.sweep(source, SILENT)

    def _flink(self, source: str) -> FlinkStream:
        from feature_store.pipelines.stream_jobs import FlinkStream  # what few repos need

        return FlinkStream(self.store, source)

    def _runs(self, source: str) -> bool:
        """Whether it is to run, or a worker is still there."""
        state = self.store.registry.streams.get(source)
        return bool((state and state.running) or self._alive(source))

    def _alive(self, source: str) -> list[StreamWorker]:
        return [worker for worker in self.store.registry.streams.workers(source) if worker.silent < SILENT]

    def _spawn(self, source: str) -> None:
        log = self.store.root / "data" / "streams" / f"{source}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        before = {worker.name for worker in self._alive(source)}
        command = [sys.executable, "-m", "feature_store.cli", "stream", "start", source, "--foreground"]
        place = ["-c", str(self.store.root), "-f", str(self.store.repository.settings_file)]
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*command, *place], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + _START_S
        while all(worker.name in before for worker in self._alive(source)) and not self._job_runs(source):
            if process.poll() is not None or time.monotonic() > deadline:
                raise StoreUnavailableError(
                    f'the stream of "{source}" did not start: {_last_line(log)}', hint=f"Its log is in {log}"
                )
            time.sleep(0.1)
        self.notice(f'the stream of "{source}" runs as process {process.pid}; its log is in {log}')

    def _job_runs(self, source: str) -> bool:
        """Whether it is a job of Flink that runs: its workers begin with the first message."""
        state = self.store.registry.streams.get(source)
        job = self._flink(source).status() if state and state.engine == FLINK else None
        return job is not None and job.state == _RUNNING

    # Work

    def work(self, sources: Sequence[str], stop: threading.Event) -> None:
        """Be a worker of streams until told to stop, or until they are stopped. What ends one of them unexpectedly ends
        all, and is raised: whoever started this process can start it again."""
        failed: list[Exception] = []

        def work(source: str) -> None:
            try:
                self._work(source, stop)
            except Exception as error:
                failed.append(error)
                stop.set()

        threads = [
            threading.Thread(target=work, args=(source,), name=f"worker {source}", daemon=True) for source in sources
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # a wait without end would keep signals waiting, too
                thread.join(0.2)
        if failed:
            raise failed[0]

    def _work(self, source: str, stop: threading.Event) -> None:
        state = self.store.registry.streams.get(source)
        ended, said = threading.Event(), list[str]()
        watch = threading.Thread(target=self._watch, args=(source, stop, ended), daemon=True)
        watch.start()

        def failing(error: FeatureStoreError | None) -> None:
            if error and [str(error)] != said:
                self.notice(f"{source}: {error}")
            said[:] = [str(error)] if error else []

        try:
            if state is not None and state.engine == FLINK:
                self._run_job(source, ended, failing)
            else:
                self._consume(source, ended, failing, latest=state is not None and state.start == LATEST)
        finally:
            ended.set()
            watch.join()

    def _consume(self, source: str, ended: threading.Event, failing: Failing, latest: bool) -> None:
        from feature_store.engines.kafka import ConsumerGroup

        task = StreamTask(self.store, source, this_holder(), latest, stop=ended)

        def topics() -> tuple[Topic, Topic]:
            return self.store.topic(source), dead_letters_of(self.store, source)

        def tell(error: FeatureStoreError | None) -> None:
            task.failing(error)
            failing(error)

        try:
            ConsumerGroup(topics, group_of(self.store, source), task).run(ended, tell)
        finally:
            task.close()

    def _run_job(self, source: str, ended: threading.Event, failing: Failing) -> None:
        """See to it that a stream's job runs: embedded here, or in a cluster, which may lose it. An embedded one ends
        with a savepoint; one of a cluster goes on without us, unless the stream is stopped."""
        stream = self._flink(source)
        try:
            while not ended.is_set():
                try:
                    if not (stream.runs and stream.is_current):
                        self.notice(f"{source}: job {stream.start()} runs")
                    failing(None)
                except FeatureStoreError as error:
                    failing(error)
                ended.wait(_JOB_EVERY_S)
            if stream.is_embedded:
                self._end_job(stream)
                self._wait_for_workers(source)
                stream.land()
        finally:
            stream.close()

    def _end_job(self, stream: FlinkStream) -> None:
        if reason := stream.stop():
            self.notice(f"{stream.source}: its job was cancelled, and goes on from its newest checkpoint: {reason}")

    def _wait_for_workers(self, source: str) -> None:
        """Until the workers of a job that ended have landed what they took: Flink does not wait for them."""
        deadline = time.monotonic() + SILENT / SECOND
        while self._alive(source) and time.monotonic() < deadline:
            time.sleep(0.1)

    def _watch(self, source: str, stop: threading.Event, ended: threading.Event) -> None:
        """End a worker when it is told to stop, or its stream is stopped."""
        while not ended.wait(_LOOK_EVERY_S):
            wanted = True
            with suppress(FeatureStoreError):  # while the registry is away, it goes on
                state = self.store.registry.streams.get(source)
                wanted = state is not None and state.running
            if stop.is_set() or not wanted:
                ended.set()

    # Look

    def status(self, sources: Sequence[str]) -> list[dict[str, Any]]:
        """A dict for each stream: what it does, how far behind it is, what it counted."""
        return [self._status(source) for source in sources]

    def _status(self, source: str) -> dict[str, Any]:
        streams = self.store.registry.streams
        state, workers = streams.get(source), streams.workers(source)
        alive = [worker for worker in workers if worker.silent < SILENT]
        errors = [worker.error for worker in alive if worker.error]
        lag = seconds = None
        try:
            lag, seconds = self._lag(source, alive)
        except FeatureStoreError as error:
            errors.append(str(error))
        reads = source in self.sources()
        job = self._flink(source).status() if state and state.engine == FLINK else None
        if job is not None and job.error and job.state != _RUNNING:
            errors.append(job.error)
        newest = max((worker.newest for worker in workers if worker.newest is not None), default=None)
        return {
            "source": source,
            "topic": self.store.catalog.kafka(source).topic if reads else None,
            "views": [view.name for view in self.store.receivers(source)] if reads else [],
            "engine": state.engine if state else self.engine_of(source),
            "state": _state(state, bool(alive) or (job is not None and job.state == _RUNNING), errors),
            "workers": len(alive),
            "lag_events": lag,
            "lag_seconds": seconds,
            "newest_event": None if newest is None else to_iso(newest),
            **streams.counts(source),
            "error": errors[0] if errors else None,
            "job": state.job.get("id") if job and state else None,
            "job_state": job.state if job else None,
            "restarts": job.restarts if job else None,
            "last_failure": job.error if job else None,
            "checkpoints": job.completed_checkpoints if job else None,
            "failed_checkpoints": job.failed_checkpoints if job else None,
            "checkpoint": _shown(job.checkpoint) if job else None,
        }

    def _lag(self, source: str, alive: Sequence[StreamWorker]) -> tuple[int, float | None]:
        """Messages of the topic that wait, behind what workers took, or else behind the log; and for how long the first
        of them has waited, in seconds, None where it could not be read in time."""
        topic, log = self.store.topic(source), StreamLog(self.store.offline_store, source)
        ranges, base = topic.ranges(), log.base(topic.identity)
        reached = {} if base is None else log.position_of([base + partition for partition in ranges])
        for worker in alive if base is not None else ():
            reached |= {partition: max(at, reached.get(partition, 0)) for partition, at in worker.positions.items()}
        nexts = {part: max(reached.get((base or 0) + part, first), first) for part, (first, _) in ranges.items()}
        behind = {part: (at, ranges[part][1]) for part, at in nexts.items() if at < ranges[part][1]}
        oldest = topic.oldest(behind) if behind else {}
        if not oldest:
            return 0, 0.0
        waiting = sum(end - at for part, (at, end) in behind.items() if part in oldest)
        first = min((at for at in oldest.values() if at is not None), default=None)
        return waiting, None if first is None else round(max(time.time() - first / SECOND, 0.0), 3)

    # A view's past

    def bootstrap(self, view: str, again: bool = False, progress: Any = None) -> int:
        """Fill a view online with what lies before where its stream begins, while that runs; the number of rows. With
        `again` what is there of it goes first: `InvalidInputError` where a stream may be writing it. It is served when
        this returns."""
        bound = self.store.catalog.view(view)
        if isinstance(bound, BoundOnDemand) or not any(rows.streamed for rows in bound.inputs):
            raise InvalidInputError(
                f'feature view "{view}" is of no source with stream: {{kafka: ...}}', hint="Use fs backfill"
            )
        if again:
            for source in self.sources([view]):
                self._check_ended(source, view)
            self.store.clear_online(view)
        return self.store.materialize_incremental(time.time_ns() // 1000, [view], progress)

    def _check_ended(self, source: str, view: str) -> None:
        """What a worker writes while rows are dropped would stay, and count twice."""
        if self._runs(source):
            raise InvalidInputError(
                f'the stream of "{source}" runs: what is online of "{view}" cannot be dropped under it',
                hint=f"Run: fs stream stop {source}; fs stream bootstrap {view} --again; fs stream start {source}",
            )


def _state(state: StreamState | None, works: bool, errors: Sequence[str]) -> str:
    if state is None or not state.running:
        return "stopping" if works else "stopped"
    if not works:
        return "no worker"
    return "failing" if errors else "running"


def _shown(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    if checkpoint is None:
        return None
    at = checkpoint.at.isoformat()
    return {"at": at, "milliseconds": checkpoint.milliseconds, "bytes": checkpoint.size, "path": checkpoint.path}


def _last_line(log: Path) -> str:
    with suppress(OSError, StopIteration):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.strip() for line in reversed(lines) if line.strip())
    return "it said nothing"
