"""The port of fast tiers: copies of some rows of a slower store, each of which may vanish at any time.

A key has a copy there, or a ticket, or nothing:

    hold    nothing becomes a ticket; a copy stays
    fill    the ticket becomes a copy of what the slow store answered; without that ticket nothing happens
    update  a copy takes the rows as a store does; a ticket becomes nothing; nothing stays nothing
    lost    anything becomes nothing: evicted, flushed, expired

Who fills holds first, then reads the slow store. Who writes writes to the slow store first, then updates. So a copy
never lacks an acknowledged write: one that the slow store had not seen when it was read for the copy comes to the fast
tier later, and finds the copy, or the ticket, and with the ticket gone no copy is made of what was read too early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import pyarrow as pa

from feature_store.storage.online import Key, Row, Table

MISSING: Final[Any] = object()
"""The answer for a key without a copy. None, and an empty mapping, are copies: the slow store has no row either."""

Answer = Row | Mapping[bytes, Row] | None


class FastTier(Protocol):
    """Copies of tables. A `life` names the server from its start to its end: no other server is read or written, since
    one that was started again from a file, or a replica that took over, has old copies.

    Every method raises `StoreUnavailableError` when the tier cannot be reached in time, or is in another life.
    """

    def life(self) -> str:
        """The life that the server is in now."""

    def read(self, requests: Sequence[tuple[Table, Sequence[Key]]], life: str) -> tuple[list[list[Any]], bool]:
        """One round trip. Per request one answer a key as an online store gives it, or `MISSING`; and whether none
        is missing."""

    def update(self, table: Table, rows: pa.Table, keep_from: bytes | None, life: str) -> None:
        """Bring the copies that there are up to date: arguments and meaning as `OnlineStore.write` has them."""

    def hold(self, table: Table, keys: Sequence[Key], ticket: bytes, life: str) -> None:
        """Put a ticket where there is nothing."""

    def fill(self, table: Table, keys: Sequence[Key], answers: Sequence[Answer], ticket: bytes, life: str) -> int:
        """Turn the tickets into copies of answers; how many of the keys have a copy then, this one or another."""

    def began(self, tables: Sequence[Table], now: int) -> list[int]:
        """When each table began to be filled: `now` (microseconds) where the tier does not know, which is so at first
        and after it lost its copies."""

    def drop(self, table: Table) -> None:
        """Remove a table's copies and tickets."""

    def close(self) -> None: ...
