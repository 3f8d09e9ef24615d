from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feature_store.expressions.visibility import MISSING, Status, status, statuses
from tests import oracle

T = 1_000


def test_bounds_are_inclusive_and_the_future_is_not_there() -> None:
    found = np.array([T, T + 1, T - 10, T - 11, MISSING, T - 5], np.int64)
    is_null = np.array([False, False, False, True, True, True])
    got = statuses(found, np.full(6, T), 10, is_null)
    assert [Status(mark).name for mark in got.tolist()] == [
        "PRESENT", "NOT_FOUND", "PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND", "NULL_VALUE",
    ]  # fmt: skip
    assert got.dtype == np.int8
    assert statuses(found[:1], T, None, is_null[:1]).tolist() == [Status.PRESENT]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.none() | st.integers(0, 2)), max_size=4),
    st.integers(0, 20),
    st.none() | st.integers(0, 20),
)
def test_one_value_and_many_are_seen_alike(rows: list[tuple[int, int | None]], at: int, ttl: int | None) -> None:
    seen = [oracle.Seen(time, (value,)) for time, value in rows]
    (expected,) = oracle.statuses(seen, at, ttl)
    _, row = oracle.latest(seen, at, ttl)
    found, value = (row.time, row.values[0]) if row else (MISSING, None)
    assert status(found, at, ttl, value).name == expected
    (mark,) = statuses(np.array([found]), np.array([at]), ttl, np.array([value is None])).tolist()
    assert Status(mark).name == expected
