"""The port of online stores: what retrieval and materialization may ask of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from feature_store.types import Schema

EVENT_TIME = "__event_time"
CREATED = "__created"
ITEM = "__item"
NO_CREATED = -(2**63)

Key = tuple[Any, ...]
"""The values of the key columns, in the order of the key schema."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a store knows of its rows: a name, key columns, value columns.

    A table with `items` keeps many rows a key, told apart by an item: 1 to 64 bytes that sort as text of bytes.
    """

    name: str
    keys: Schema
    values: Schema
    items: bool = False

    @property
    def arrow(self) -> pa.Schema:
        """The key columns, then the value columns."""
        return pa.schema([*self.keys.arrow, *self.values.arrow])


class Row(NamedTuple):
    """A stored row. TIMESTAMP values are int microseconds, DATE values int days since the epoch, arrays lists."""

    event_time: int
    created: int
    values: tuple[Any, ...]


class Answers(list[Any]):
    """What `read` of a store with several tiers gives; one without gives a plain list.

    `behind` counts, of each request, the keys that the first tier did not answer by who did, None where the table rests
    in a store without tiers; empty: the first tier answered all.
    """

    behind: Sequence[Mapping[str, int] | None] = ()


class OnlineStore(Protocol):
    """The latest row of each key (and item). An older (event time, created) never replaces a newer one; of two equal
    ones the later write stays. The store itself decides, in one step.

    Every method raises `StoreUnavailableError` when the store cannot be reached in time.
    """

    def create(self, *tables: Table) -> None:
        """Make tables ready; nothing happens to those that are."""

    def drop(self, table: Table) -> None:
        """Remove a table and its rows; nothing happens if there is none."""

    def write(self, table: Table, rows: pa.Table, keep_from: bytes | None = None) -> None:
        """Write rows: the key and value columns of the table, `EVENT_TIME` and `CREATED` (int64 microseconds,
        `NO_CREATED` where unknown) and, in a table with items, `ITEM` (binary). Acknowledged when it returns.

        `keep_from`: items below it are dropped from the keys written.
        """

    def read(self, requests: Sequence[tuple[Table, Sequence[Key]]]) -> list[list[Row | Mapping[bytes, Row] | None]]:
        """One round trip. Per request one answer a key, in order: its row or None; in a table with items a mapping
        of item to row, empty where there is none, which may decode a row when it is asked for. Reads of windows are
        faster where the mapping has `columns`, as `storage.rows.Items` does."""

    def scan(self, table: Table) -> Iterator[pa.RecordBatch]:
        """All rows, in no order, in the columns that `write` takes."""

    def close(self) -> None: ...
