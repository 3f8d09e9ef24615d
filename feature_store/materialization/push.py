"""Pushed rows: checked against the source's schema, then stored offline (a log) and online (rows and fragments).

A pushed event has an identity: its `unique` columns, or else all of its values and its place among identical rows of
the same call. The log and the tiles keep one event an identity, so a repeated push counts once.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.definitions.catalog import BoundView, Catalog
from feature_store.definitions.source import Source
from feature_store.definitions.tables import is_snapshot, latest_table, push_log, tile_table
from feature_store.errors import InvalidInputError, NotFoundError, nearest
from feature_store.expressions.aggregates import aggregate_of, distinct, fragment_item
from feature_store.expressions.instants import DAY, MINUTE, to_iso
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import DELETED, LatestRow, Rows, Window, Windows
from feature_store.frames import conform, read_table
from feature_store.materialization.events import Events, columns_of, identities, micros, scalars_of
from feature_store.storage.online import CREATED, EVENT_TIME, ITEM, NO_CREATED, OnlineStore, Table
from feature_store.storage.rows import to_arrow
from feature_store.types import TIMESTAMP, Column, Schema

if TYPE_CHECKING:
    from feature_store.storage.offline import OfflineStore

EVENT_ID = "__event_id"
FARTHEST_AHEAD = 10 * MINUTE
LATEST_YEAR = 2200
_LATEST = 84_006 * DAY  # the start of 2200


class Destination(StrEnum):
    """Where pushed rows go."""

    ONLINE = "online"
    OFFLINE = "offline"
    ONLINE_AND_OFFLINE = "online_and_offline"

    @classmethod
    def of(cls, value: object) -> Destination:
        """From its name, or from Feast's PushMode; `InvalidInputError` otherwise."""
        name = str(getattr(value, "name", value)).lower()
        try:
            return cls(name)
        except ValueError:
            raise InvalidInputError(
                f'"{name}" is not a place to push to', hint=f"Places are {', '.join(cls)}"
            ) from None


