"""Backfills: a range of a view's time written in chunks, several at a time, by any number of processes.

Each chunk that is written is recorded, with what the sources were when the backfill began. Killed and run again, it
goes on. Two at once share the record, begin at opposite ends and leave out what the other has done; a chunk that both
write is the same twice. Nothing newer is taken back: the store keeps the greatest event time of each key, and what
arrived in the sources meanwhile is read once more at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock

from feature_store.definitions.catalog import BoundView
from feature_store.engines.engine import Engine
from feature_store.errors import ConflictError
from feature_store.expressions.relations import LatestRow
from feature_store.materialization.batch import EPOCH, Materializer, Report, fingerprints, finish_between
from feature_store.materialization.chunks import chunks_between
from feature_store.materialization.rollout import filling
from feature_store.materialization.steps import SnapshotStep, Step, chunk_of
from feature_store.registry.leases import Heartbeat, this_holder
from feature_store.registry.records import Chunk, Filling, Progress
from feature_store.registry.registry import Registry

LEASE_S = 20.0
"""After so many seconds without a sign of life a backfill counts as dead."""

Notice = Callable[[str], object]
"""Called with a sentence that the user should read."""


@dataclass(frozen=True)
class Backfill:
    """Fills versions of views. `parallel` chunks are computed and written at a time."""

    materializer: Materializer
    registry: Registry
    parallel: int
    report: Report
    notice: Notice

    def run(self, bound: BoundView, engine: Engine, start: int, end: int) -> int:
        """Write [start, end]; the number of rows written by this call."""
        with self._announced(bound) as alone:
            bound, epoch = self.materializer.begin(bound)
            inputs = fingerprints(bound, engine)
            job = self._begin(bound, inputs | epoch)
            steps = chunks_between(bound, start, end, self.materializer.past(bound, epoch))
            rows = self._write(bound, engine, steps if alone else steps[::-1], job)
            kept = frozenset(step.at for step in steps if isinstance(step, SnapshotStep))
            self.materializer.save(bound, lambda p: _finish(p, start, end, dict(job.inputs), kept))
            self.registry.backfills.end(bound.name, bound.version)
            return rows + self._catch_up(bound, engine, end, job)

    @contextmanager
    def _announced(self, bound: BoundView) -> Iterator[bool]:
        """While it lasts, others can see that the version is being filled; whether nobody else is filling it."""
        name = filling(bound.name, bound.version)
        lease = self.registry.leases.acquire(name, this_holder(), LEASE_S)
        if lease is not None:
            with Heartbeat(self.registry.leases, lease, LEASE_S):
                yield True
            return
        other = self.registry.leases.held(name)
        self.notice(
            f'another backfill of "{bound.name}" seems to be under way{f" ({other.holder})" if other else ""}: '
            "both go on, each leaves out what the other has written"
        )
        yield False

    def _begin(self, bound: BoundView, inputs: dict[str, str]) -> Filling:
        """The record of a backfill that goes on, or a new one: over a store that has lost its rows nothing goes on."""
        while True:
            known = self.registry.backfills.get(bound.name, bound.version)
            if known is not None and known.inputs.get(EPOCH) == inputs[EPOCH]:
                return known
            new = Filling(bound.name, bound.version, inputs, revision=known.revision if known else 0)
            try:
                return self.registry.backfills.save(new)
            except ConflictError:
                continue

    def _write(self, bound: BoundView, engine: Engine, steps: Sequence[Step], job: Filling) -> int:
        tally = _Tally(self.report, bound.name, len(steps))
        tally.add(sum(chunk_of(step) in job.done for step in steps), 0)

        def do(step: Step) -> None:
            chunk = chunk_of(step)
            now = self.registry.backfills.get(bound.name, bound.version)
            rows = 0
            if now is None or chunk not in now.done:
                rows = self.materializer.step(bound, engine, step)
                self.materializer.check_epoch(bound, job.inputs[EPOCH])
                self._record(job, chunk)
            tally.add(1, rows)

        with ThreadPoolExecutor(self.parallel, thread_name_prefix="backfill") as pool:
            running = [pool.submit(do, step) for step in steps if chunk_of(step) not in job.done]
            try:
                done, _ = wait(running, return_when=FIRST_EXCEPTION)
                for each in done:
                    each.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return tally.rows

    def _record(self, job: Filling, chunk: Chunk) -> None:
        """Add a chunk to the record. Another backfill that ended has removed it: then it begins anew."""
        while True:
            now = self.registry.backfills.get(job.view, job.version) or replace(job, done=frozenset(), revision=0)
            try:
                self.registry.backfills.save(replace(now, done=now.done | {chunk}))
                return
            except ConflictError:
                continue

    def _catch_up(self, bound: BoundView, engine: Engine, end: int, job: Filling) -> int:
        """Load what came into the sources since the backfill began; the number of rows."""
        if fingerprints(bound, engine) == {name: mark for name, mark in job.inputs.items() if name != EPOCH}:
            return 0
        through = self.materializer.progress(bound).through or end
        return self.materializer.until(bound, engine, max(end, through))

    def look_before(self, bound: BoundView, engine: Engine) -> None:
        """Note that a version of latest rows holds all there is, where no row lies before the first one it holds."""
        progress, relation = self.materializer.progress(bound), bound.relation
        if not isinstance(relation, LatestRow) or progress.since is None:
            return
        if not engine.latest(relation, None, progress.since - 1).count():
            since = progress.since
            self.materializer.save(bound, lambda p: replace(p, since=None) if p.since == since else p)


class _Tally:
    """Counts what threads have done, and reports it."""

    def __init__(self, report: Report, view: str, total: int) -> None:
        self._report, self._view, self._total = report, view, total
        self._lock = Lock()
        self._done = 0
        self.rows = 0

    def add(self, chunks: int, rows: int) -> None:
        with self._lock:
            self._done += chunks
            self.rows += rows
            self._report(self._view, self._done, self._total, self.rows)


def _finish(progress: Progress, start: int, end: int, inputs: dict[str, str], kept: frozenset[int]) -> Progress:
    """After a backfill over inputs as they were when it began. Of newer ones that another run has read meanwhile a
    chunk may have taken back some: these count as unread again."""
    finished = finish_between(progress, start, end, inputs)
    same = {name: mark for name, mark in finished.inputs.items() if inputs.get(name) == mark}
    return replace(finished, inputs=same, snapshots=tuple(sorted({*progress.snapshots, *kept})))
