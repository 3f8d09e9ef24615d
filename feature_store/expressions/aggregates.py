"""Windowed aggregates as lift, merge, finish over mergeable state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from feature_store.errors import ExpressionError
from feature_store.expressions.relations import Window
from feature_store.types import FLOAT64, INT64, Column, Schema, Type, array, decimal

COVERED = "covered"
_SIGN = 1 << 63


def result_type(function: str, value: Type | None) -> Type:
    """The type of the answer; `ExpressionError` where the function does not take such a value."""
    return _aggregate(function, value).result


def state_columns(window: Window) -> tuple[Column, ...]:
    """The columns of a window's state, named `<window>.<part>`."""
    kind = _aggregate(window.function, window.value.type if window.value else None)
    return tuple(Column(f"{window.name}.{part}", type_) for part, type_ in kind.parts)


def tile_schema(windows: Sequence[Window]) -> Schema:
    """The value columns of a tile of the windows of one hop: their states, then `covered` (INT64). Windows that
    aggregate the same over different lengths share the state of the first of them."""
    columns = tuple(column for window in _distinct(windows) for column in state_columns(window))
    return Schema((*columns, Column(COVERED, INT64)))


def tile_item(start: int) -> bytes:
    """The item of a tile: its start, as 8 bytes that sort as the times do."""
    return (start + _SIGN).to_bytes(8, "big")


def fragment_item(time: int, digest: bytes) -> bytes:
    """The item of one pushed event: its time as a tile's start, then the first 8 bytes of its identity's digest."""
    return (time + _SIGN).to_bytes(8, "big") + digest[:8]


def item_time(item: bytes) -> int:
    """The start of a tile, or the time of a fragment."""
    return int.from_bytes(item[:8], "big") - _SIGN


def _distinct(windows: Sequence[Window]) -> list[Window]:
    found: dict[Any, Window] = {}
    for window in windows:
        found.setdefault((window.function, window.value, window.where, window.n), window)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Aggregate:
    result: Type
    parts: tuple[tuple[str, Type], ...]


def _sum(value: Type) -> _Aggregate:
    if value.is_integer:
        return _Aggregate(INT64, (("sum", INT64), ("carry", INT64)))
    if value.is_float:
        return _Aggregate(FLOAT64, (("sum", FLOAT64), ("rest", FLOAT64)))
    wide = decimal(38, value.scale)
    return _Aggregate(wide, (("sum", wide),))


def _mean(value: Type) -> _Aggregate:
    if value.kind == "DECIMAL":
        return _Aggregate(FLOAT64, (("sum", decimal(38, value.scale)), ("count", INT64)))
    return _Aggregate(FLOAT64, (("sum", FLOAT64), ("rest", FLOAT64), ("count", INT64)))


def _variance(value: Type) -> _Aggregate:
    return _Aggregate(FLOAT64, (("count", INT64), ("mean", FLOAT64), ("m2", FLOAT64)))


def _one(value: Type) -> _Aggregate:
    return _Aggregate(value, (("value", value),))


def _timed(value: Type) -> _Aggregate:
    return _Aggregate(value, (("value", value), ("time", INT64), ("created", INT64)))


def _last_n(value: Type) -> _Aggregate:
    times = array(INT64)
    return _Aggregate(array(value), (("values", array(value)), ("times", times), ("created", times)))


_KINDS: dict[str, Callable[[Type], _Aggregate]] = {
    "count": lambda value: _Aggregate(INT64, (("count", INT64),)),
    "sum": _sum,
    "mean": _mean,
    "min": _one,
    "max": _one,
    "variance": _variance,
    "stddev": _variance,
    "first": _timed,
    "last": _timed,
    "last_n": _last_n,
    "count_distinct": lambda value: _Aggregate(INT64, (("values", array(value)),)),
}
_NUMERIC = ("sum", "mean", "variance", "stddev")


def _aggregate(function: str, value: Type | None) -> _Aggregate:
    if function not in _KINDS:
        raise ExpressionError(f'"{function}" is not an aggregate function')
    if function == "count":
        return _KINDS[function](INT64)
    if value is None:
        raise ExpressionError(f"{function} needs a column")
    if function in _NUMERIC and not value.is_numeric or value.kind == "ARRAY":
        raise ExpressionError(f"{function} does not take {value}", hint="Cast it to a type that it takes")
    return _KINDS[function](value)
