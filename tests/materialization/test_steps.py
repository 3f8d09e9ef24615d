"""What a run does, as data."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from feature_store.expressions.instants import DAY, HOUR, MINUTE
from feature_store.expressions.relations import LatestRow, Rows, Schedule, ScheduledQuery, Window, Windows
from feature_store.materialization.steps import (
    LatestStep,
    Past,
    SnapshotStep,
    TileStep,
    changed_inputs,
    chunk_of,
    chunks,
    newest_boundary,
    steps_between,
    steps_until,
)
from feature_store.types import INT64, Schema

ROWS = Rows("events", Schema.of(user_id=INT64), path="/events", timestamp="at")
KEYS = Schema.of(user_id=INT64)
T = 20_000 * DAY + 5 * HOUR


@dataclass(frozen=True)
class View:
    """As much of a bound view as planning reads."""

    relation: Any


def windows(schedule: Schedule | None) -> Any:
    hour = Window("c1h", "count", INT64, HOUR, 5 * MINUTE)
    week = Window("c7d", "count", INT64, 7 * DAY, HOUR)
    return View(Windows(ROWS, KEYS, (hour, week), schedule))


def latest(ttl: int | None = None) -> Any:
    return View(LatestRow(ROWS, KEYS, (), ttl))


def query(delay: int = 0) -> Any:
    return View(ScheduledQuery("SELECT 1", (ROWS,), KEYS, (), Schedule("daily"), delay))


def test_an_explicit_run_covers_its_range_in_adjoining_chunks() -> None:
    steps = steps_between(latest(), T, T + 400 * DAY)
    assert steps[0] == LatestStep(T, T + 30 * DAY)
    assert steps[-1].until == T + 400 * DAY
    assert all(earlier.until == later.start for earlier, later in pairwise(steps))


@pytest.mark.parametrize("days", [0, 1, 29, 30, 31, 10_000])
def test_chunks_are_few_and_cover_everything(days: int) -> None:
    found = chunks(T, T + days * DAY)
    assert found[0][0] == T
    assert found[-1][1] == T + days * DAY
    assert 1 <= len(found) <= 17


def test_tiles_that_no_window_can_reach_are_not_computed() -> None:
    hour, week, days = steps_between(windows(None), 0, T)
    assert hour == TileStep(5 * MINUTE, T - HOUR, T, T - HOUR)
    assert week == TileStep(HOUR, T - 7 * DAY, T, T - 7 * DAY)
    midnight = T // DAY * DAY
    assert days == TileStep(DAY, midnight - 7 * DAY, T, midnight - 7 * DAY)


def test_the_first_incremental_run_loads_everything() -> None:
    """Rows beyond the ttl as well: their keys are OUTSIDE_MAX_AGE, online as in history."""
    assert steps_until(latest(ttl=DAY), T, Past(), {"a": "1"}) == (LatestStep(None, T),)


@pytest.mark.parametrize("days", [0, 1, 59, 60, 200, 400, 5_000])
def test_the_first_incremental_run_is_parted_by_time(days: int) -> None:
    """Whatever lies before the first row that is known of is in the first part."""
    steps: Any = steps_until(latest(), T, Past(), {"a": "1"}, T - days * DAY - 1)
    assert (steps[0].start, steps[-1].until) == (None, T)
    assert all(earlier.until + 1 == later.start for earlier, later in pairwise(steps))
    assert len(steps) == 1 if days < 60 else 2 <= len(steps) <= 17
    again = steps_until(latest(), T + DAY, Past(), {"a": "1"}, T - days * DAY - 1)
    assert {*map(chunk_of, steps[:-1])} <= {*map(chunk_of, again)}, "a later now finds what was done"


def test_an_incremental_run_after_a_long_time_is_parted_too() -> None:
    steps: Any = steps_until(latest(), T + 200 * DAY, Past(T, {"a": "1"}), {"a": "1"})
    assert (steps[0].start, steps[-1].until) == (T, T + 200 * DAY)
    assert len(steps) > 5
    assert all(earlier.until + 1 == later.start for earlier, later in pairwise(steps))


@pytest.mark.parametrize("past", [None, Past()])
def test_tiles_of_long_windows_are_parted_by_time(past: Past | None) -> None:
    """Each tile belongs to one part: it is written once, and whole."""
    year = View(
        Windows(
            ROWS,
            KEYS,
            (Window("c1h", "count", INT64, HOUR, 5 * MINUTE), Window("c400d", "count", INT64, 400 * DAY, DAY)),
        )
    )
    steps: Any = steps_between(year, T - DAY, T) if past is None else steps_until(year, T, past, {"a": "1"})
    hour, *days = (step for step in steps if step.level in (5 * MINUTE, DAY))
    assert hour == TileStep(5 * MINUTE, T - HOUR, T, T - HOUR)
    assert 10 < len(days) <= 17
    assert days[0].start == days[0].keep_from == T // DAY * DAY - 400 * DAY
    assert days[-1].until == T
    assert all(one.until == two.start and two.start % DAY == 0 for one, two in pairwise(days))
    assert {step.keep_from for step in days} == {days[0].keep_from}


def test_every_step_of_a_run_is_told_from_the_others() -> None:
    past, inputs = Past(T - 100 * DAY, {"a": "1"}), {"a": "1", "late": "1"}
    for view in (latest(), windows(None)):
        steps = steps_until(view, T, past, inputs)
        assert any(step.touched for step in steps)  # type: ignore[union-attr]
        assert len({*map(chunk_of, steps)}) == len(steps)
        other = steps_until(view, T, past, {"a": "1", "later": "1"})
        differ = {*map(chunk_of, steps)} ^ {*map(chunk_of, other)}
        touching = [step for step in (*steps, *other) if step.touched]  # type: ignore[union-attr]
        assert differ == {*map(chunk_of, touching)}, "keys of other inputs are not those that were loaded"


def test_an_incremental_run_loads_new_time_and_the_keys_of_changed_inputs() -> None:
    past = Past(T, {"a": "1", "b": "1"})
    steps = steps_until(latest(), T + DAY, past, {"a": "1", "b": "2", "c": "1"})
    assert steps == (LatestStep(T, T + DAY), LatestStep(None, T + DAY, frozenset({"b", "c"})))
    assert steps_until(latest(), T, past, {"a": "1", "b": "1"}) == ()


def test_late_rows_without_new_time_are_loaded_too() -> None:
    past = Past(T, {"a": "1"})
    steps = steps_until(windows(None), T, past, {"a": "1", "late": "1"})
    assert TileStep(HOUR, T - 7 * DAY, T, T - 7 * DAY, frozenset({"late"})) in steps


def test_only_the_newest_window_snapshot_is_taken() -> None:
    day = T - 5 * HOUR
    assert steps_between(windows(Schedule("daily")), 0, T) == (SnapshotStep(day, publish=True),)
    taken = Past(T, {"a": "1"}, published=day)
    assert steps_until(windows(Schedule("daily")), T + HOUR, taken, {"a": "1"}) == ()
    assert steps_until(windows(Schedule("daily")), T + HOUR, taken, {"a": "2"}) == (SnapshotStep(day, publish=True),)
    assert steps_until(windows(Schedule("daily")), T + HOUR, taken, {}) == (SnapshotStep(day, publish=True),)


def test_every_snapshot_of_a_query_is_kept_and_the_newest_published() -> None:
    day = T - 5 * HOUR
    steps = steps_between(query(), T - 2 * DAY, T)
    assert steps == (SnapshotStep(day - DAY, publish=False), SnapshotStep(day, publish=True))


def test_a_delay_moves_the_start_of_validity() -> None:
    day = T - 5 * HOUR
    assert newest_boundary(query(delay=6 * HOUR).relation, T) == day - DAY + 6 * HOUR
    assert newest_boundary(query(delay=5 * HOUR).relation, T) == T


def test_an_incremental_run_of_a_query_takes_what_is_missing() -> None:
    day = T - 5 * HOUR
    assert steps_until(query(), T, Past(), {}) == (SnapshotStep(day, publish=True),)
    past = Past(T, {"a": "1"}, frozenset({day}), published=day)
    assert steps_until(query(), T + 2 * DAY, past, {"a": "1"}) == (
        SnapshotStep(day + DAY, publish=False),
        SnapshotStep(day + 2 * DAY, publish=True),
    )
    assert steps_until(query(), T + HOUR, past, {"a": "2"}) == ()


def test_a_store_that_lost_its_rows_is_written_anew() -> None:
    day = T - 5 * HOUR
    past = Past(T, {"a": "1"}, frozenset({day}), published=day, lost=True)
    inputs = {"a": "1"}
    assert steps_until(latest(), T, past, inputs) == (LatestStep(None, T),)
    assert TileStep(HOUR, T - 7 * DAY, T, T - 7 * DAY) in steps_until(windows(None), T, past, inputs)
    for view in (windows(Schedule("daily")), query()):
        assert steps_until(view, T, past, inputs) == (SnapshotStep(day, publish=True),)


def test_a_snapshot_that_was_kept_but_not_published_is_taken_again() -> None:
    day = T - 5 * HOUR
    past = Past(None, {}, frozenset({day}), published=day - DAY)
    assert steps_until(query(), T, past, {}) == (SnapshotStep(day, publish=True),)


def test_windows_of_an_explicit_run_reach_back_beyond_its_start() -> None:
    whole = TileStep(HOUR, T - 7 * DAY, T, T - 7 * DAY)
    assert whole in steps_between(windows(None), T - DAY, T)
    assert whole in steps_between(windows(None), T - DAY, T, Past(T - 2 * DAY, {"a": "1"}))
    adjoining = steps_between(windows(None), T - DAY, T, Past(T - DAY, {"a": "1"}))
    assert TileStep(HOUR, T - DAY, T, T - 7 * DAY) in adjoining


def test_an_input_counts_as_changed_when_new_or_different() -> None:
    assert changed_inputs({"a": "1", "gone": "1"}, {"a": "2", "b": "1"}) == {"a", "b"}
