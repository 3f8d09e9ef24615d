"""The snapshots of scheduled queries in HBase, each as it was served: what a view with `storage.offline` there keeps.

A key's row holds all its snapshots. Their event time, and so the cells' timestamp, is the boundary from which they are
valid, their item the run that took them. One more row lists the runs of which every cell is there, and of a boundary
the latest one listed counts: a snapshot appears whole, and one taken again replaces the former in one step.

Who reads goes on with the run that counted when he began. It is removed a day after another one took its place, from
the list first and then its cells. So a run that is still listed when it was read was read whole, and whoever finds that
it is not says so, instead of taking what is left for the snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa

from feature_store.errors import ConflictError
from feature_store.expressions.aggregates import tile_item
from feature_store.expressions.instants import DAY, to_iso
from feature_store.storage.hbase import HBaseOnlineStore
from feature_store.storage.hbase_gateway import SALTS
from feature_store.storage.online import Row, Table
from feature_store.storage.rows import columns_of, raw_type, to_batch
from feature_store.types import INT64, Schema, Type

_SIGN = 2**63
_NO_KEY = Schema(())
_KEYS_A_BATCH = 10_000

Batches = Iterator[pa.RecordBatch]


class _Run(NamedTuple):
    """A line of the list: a boundary, and a run that took its snapshot."""

    at: int
    run: int
    rows: int
    since: int
    """When it was listed."""
    item: bytes


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

    grace = DAY
    """How long, in microseconds, a run that was replaced can still be read."""

    def boundaries(self) -> list[int]:
        """The boundaries, in microseconds, of the snapshots that are kept, those without rows among them."""
        return list(self._counting())

    def keep(self, at: int, write: Callable[[int], int]) -> KeptSnapshot:
        """Keep the snapshot of a boundary: `write` is called with a run, writes the rows to `table` with the boundary
        as their event time and the run as their created time and item, and tells how many. They count from then on."""
        self.store.create(self.table)
        former = self._counting().get(at)
        run = max(time.time_ns() // 1000, former.run + 1 if former else 0)
        rows, now = write(run), time.time_ns() // 1000
        line = to_batch(columns_of(self._list), [(run, rows, at, now, tile_item(at) + tile_item(run))])
        self.store.write(self._list, pa.Table.from_batches([line]))
        self._sweep(now - self.grace)
        return KeptSnapshot(self, at)

    def read(self, at: int, among: pa.Table | None = None) -> pa.Table:
        """Keys and values of a snapshot; `among` has key columns: then only of the keys that it has. `ConflictError` as
        of `batches`."""
        if among is None:
            return pa.Table.from_batches(self.batches(at), self.schema)
        return pa.Table.from_batches(self._found(at, among), self.schema)

    shares = SALTS
    """Into how many parts the rows are divided."""

    def run(self, at: int) -> int:
        """The run of a boundary that counts; `ConflictError` where the snapshot is not kept any more."""
        if counting := self._counting().get(at):
            return counting.run
        raise self._gone(at)

    def batches(self, at: int, shares: Collection[int] = range(SALTS), run: int | None = None) -> Batches:
        """Keys and values of a snapshot, part by part; or only some of its shares, numbered from 0. Those who share the
        work name the same `run`, which counted when they began.

        `ConflictError` behind the last part where the run was removed meanwhile: some rows may be missing then."""
        run = self.run(at) if run is None else run
        for batch in self.store.scan(self.table, tile_item(run), shares):
            yield batch.select(self.schema.names)
        self._check_listed(at, run)

    def count(self, at: int) -> int:
        """The number of rows of a snapshot."""
        counting = self._counting().get(at)
        return 0 if counting is None else counting.rows

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

    def _listed(self) -> list[_Run]:
        """All runs that can be read, by boundary and from the earliest to the latest."""
        rows = self.store.read([(self._list, [()])])[0][0]
        assert isinstance(rows, Mapping)
        return sorted(_Run._make((row.event_time, *row.values, row.created, item)) for item, row in rows.items())

    def _counting(self) -> dict[int, _Run]:
        """By boundary the run that counts."""
        return {run.at: run for run in self._listed()}

    def _sweep(self, before: int) -> None:
        """Remove the runs that were replaced before a time."""
        runs = pairwise(self._listed())
        replaced = [run for run, later in runs if run.at == later.at and later.since <= before]
        if replaced:
            self.store.drop_items(self._list, [run.item for run in replaced])
            self.store.drop_items(self.table, [tile_item(run.run) for run in replaced])

    def _check_listed(self, at: int, run: int) -> None:
        if not any((listed.at, listed.run) == (at, run) for listed in self._listed()):
            raise self._gone(at)

    def _gone(self, at: int) -> ConflictError:
        return ConflictError(
            f'the snapshot of "{self.table.name}" at {to_iso(at)} was removed while it was read',
            hint="Run it again, it reads the one that took its place",
        )

    def _found(self, at: int, among: pa.Table) -> Batches:
        run, names = self.run(at), list(self.table.keys.names)
        stamp = b"".join((time + _SIGN).to_bytes(8, "big") for time in (at, run))
        distinct = among.select(names).drop_null().group_by(names).aggregate([]).select(names)
        for batch in distinct.to_batches(max_chunksize=_KEYS_A_BATCH):
            keys = list(zip(*(_values(batch.column(c.name), c.type) for c in self.table.keys), strict=True))
            found = self.store.read_item(self.table, keys, tile_item(run), stamp)
            rows = [(*key, *row.values) for key, row in zip(keys, found, strict=True) if isinstance(row, Row)]
            yield to_batch((*self.table.keys, *self.table.values), rows)
        self._check_listed(at, run)


def _values(column: pa.Array, type_: Type) -> list[Any]:
    """A column as row values."""
    values: list[Any] = column.cast(type_.arrow).cast(raw_type(type_)).to_pylist()
    return values


class KeptSnapshot:
    """The rows of one snapshot, as they are kept: read anew each time."""

    def __init__(self, snapshots: HBaseSnapshots, at: int) -> None:
        self._snapshots, self._at = snapshots, at

    def write(self, sink: Callable[[Batches], int]) -> int:
        """Feed the rows to a sink; the number written. `ConflictError` as of `HBaseSnapshots.batches`."""
        return sink(self._snapshots.batches(self._at))

    def count(self) -> int:
        return self._snapshots.count(self._at)
