"""Batch runs: has the steps of a view computed and written online (and snapshots offline).

Every write is idempotent (the store keeps the greatest event time, tiles and snapshots are whole), and progress is
recorded only after the store acknowledged, so a run killed anywhere and run again ends in the same state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from feature_store.definitions.catalog import BoundView
from feature_store.definitions.tables import (
    VALID_FROM,
    is_snapshot,
    latest_table,
    marker_key,
    marker_table,
    snapshot_table,
    snapshots_path,
    tile_table,
)
from feature_store.engines.engine import Computed, Engine
from feature_store.errors import ConflictError, StoreUnavailableError
from feature_store.expressions.aggregates import tile_item
from feature_store.expressions.relations import LatestRow, ScheduledQuery, Windows
from feature_store.materialization.boundary import Boundary, counted_by_batch
from feature_store.materialization.epochs import begin_epoch
from feature_store.materialization.epochs import epoch as epoch_of_view
from feature_store.materialization.sinks import Address, OnlineSink, Stamp, timed
from feature_store.materialization.steps import (
    LatestStep,
    Past,
    SnapshotStep,
    Step,
    TileStep,
    chunk_of,
    steps_between,
    steps_until,
)
from feature_store.registry.records import Chunk, Progress
from feature_store.registry.registry import Registry
from feature_store.storage.online import OnlineStore, Row, Table

if TYPE_CHECKING:
    from feature_store.storage.hbase_snapshots import KeptSnapshot
    from feature_store.storage.offline import OfflineStore

Report = Callable[[str, int, int, int], None]
"""Called with (view, steps done, steps in all, rows written so far)."""

AddressOf = Callable[[str], Address]
"""Where the store of a table is, by the table's name."""

Change = Callable[[Progress], Progress]

_ATTEMPTS = 10
"""To keep a snapshot that another run keeps at the same time."""

EPOCH = "epoch of the online store"
"""Among the fingerprints of the inputs, because progress holds only where what was written still is."""

BOUNDARY = "boundary of the stream"
"""Among those of a run in flight: the rows before it are not all among the inputs."""


