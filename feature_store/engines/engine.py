"""The port of engines: relations in, Arrow out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import pyarrow as pa

from feature_store.expressions.relations import LatestRow, Rows, ScheduledQuery, Windows
from feature_store.expressions.scalars import Scalar
from feature_store.types import Schema


class Engine(Protocol):
    """Computes relations. Times are int64 microseconds; `EVENT_TIME`, `CREATED` and `ITEM` are the columns of
    `storage.online`. Raises `SourceError` where rows cannot be read, or not with the schema they had at `apply`."""

    def schema(self, rows: Rows) -> Schema:
        """The schema of the rows as they are now (`rows.schema` is ignored), Hive partition columns included."""

    def inputs(self, rows: Rows) -> Mapping[str, str]:
        """What the rows are made of: each file (or commit) with a fingerprint that changes when it does."""

    def latest(
        self, relation: LatestRow, start: int | None, until: int, touched: Collection[str] | None = None
    ) -> pa.RecordBatchReader:
        """The latest row of each key with start <= event time <= until: keys, values, EVENT_TIME, CREATED.

        `touched`: only keys with rows in these inputs (of any event time)."""

    def tiles(
        self, relation: Windows, hop: int, start: int | None, until: int, touched: Collection[str] | None = None
    ) -> pa.RecordBatchReader:
        """The state of each key and tile of one hop, over its events before `until`, for tiles that end after `start`:
        keys, EVENT_TIME (the latest event's), CREATED, ITEM (the tile's), `covered` (INT64: every event before it is
        in the state), and the state columns of `aggregates.tile_schema`."""

    def snapshot(self, relation: Windows | ScheduledQuery, at: int, *, as_known: bool = False) -> pa.RecordBatchReader:
        """A snapshot at boundary `at`: keys and values, one row a key. For Windows: every key with an event in any
        window, over events before `at`. For a query: its result for the `${date}` whose rows are valid from `at`.

        With `as_known` only rows with created <= `at` count; for a query the schema metadata `hidden` then says how
        many rows of its sources, of event times before `at`, were not seen for that."""

    def as_of(
        self, relation: LatestRow | Windows, spine: pa.Table, names: Collection[str], as_known: bool = False
    ) -> pa.Table:
        """For each row of `spine` (the key columns, and EVENT_TIME as T; a key may be null), in its order: the values
        `names` and EVENT_TIME of the row found (null: none; too old is not looked at here). With `as_known` only rows
        with created <= T count, and the schema metadata `hidden` says how many rows were not seen for that."""

    def compute(self, table: pa.Table, columns: Mapping[str, Scalar]) -> pa.Table:
        """`table` with computed columns appended, row by row in order."""

    def select(self, sql: str, sources: Collection[Rows]) -> pa.Table:
        """The rows of a SELECT in Spark SQL over sources by name, such as an entity table."""

    def close(self) -> None: ...
