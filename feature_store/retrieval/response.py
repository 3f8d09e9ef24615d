"""The answer to an online request, in columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa

from feature_store.expressions.instants import DAY, SECOND
from feature_store.expressions.visibility import Status
from feature_store.types import Type
from feature_store.values import EARLIEST, LATEST

STATUS_SUFFIX, TIME_SUFFIX = "__status", "__ts"

Statuses = Status | Sequence[Status]
"""One status that all rows of a column share, or one a row."""

Times = Sequence[int] | None
"""The event time of each row in microseconds, 0 where there is none; None: 0 everywhere."""

Cells = tuple[Sequence[Any], Statuses, Times]
"""A column of an answer: raw row values, statuses, event times. Columns of one view share statuses and times."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, repr=False)
class OnlineResponse:
    """The values, statuses and event times of each entity column (as given), then of each feature, in order.

    `types` holds None for an entity column that no view reads. `rows` is the length of every column.
    """

    names: tuple[str, ...]
    types: tuple[Type | None, ...]
    cells: Sequence[Cells]
    rows: int

    def __repr__(self) -> str:
        return f"<OnlineResponse: {self.rows:,} row{'s' * (self.rows != 1)} of {', '.join(self.names)}>"

    def statuses(self, name: str) -> list[Status]:
        """The status of each row of a column."""
        status = self.cells[self.names.index(name)][1]
        return [status] * self.rows if isinstance(status, Status) else list(status)

    def event_times(self, name: str) -> list[int]:
        """The event time of each row of a column, in microseconds; 0 where there is none."""
        times = self.cells[self.names.index(name)][2]
        return [0] * self.rows if times is None else list(times)

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, list[Any]]:
        """`{name: values}`, timestamps as aware datetimes; with `name__ts` in seconds since the epoch on request."""
        out = dict(self._python_columns())
        if include_event_timestamps:
            out |= {f"{name}{TIME_SUFFIX}": [time // SECOND for time in self.event_times(name)] for name in self.names}
        return out

    def to_df(self, include_event_timestamps: bool = False) -> Any:
        """The same as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.to_dict(include_event_timestamps))

    def to_arrow(self, statuses: bool = False, include_event_timestamps: bool = False) -> pa.Table:
        """A typed column a name, followed on request by `name__status` (strings) and `name__ts` (timestamps)."""
        columns: dict[str, Any] = {}
        for name, type_, (values, _, _) in zip(self.names, self.types, self.cells, strict=True):
            columns[name] = _arrow_column(type_, values)
            if statuses:
                columns[name + STATUS_SUFFIX] = pa.array([status.name for status in self.statuses(name)], pa.string())
            if include_event_timestamps:
                times = pa.array(self.event_times(name), pa.int64())
                columns[name + TIME_SUFFIX] = times.cast(pa.timestamp("us", "UTC"))
        return pa.table(columns)

    def _python_columns(self) -> Iterator[tuple[str, list[Any]]]:
        for name, type_, (values, _, _) in zip(self.names, self.types, self.cells, strict=True):
            yield name, list(values) if type_ is None else [to_python(type_, value) for value in values]


def to_python(type_: Type, value: Any) -> Any:
    """A raw row value as Python users expect it: datetimes and dates instead of numbers.

    A time outside the years 1 to 9999 stays a number.
    """
    if value is None or (type_.kind not in ("TIMESTAMP", "DATE") and type_.item is None):
        return value
    if type_.item is not None:
        return [to_python(type_.item, item) for item in value]
    if isinstance(value, (date, str)):
        return value
    if type_.kind == "TIMESTAMP":
        return _EPOCH + timedelta(microseconds=value) if EARLIEST <= value <= LATEST else value
    return _EPOCH.date() + timedelta(days=value) if EARLIEST <= value * DAY <= LATEST else value


def _arrow_column(type_: Type | None, values: Sequence[Any]) -> pa.Array:
    if type_ is not None:
        return pa.array(values, type_.arrow)
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