class Materializer:
    """Brings views' online values up to an instant."""

    def __init__(
        self,
        online: OnlineStore,
        offline: OfflineStore,
        registry: Registry,
        boundary: Boundary,
        address_of: AddressOf,
        report: Report | None,
    ) -> None:
        self._online = online
        self._address_of = address_of
        self._offline = offline
        self._registry = registry
        self._boundary = boundary
        self._report = report or (lambda view, done, total, rows: None)

    def between(self, bound: BoundView, engine: Engine, start: int, end: int) -> int:
        """Materialize [start, end], whatever was done before; the number of rows written."""
        bound, epoch = self.begin(bound)
        inputs = fingerprints(bound, engine)
        steps = steps_between(bound, start, end, self.past(bound, epoch))
        return self._run(bound, engine, steps, inputs | epoch, lambda p: finish_between(p, start, end, inputs | epoch))

    def until(self, bound: BoundView, engine: Engine, end: int) -> int:
        """Materialize what is new since the last run, late rows included; the number of rows written."""
        bound, epoch = self.begin(bound)
        inputs = fingerprints(bound, engine)
        past = self.past(bound, epoch)
        if past.through is not None and not past.lost:
            end = max(end, past.through)  # what is late of the time in between is read now or, being known then, never
        first = isinstance(bound.relation, LatestRow) and (past.through is None or past.lost)
        earliest = engine.earliest(bound.inputs[0]) if first else None
        steps = steps_until(bound, end, past, inputs, earliest)
        return self._run(bound, engine, steps, inputs | epoch, lambda p: _finish(p, end, inputs | epoch))

    def past(self, bound: BoundView, epoch: dict[str, str]) -> Past:
        """What earlier runs of a view did, as far as it is still in the store."""
        progress = self.progress(bound)
        marker = self._marker(bound) if is_snapshot(bound) else None
        published = marker.event_time if marker else None
        lost = is_lost(progress, epoch)
        inputs = {name: mark for name, mark in progress.inputs.items() if name != EPOCH}
        return Past(progress.through, inputs, frozenset(progress.snapshots), published, lost)

    def _run(
        self, bound: BoundView, engine: Engine, steps: tuple[Step, ...], inputs: dict[str, str], finish: Change
    ) -> int:
        running = inputs | _boundary(bound)
        finished = self._finished(bound, running)
        rows = 0
        self._report(bound.name, 0, len(steps), rows)
        for index, step in enumerate(steps):
            if chunk_of(step) not in finished:
                rows += self.step(bound, engine, step)
                self.check_epoch(bound, inputs[EPOCH])
                self.save(bound, lambda p, step=step: _with_step(p, step, running))  # type: ignore[misc]
            self._report(bound.name, index + 1, len(steps), rows)
        self.save(bound, finish)
        return rows

    def begin(self, bound: BoundView) -> tuple[BoundView, dict[str, str]]:
        """The view as batch computes it, without what a stream counts; and the store's epoch of the view, begun now if
        there is none, as a fingerprint among those of the inputs."""
        claims = self._registry.streams.claims(bound.name, bound.version)
        epoch = str(begin_epoch(self._online, bound, claims.values()))
        return self._boundary.before(bound, epoch), {EPOCH: epoch}

    def check_epoch(self, bound: BoundView, epoch: str) -> None:
        """`StoreUnavailableError` where the store has lost what was written since the epoch began."""
        began = epoch_of_view(self._online, bound)
        # Of two runs that begin an epoch at once the earlier time stays; an epoch after a loss is a later one.
        if began is None or began > int(epoch):
            raise StoreUnavailableError(
                f'the online store lost its rows while "{bound.name}" was written, as after a restart without a copy',
                hint="Run it again: it starts over",
            )

    def _finished(self, bound: BoundView, inputs: dict[str, str]) -> frozenset[Chunk]:
        """The marks of the steps that an interrupted run finished over the same inputs."""
        progress = self.progress(bound)
        if progress.done and progress.running == inputs:
            return frozenset(progress.done)
        if progress.done:
            self.save(bound, lambda p: replace(p, done=(), running={}))
        return frozenset()

    def step(self, bound: BoundView, engine: Engine, step: Step) -> int:
        """Do one step; the number of rows written, all of them acknowledged."""
        match step:
            case LatestStep():
                return self._write_latest(bound, engine, step)
            case TileStep():
                return self._write_tiles(bound, engine, step)
            case SnapshotStep():
                return self._write_snapshot(bound, engine, step)

    def _write_latest(self, bound: BoundView, engine: Engine, step: LatestStep) -> int:
        assert isinstance(bound.relation, LatestRow)
        rows = engine.latest(bound.relation, step.start, step.until, step.touched)
        return self._write(rows, self._sink(bound, latest_table(bound)))

    def _write_tiles(self, bound: BoundView, engine: Engine, step: TileStep) -> int:
        assert isinstance(bound.relation, Windows)
        rows = engine.tiles(bound.relation, step.level, step.start, step.until, step.touched)
        return self._write(rows, self._sink(bound, tile_table(bound, step.level), tile_item(step.keep_from)))

    def _write_snapshot(self, bound: BoundView, engine: Engine, step: SnapshotStep) -> int:
        """All rows first, then the marker: readers go over to the new snapshot in one step."""
        relation = bound.relation
        assert not isinstance(relation, LatestRow)
        rows = engine.snapshot(relation, step.at)
        kept = self._keep(bound, rows, step.at) if isinstance(relation, ScheduledQuery) else None
        current = self._marker(bound)
        if not step.publish or (current and current.event_time > step.at):
            return kept.count() if kept else 0
        return self._publish(bound, kept or rows, step.at, current)

    def _keep(self, bound: BoundView, rows: Computed, at: int) -> Computed | KeptSnapshot:
        """Keep a snapshot offline, and read it as it is kept: of two runs at once the later one's."""
        if snapshots := self._offline.elsewhere(snapshots_path(bound)):
            address = Address(snapshots.uri, snapshots.project, "")

            def write(run: int) -> int:
                return rows.write(OnlineSink(address, snapshots.table, None, Stamp(at, run), snapshots.store))

            return snapshots.keep(at, write)
        for attempt in range(_ATTEMPTS):
            try:
                return rows.save(self._offline, snapshots_path(bound), {VALID_FROM: str(at)})
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _publish(self, bound: BoundView, rows: Computed | KeptSnapshot, at: int, current: Row | None) -> int:
        generation = max(time.time_ns() // 1000, (current.values[0] + 1) if current else 0)
        keep_from = tile_item(current.values[0]) if current else None
        written = self._write(rows, self._sink(bound, snapshot_table(bound), keep_from, Stamp(at, generation)))
        markers = marker_table(bound)
        marker = pa.table([[name] for name in marker_key(bound)] + [[generation]], schema=markers.arrow)
        self._online.create(markers)
        self._online.write(markers, timed(marker, at, generation))
        return written

    def _marker(self, bound: BoundView) -> Row | None:
        row = self._online.read([(marker_table(bound), [marker_key(bound)])])[0][0]
        assert row is None or isinstance(row, Row)
        return row

    def _sink(
        self, bound: BoundView, table: Table, keep_from: bytes | None = None, stamp: Stamp | None = None
    ) -> OnlineSink:
        return OnlineSink(self._address_of(table.name), table, keep_from, stamp, self._online)

    def _write(self, rows: Computed | KeptSnapshot, sink: OnlineSink) -> int:
        self._online.create(sink.table)
        return rows.write(sink)

    def progress(self, bound: BoundView) -> Progress:
        """How far a version is materialized; an empty record where it never was."""
        return self._registry.progress(bound.name, bound.version) or Progress(bound.name, bound.version)

    def save(self, bound: BoundView, change: Change) -> None:
        """Fold a change into the view's progress; a concurrent run's change is kept, too."""
        while True:
            try:
                self._registry.save_progress(change(self.progress(bound)))
                return
            except ConflictError:
                continue


def fingerprints(bound: BoundView, engine: Engine) -> dict[str, str]:
    """Fingerprints of all inputs, taken before anything is read: what arrives meanwhile is new next time."""
    found = {name: mark for rows in bound.inputs for name, mark in engine.inputs(rows).items()}
    return counted_by_batch(bound.relation, found)


def _boundary(bound: BoundView) -> dict[str, str]:
    relation = bound.relation
    if isinstance(relation, ScheduledQuery) or relation.rows.before is None:
        return {}
    return {BOUNDARY: str(relation.rows.before)}


def _with_step(progress: Progress, step: Step, running: dict[str, str]) -> Progress:
    if isinstance(step, SnapshotStep):
        progress = replace(progress, snapshots=tuple(sorted({*progress.snapshots, step.at})))
    done = progress.done if progress.running == running else ()  # what another run did over other inputs is not done
    return replace(progress, done=tuple(sorted({*done, chunk_of(step)})), running=running)


def _finish(progress: Progress, end: int, inputs: dict[str, str]) -> Progress:
    if progress.through is None or is_lost(progress, inputs):
        return replace(progress, through=end, since=None, inputs=inputs, done=(), running={})
    return replace(progress, through=max(progress.through, end), inputs=inputs, done=(), running={})


def finish_between(progress: Progress, start: int, end: int, inputs: dict[str, str]) -> Progress:
    """After an explicit run. What lies before its start was not read: a gap, or late rows there, are still to come."""
    if progress.through is None or is_lost(progress, inputs):
        return replace(_finish(progress, end, inputs), since=start)
    if start > progress.through or (progress.since is not None and end < progress.since):
        return replace(progress, done=(), running={})
    since = None if progress.since is None else min(progress.since, start)
    return replace(progress, through=max(progress.through, end), since=since, done=(), running={})


def is_lost(progress: Progress, inputs: dict[str, str]) -> bool:
    """Whether what was written so far is not in the store any more."""
    return progress.inputs.get(EPOCH) != inputs[EPOCH]
