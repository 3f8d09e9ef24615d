from __future__ import annotations

from datetime import UTC, date, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.errors import DefinitionError
from feature_store.expressions.instants import DAY, HOUR, MINUTE, instant, start_of_day
from feature_store.expressions.relations import Schedule, ScheduledQuery
from feature_store.expressions.schedules import boundaries, boundary, boundary_array, date_valid_at, valid_from
from feature_store.types import INT64, Schema

SCHEDULES = [
    Schedule("daily"),
    Schedule("daily", "Europe/Berlin"),
    Schedule("daily", "America/Sao_Paulo"),
    Schedule("daily", "America/Havana"),
    Schedule("hourly", "Asia/Kolkata"),
    Schedule("hourly", "America/New_York"),
    Schedule("30 2 * * *", "Europe/Berlin"),
    Schedule("*/20 * * * *", "Europe/Berlin"),
    Schedule("15 4 1 * *"),
    Schedule("0 6 * * MON", "Asia/Tokyo"),
]


def at(text: str) -> int:
    return instant(text)


def test_daily_is_midnight_on_the_clock_of_the_zone() -> None:
    berlin = Schedule("daily", "Europe/Berlin")
    assert boundary(berlin, at("2026-03-29T12:00:00Z")) == at("2026-03-28T23:00:00Z")
    assert boundary(berlin, at("2026-03-29T22:00:00Z")) == at("2026-03-29T22:00:00Z"), "summer time since that day"
    assert boundary(berlin, at("2026-03-29T21:59:59Z")) == at("2026-03-28T23:00:00Z")
    days = boundaries(berlin, at("2026-10-24T00:00:00Z"), at("2026-10-27T00:00:00Z"))
    assert [b - a for a, b in pairwise(days)] == [25 * HOUR, 24 * HOUR]


def test_a_midnight_that_the_clock_skips_is_the_end_of_the_gap() -> None:
    sao_paulo = Schedule("daily", "America/Sao_Paulo")
    assert boundary(sao_paulo, at("2018-11-04T12:00:00Z")) == at("2018-11-04T03:00:00Z")
    apia = Schedule("daily", "Pacific/Apia")
    assert boundaries(apia, at("2011-12-29T12:00:00Z"), at("2011-12-31T12:00:00Z")) == [
        at("2011-12-30T10:00:00Z"), at("2011-12-31T10:00:00Z"),
    ]  # fmt: skip


def test_bounds_of_boundaries_are_open_then_closed() -> None:
    daily = Schedule("daily")
    assert boundaries(daily, 0, 2 * DAY) == [DAY, 2 * DAY]
    assert boundaries(daily, 2 * DAY, 2 * DAY) == []
    assert boundaries(daily, 0, DAY - 1) == []


def test_cron_lines_cross_changes_of_the_clock_once() -> None:
    nightly = Schedule("30 2 * * *", "Europe/Berlin")
    spring = boundaries(nightly, at("2026-03-28T12:00:00Z"), at("2026-03-30T12:00:00Z"))
    assert spring == [at("2026-03-29T01:00:00Z"), at("2026-03-30T00:30:00Z")]
    autumn = boundaries(nightly, at("2026-10-24T12:00:00Z"), at("2026-10-26T12:00:00Z"))
    assert autumn == [at("2026-10-25T00:30:00Z"), at("2026-10-26T01:30:00Z")]
    assert boundary(Schedule("hourly", "Asia/Kolkata"), at("2026-01-01T00:10:00Z")) == at("2025-12-31T23:30:00Z")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(at("2018-01-01"), at("2027-12-31")), st.integers(0, 40))
def test_the_ways_to_ask_agree(schedule: Schedule, start: int, hours: int) -> None:
    until = start + hours * HOUR
    last = boundary(schedule, until)
    assert last <= until
    found = boundaries(schedule, last - 1, until)
    assert found == [last], "the last one, and none after it"
    assert boundaries(schedule, start, until) == [b for b in boundaries(schedule, start - DAY, until) if b > start]
    times = np.array([until, start, until - MINUTE, start], np.int64)
    assert boundary_array(schedule, times).tolist() == [boundary(schedule, time) for time in times.tolist()]


def test_an_array_of_none() -> None:
    assert boundary_array(Schedule("daily"), np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("line", ["61 * * * *", "* * *", "0 0 31 2 *", "* * * * * *"])
def test_a_wrong_cron_line_is_refused(line: str) -> None:
    with pytest.raises(DefinitionError, match="schedule"):
        boundary(Schedule(line), 0)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/Sao_Paulo", "America/Havana"])
@pytest.mark.parametrize("delay", [0, 6 * HOUR, 2 * DAY])
def test_rows_of_a_date_are_valid_from_the_next_day_on(zone: str, delay: int) -> None:
    query = ScheduledQuery("SELECT 1", (), Schema.of(k=INT64), (), Schedule("daily", zone), delay)
    for day in (date(2026, 11, 23), date(2018, 11, 3), date(2018, 2, 17), date(2026, 10, 31)):
        start = valid_from(query, day)
        following = date.fromordinal(day.toordinal() + 1)
        assert start == start_of_day(following, zone) + delay
        assert date_valid_at(query, start) == day
        assert date_valid_at(query, start - 1) < day
    utc = datetime(2026, 11, 24, tzinfo=UTC)
    shanghai = ScheduledQuery("SELECT 1", (), Schema.of(k=INT64), (), Schedule("daily", "Asia/Shanghai"))
    assert valid_from(shanghai, date(2026, 11, 23)) == instant(utc) - 8 * HOUR
