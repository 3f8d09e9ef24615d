"""When a view is to be brought up to date by its schedule, and when again after a failure. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from feature_store.definitions.catalog import BoundView
from feature_store.errors import InvalidInputError
from feature_store.expressions.instants import HOUR, SECOND
from feature_store.expressions.relations import LatestRow, Schedule, ScheduledQuery
from feature_store.expressions.schedules import boundary, next_boundary
from feature_store.registry.records import Runs

LONGEST_WAIT = HOUR


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A view that is brought up to each boundary of a schedule, `delay` (microseconds) after it."""

    view: str
    schedule: Schedule
    delay: int = 0

    def due(self, runs: Runs, now: int) -> int | None:
        """The newest instant that the view should be brought up to by now; None if it was.

        One run takes what was missed: all that is new up to there, every snapshot of a query in between."""
        try:
            newest = boundary(self.schedule, now - self.delay) + self.delay
        except InvalidInputError:  # it has not begun yet
            return None
        return newest if runs.through is None or newest > runs.through else None

    def next(self, now: int) -> int | None:
        """The next instant at which it is due."""
        found = next_boundary(self.schedule, now - self.delay)
        return None if found is None else found + self.delay


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and how long after each other (microseconds, doubled every time), one boundary is tried."""

    attempts: int = 5
    wait: int = 60 * SECOND

    def next(self, attempt: int, now: int) -> int | None:
        """When to try again after an attempt (1, 2, ...) failed; None: not before the next boundary."""
        if attempt >= self.attempts:
            return None
        return now + min(self.wait << (attempt - 1), LONGEST_WAIT)

    def allow(self, runs: Runs, due: int, now: int) -> bool:
        """Whether a boundary that is due may be tried now."""
        if runs.trying != due or runs.attempts == 0:
            return True
        if runs.ended is None:
            return runs.attempts < self.attempts  # whoever tried it was killed
        return runs.retry_at is not None and runs.retry_at <= now


def scheduled(views: Iterable[BoundView], timezone: str) -> dict[str, Scheduled]:
    """The views that are kept online and have a schedule, by name: those that say one, and windows over a source
    without a stream, which are daily."""
    found = {}
    for bound in views:
        relation = bound.relation
        schedule = None if isinstance(relation, LatestRow) else relation.schedule
        if schedule is None and bound.view.schedule:
            schedule = Schedule(bound.view.schedule, timezone)
        if schedule is not None and bound.view.online:
            delay = relation.delay if isinstance(relation, ScheduledQuery) else 0
            found[bound.name] = Scheduled(bound.name, schedule, delay)
    return found
