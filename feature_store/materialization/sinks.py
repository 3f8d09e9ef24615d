"""Where computed rows go: the sink of an online table, which opens the store again in whatever process it is called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from feature_store.expressions.aggregates import tile_item
from feature_store.plugins import open_online_store
from feature_store.storage.online import CREATED, EVENT_TIME, ITEM, OnlineStore, Table

_ON_ONE_MACHINE = ("sqlite", "memory")


@dataclass(frozen=True, slots=True)
class Address:
    """Where an online store is, in words that hold in any process; relative files are relative to `root`."""

    uri: str
    project: str
    root: str

    @property
    def is_shared(self) -> bool:
        """Whether every machine that reaches the network reaches the store, and not this one alone."""
        parts = self.uri.removeprefix("tiered:").split("|")
        return not any(part.partition(":")[0].lower() in _ON_ONE_MACHINE for part in parts)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What all rows of a snapshot share: its boundary as their time, and the item that tells it from other ones."""

    at: int
    generation: int


@dataclass(frozen=True)
class OnlineSink:
    """Writes rows to a table of the store at an address. Here `store` is that store; where the sink was sent to, one
    that the process opens once and keeps. A `stamp` makes finished values the rows of a snapshot; of the keys written
    items below `keep_from` are dropped.

    The store keeps the greatest (event time, created), so a part that is written twice is there once."""

    address: Address
    table: Table
    keep_from: bytes | None = None
    stamp: Stamp | None = None
    store: OnlineStore | None = field(default=None, compare=False, repr=False)

    @property
    def anywhere(self) -> bool:
        return self.address.is_shared

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> int:
        written = 0
        for batch in batches:
            if batch.num_rows:
                store = self.store or _opened(self.address)
                store.write(self.table, self._rows(pa.Table.from_batches([batch])), self.keep_from)
                written += batch.num_rows
        return written

    def __reduce__(self) -> Any:
        return OnlineSink, (self.address, self.table, self.keep_from, self.stamp)

    def _rows(self, rows: pa.Table) -> pa.Table:
        if self.stamp is None:
            return rows
        item = pa.repeat(pa.scalar(tile_item(self.stamp.generation), pa.binary()), rows.num_rows)
        values = rows.select([*self.table.keys.names, *self.table.values.names])
        return timed(values, self.stamp.at, self.stamp.generation).append_column(ITEM, item)


def timed(rows: pa.Table, event_time: int, created: int) -> pa.Table:
    """The rows with one event time and created time for all."""
    for name, value in ((EVENT_TIME, event_time), (CREATED, created)):
        rows = rows.append_column(name, pa.repeat(pa.scalar(value, pa.int64()), rows.num_rows))
    return rows


@cache
def _opened(address: Address) -> OnlineStore:
    return open_online_store(address.uri, address.project, Path(address.root))
