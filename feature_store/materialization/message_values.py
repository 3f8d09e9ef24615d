"""Columns of values, as messages hold them, in Arrow: whole columns at once, value by value where one is odd."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from itertools import chain
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.errors import InvalidInputError
from feature_store.expressions.instants import DAY, SECOND
from feature_store.storage.rows import to_arrow
from feature_store.types import FLOAT64, TIMESTAMP, Column, Type
from feature_store.values import EARLIEST, LATEST, read_value, shown

UNITS = {"s": SECOND, "ms": 1000, "us": 1}
"""What a number may count where a time is wanted, in microseconds."""

_COUNTED = {SECOND: "seconds", 1000: "milliseconds", 1: "microseconds"}
_NONE = {type(None)}
_PLAIN: dict[str, set[type]] = {
    "INT32": {int}, "INT64": {int}, "FLOAT32": {int, float}, "FLOAT64": {int, float}, "STRING": {str}, "BYTES": {bytes},
    "BOOL": {bool}, "TIMESTAMP": {datetime}, "DATE": {date}, "DECIMAL": {Decimal},
}  # fmt: skip
"""What needs no more than a look at its range, which Arrow has."""

_NOT_PLAIN = (pa.ArrowException, ValueError, TypeError, OverflowError)

_TRUTHS: dict[Any, Any] = {"true": True, "false": False}


@dataclass(frozen=True)
class ValueReader:
    """Reads the values of one column as `values.read_value` does, and beside: whole numbers are times in `unit`
    (microseconds) and days of dates; `as_text`: "true" and "false" are a BOOL; unless values are `of_json`, text is no
    bytes and no number: it stands for them where there is no other way to write them."""

    column: Column
    of_json: bool = True
    unit: int = SECOND
    as_text: bool = False

    def read(self, values: list[Any]) -> tuple[pa.Array, dict[int, str]]:
        """An array, null where a value is not of the type, and which those are and why."""
        type_ = self.column.type
        if self.as_text:
            values = [_TRUTHS.get(value, value) if type(value) is str else value for value in values]
        try:
            return self._plain(type_, values), {}
        except _NOT_PLAIN:
            pass
        read, faults = [], {}
        for row, value in enumerate(values):
            try:
                read.append(self._value(type_, value))
            except InvalidInputError as error:
                read.append(None)
                faults[row] = " ".join(f'column "{self.column.name}": {error}'.split())
        return to_arrow(read, type_), faults

    def _value(self, type_: Type, value: Any) -> Any:
        """A raw row value."""
        if type_.item is not None and isinstance(value, list):
            return [self._value(type_.item, item) for item in value]
        if isinstance(value, UUID) and type_.kind == "STRING":
            return str(value)
        if isinstance(value, str) and not self.of_json and (type_.kind == "BYTES" or type_.is_float):
            raise InvalidInputError(f"a string is not a {type_}")
        if type_.kind == "DATE" and type(value) is int and EARLIEST <= value * DAY <= LATEST:
            return value
        return self._time(value) if type_ == TIMESTAMP and self.unit != SECOND else read_value(type_, value)

    def _time(self, value: Any) -> Any:
        if type(value) is int and EARLIEST <= value * self.unit <= LATEST:
            return value * self.unit
        hint = f"Give {_COUNTED[self.unit]} since the epoch, or ISO 8601, for example 2026-11-23T12:00:00Z"
        if isinstance(value, (int, float)):
            raise InvalidInputError(f"{shown(value)} is not a TIMESTAMP", hint=hint)
        try:
            return read_value(TIMESTAMP, value)
        except InvalidInputError as error:
            raise InvalidInputError(error.message, hint=hint) from None

    def _plain(self, type_: Type, values: list[Any]) -> pa.Array:
        """A column of values that are what they should be, without a look at each; one of `_NOT_PLAIN` if some may not
        be. What it gives is what `_value` gives."""
        kinds = set(map(type, values)) - _NONE
        if not kinds:
            return pa.nulls(len(values), type_.arrow)
        if type_.item is not None:
            return self._plain_lists(type_.item, values, kinds)
        if kinds == {UUID} and type_.kind == "STRING":
            return pa.array([None if value is None else str(value) for value in values], type_.arrow)
        if type_ == TIMESTAMP and kinds == {str}:
            return _within(_times(pa.array(values, pa.string())), EARLIEST, LATEST)
        if type_ == TIMESTAMP and kinds == {int}:
            times = pc.multiply_checked(pa.array(values, pa.int64()), self.unit)
            return _within(times.cast(type_.arrow), EARLIEST, LATEST)
        if type_.kind == "DATE" and kinds in ({str}, {int}):
            days = pa.array(values, pa.int32() if kinds == {int} else pa.string()).cast(type_.arrow)
            return _within(days, EARLIEST // DAY, LATEST // DAY)
        if not kinds <= _PLAIN[type_.kind]:
            raise TypeError
        return _float32(pa.array(values, FLOAT64.arrow)) if type_.kind == "FLOAT32" else pa.array(values, type_.arrow)

    def _plain_lists(self, item: Type, values: list[Any], kinds: set[type]) -> pa.Array:
        if kinds != {list}:
            raise TypeError
        items = self._plain(item, list(chain.from_iterable(filter(None, values))))
        ends = np.cumsum([0, *(len(value or ()) for value in values)])
        nulls = pa.array([value is None for value in values])
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), items, mask=nulls)


def _times(texts: pa.Array) -> pa.Array:
    """Texts that all tell their zone, or none does: they are UTC."""
    try:
        return texts.cast(TIMESTAMP.arrow)
    except pa.ArrowInvalid:
        return pc.assume_timezone(texts.cast(pa.timestamp("us")), "UTC")


def _float32(values: pa.Array) -> pa.Array:
    """The nearest numbers of 32 bits; `OverflowError` beyond them."""
    rounded = values.cast(pa.float32(), safe=False)
    if not pc.is_inf(rounded).equals(pc.is_inf(values)):
        raise OverflowError
    return rounded


def _within(values: pa.Array, first: int, last: int) -> pa.Array:
    """Dates and times of the years 1 to 9999; `OverflowError` beyond them."""
    bounds = pc.min_max(values.view(pa.int32() if pa.types.is_date32(values.type) else pa.int64()))
    if bounds["min"].as_py() < first or bounds["max"].as_py() > last:
        raise OverflowError
    return values
