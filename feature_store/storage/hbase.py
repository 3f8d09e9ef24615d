"""The online store in HBase: history by event time, and never a read before a write.

All tables of a project lie in one HBase table, PREFIX.PROJECT or, where the URI names a table, PREFIX.PROJECT.TABLE, so
that one call reads the rows of several, and a project of many views has few regions. A row of feature table T, entity
key K:

    row key    a salt (0 to 63, a hash of K), 8 bytes that stand for T, K as `keys` encodes it
    column     in a table with items 1 byte with the item's length and the item; then the row's event time and
               created, the 16 bytes that it begins with; perhaps 8 bytes more, see below
    timestamp  the event time in milliseconds, rounded down to the day (0 before 1970)
    value      the row as `rows` encodes it

A column is written once and never changes its meaning, so the order of writes cannot matter: a reader takes the column
that is greatest, which is the greatest (event time, created), and of two equal ones HBase keeps the later write. The
rows that lost are history, as many as `versions` says; writes tidy some of their keys. Timestamps are rounded
because the Thrift gateway takes one for a whole batch: rows of a day travel together. They serve `ttl`, which goes
with each cell, so that views with different ones share the table; what comes first, `ttl` or the views' own maximum
age, decides between NOT_FOUND and OUTSIDE_MAX_AGE.

HBase hides under a deletion what is written again later with an older timestamp. Two things are deleted and may come
back, so both have a head row (key: salt, 8 zero bytes, T) to say so:

- Tables. The 8 bytes stand for T and the `generation` in its head. `drop` counts that up, in one step, and then removes
  the rows of generations before. Who wrote meanwhile finds out, because each write looks at the head when it is
  done, and writes again. Readers look once a second.
- Items below a `keep_from`. The head has the greatest one ever used as its `floor`. A row below it gets a column that
  was never used: with 8 bytes more, the time of writing.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa

from feature_store.errors import InvalidInputError
from feature_store.storage.codecs import codecs
from feature_store.storage.hbase_gateway import (
    NAMES_ONLY,
    SALTS,
    Cells,
    Change,
    Gateway,
    NoSuchTableError,
    Place,
    beginning_with,
)
from feature_store.storage.online import Key, Row, Table
from feature_store.storage.rows import STAMP, Items, columns_of, items_of, to_batch

_ROWS_A_PART = 65_536
_ROWS_A_CALL, _BYTES_A_CALL = 1_000, 2 << 20
_ROWS_A_TIDYING = 200
_TIDIED = 1 / 8
"""The share of its keys that a write tidies: losers number about eight a key where every write makes one."""

_LOOK_AGAIN_AFTER = 1.0
"""Seconds until a reader asks whether somebody dropped the table."""

_DAY_MS = 86_400_000
_SIGN = 2**63
_FOREVER = 2**63 - 2
"""A timestamp behind all others; the very last one means now."""

_GENERATION, _FLOOR, _CLEARED = b"generation", b"floor", b"cleared"

Answer = Row | Mapping[bytes, Row] | None
Cell = tuple[bytes, bytes]
"""The encoded key and the item (empty in a table without) of a row."""


class _Head(NamedTuple):
    """What is known of a table: how often it was dropped, and the greatest `keep_from` that was ever used."""

    generation: int = 0
    floor: bytes = b""


class HBaseOnlineStore:
    """`hbase://HOST:PORT[/TABLE][?timeout=SECONDS&pool=N&prefix=NAME&versions=N&ttl=400d&regions=N&admin=HOST:PORT]`:
    a Thrift gateway, opened for one project. Thread-safe; each call takes a connection of its own.
    """

    def __init__(self, uri: str, project: str) -> None:
        self._place = Place.of(uri)
        self._gateway = Gateway(self._place)
        self._name = self._place.name(project)
        self._heads: dict[str, tuple[float, _Head]] = {}
        self._prefixes: dict[tuple[str, int], list[bytes]] = {}
        self._is_there = False

    def create(self, *tables: Table) -> None:
        """Make the project's HBase table unless it is there; there is nothing to do for one of its tables."""
        if not self._is_there:
            self._gateway.create(self._name)
            self._is_there = True

    def drop(self, table: Table) -> None:
        head = _head_row(table.name)
        try:
            generation = self._gateway.increment(self._name, head, _GENERATION)
        except NoSuchTableError:
            return
        self._heads.pop(table.name, None)
        cells = self._gateway.rows(self._name, [head])[head]
        cleared = int.from_bytes(cells[b"f:" + _CLEARED].value, "big") if b"f:" + _CLEARED in cells else 0
        for old in range(cleared, generation):
            self._gateway.each(self._clear, self._prefix(table.name, old))
        # The timestamp counts up, too: of two who drop at once, the later generation stays.
        done = Change(generation, [(head, _CLEARED, generation.to_bytes(8, "big"))])
        self._gateway.change(self._name, [done])

    def write(self, table: Table, rows: pa.Table, keep_from: bytes | None = None) -> None:
        for start in range(0, rows.num_rows, _ROWS_A_PART):
            newest = _newest(table, rows.slice(start, _ROWS_A_PART))
            try:
                self._write(table, newest, keep_from or b"")
            except NoSuchTableError:
                self._gateway.create(self._name)
                self._write(table, newest, keep_from or b"")

    def read(self, requests: Sequence[tuple[Table, Sequence[Key]]]) -> list[list[Answer]]:
        return self._read(requests, None)

    def read_as_of(self, requests: Sequence[tuple[Table, Sequence[Key]]], at: int) -> list[list[Answer]]:
        """As `read` would have answered if nothing later than `at` (microseconds) had happened: of the rows that
        `versions` and `ttl` kept, those with an event time up to it. For tables without items."""
        return self._read(requests, at)

    def read_item(self, table: Table, keys: Sequence[Key], item: bytes, stamp: bytes) -> list[Row | None]:
        """Of each key the row of one item, whose encoded event time and created are known: nothing else is sent."""
        prefixes, codec = self._prefix(table.name, self._known(table.name).generation), codecs(table)
        rows = [prefixes[crc32(key) % SALTS] + key for key in codec.keys.encode_all(keys)]
        column = b"%c%b%b" % (len(item), item, stamp)
        parts = [rows[start : start + _ROWS_A_CALL] for start in range(0, len(rows), _ROWS_A_CALL)]
        found: dict[bytes, Cells] = {}
        for part in self._gateway.each(lambda part: self._gateway.rows(self._name, part, column=column), parts):
            found |= part
        return [codec.rows.decode(found[row][b"f:" + column].value) if row in found else None for row in rows]

    def drop_items(self, table: Table, items: Sequence[bytes]) -> None:
        """Remove items of every key; they must not be used again."""
        for page in self._pages(table, _only(items)):
            losers = [(row, column[2:]) for row, cells in page for column in cells]
            self._gateway.change(self._name, [Change(_FOREVER, deletes=losers)])

    def scan(
        self, table: Table, item: bytes | None = None, salts: Collection[int] = range(SALTS)
    ) -> Iterator[pa.RecordBatch]:
        """All rows, in no order, in the columns that `write` takes; or those of one item, and those whose keys have
        one of these salts, so that several processes may share the work."""
        columns = columns_of(table)
        chosen = None if item is None else _only([item])
        rows: list[tuple[Any, ...]] = []
        for found in self._pages(table, chosen, salts):
            for row, cells in found:
                rows += _decoded(table, row[9:], cells)
            if len(rows) >= _ROWS_A_CALL:
                yield to_batch(columns, rows)
                rows = []
        if rows:
            yield to_batch(columns, rows)

    def close(self) -> None:
        self._gateway.close()

    # Writing

    def _write(self, table: Table, newest: dict[Cell, bytes], keep_from: bytes) -> None:
        if keep_from:
            self._raise_floor(table.name, keep_from)
        head = self._known(table.name)
        kept = {cell: row for cell, row in newest.items() if cell[1] >= keep_from}
        waiting = kept
        while True:
            self._put(table, head, waiting)
            now = self._look(table.name)
            if now.generation != head.generation:
                waiting = kept
            else:
                waiting = {cell: row for cell, row in kept.items() if head.floor <= cell[1] < now.floor}
            head = now
            if not waiting:
                break
        self._tidy(table, head, dict.fromkeys(key for key, _ in newest), keep_from)

    def _put(self, table: Table, head: _Head, rows: Mapping[Cell, bytes]) -> None:
        prefixes, data = self._prefix(table.name, head.generation), list(rows.values())
        keys = [prefixes[crc32(key) % SALTS] + key for key, _ in rows]
        columns = [row[STAMP] for row in data]
        if table.items:
            unused = time.time_ns().to_bytes(8, "big")
            columns = [
                b"%c%b%b%b" % (len(item), item, stamp, unused if item < head.floor else b"")
                for (_, item), stamp in zip(rows, columns, strict=True)
            ]
        self._gateway.change(self._name, self._changes(list(zip(keys, columns, data, strict=True))))

    def _changes(self, puts: list[tuple[bytes, bytes, bytes]]) -> Iterator[Change]:
        """Puts by timestamp, in calls that are not too large."""
        if not puts:
            return
        step = max(1, min(_ROWS_A_CALL, _BYTES_A_CALL // (1 + max(len(row) for _, _, row in puts))))
        timestamps = _timestamps([row for _, _, row in puts])
        order = np.argsort(timestamps, kind="stable")
        firsts = np.flatnonzero(np.diff(timestamps[order], prepend=-1)).tolist()
        for first, end in zip(firsts, [*firsts[1:], len(puts)], strict=True):
            timestamp = int(timestamps[order[first]])
            # Before 1970 the timestamp is not the time, so nothing can expire by it.
            ttl = None if self._place.ttl is None or not timestamp else self._place.ttl // 1000 + _DAY_MS
            for start in range(first, end, step):
                yield Change(timestamp, [puts[n] for n in order[start : min(start + step, end)].tolist()], ttl=ttl)

    def _tidy(self, table: Table, head: _Head, keys: Iterable[bytes], keep_from: bytes) -> None:
        """Remove the items below `keep_from` of these keys, and what lost. Without one, in a table without items, what
        lost of some keys: to read all items of a key only to look for losers costs more than they do."""
        if table.items and not keep_from:
            return
        prefixes = self._prefix(table.name, head.generation)
        chosen = keys if keep_from else [key for key in keys if random.random() < _TIDIED]
        rows = [prefixes[crc32(key) % SALTS] + key for key in chosen]

        def tidy(part: list[bytes]) -> None:
            latest, losers = 0, []
            for row, cells in self._gateway.rows(self._name, part).items():
                for column in _losers(table, cells, keep_from, self._place.versions):
                    latest = max(latest, cells[column].timestamp)
                    losers.append((row, column[2:]))
            if losers:
                self._gateway.change(self._name, [Change(latest, deletes=losers)])

        parts = [rows[start : start + _ROWS_A_TIDYING] for start in range(0, len(rows), _ROWS_A_TIDYING)]
        if len(parts) == 1:
            tidy(parts[0])
        else:
            self._gateway.each(tidy, parts)

    def _clear(self, prefix: bytes) -> None:
        for rows in self._gateway.scan(self._name, prefix, NAMES_ONLY):
            self._gateway.change(self._name, [Change(_FOREVER, deletes=[(row.row, None) for row in rows])])

    def _raise_floor(self, name: str, keep_from: bytes) -> None:
        head = self._known(name)
        while head.floor < keep_from:
            self._gateway.swap(self._name, _head_row(name), _FLOOR, head.floor or None, keep_from)
            head = self._look(name)

    # Reading

    def _read(self, requests: Sequence[tuple[Table, Sequence[Key]]], at: int | None) -> list[list[Answer]]:
        names = list(dict.fromkeys(table.name for table, _ in requests))
        try:
            self._look_at([name for name in names if name not in self._heads])
            keys, found = self._fetch(requests, names, None if at is None else _timestamp(at) + 1)
        except NoSuchTableError:
            return [[Items(codecs(table).rows, {}) if table.items else None for _ in keys] for table, keys in requests]
        bound = None if at is None else b"f:" + (at + _SIGN).to_bytes(8, "big") + b"\xff" * 8
        return [
            [_answer(table, found.get(row), bound) for row in rows]
            for (table, _), rows in zip(requests, keys, strict=True)
        ]

    def _fetch(
        self, requests: Sequence[tuple[Table, Sequence[Key]]], names: list[str], before: int | None
    ) -> tuple[list[list[bytes]], dict[bytes, Cells]]:
        """Of each request its row keys, and the rows; heads not looked at for a while come along in the same call."""
        now = time.monotonic()
        old = [name for name in names if now - self._heads[name][0] > _LOOK_AGAIN_AFTER]
        while True:
            heads = {name: self._heads[name][1] for name in names}
            keys = [self._rows(table, heads[table.name], keys) for table, keys in requests]
            wanted = dict.fromkeys(row for rows in keys for row in rows)
            if old and before is not None:
                self._look_at(old)
                old = []
                continue
            found = self._gateway.rows(self._name, [*wanted, *map(_head_row, old)], before)
            self._take_heads(old, found)
            if all(self._heads[name][1].generation == heads[name].generation for name in old):
                return keys, found
            old = []

    def _rows(self, table: Table, head: _Head, keys: Sequence[Key]) -> list[bytes]:
        prefixes = self._prefix(table.name, head.generation)
        return [prefixes[crc32(key) % SALTS] + key for key in codecs(table).keys.encode_all(keys)]

    def _pages(
        self, table: Table, chosen: bytes | None = None, salts: Collection[int] = range(SALTS)
    ) -> Iterator[list[tuple[bytes, Cells]]]:
        """The rows of a table, salt by salt, and of them the columns that a filter chooses."""
        try:
            prefixes = self._prefix(table.name, self._look(table.name).generation)
            for salt in salts:
                for page in self._gateway.scan(self._name, prefixes[salt], chosen):
                    yield [(row.row, row.columns) for row in page]
        except NoSuchTableError:
            return

    # Heads

    def _known(self, name: str) -> _Head:
        """The head as it was when last looked at; of an old one the floor may be too low, and it is for the caller to
        look again after what he did."""
        return self._heads[name][1] if name in self._heads else self._look(name)

    def _look(self, name: str) -> _Head:
        self._look_at([name])
        return self._heads[name][1]

    def _look_at(self, names: list[str]) -> None:
        if names:
            self._take_heads(names, self._gateway.rows(self._name, [*map(_head_row, names)]))

    def _take_heads(self, names: list[str], found: Mapping[bytes, Cells]) -> None:
        now = time.monotonic()
        for name in names:
            cells = {column[2:]: cell.value for column, cell in found.get(_head_row(name), {}).items()}
            head = _Head(int.from_bytes(cells.get(_GENERATION, b""), "big"), cells.get(_FLOOR, b""))
            self._heads[name] = (now, head)

    def _prefix(self, name: str, generation: int) -> list[bytes]:
        """What the keys of a table's rows begin with, by salt."""
        prefixes = self._prefixes.get((name, generation))
        if prefixes is None:
            digest = hashlib.blake2b(f"{generation}:{name}".encode(), digest_size=8).digest()
            prefixes = self._prefixes[name, generation] = [bytes([salt]) + digest for salt in range(SALTS)]
        return prefixes


def _head_row(name: str) -> bytes:
    text = name.encode()
    return bytes([crc32(text) % SALTS]) + bytes(8) + text


def _newest(table: Table, rows: pa.Table) -> dict[Cell, bytes]:
    """The rows as bytes; of several of one key and item the greatest, of equal ones the last."""
    _, keys, values = codecs(table)
    names, data = keys.encode_table(rows), values.encode(rows)
    items = items_of(rows) if table.items else [b""] * rows.num_rows
    if table.items and max(map(len, items), default=0) > 255:
        raise InvalidInputError("an item is longer than 255 bytes")
    cells = list(zip(names, items, strict=True))
    newest = dict(zip(cells, data, strict=True))
    if len(newest) < len(cells):
        for cell, row in zip(cells, data, strict=True):
            if newest[cell][STAMP] <= row[STAMP]:
                newest[cell] = row
    return newest


def _timestamps(rows: Sequence[bytes]) -> np.ndarray[Any, Any]:
    """The timestamps of encoded rows."""
    event_times = np.frombuffer(b"".join([row[1:9] for row in rows]), ">u8").astype(np.uint64) ^ np.uint64(_SIGN)
    milliseconds = np.maximum(event_times.view(np.int64), 0) // 1000
    rounded: np.ndarray[Any, Any] = milliseconds - milliseconds % _DAY_MS
    return rounded


def _timestamp(event_time: int) -> int:
    milliseconds = max(event_time, 0) // 1000
    return milliseconds - milliseconds % _DAY_MS


def _only(items: Sequence[bytes]) -> bytes:
    """A filter of scans: the columns of some items."""
    return beginning_with(bytes([len(item)]) + item for item in items)


def _item(column: bytes) -> bytes:
    return column[3 : 3 + column[2]]


def _answer(table: Table, cells: Cells | None, bound: bytes | None) -> Answer:
    if table.items:
        return Items(codecs(table).rows, _latest_items(cells) if cells else {})
    if not cells:
        return None
    if bound is not None:
        cells = {column: cell for column, cell in cells.items() if column <= bound}
    return codecs(table).rows.decode(cells[max(cells)].value) if cells else None


def _latest_items(cells: Cells) -> dict[bytes, bytes]:
    """The row of each item: of its columns the greatest, which of two equal times is the one written later."""
    return {_item(column): cells[column].value for column in sorted(cells)}


def _losers(table: Table, cells: Cells, keep_from: bytes, versions: int) -> list[bytes]:
    """The columns that no reader needs any more."""
    columns = sorted(cells)
    if not table.items:
        return columns[:-versions]
    latest = {_item(column): column for column in columns}
    return [column for column in columns if _item(column) < keep_from or latest[_item(column)] != column]


def _decoded(table: Table, key: bytes, cells: Cells) -> Iterator[tuple[Any, ...]]:
    """The rows of one key as `columns_of` names their parts."""
    _, keys, values = codecs(table)
    found = _latest_items(cells) if table.items else {b"": cells[max(cells)].value}
    for item, data in found.items():
        row = values.decode(data)
        yield (*keys.decode(key), *row.values, row.event_time, row.created, *((item,) if table.items else ()))
