"""Several online stores as one: each table rests where its view's `storage.online` says, the rest in the default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from feature_store.storage.online import Answers, Key, OnlineStore, Row, Table
from feature_store.storage.tiered import TieredOnlineStore


class RoutedOnlineStore:
    """Passes each table's calls on to a store by its name: `uri_of` gives the URI, None means the default store.
    Stores are opened, with `opened`, when first needed.

    A read makes one round trip to each store concerned. All of a view's tables, its marker too, rest in one.
    """

    def __init__(
        self, default: OnlineStore, uri_of: Callable[[str], str | None], opened: Callable[[str], OnlineStore]
    ) -> None:
        self._default = default
        self._uri_of = uri_of
        self._open = opened
        self._opened: dict[str, OnlineStore] = {}

    def create(self, *tables: Table) -> None:
        for store in {id(found): found for found in map(self._store, tables)}.values():
            store.create(*(table for table in tables if self._store(table) is store))

    def drop(self, table: Table) -> None:
        self._store(table).drop(table)

    def write(self, table: Table, rows: pa.Table, keep_from: bytes | None = None) -> None:
        self._store(table).write(table, rows, keep_from)

    def read(self, requests: Sequence[tuple[Table, Sequence[Key]]]) -> list[list[Row | Mapping[bytes, Row] | None]]:
        stores = [self._store(table) for table, _ in requests]
        if all(store is self._default for store in stores):
            return self._default.read(requests)
        answers: list[list[Row | Mapping[bytes, Row] | None]] = [[] for _ in requests]
        tiered: dict[int, Mapping[str, int] | None] = {}
        for store in dict.fromkeys(stores):
            places = [place for place, its in enumerate(stores) if its is store]
            found = store.read([requests[place] for place in places])
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
            if isinstance(found, Answers):
                tiered |= dict(zip(places, found.behind or [{}] * len(places), strict=True))
        return _with_tiers(answers, tiered) if tiered else answers

    def refill(self, table: Table) -> int | None:
        """Copy a table from the slow tier of its store to the fast one; the number of keys, None if it has no tiers."""
        store = self._store(table)
        return store.refill(table) if isinstance(store, TieredOnlineStore) else None

    @property
    def tiered(self) -> list[TieredOnlineStore]:
        """Those of the stores that have two tiers, as far as they are opened."""
        return [store for store in (self._default, *self._opened.values()) if isinstance(store, TieredOnlineStore)]

    def scan(self, table: Table) -> Iterator[pa.RecordBatch]:
        return self._store(table).scan(table)

    def close(self) -> None:
        for store in (self._default, *self._opened.values()):
            store.close()

    def _store(self, table: Table) -> OnlineStore:
        uri = self._uri_of(table.name)
        if uri is None:
            return self._default
        if uri not in self._opened:
            self._opened[uri] = self._open(uri)
        return self._opened[uri]


def _with_tiers(answers: list[list[Row | Mapping[bytes, Row] | None]], tiered: Mapping[int, Any]) -> Any:
    """The answers of several stores, some of which have tiers."""
    out = Answers(answers)
    out.behind = [tiered.get(place) for place in range(len(answers))]
    return out
