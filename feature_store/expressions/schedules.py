"""The boundaries of a schedule: daily, hourly or by a cron line, on the clock of a time zone.

Across a change of the clock, cron lines behave as Debian's cron: a job at a fixed time that the clock skips runs
right after the gap, and one whose time comes twice runs once.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from functools import lru_cache
from itertools import takewhile
from zoneinfo import ZoneInfo

import numpy as np
from cronsim import CronSim, CronSimError
from numpy.typing import NDArray

from feature_store.errors import DefinitionError, InvalidInputError
from feature_store.expressions.instants import DAY, HOUR, SECOND, date_at, instant, start_of_day, to_datetime
from feature_store.expressions.relations import Schedule, ScheduledQuery

_ONE_DAY = timedelta(days=1)
_CLOCK_CHANGE = 3 * HOUR  # more than any zone ever moved its clock by, a change of date apart


def boundary(schedule: Schedule, at: int) -> int:
    """The last boundary <= `at`, in microseconds."""
    if schedule.every == "daily":
        return _midnight(schedule.timezone, at)
    for earlier in _cron(schedule, at + SECOND, backwards=True):
        found = boundaries(schedule, earlier - _CLOCK_CHANGE, at)
        if found:
            return found[-1]
    raise InvalidInputError(f'schedule "{schedule.every}" has no boundary before {to_datetime(at).isoformat()}')


def boundaries(schedule: Schedule, after: int, until: int) -> list[int]:
    """The boundaries b with `after` < b <= `until`, ascending."""
    if until <= after:
        return []
    if schedule.every == "daily":
        first, last = date_at(after, schedule.timezone), date_at(until, schedule.timezone)
        days = (first + _ONE_DAY * n for n in range((last - first).days + 1))
        found = {start_of_day(day, schedule.timezone) for day in days}
    else:
        # Started early: where the clock goes back, the start may be the second of two equal local times.
        runs = _cron(schedule, after - _CLOCK_CHANGE, backwards=False)
        found = set(takewhile(lambda run: run <= until, runs))
    return sorted(b for b in found if after < b <= until)


def next_boundary(schedule: Schedule, after: int) -> int | None:
    """The first boundary after an instant; None where none comes within eight years (29 February can be that far)."""
    for days in (2, 40, 400, 8 * 366):
        found = boundaries(schedule, after, after + days * DAY)
        if found:
            return found[0]
    return None


def boundary_array(schedule: Schedule, at: NDArray[np.int64]) -> NDArray[np.int64]:
    """`boundary` of each instant; the schedule is read once per UTC day among them."""
    if not len(at):
        return at.astype(np.int64)
    days = np.unique(at // DAY)
    known: set[int] = set()
    for day in days.tolist():
        known.update(_of_utc_day(schedule, day))
    ordered: NDArray[np.int64] = np.fromiter(sorted(known), np.int64, len(known))
    last: NDArray[np.int64] = ordered[np.searchsorted(ordered, at, side="right") - 1]
    return last


def valid_from(query: ScheduledQuery, day: date) -> int:
    """The instant from which the rows of `${date}` = `day` are valid: the start of the next day, plus the delay."""
    return start_of_day(day + _ONE_DAY, query.schedule.timezone) + query.delay


def date_valid_at(query: ScheduledQuery, at: int) -> date:
    """The newest `${date}` whose rows are valid at an instant."""
    return date_at(at - query.delay, query.schedule.timezone) - _ONE_DAY


@lru_cache(maxsize=4096)
def _of_utc_day(schedule: Schedule, day: int) -> tuple[int, ...]:
    """The boundaries within a UTC day, and the last one before it."""
    start = day * DAY
    return (boundary(schedule, start), *boundaries(schedule, start, start + DAY - 1))


def _midnight(timezone: str, at: int) -> int:
    day = date_at(at, timezone)
    found = start_of_day(day, timezone)
    while found > at:
        day -= _ONE_DAY
        found = start_of_day(day, timezone)
    return found


def _cron(schedule: Schedule, start: int, backwards: bool) -> Iterator[int]:
    """The runs of a cron line from an instant on, ascending, or descending."""
    line = "0 * * * *" if schedule.every == "hourly" else schedule.every
    local = to_datetime(start).astimezone(ZoneInfo(schedule.timezone))
    if len(line.split()) != 5:
        raise DefinitionError(f'schedule "{line}" is not daily, hourly or a cron line of five fields')
    try:
        runs = CronSim(line, local, reverse=backwards)
    except CronSimError as error:
        raise DefinitionError(
            f'schedule "{line}" is not a cron line: {error}',
            hint="Write minute, hour, day, month and weekday, for example 30 2 * * *",
        ) from None
    return map(instant, runs)
