"""Where the values of a view rest online: the tables that materialization writes and retrieval reads.

A view over columns has one table of rows. Temporal windows have an items-table of tiles a level, snapshots (windows
with a schedule, scheduled queries) one items-table by snapshot, and beside it a `marker_table` of one row, written
last, which says what snapshot counts. Every table's name begins with the view's, so that dropping it leaves nothing.
"""

from __future__ import annotations

from feature_store.definitions.catalog import BoundView
from feature_store.expressions.aggregates import tile_schema
from feature_store.expressions.instants import SECOND
from feature_store.expressions.relations import DELETED, LatestRow, ScheduledQuery, Windows
from feature_store.storage.online import Key, Table
from feature_store.types import BOOL, BYTES, INT64, STRING, Column, Schema

_ONE_ROW = Schema.of(view=STRING, version=STRING)


def marker_key(bound: BoundView) -> Key:
    """The key of the one row in a view's `marker_table` and in its `epoch_table`."""
    return (bound.view.name, bound.version)


def latest_table(bound: BoundView) -> Table:
    """One packed row a key: the features of a view over columns and, where rows may be deleted, whether it is."""
    deletes = isinstance(bound.relation, LatestRow) and bound.relation.deletes
    values = Schema((*bound.features, Column(DELETED, BOOL))) if deletes else bound.features
    return Table(bound.table, bound.keys, values)


def tile_table(bound: BoundView, level: int) -> Table:
    """The tiles of one length (microseconds), and the fragments, of a temporal view."""
    values = tile_schema(bound.relation.at_level(level) if isinstance(bound.relation, Windows) else ())
    step = f"{level // SECOND}" if level % SECOND == 0 else f"{level}us"
    return Table(f"{bound.table}@{step}", bound.keys, values, items=True)


def seen_table(bound: BoundView) -> Table:
    """The identities of the events that a stream applied to a temporal view, by time of the event and partition."""
    return Table(f"{bound.table}.seen", bound.keys, Schema.of(events=BYTES), items=True)


def snapshot_table(bound: BoundView) -> Table:
    """Finished feature values by snapshot: the item is `at` of the marker of the snapshot they belong to."""
    return Table(bound.table, bound.keys, bound.features, items=True)


def marker_table(bound: BoundView) -> Table:
    """One row, the snapshot that is served: `at` is what its rows have as their item (the instant at which it was
    taken, so that a snapshot taken again replaces the whole), the event time is its boundary."""
    return Table(f"{bound.table}.marker", _ONE_ROW, Schema.of(at=INT64))


def is_snapshot(bound: BoundView) -> bool:
    """Whether the view's values hold from one schedule boundary to the next."""
    relation = bound.relation
    return isinstance(relation, ScheduledQuery) or (isinstance(relation, Windows) and relation.schedule is not None)


def epoch_table(bound: BoundView) -> Table:
    """One row: when the view was first written to this store. A store that lost its rows, such as a Redis that keeps
    nothing on disk after a restart, has lost this one too: what earlier runs wrote is not there any more."""
    return Table(f"{bound.table}.epoch", _ONE_ROW, Schema.of(began=INT64))


def tables_of(bound: BoundView) -> tuple[Table, ...]:
    """Every table that holds values of this view; none holds those of another."""
    if isinstance(bound.relation, LatestRow):
        return (latest_table(bound), epoch_table(bound))
    if is_snapshot(bound):
        return (snapshot_table(bound), marker_table(bound), epoch_table(bound))
    assert isinstance(bound.relation, Windows)
    seen = [seen_table(bound)] if bound.relation.rows.streamed and bound.relation.rows.unique else []
    return (*(tile_table(bound, level) for level in bound.relation.levels), *seen, epoch_table(bound))


VALID_FROM = "valid_from"
"""The partition column of stored snapshots: the boundary from which they hold, in microseconds."""


def snapshots_path(bound: BoundView) -> str:
    """The offline table that keeps every snapshot of a scheduled query, as it was served."""
    return f"snapshots/{bound.view.name}/{bound.version}"


def push_log(source: str) -> str:
    """The offline table of a source's pushed rows."""
    return f"push/{source}"


def stream_log(source: str) -> str:
    """The offline table of the rows that a stream read from a source's topic."""
    return f"stream/{source}"
