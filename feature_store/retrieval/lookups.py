"""How the rows of one view, as a store gives them, become columns of values, statuses and event times.

A lookup says what to read (`reads`, in order) and turns the answers into one row a key; `Columns` transposes rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

from feature_store.definitions.catalog import BoundView
from feature_store.definitions.tables import is_snapshot, latest_table, snapshot_table, tile_table
from feature_store.expressions.aggregates import WindowReader, tile_item
from feature_store.expressions.relations import DELETED, LatestRow, Windows
from feature_store.expressions.visibility import MISSING, Status, status
from feature_store.retrieval.response import Cells
from feature_store.storage.online import Row, Table
from feature_store.types import Type

PRESENT, NULL_VALUE = Status.PRESENT, Status.NULL_VALUE

Answers = Sequence[Sequence[Any]]
"""One list a read of a lookup: one answer a key."""


class Lookup(Protocol):
    """The rows of one view at a time, one a key, values in the order of `names`.

    `absent` is the row of a key that cannot be there, a null one."""

    @property
    def reads(self) -> tuple[Table, ...]: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def ttl(self) -> int | None: ...

    @property
    def absent(self) -> Row | None: ...

    def rows(self, answers: Answers, marker: Row | None, now: int) -> Sequence[Row | None]: ...


class LatestLookup:
    """The row of a view over columns; none where it says that its key is deleted."""

    absent: Row | None = None

    def __init__(self, bound: BoundView, relation: LatestRow) -> None:
        self.reads = (latest_table(bound),)
        self.names = self.reads[0].values.names
        self.ttl = relation.ttl
        self._deleted = self.names.index(DELETED) if relation.deletes else None

    def rows(self, answers: Answers, marker: Row | None, now: int) -> Sequence[Row | None]:
        place = self._deleted
        if place is None:
            return answers[0]
        return [None if row is None or row.values[place] else row for row in answers[0]]


class SnapshotLookup:
    """The row of the snapshot that the marker names; a key without events has the windows' values over nothing."""

    ttl: int | None = None

    def __init__(self, bound: BoundView) -> None:
        self.reads = (snapshot_table(bound),)
        self.names = bound.features.names
        self.absent = _nothing(bound)

    def rows(self, answers: Answers, marker: Row | None, now: int) -> Sequence[Row | None]:
        absent = self.absent
        if marker is None:
            return [absent] * len(answers[0])
        if marker.event_time > now:
            return [_newest(items, now) or absent for items in answers[0]]
        item = tile_item(marker.values[0])
        return [items.get(item, absent) for items in answers[0]]


class WindowLookup:
    """The row that tiles and fragments of a temporal view merge to."""

    ttl: int | None = None

    def __init__(self, bound: BoundView, relation: Windows) -> None:
        self._reader = WindowReader(relation.windows)
        self.reads = tuple(tile_table(bound, level) for level in relation.levels)
        self.names = tuple(window.name for window in relation.windows)
        self.absent: Row | None = _over_nothing(relation)

    def rows(self, answers: Answers, marker: Row | None, now: int) -> Sequence[Row | None]:
        read = self._reader.read
        return [read(items, now) for items in zip(*answers, strict=True)]  # type: ignore[misc]


def lookup(bound: BoundView) -> Lookup:
    """The lookup of a view."""
    if isinstance(bound.relation, LatestRow):
        return LatestLookup(bound, bound.relation)
    if is_snapshot(bound):
        return SnapshotLookup(bound)
    assert isinstance(bound.relation, Windows)
    return WindowLookup(bound, bound.relation)


def _nothing(bound: BoundView) -> Row | None:
    """What a snapshot says of a key that it lacks: the windows over no events; nothing for a query."""
    if not isinstance(bound.relation, Windows):
        return None
    return _over_nothing(bound.relation)


def _over_nothing(relation: Windows) -> Row:
    """The windows over no events; their event time is 0."""
    return Row(*WindowReader(relation.windows).read([{} for _ in relation.levels], 0))


