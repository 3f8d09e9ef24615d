"""The online store in a SQLite file: for a repository that runs embedded, read and written by several processes."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl

import pyarrow as pa

from feature_store.errors import SettingsError, StoreUnavailableError
from feature_store.storage.codecs import codecs
from feature_store.storage.online import Key, Row, Table
from feature_store.storage.rows import Items, columns_of, items_of, to_batch

_ROWS_A_WRITE = 20_000
_KEYS_A_QUERY = 512
_ROWS_A_BATCH = 10_000
_NEWER = "WHERE substr(excluded.row, 2, 16) >= substr(row, 2, 16)"

Answer = Row | Mapping[bytes, Row] | None


class SQLiteOnlineStore:
    """`sqlite:///FILE[?timeout=SECONDS]`, opened for one project. Thread-safe; the file may be shared.

    A table of it is a table of the file: `key` and `row` (and `item`), bytes of `storage.keys` and `storage.rows`.
    Durable against a killed process; the last writes before a power cut may be lost.
    """

    def __init__(self, uri: str, project: str) -> None:
        self._file, self._timeout = _parse(uri)
        self._project = project
        self._names: dict[str, str] = {}
        self._idle: deque[sqlite3.Connection] = deque()
        self._process = os.getpid()
        with self._connection():
            pass

    def create(self, *tables: Table) -> None:
        with self._connection() as connection, _transaction(connection, "IMMEDIATE"):
            for table in tables:
                connection.execute(self._create(table))

    def drop(self, table: Table) -> None:
        with self._connection() as connection:
            connection.execute(f"DROP TABLE IF EXISTS {self._name(table)}")

    def write(self, table: Table, rows: pa.Table, keep_from: bytes | None = None) -> None:
        _, codec, values = codecs(table)
        for start in range(0, rows.num_rows, _ROWS_A_WRITE):
            part = rows.slice(start, _ROWS_A_WRITE)
            keys, data = codec.encode_table(part), values.encode(part)
            with self._connection() as connection, _transaction(connection, "IMMEDIATE"):
                connection.execute(self._create(table))
                if table.items:
                    connection.executemany(self._upsert(table), zip(keys, items_of(part), data, strict=True))
                    self._prune(connection, table, set(keys), keep_from)
                else:
                    connection.executemany(self._upsert(table), zip(keys, data, strict=True))

    def read(self, requests: Sequence[tuple[Table, Sequence[Key]]]) -> list[list[Answer]]:
        encoded = [codecs(table).keys.encode_all(keys) for table, keys in requests]
        with self._connection() as connection, _transaction(connection, "DEFERRED"):
            return [
                self._read_items(connection, table, keys) if table.items else self._read_rows(connection, table, keys)
                for (table, _), keys in zip(requests, encoded, strict=True)
            ]

    def scan(self, table: Table) -> Iterator[pa.RecordBatch]:
        _, keys, values = codecs(table)
        after: tuple[bytes, ...] = (b"", b"") if table.items else (b"",)
        while page := self._page(table, after):
            rows = []
            for *place, data in page:
                row = values.decode(data)
                rows.append((*keys.decode(place[0]), *row.values, row.event_time, row.created, *place[1:]))
            yield to_batch(columns_of(table), rows)
            after = tuple(page[-1][:-1])

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _page(self, table: Table, after: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
        place = "key, item" if table.items else "key"
        marks = ", ".join("?" * len(after))
        beyond = f"WHERE ({place}) > ({marks}) ORDER BY {place} LIMIT {_ROWS_A_BATCH}"
        query = f"SELECT {place}, row FROM {self._name(table)} {beyond}"
        with self._connection() as connection:
            return _select(connection, query, after)

    def _read_rows(self, connection: sqlite3.Connection, table: Table, keys: list[bytes]) -> list[Answer]:
        decode = codecs(table).rows.decode
        found: dict[bytes, Row] = {}
        for part in _chunks(keys):
            query = f"SELECT key, row FROM {self._name(table)} WHERE key IN ({', '.join('?' * len(part))})"
            for key, data in _select(connection, query, part):
                found[key] = decode(data)
        return [found.get(key) for key in keys]

    def _read_items(self, connection: sqlite3.Connection, table: Table, keys: list[bytes]) -> list[Answer]:
        rows = codecs(table).rows
        found: dict[bytes, dict[bytes, bytes]] = {}
        for part in _chunks(keys):
            query = f"SELECT key, item, row FROM {self._name(table)} WHERE key IN ({', '.join('?' * len(part))})"
            for key, item, data in _select(connection, query, part):
                found.setdefault(key, {})[item] = data
        return [Items(rows, found.get(key, {})) for key in keys]

    def _prune(self, connection: sqlite3.Connection, table: Table, keys: set[bytes], keep_from: bytes | None) -> None:
        if keep_from is not None:
            delete = f"DELETE FROM {self._name(table)} WHERE key = ? AND item < ?"
            connection.executemany(delete, [(key, keep_from) for key in keys])

    def _name(self, table: Table) -> str:
        """A quoted name of its own for each project and table: SQLite's do not tell cases apart, the digest does."""
        name = self._names.get(table.name)
        if name is None:
            digest = hashlib.sha256(f"{self._project}\0{table.name}".encode()).hexdigest()[:12]
            name = '"' + f"online.{self._project}.{table.name}.{digest}".replace('"', '""') + '"'
            self._names[table.name] = name
        return name

    def _create(self, table: Table) -> str:
        columns, place = ("key BLOB, item BLOB", "key, item") if table.items else ("key BLOB", "key")
        return (
            f"CREATE TABLE IF NOT EXISTS {self._name(table)} "
            f"({columns}, row BLOB NOT NULL, PRIMARY KEY ({place})) WITHOUT ROWID"
        )

    def _upsert(self, table: Table) -> str:
        place, marks = ("key, item", "?, ?, ?") if table.items else ("key", "?, ?")
        return (
            f"INSERT INTO {self._name(table)} ({place}, row) VALUES ({marks}) "
            f"ON CONFLICT ({place}) DO UPDATE SET row = excluded.row {_NEWER}"
        )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of this thread's alone while it lasts; SQLite's errors become ours."""
        if self._process != os.getpid():
            self._idle, self._process = deque(), os.getpid()
        try:
            connection = self._idle.pop() if self._idle else _connect(self._file, self._timeout)
        except IndexError:
            connection = _connect(self._file, self._timeout)
        try:
            yield connection
        except sqlite3.Error as error:
            connection.close()
            raise _unavailable(error, self._file) from error
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)


def _parse(uri: str) -> tuple[Path, float]:
    """The file and the timeout in seconds."""
    rest, _, query = uri.removeprefix("sqlite://").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    name = rest.removeprefix("/")
    if not uri.startswith("sqlite://") or name in ("", ":memory:"):
        raise SettingsError(f'"{uri}" names no file', hint="Write sqlite:///data/online.db")
    try:
        timeout = float(options.pop("timeout", 5))
    except ValueError:
        raise SettingsError(f'the timeout in "{uri}" is not a number of seconds') from None
    if options:
        raise SettingsError(f'"{next(iter(options))}" in "{uri}" is not an option', hint="The option is timeout")
    return Path(name), timeout


def _connect(file: Path, timeout: float) -> sqlite3.Connection:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(file, timeout=timeout, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise _unavailable(error, file) from error
    try:
        _set_up(connection, time.monotonic() + timeout)
    except sqlite3.Error as error:
        connection.close()
        raise _unavailable(error, file) from error
    return connection


def _set_up(connection: sqlite3.Connection, deadline: float) -> None:
    """Turn on write-ahead logging. SQLite does not wait for its lock while another connection does the same."""
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = NORMAL")


@contextmanager
def _transaction(connection: sqlite3.Connection, mode: str) -> Iterator[None]:
    """A transaction; an error leaves it to the closing of the connection, which rolls back."""
    connection.execute(f"BEGIN {mode}")
    yield
    connection.execute("COMMIT")


def _select(connection: sqlite3.Connection, query: str, values: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """What a query finds: nothing in a table that is not there."""
    try:
        return connection.execute(query, values).fetchall()
    except sqlite3.OperationalError as error:
        if str(error).startswith("no such table"):
            return []
        raise


def _chunks(keys: list[bytes]) -> Iterator[list[bytes]]:
    """The keys in parts, the last one filled up to a power of two, so that few statements are ever prepared."""
    for start in range(0, len(keys), _KEYS_A_QUERY):
        part = keys[start : start + _KEYS_A_QUERY]
        size = 1 << (len(part) - 1).bit_length()
        yield part + part[-1:] * (size - len(part))


def _unavailable(error: Exception, file: Path) -> StoreUnavailableError:
    text = str(error)
    if "locked" in text or "busy" in text:
        hint = "Another process writes to it for long; try again, or raise ?timeout= in its URI"
    elif "full" in text:
        hint = "Make room on the disk"
    else:
        hint = "Check that the file and its folder can be written"
    return StoreUnavailableError(f"the online store {file} cannot be used: {text}", hint=hint)
