"""What is visible at a time: the one function that decides it, for online reads and for history."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING = -(2**63)
"""The event time of a row that is not there."""


class Status(IntEnum):
    """What a feature's value at T is: there, null, not there, or older than its view allows."""

    PRESENT = 0
    NULL_VALUE = 1
    NOT_FOUND = 2
    OUTSIDE_MAX_AGE = 3


def statuses(
    found: NDArray[np.int64], at: NDArray[np.int64] | int, ttl: int | None, is_null: NDArray[np.bool_]
) -> NDArray[np.int8]:
    """The status of each value: `found` is its row's event time (MISSING: no row), `at` is T, `is_null` its value.

    A row is visible with T - ttl <= event time <= T, both ends included; a row after T counts as not there.
    """
    out = np.where(is_null, np.int8(Status.NULL_VALUE), np.int8(Status.PRESENT))
    if ttl is not None:
        out[(found < np.asarray(at) - ttl)] = Status.OUTSIDE_MAX_AGE
    out[(found == MISSING) | (found > at)] = Status.NOT_FOUND
    return out


def status(found: int, at: int, ttl: int | None, value: Any) -> Status:
    """The status of one value, None where null: `statuses` for a single row."""
    if found == MISSING or found > at:
        return Status.NOT_FOUND
    if ttl is not None and found < at - ttl:
        return Status.OUTSIDE_MAX_AGE
    return Status.NULL_VALUE if value is None else Status.PRESENT
