"""The boundary between batch and stream: of each partition of a topic, up to which offset batch fills a view online.

A stream that runs settles where it begins to fill a version of a view within seconds of knowing it; a partition that it
has had nothing from may be open longer, and begins where it ends. Where no stream runs, it is where the log ends. Batch
waits until the log has come as far, and leaves out what lies behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from feature_store.definitions.catalog import BoundView
from feature_store.definitions.tables import is_snapshot
from feature_store.errors import StoreUnavailableError
from feature_store.expressions.instants import SECOND
from feature_store.expressions.relations import LatestRow, ScheduledQuery, Windows
from feature_store.materialization.stream_log import StreamLog
from feature_store.registry.records import Claim
from feature_store.registry.streams import Streams

if TYPE_CHECKING:
    from feature_store.storage.offline import OfflineStore

SILENT = 15 * SECOND
"""A worker that was not heard of for so long is not counted on."""

_KNOWN_S = 6.0
"""After so long every worker knows of a view that is applied."""

_PATIENCE_S = 45.0
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Boundary:
    """Settles boundaries. They hold for one epoch of the online store."""

    streams: Streams
    offline: OfflineStore
    ranges: Callable[[str], Mapping[int, tuple[int, int]]]
    """The offsets that the topic of a source holds, from (the first) to (behind the last), by partition."""
    empty: Callable[[str, Mapping[int, tuple[int, int]]], set[int]]
    """Of ranges of offsets of that topic, by partition, those that hold no message."""

    def before(self, bound: BoundView, epoch: str) -> BoundView:
        """The view as batch is to compute it online: over what no stream counts. Waits, for 45 s at most, until it is
        settled and the log has come as far; `StoreUnavailableError` if that does not happen."""
        relation = bound.relation
        if isinstance(relation, ScheduledQuery) or is_snapshot(bound) or relation.rows.streamed is None:
            return bound
        claims = self._settled(bound, relation.rows.name, epoch)
        if isinstance(relation, LatestRow):
            return bound  # the latest row is the same whoever writes it
        before = tuple(sorted((partition, claim.begin) for partition, claim in claims.items()))
        return replace(bound, relation=replace(relation, rows=replace(relation.rows, before=before)))

    def _settled(self, bound: BoundView, source: str, epoch: str) -> Mapping[int, Claim]:
        """Where the stream begins, by partition. One that its log has not met begins where that will: where no stream
        was ever started, one that is started while batch computes counts all."""
        log = StreamLog(self.offline, source)
        began = time.monotonic()
        while True:
            known = self.streams.claims(bound.name, bound.version)
            claims = {partition: claim for partition, claim in known.items() if claim.holds(int(epoch))}
            reached = log.positions() | log.position_of(claims)
            open_ = {partition: at for partition, at in reached.items() if partition not in claims}
            if open_ and not self._runs(source):
                self.streams.claim(bound.name, bound.version, open_, epoch)
                continue
            if open_ and time.monotonic() - began > _KNOWN_S:
                ends = {partition: end for partition, (_, end) in self.ranges(source).items() if partition in open_}
                self.streams.claim(bound.name, bound.version, open_ | ends, epoch)
                continue
            if not open_ and self._has_come(source, reached, claims, time.monotonic() - began):
                return claims
            if time.monotonic() - began > _PATIENCE_S:
                raise StoreUnavailableError(
                    f'feature view "{bound.name}": the stream of source "{source}" has not said where it begins, or '
                    "what it read before is not in its log yet",
                    hint=f"See fs stream status; fs stream start {bound.name}, or stop, and run this again",
                )
            time.sleep(_LOOK_EVERY_S)

    def _has_come(self, source: str, reached: Mapping[int, int], claims: Mapping[int, Claim], waited: float) -> bool:
        """Whether the log holds what the topic does before the stream begins. Where nothing but markers of transactions
        is left it comes no further, which the topic is asked for after some seconds."""
        found = {part: (reached.get(part, 0), claim.begin) for part, claim in claims.items()}
        behind = {part: (at, begin) for part, (at, begin) in found.items() if at < begin}
        return not behind or (waited > _KNOWN_S and behind.keys() <= self.empty(source, behind))

    def _runs(self, source: str) -> bool:
        """Whether a worker may be writing, or is about to."""
        state = self.streams.get(source)
        wanted = state is not None and state.running
        return wanted or any(worker.silent < SILENT for worker in self.streams.workers(source))


def is_filled_by_stream(bound: BoundView) -> bool:
    """Whether what a stream fills of a view online nobody else does."""
    relation = bound.relation
    return isinstance(relation, Windows) and not is_snapshot(bound) and relation.rows.streamed is not None


def wait_for_workers(streams: Streams, applied: int | None = None) -> None:
    """Wait until workers go by what was applied at an instant (microseconds), now if it is not given: what they write
    of a view before that would stay where it is dropped."""
    if any(worker.silent < SILENT for source in streams.all() for worker in streams.workers(source)):
        # The clock of whoever applied may be wrong by any amount.
        left = _KNOWN_S if applied is None else _KNOWN_S - (time.time_ns() // 1000 - applied) / SECOND
        time.sleep(min(max(left, 0.0), _KNOWN_S))


def counted_by_batch(relation: LatestRow | Windows | ScheduledQuery, inputs: Mapping[str, str]) -> dict[str, str]:
    """Inputs without those whose rows are all the stream's: what comes into its log later is no news for batch, unless
    rows elsewhere may be the same events."""
    if isinstance(relation, ScheduledQuery) or relation.rows.before is None or relation.rows.unique:
        return dict(inputs)
    log = f"{relation.rows.streamed}/"
    return {name: mark for name, mark in inputs.items() if not name.startswith(log)}
