"""The snapshots of scheduled queries in HBase, each as it was served: what a view with `storage.offline` there keeps.

A key's row holds all its snapshots. Their event time, and so the cells' timestamp, is the boundary from which they are
valid, their item the run that took them. One more row lists of each boundary the run that counts: a snapshot appears
whole when it is listed, and one taken again replaces the former in one step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa

from feature_store.expressions.aggregates import tile_item
from feature_store.storage.hbase import HBaseOnlineStore
from feature_store.storage.hbase_gateway import SALTS
from feature_store.storage.online import Row, Table
from feature_store.storage.rows import columns_of, raw_type, to_batch
from feature_store.types import INT64, Schema, Type

_SIGN = 2**63
_NO_KEY = Schema(())
_KEYS_A_BATCH = 10_000

Batches = Iterator[pa.RecordBatch]


class HBaseSnapshots:
    """The snapshots of one query, `name`, at the HBase of a URI. It can be sent to other processes."""

    def __init__(self, uri: str, project: str, name: str, keys: Schema, values: Schema) -> None:
        self.uri, self.project = uri, project
        self.table = Table(name, keys, values, items=True)
        self._list = Table(f"{name}.list", _NO_KEY, Schema.of(run=INT64, rows=INT64), items=True)

    def __reduce__(self) -> Any:
        return HBaseSnapshots, (self.uri, self.project, self.table.name, self.table.keys, self.table.values)

    @cached_property
    def store(self) -> HBaseOnlineStore:
        return HBaseOnlineStore(self.uri, self.project)

    def boundaries(self) -> list[int]:
        """The boundaries, in microseconds, of the snapshots that are kept, those without rows among them."""
        return sorted(self._listed())

    def keep(self, at: int, write: Callable[[int], int]) -> KeptSnapshot:
        """Keep the snapshot of a boundary: `write` is called with a run, writes the rows to `table` with the boundary
        as their event time and the run as their created time and item, and tells how many. They count from then on."""
        self.store.create(self.table)
        former = self._listed().get(at)
        run = max(time.time_ns() // 1000, former[0] + 1 if former else 0)
        rows = write(run)
        line = to_batch(columns_of(self._list), [(run, rows, at, run, tile_item(at))])
        self.store.write(self._list, pa.Table.from_batches([line]))  # of two at once the later run stays
        if former is not None:
            self.store.drop_item(self.table, tile_item(former[0]))
        return KeptSnapshot(self, at)

    def read(self, at: int, among: pa.Table | None = None) -> pa.Table:
        """Keys and values of a snapshot; `among` has key columns: then only of the keys that it has."""
        if among is None:
            return pa.Table.from_batches(self.batches(at), self.schema)
        return pa.Table.from_batches(self._found(at, among), self.schema)

    shares = SALTS
    """Into how many parts the rows are divided."""

    def batches(self, at: int, shares: Collection[int] = range(SALTS)) -> Batches:
        """Keys and values of a snapshot, part by part; or only some of its shares, numbered from 0."""
        listed = self._listed().get(at)
        if listed is not None:
            for batch in self.store.scan(self.table, tile_item(listed[0]), shares):
                yield batch.select(self.schema.names)

    def count(self, at: int) -> int:
        """The number of rows of a snapshot."""
        listed = self._listed().get(at)
        return 0 if listed is None else listed[1]

    def drop(self) -> None:
        """Remove all snapshots."""
        self.store.drop(self._list)
        self.store.drop(self.table)

    def close(self) -> None:
        if "store" in self.__dict__:
            self.store.close()

    @property
    def schema(self) -> pa.Schema:
        """Keys and values, in Arrow."""
        return pa.schema([*self.table.keys.arrow, *self.table.values.arrow])

    def _listed(self) -> dict[int, tuple[int, int]]:
        """By boundary the run that counts and its number of rows."""
        rows = self.store.read([(self._list, [()])])[0][0]
        assert isinstance(rows, Mapping)
        return {row.event_time: (row.values[0], row.values[1]) for row in rows.values()}

    def _found(self, at: int, among: pa.Table) -> Batches:
        listed = self._listed().get(at)
        if listed is None:
            return
        run, names = listed[0], list(self.table.keys.names)
        stamp = b"".join((time + _SIGN).to_bytes(8, "big") for time in (at, run))
        distinct = among.select(names).drop_null().group_by(names).aggregate([]).select(names)
        for batch in distinct.to_batches(max_chunksize=_KEYS_A_BATCH):
            keys = list(zip(*(_values(batch.column(c.name), c.type) for c in self.table.keys), strict=True))
            found = self.store.read_item(self.table, keys, tile_item(run), stamp)
            rows = [(*key, *row.values) for key, row in zip(keys, found, strict=True) if isinstance(row, Row)]
            yield to_batch((*self.table.keys, *self.table.values), rows)


def _values(column: pa.Array, type_: Type) -> list[Any]:
    """A column as row values."""
    values: list[Any] = column.cast(type_.arrow).cast(raw_type(type_)).to_pylist()
    return values


class KeptSnapshot:
    """The rows of one snapshot, as they are kept: read anew each time."""

    def __init__(self, snapshots: HBaseSnapshots, at: int) -> None:
        self._snapshots, self._at = snapshots, at

    def write(self, sink: Callable[[Batches], int]) -> int:
        """Feed the rows to a sink; the number written."""
        return sink(self._snapshots.batches(self._at))

    def count(self) -> int:
        return self._snapshots.count(self._at)
