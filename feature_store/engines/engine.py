"""The port of engines: relations in; out come rows that are computed where they are wanted."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from feature_store.expressions.relations import LatestRow, Rows, ScheduledQuery, Windows
from feature_store.expressions.scalars import Scalar
from feature_store.types import Schema

if TYPE_CHECKING:
    from feature_store.storage.offline import OfflineStore


class Sink(Protocol):
    """Writes a part of what was computed. Parts come in any order, some at the same time, and the same part comes
    again where its worker was lost: to write it twice must be to write it once."""

    @property
    def anywhere(self) -> bool:
        """Whether it can be pickled and called on any machine of a cluster, or in this process only."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> int:
        """The number of rows written, all of them acknowledged."""


class Computed(Protocol):
    """Rows that an engine computes when, and each time that, one of these methods is called. What is wrong with the
    source, or cannot be computed, is raised there."""

    def read(self) -> pa.RecordBatchReader:
        """The rows, here. The first of them are computed when it returns."""

    def write(self, sink: Sink) -> int:
        """Feeds the rows to a sink, part by part, where they are computed; the number written."""

    def save(self, store: OfflineStore, table: str, where: Mapping[str, str]) -> Computed:
        """Puts the rows, with the partition's columns behind them, in the place of that partition of an offline
        table, in one commit; what the table then holds there. `ConflictError` as for `OfflineStore.replace`."""

    def count(self) -> int:
        """The number of rows."""


METASTORE_TABLES = "metastore tables"
"""A gap: to read sources that are tables of a metastore."""


class Engine(Protocol):
    """Computes relations. Times are int64 microseconds; `EVENT_TIME`, `CREATED` and `ITEM` are the columns of
    `storage.online`. Raises `SourceError` where rows cannot be read, or not with the schema they had at `apply`."""

    gaps: frozenset[str]
    """What it cannot do, by the names above: `apply` refuses views that need it."""

    distributed: bool
    """Whether rows stay in a cluster: entity rows, and what is found for them, are its frames, not Arrow tables."""

    def schema(self, rows: Rows) -> Schema:
        """The schema of the rows as they are now (`rows.schema` is ignored), Hive partition columns included."""

    def inputs(self, rows: Rows) -> Mapping[str, str]:
        """What the rows are made of: each file (or commit) with a fingerprint that changes when it does."""

    def earliest(self, rows: Rows) -> int | None:
        """The first event time of the rows; None where there is none."""

    def latest(
        self, relation: LatestRow, start: int | None, until: int, touched: Collection[str] | None = None
    ) -> Computed:
        """The latest row of each key with start <= event time <= until: keys, values, EVENT_TIME, CREATED.

        `touched`: only keys with rows in these inputs (of any event time)."""

    def tiles(
        self, relation: Windows, level: int, start: int | None, until: int, touched: Collection[str] | None = None
    ) -> Computed:
        """The state of each key and tile of a length, over its events before `until`, for tiles that end after `start`:
        keys, EVENT_TIME (the latest event's), CREATED, ITEM (the tile's), `covered` (INT64: every event before it is
        in the state), and the state columns of `aggregates.tile_schema`."""

    def snapshot(self, relation: Windows | ScheduledQuery, at: int, *, as_known: bool = False) -> Computed:
        """A snapshot at boundary `at`: keys and values, one row a key. For Windows: every key with an event in any
        window, over events before `at`. For a query: its result for the `${date}` whose rows are valid from `at`.

        With `as_known` only rows with created <= `at` count; for a query the schema metadata `hidden` of what is read
        then says how many rows of its sources, of event times before `at`, were not seen for that."""

    def as_of(
        self, relation: LatestRow | Windows, spine: pa.Table, names: Collection[str], as_known: bool = False
    ) -> pa.Table:
        """For each row of `spine` (the key columns, and EVENT_TIME as T; a key may be null), in its order: the values
        `names` and EVENT_TIME of the row found (null: none, or one that deletes; too old is not looked at here). With
        `as_known` only rows with created <= T count, and the schema metadata `hidden` says how many rows were not seen
        for that."""

    def compute(self, table: pa.Table, columns: Mapping[str, Scalar]) -> pa.Table:
        """`table` with computed columns appended, row by row in order."""

    def select(self, sql: str, sources: Collection[Rows]) -> pa.Table:
        """The rows of a SELECT in Spark SQL over sources by name, such as an entity table."""

    def close(self) -> None: ...