class Pusher:
    """Takes rows for the sources and views of one catalog, and for the `earlier` versions of views that are served
    until the catalog's are complete: as far as what comes fits them, it is written to both."""

    def __init__(
        self,
        catalog: Catalog,
        online: OnlineStore,
        offline: OfflineStore,
        earlier: Mapping[str, BoundView] | None = None,
    ) -> None:
        self._catalog = catalog
        self._online = online
        self._offline = offline
        self._earlier = earlier or {}

    def push(self, name: str, data: Any, to: Destination) -> int:
        """Store rows of a source, or of a view over columns; how many. All are checked before any is stored.

        Offline comes first: an event that is served can be found in history.
        """
        if name not in self._catalog.sources:
            return self._push_view(name, data, to)
        source, rows = self._catalog.sources[name], self._catalog.rows[name]
        if not source.stream or not source.stream.push:
            raise InvalidInputError(
                f'source "{name}" does not take pushed rows', hint="Add to its definition stream: {push: true}"
            )
        data = read_table(data, rows.schema.texts)
        views = receivers(self._catalog, self._earlier, name, data.column_names)
        events = Events(rows, self._checked(source, rows, receivers(self._catalog, {}, name, ()), data))
        if not len(events):
            return 0
        ids = identities(events)
        # Wherever they go: what a view cannot compute online could not be computed from the log either, for good.
        written = [(view, *part) for view in views for part in _stored(view, events, ids)]
        if to is not Destination.ONLINE:
            self._offline.append(
                push_log(name), events.table.append_column(EVENT_ID, pa.array([each.hex() for each in ids]))
            )
        if to is not Destination.OFFLINE:
            for view, table, out in written:
                if view.view.online:
                    self._write(table, out)
        return len(events)

    def write(self, name: str, data: Any) -> int:
        """Write rows of join keys, features and times straight to the online store; how many."""
        bound = self._view(name)
        data = read_table(data, bound.keys.texts | bound.features.texts)
        rows = _finished(bound, data)
        self._write(latest_table(bound), rows)
        earlier = self._earlier.get(name)
        if earlier is not None and isinstance(earlier.relation, LatestRow):
            try:
                rows = _finished(earlier, data)
            except InvalidInputError:
                return int(rows.num_rows)  # they are rows of the applied version, and of no other
            self._write(latest_table(earlier), rows)
        return int(rows.num_rows)

    def _push_view(self, name: str, data: Any, to: Destination) -> int:
        if name not in self._catalog.views and name not in self._catalog.on_demand:
            known = [*self._catalog.sources, *self._catalog.views]
            raise NotFoundError(
                f'no source or feature view "{name}"',
                code="SOURCE_NOT_FOUND",
                hint=nearest(name, known) or "See: fs list",
            )
        bound = self._view(name)
        if to is not Destination.ONLINE:
            source = bound.inputs[0].name
            raise InvalidInputError(
                f'rows of feature view "{name}" can be pushed online only', hint=f'Push rows of its source "{source}"'
            )
        return self.write(name, data)

    def _view(self, name: str) -> BoundView:
        bound = self._catalog.view(name)
        if not isinstance(bound, BoundView) or not isinstance(bound.relation, LatestRow):
            raise InvalidInputError(
                f'feature view "{name}" is computed: it takes no finished rows', hint="Push events to its source"
            )
        return bound

    def _checked(self, source: Source, rows: Rows, views: Sequence[BoundView], data: Any) -> pa.Table:
        """The rows in the source's schema; columns that no view reads may be missing."""
        assert rows.timestamp is not None
        what = f'source "{source.name}"'
        keys = {key for view in views for key in view.keys.names}
        used = {rows.timestamp, *keys, *rows.unique} | {name for view in views for name in columns_of(view)}
        if rows.created:
            used.discard(rows.created)
        table = conform(data, rows.schema, what, optional=frozenset(set(rows.schema.names) - used))
        _refuse_nulls(table, [rows.timestamp, *sorted(keys)], what)
        _refuse_odd_times(table, rows.timestamp, what)
        return table

    def _write(self, table: Table, rows: pa.Table) -> None:
        self._online.create(table)
        self._online.write(table, rows)


def receivers(
    catalog: Catalog, earlier: Mapping[str, BoundView], source: str, given: Collection[str]
) -> list[BoundView]:
    """The versions of views that live rows of a source, with these columns, go to: those of the catalog, and earlier
    ones that can be computed from rows of the source as it is now."""
    rows = catalog.rows[source]
    views = [view for view in catalog.views.values() if rows in view.inputs]
    return views + [view for view in earlier.values() if _takes(view, rows, given)]


def _takes(earlier: BoundView, rows: Rows, given: Collection[str]) -> bool:
    """Whether an earlier version of a view can be computed from pushed rows of its source as the source is now."""
    for then in earlier.inputs:
        if then.name == rows.name and replace(then, schema=rows.schema) == rows:
            used = {*earlier.keys.names, *columns_of(earlier)}
            read = used | _deleted_by(earlier)
            return used <= set(given) and all(then.schema.get(name) == rows.schema.get(name) for name in read)
    return False


def _deleted_by(bound: BoundView) -> frozenset[str]:
    """The source's column that deletes: it may be missing."""
    relation = bound.relation
    return relation.values[0].scalar.columns if isinstance(relation, LatestRow) and relation.deletes else frozenset()


def _finished(bound: BoundView, data: pa.Table) -> pa.Table:
    """Rows of join keys, features and times as the online table of a view over columns has them."""
    relation = bound.relation
    assert isinstance(relation, LatestRow)
    names = (relation.rows.timestamp or "event_timestamp", relation.rows.created or "created")
    table = _renamed(data, {"event_timestamp": names[0], "created": names[1]})
    times = Schema((Column(names[0], TIMESTAMP), Column(names[1], TIMESTAMP)))
    columns = Schema((*bound.keys, *(c for c in bound.features if c.name not in times), *times))
    what = f'feature view "{bound.name}"'
    rows = conform(table, columns, what, optional=frozenset([names[1]]))
    _refuse_nulls(rows, [*bound.keys.names, names[0]], what)
    _refuse_odd_times(rows, names[0], what)
    out = {column.name: rows[column.name] for column in (*bound.keys, *bound.features)}
    out[EVENT_TIME] = rows[names[0]].cast(pa.int64())
    out[CREATED] = pc.fill_null(rows[names[1]].cast(pa.int64()), NO_CREATED)
    if relation.deletes:
        out[DELETED] = pa.repeat(pa.scalar(False), rows.num_rows)
    return pa.table(out)