def _newest(items: Mapping[bytes, Row], now: int) -> Row | None:
    visible = [(item, row) for item, row in items.items() if row.event_time <= now]
    return max(visible, key=itemgetter(0))[1] if visible else None


_PROBES: dict[str, Callable[[Sequence[Any]], Any]] = dict.fromkeys(("INT32", "INT64", "FLOAT32", "FLOAT64"), sum)
_PROBES["STRING"] = "".join


@dataclass(frozen=True, slots=True)
class Feature:
    """One value to take out of a row: its position there, its type, and the default that stands in for it."""

    position: int
    type: Type
    default: Any


class Columns:
    """Takes features out of rows: one column a feature, all sharing the rows' event times."""

    def __init__(self, lookup: Lookup, features: Sequence[Feature]) -> None:
        self._ttl = lookup.ttl
        self._features = tuple(features)
        # Sums and joins fail on a null, and find it five times faster than a comparison with each value.
        self._probes = tuple(_PROBES.get(feature.type.kind) for feature in features)
        positions = [feature.position for feature in features]
        whole = positions == list(range(len(lookup.names)))
        self._pick = None if whole else itemgetter(*positions)
        self._single = len(positions) == 1 and not whole

    def of(self, rows: Sequence[Row | None], now: int) -> list[Cells]:
        """The columns of rows, visible at `now`: the rule of `visibility.status`, decided at once where all are."""
        if len(rows) == 1:
            found = self._one(rows[0], now)
            if found is not None:
                return found
        elif rows and None not in rows:
            times = [row[0] for row in rows]  # type: ignore[index]
            if max(times) <= now and (self._ttl is None or min(times) >= now - self._ttl):
                return self._visible(rows, times)
        return self._mixed(rows, now)

    def _one(self, row: Row | None, now: int) -> list[Cells] | None:
        """The columns of a single row that is visible and has no nulls; None if it is not such a row."""
        if row is None or row[0] > now or (self._ttl is not None and row[0] < now - self._ttl):
            return None
        values = self._picked([row[2]])[0]
        if None in values:
            return None
        times = [row[0]]
        return [((value,), PRESENT, times) for value in values]

    def _visible(self, rows: Sequence[Any], times: list[int]) -> list[Cells]:
        picked = self._picked([row[2] for row in rows])
        columns = zip(*picked, strict=True)
        cells: list[Cells] = []
        for column, probe, feature in zip(columns, self._probes, self._features, strict=True):
            if _has_null(column, probe):
                marks = [NULL_VALUE if value is None else PRESENT for value in column]
                default = feature.default
                filled = column if default is None else [default if value is None else value for value in column]
                cells.append((filled, marks, times))
            else:
                cells.append((column, PRESENT, times))
        return cells

    def _mixed(self, rows: Sequence[Row | None], now: int) -> list[Cells]:
        found = [MISSING if row is None else row[0] for row in rows]
        marks = [status(time, now, self._ttl, 0) for time in found]
        times = [0 if mark is Status.NOT_FOUND else time for mark, time in zip(marks, found, strict=True)]
        cells: list[Cells] = []
        for feature in self._features:
            position, default = feature.position, feature.default
            values, statuses, nulls = [], [], False
            for row, mark in zip(rows, marks, strict=True):
                value = row[2][position] if mark is PRESENT and row is not None else None
                null = mark is PRESENT and value is None
                nulls |= null
                values.append(default if value is None else value)
                statuses.append(NULL_VALUE if null else mark)
            cells.append((values, statuses if nulls else marks, times))
        return cells

    def _picked(self, rows: list[Any]) -> Sequence[Sequence[Any]]:
        if self._single:
            position = self._features[0].position
            return [(row[position],) for row in rows]
        return rows if self._pick is None else [*map(self._pick, rows)]


def _has_null(column: Sequence[Any], probe: Callable[[Sequence[Any]], Any] | None) -> bool:
    if probe is None:
        return None in column
    try:
        probe(column)
    except TypeError:
        return True
    return False
