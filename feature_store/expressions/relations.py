"""What a view means, as data that every engine reads: three frozen relations over rows with an event time.

A relation holds no settings, definitions or connections: names and types are settled, expressions are bound.
Instants and durations are int64 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from feature_store.expressions.instants import DAY, HOUR
from feature_store.expressions.scalars import Scalar
from feature_store.types import Schema, Type


@dataclass(frozen=True, slots=True)
class Rows:
    """Where rows come from, and their schema as it was at `apply`.

    `path` is an absolute path or URI of Parquet, CSV or Delta (a file, a directory, Hive partitions); `table` a
    metastore table; `pushed` the Delta table of rows that came by push, `streamed` that of rows that a stream read from
    a topic: each is read together with the rest if it exists. Rows equal in all `unique` columns count once.

    With `before`, offsets by partition, only what a stream does not count is read: of the rows of `streamed` those
    before them, and of no place a row that is the same event as one of the stream's.
    """

    name: str
    schema: Schema
    path: str | None = None
    table: str | None = None
    timestamp: str | None = None
    created: str | None = None
    unique: tuple[str, ...] = ()
    pushed: str | None = None
    streamed: str | None = None
    before: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Computed:
    """A named column, computed from those of the rows."""

    name: str
    scalar: Scalar

    @property
    def type(self) -> Type:
        return self.scalar.type


DELETED = "__deleted"
"""The value, never null, that says of a row whether it deletes its key."""


@dataclass(frozen=True, slots=True)
class LatestRow:
    """At T: of the rows of a key with event time <= T, the one with the greatest (event time, created, values...).

    The first of `values` may be `DELETED`: of rows of one time those that delete win. Where it is true there is no row
    at T; but it is stored, so that it hides the earlier ones.
    """

    rows: Rows
    keys: Schema
    values: tuple[Computed, ...]
    ttl: int | None = None

    @property
    def deletes(self) -> bool:
        """Whether a row may say that its key is deleted."""
        return bool(self.values) and self.values[0].name == DELETED

    @property
    def features(self) -> tuple[Computed, ...]:
        """The values that are read."""
        return self.values[1:] if self.deletes else self.values


@dataclass(frozen=True, slots=True)
class Window:
    """One aggregate of a sawtooth window: events with floor(T - length, hop) <= event time < T where `where` holds.

    `value` is None for count of rows; `type` is the type of the answer.
    """

    name: str
    function: str
    type: Type
    length: int
    hop: int
    value: Scalar | None = None
    where: Scalar | None = None
    n: int | None = None

    @property
    def levels(self) -> tuple[int, ...]:
        """The lengths of the tiles that it reads, each a multiple of the one before: its hop, then hours and days if
        at least four fit in, so that a week by the hour takes 24 tiles of an hour and 6 of a day, not 168."""
        found = [self.hop]
        for level in (HOUR, DAY):
            if level > found[-1] and level % found[-1] == 0 and self.length >= 4 * level:
                found.append(level)
        return tuple(found)


def reach(windows: Iterable[Window], at: int) -> int:
    """The earliest event time that counts in a window at an instant."""
    return min(((at - window.length) // window.hop * window.hop for window in windows), default=at)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a snapshot is taken: `daily`, `hourly` or a cron line, read in a time zone."""

    every: str
    timezone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Windows:
    """Windowed aggregates. Without `schedule` they move with T; with one, the value at T is that at the last
    boundary b <= T."""

    rows: Rows
    keys: Schema
    windows: tuple[Window, ...]
    schedule: Schedule | None = None

    @property
    def levels(self) -> tuple[int, ...]:
        """The lengths of the tiles that its windows read, shortest first."""
        return tuple(sorted({level for window in self.windows for level in window.levels}))

    def at_level(self, level: int) -> tuple[Window, ...]:
        """The windows that read tiles of a length: those tiles hold their states."""
        return tuple(window for window in self.windows if level in window.levels)


@dataclass(frozen=True, slots=True)
class ScheduledQuery:
    """A Spark SQL query run once per `${date}`; its rows are valid from the end of that date plus `delay`, until the
    next ones are.

    `values` are (feature name, column of the query, type).
    """

    sql: str
    sources: tuple[Rows, ...]
    keys: Schema
    values: tuple[tuple[str, str, Type], ...]
    schedule: Schedule
    delay: int = 0


Relation = LatestRow | Windows | ScheduledQuery
