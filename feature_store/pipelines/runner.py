"""Runs what is due, each view by one process at a time.

Any number of runners share a registry. Who runs a view holds its lease, and renews it; when it is killed, the lease
ends and another runner takes over. What became of the run is written under the lease's token, so that one that was
thought dead cannot overwrite what its successor wrote.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from feature_store.errors import ConflictError, FeatureStoreError, StoreUnavailableError
from feature_store.expressions.instants import to_datetime, to_iso
from feature_store.pipelines.due import Retries, Scheduled, scheduled
from feature_store.registry.leases import Heartbeat, this_holder
from feature_store.registry.records import Lease, Runs
from feature_store.store import FeatureStore

LEASE = "schedule "
"""The lease of a view's runs is called so, and the view."""


class Ended(StrEnum):
    """How a run ended."""

    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run: the instant the view was to be brought up to, rows written, or what went wrong."""

    view: str
    at: int
    ended: Ended
    rows: int = 0
    attempt: int = 1
    error: str | None = None
    retry_at: int | None = None

    def __str__(self) -> str:
        if self.ended is Ended.DONE:
            return f"{self.view}: up to {to_iso(self.at)}, {self.rows:,} rows"
        if self.ended is Ended.STOPPED:
            return f"{self.view}: stopped; the next run goes on where it was"
        again = f"again at {to_iso(self.retry_at)}" if self.retry_at else "not again before the next boundary"
        return f"{self.view}: attempt {self.attempt} failed, {again}: {self.error}"


class _Stop(Exception):  # noqa: N818 - it is no error
    """Raised between two steps of a run that shall end."""


@dataclass
class Runner:
    """Runs the views of a store that have a schedule; of `views` only, where these are given.

    `clock` gives the time in microseconds. `lease` seconds after its last sign of life a runner counts as dead.
    """

    store: FeatureStore
    views: Sequence[str] | None = None
    retries: Retries = field(default_factory=Retries)
    lease: float = 60.0
    clock: Callable[[], int] = lambda: time.time_ns() // 1000
    holder: str = field(default_factory=this_holder)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def scheduled(self) -> dict[str, Scheduled]:
        """What there is to run, by view, as it is applied now; `NotFoundError` for a view that is not there."""
        self.store.refresh()
        catalog = self.store.catalog
        for name in self.views or ():
            catalog.view(name)
        found = scheduled(catalog.views.values(), self.store.settings.timezone)
        return {name: item for name, item in found.items() if self.views is None or name in self.views}

    def due(self) -> list[str]:
        """The views that may be run now."""
        now = self.clock()
        found = []
        for item, runs in self._records():
            at = item.due(runs, now)
            if at is not None and self.retries.allow(runs, at, now):
                found.append(item.view)
        return found

    def _records(self) -> Iterator[tuple[Scheduled, Runs]]:
        """Every scheduled view, with what became of its runs."""
        items, runs = self.scheduled(), self.store.registry.runs.all()
        for name, item in items.items():
            yield item, self._of_version(runs.get(name, Runs(name)))

    def _of_version(self, runs: Runs) -> Runs:
        """What became of the runs of a view, as far as it holds for the version that is applied: one that is new, or
        whose tables were dropped, has everything before it."""
        progress = self.store.registry.progress(runs.view, self.store.catalog.views[runs.view].version)
        return runs if progress and progress.through is not None else replace(runs, through=None)

    def run_all(self) -> list[Outcome]:
        """Run every view that is due, once, one after the other, without waiting after earlier failures."""
        outcomes = (self.run(item, patient=False) for item in self.scheduled().values() if not self._stopped.is_set())
        return [outcome for outcome in outcomes if outcome is not None]

    def run(self, item: Scheduled, patient: bool = True) -> Outcome | None:
        """Run a view if it is due and nobody else does; a `patient` runner waits after failures as `retries` says."""
        registry = self.store.registry
        if item.due(self._of_version(registry.runs.get(item.view)), self.clock()) is None:
            return None
        lease = registry.leases.acquire(f"{LEASE}{item.view}", self.holder, self.lease)
        if lease is None:
            return None
        with Heartbeat(registry.leases, lease, self.lease) as beat:
            # Another may have run it before we had the lease.
            runs, now = self._of_version(registry.runs.get(item.view)), self.clock()
            at = item.due(runs, now)
            if at is None or (patient and not self.retries.allow(runs, at, now)):
                return None
            return self._attempt(item.view, at, runs, lease, beat)

    def stop(self) -> None:
        """End what runs after its present step, and begin nothing."""
        self._stopped.set()

    def _attempt(self, view: str, at: int, runs: Runs, lease: Lease, beat: Heartbeat) -> Outcome | None:
        attempt = runs.attempts + 1 if runs.trying == at else 1
        begun = replace(runs, trying=at, began=self.clock(), ended=None, holder=self.holder, attempts=attempt)

        def report(*_: Any) -> None:
            if self._stopped.is_set() or beat.lost:
                raise _Stop

        try:
            self._save(begun, lease)
            rows = self.store.materialize_incremental(to_datetime(at), [view], report)
            done = replace(begun, through=at, trying=None, ended=self.clock(), attempts=0, error=None, retry_at=None)
            self._save(done, lease)
            return Outcome(view, at, Ended.DONE, rows, attempt)
        except _Stop:
            self._save(replace(begun, ended=self.clock(), attempts=attempt - 1, retry_at=self.clock()), lease)
            return Outcome(view, at, Ended.STOPPED)
        except Exception as error:  # whatever it is: other views, and the next boundary, are to be run
            return self._failed(begun, at, error, lease)

    def _failed(self, begun: Runs, at: int, error: Exception, lease: Lease) -> Outcome:
        text = str(error) if isinstance(error, FeatureStoreError) else f"{type(error).__name__}: {error}"
        now = self.clock()
        retry_at = self.retries.next(begun.attempts, now)
        self._save(replace(begun, ended=now, error=text, retry_at=retry_at), lease)
        return Outcome(begun.view, at, Ended.FAILED, 0, begun.attempts, text, retry_at)

    def _save(self, runs: Runs, lease: Lease) -> None:
        """Write what became of a run, unless another runner has taken over or the registry is away: whatever was
        materialized is in the progress of the view, and the next runner goes on from there."""
        try:
            self.store.registry.runs.save(runs, lease)
        except (ConflictError, StoreUnavailableError):
            if runs.ended is None:
                raise

    def listing(self) -> list[dict[str, Any]]:
        """Every scheduled view: its schedule, what became of its runs, when it is due next, and who runs it now."""
        held = {lease.name: lease.holder for lease in self.store.registry.leases.all_held()}
        now = self.clock()
        return [
            _described(item, runs, self.retries, now, held.get(f"{LEASE}{item.view}")) for item, runs in self._records()
        ]


def _described(item: Scheduled, runs: Runs, retries: Retries, now: int, holder: str | None) -> dict[str, Any]:
    due = item.due(runs, now)
    upcoming = item.next(now)
    if due is not None:
        upcoming = now if retries.allow(runs, due, now) else runs.retry_at or upcoming
    return {
        "view": item.view,
        "schedule": item.schedule.every,
        "timezone": item.schedule.timezone,
        "through": _iso(runs.through),
        "next_run": _iso(upcoming),
        "last_began": _iso(runs.began),
        "last_ended": _iso(runs.ended),
        "attempts": runs.attempts,
        "error": runs.error,
        "running": holder,
    }


def _iso(at: int | None) -> str | None:
    return None if at is None else to_iso(at)
