"""The contract's meaning, word for word and slowly: what a windowed aggregate or the latest row is at T.

Plain Python over lists; sums are exact (Fraction), so that an implementation is compared with the truth.
Instants and durations are int microseconds.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

NO_CREATED = -(2**63)
OVERFLOW = "overflow"
_MINUTE = 60_000_000


@dataclass(frozen=True)
class Event:
    """One event of one key: `value` of the aggregated column, `passes` whether `where` holds."""

    time: int
    value: Any = None
    created: int = NO_CREATED
    passes: bool = True


def hop_of(length: int) -> int:
    """5 min for windows under 12 h, 1 h under 12 d, 1 d from there on."""
    if length < 12 * 60 * _MINUTE:
        return 5 * _MINUTE
    return 60 * _MINUTE if length < 12 * 24 * 60 * _MINUTE else 24 * 60 * _MINUTE


def windowed(
    function: str, events: Iterable[Event], at: int, length: int, hop: int, n: int | None = None, rows: bool = False
) -> Any:
    """The aggregate at T over the events with floor(T - length, hop) <= event time < T."""
    since = (at - length) // hop * hop
    return aggregate(function, [event for event in events if since <= event.time < at], n, rows)


def aggregate(function: str, events: Iterable[Event], n: int | None = None, rows: bool = False) -> Any:
    """The aggregate over these events; `rows`: count of rows. OVERFLOW where a sum must fail."""
    kept = [event for event in events if event.passes and (rows or _counts(event.value))]
    if rows:
        return len(kept)
    ordered = sorted(kept, key=lambda event: (event.time, event.created, event.value))
    return _FUNCTIONS[function]([event.value for event in ordered], n)


def _counts(value: Any) -> bool:
    return value is not None and value == value


def _sum(values: Sequence[Any], n: int | None) -> Any:
    if not values:
        return None
    if isinstance(values[0], float):
        return _float_sum(values)
    if isinstance(values[0], decimal.Decimal):
        with decimal.localcontext(prec=100):
            total = sum(values, decimal.Decimal(0))
            scale = -int(values[0].as_tuple().exponent)
            return total if abs(total).scaleb(scale) < 10**38 else OVERFLOW
    total = sum(values)
    return total if -(2**63) <= total < 2**63 else OVERFLOW


def _float_sum(values: Sequence[float]) -> float:
    if all(map(math.isfinite, values)):
        return float(sum(map(Fraction, values)))
    return sum(values)


def _mean(values: Sequence[Any], n: int | None) -> Any:
    if not values:
        return None
    if isinstance(values[0], decimal.Decimal) and _sum(values, n) == OVERFLOW:
        return OVERFLOW  # a mean of decimals is of their sum, which has 38 digits
    if isinstance(values[0], float) and not all(map(math.isfinite, values)):
        return sum(values) / len(values)
    return float(sum(map(Fraction, values)) / len(values))


def _variance(values: Sequence[Any], n: int | None) -> float | None:
    if not values:
        return None
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    return float(sum((value - mean) ** 2 for value in exact) / len(exact))


def _stddev(values: Sequence[Any], n: int | None) -> float | None:
    variance = _variance(values, n)
    return None if variance is None else math.sqrt(variance)


_FUNCTIONS: dict[str, Any] = {
    "count": lambda values, n: len(values),
    "sum": _sum,
    "mean": _mean,
    "min": lambda values, n: min(values, default=None),
    "max": lambda values, n: max(values, default=None),
    "variance": _variance,
    "stddev": _stddev,
    "first": lambda values, n: values[0] if values else None,
    "last": lambda values, n: values[-1] if values else None,
    "last_n": lambda values, n: values[-n:] or None,
    "count_distinct": lambda values, n: len(set(values)),
}


@dataclass(frozen=True)
class Seen:
    """One row of one key."""

    time: int
    values: tuple[Any, ...]
    created: int = NO_CREATED
    deletes: bool = False


def latest(rows: Iterable[Seen], at: int, ttl: int | None = None, as_known: bool = False) -> tuple[str, Seen | None]:
    """The row visible at T and how it is: FOUND (its own nulls tell PRESENT from NULL_VALUE), NOT_FOUND (there is none,
    or one that deletes the key), or OUTSIDE_MAX_AGE with the row that is too old."""
    seen = [row for row in rows if row.time <= at and (not as_known or row.created <= at)]
    if not seen:
        return "NOT_FOUND", None
    row = max(seen, key=_order)
    if row.deletes:
        return "NOT_FOUND", None
    return ("OUTSIDE_MAX_AGE" if ttl is not None and row.time < at - ttl else "FOUND"), row


def _order(row: Seen) -> tuple[Any, ...]:
    """(event time, created), rows that delete last, then the values in declared order, nulls lowest."""
    return (
        row.time,
        row.created,
        row.deletes,
        *((value is not None, value) if value is not None else (False,) for value in row.values),
    )


def statuses(rows: Iterable[Seen], at: int, ttl: int | None = None, as_known: bool = False) -> list[str]:
    """The status of each value at T; one NOT_FOUND where there is no row."""
    kind, row = latest(rows, at, ttl, as_known)
    if row is None:
        return [kind]
    if kind != "FOUND":
        return [kind] * len(row.values)
    return ["NULL_VALUE" if value is None else "PRESENT" for value in row.values]


def slack(function: str, is_float: bool, values: Iterable[Any]) -> float:
    """What rounding may leave of sums that cancel: 1e-28 of the size of their terms, 1e-16 of it in a variance."""
    if not is_float or function in ("min", "max", "first", "last"):
        return 0.0
    counted = [value for value in values if _counts(value)]
    size = max((abs(float(value)) for value in counted), default=0.0)
    if function == "stddev":
        return 1e-4 * size if len(set(counted)) > 1 else 0.0
    return size * 1e-14 if function in ("sum", "mean") else 0.0


def agrees(found: Any, expected: Any, scale: float = 0.0) -> bool:
    """Equal; doubles within 1e-12 of the truth, relative (plus 1e-12 of `scale`, where they cancelled)."""
    if isinstance(found, float) and isinstance(expected, float):
        if math.isnan(expected) or math.isinf(expected):
            return repr(found) == repr(expected)
        return abs(found - expected) <= 1e-12 * max(abs(expected), scale)
    return type(found) is type(expected) and bool(found == expected)