def _stored(bound: BoundView, events: Events, ids: Sequence[bytes]) -> list[tuple[Table, pa.Table]]:
    """What events are in a view's online tables: nothing in those of snapshots, which are taken of the log. An error
    where an expression of the view cannot be computed."""
    relation = bound.relation
    if isinstance(relation, LatestRow):
        return [(latest_table(bound), events.latest(bound.keys, relation.values))]
    if is_snapshot(bound) or not isinstance(relation, Windows):
        for scalar in scalars_of(bound):
            events.evaluate(scalar)
        return []
    parts = []
    for level in relation.levels:
        table = tile_table(bound, level)
        parts.append((table, _fragments(bound, relation.at_level(level), events, ids, table)))
    return parts


def _fragments(
    bound: BoundView, windows: Sequence[Window], events: Events, ids: Sequence[bytes], table: Table
) -> pa.Table:
    """Each event as a tile of its own: its lifted states, under an item of its time and identity."""
    states: list[list[Any]] = []
    times, stamps = events.times.tolist(), events.created.tolist()
    for window in distinct(windows):
        aggregate = aggregate_of(window)
        values = events.evaluate(window.value) if window.value else [1] * len(events)
        counts = events.evaluate(window.where) if window.where else [True] * len(events)
        lifted = [
            aggregate.lift(value, at, created) if counted else aggregate.identity
            for value, counted, at, created in zip(values, counts, times, stamps, strict=True)
        ]
        states.extend([list(part) for part in zip(*lifted, strict=True)])
    columns = zip(table.values, [*states, times], strict=True)
    out = events.keys(bound.keys)
    out |= {column.name: to_arrow(values, column.type) for column, values in columns}
    items = [fragment_item(at, id_) for at, id_ in zip(times, ids, strict=True)]
    return pa.table(out | events.stamps() | {ITEM: pa.array(items, pa.binary())})


def _renamed(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """Feast's names for the time columns stand for the source's, where the table does not have those."""
    return table.rename_columns(
        [
            names[name] if name in names and names[name] not in table.column_names else name
            for name in table.column_names
        ]
    )


def _refuse_nulls(table: pa.Table, names: Sequence[str], what: str) -> None:
    for name in names:
        if table[name].null_count:
            row = pc.index(pc.is_null(table[name]), True).as_py()
            raise InvalidInputError(f'{what}: column "{name}" must not be null, row {row} is')


def _refuse_odd_times(table: pa.Table, name: str, what: str) -> None:
    times = micros(table[name])
    for row, fault, hint in odd_times(times, np.full(len(times), time.time_ns() // 1000)):
        raise InvalidInputError(f'{what}: column "{name}", row {row}: {fault}', hint=hint)


def odd_times(times: Ints, now: Ints) -> Iterator[tuple[int, str, str | None]]:
    """The event times that no row may have: which, why, and a hint. A row from the far future would hide every later
    one for good. `now` is what each is measured by."""
    ahead = times > now + FARTHEST_AHEAD
    for row in np.flatnonzero(ahead | (times < 0) | (times >= _LATEST)).tolist():
        at = int(times[row])
        if 0 <= at < _LATEST:
            yield row, f"{_shown(at)} lies in the future", "Check the sender's clock"
        else:
            yield row, f"{_shown(at)} is outside the years 1970 to {LATEST_YEAR - 1}", None


def _shown(at: int) -> str:
    try:
        return to_iso(at)
    except OverflowError:
        return f"{at} µs"
