"""HBase through its Thrift gateway: connections that are replaced when they break, and the few calls that stores need.

Everything lies in tables of one column family, `f`, in which a column is named by bytes.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

from feature_store.errors import (
    DefinitionError,
    InvalidInputError,
    MissingExtraError,
    SettingsError,
    StoreUnavailableError,
)
from feature_store.expressions.instants import Duration

try:
    import happybase
    import thriftpy2
    from Hbase_thrift import AlreadyExists, BatchMutation, IllegalArgument, IOError, Mutation, TScan  # noqa: A004
    from thriftpy2.rpc import make_client
    from thriftpy2.thrift import TException
    from thriftpy2.transport import TTransportException
except ModuleNotFoundError:
    raise MissingExtraError("hbase", "a store in HBase") from None

_FAMILY = b"f"
_PORT = 9090
SALTS = 64
"""What the first byte of a row's key may be: 0 to 63, so that many regions share the load at most."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ROWS_A_PAGE, _LARGEST_PAGE, _BYTES_A_PAGE = 100, 2_000, 4 << 20
_WORKERS = 4
"""Calls of one write that go on at once, each over a connection of its own."""

_OPTIONS = {"family": {"max_versions": 1, "bloom_filter_type": "ROW", "block_cache_enabled": True}}

NAMES_ONLY = b"FirstKeyOnlyFilter() AND KeyOnlyFilter()"
"""A filter of scans that need only the keys of rows: of each one cell without its value."""

Result = TypeVar("Result")
Connection = Any
"""A `happybase.Connection`; the driver is untyped."""

Cells = Mapping[bytes, Any]
"""Of one row: columns, `f:` and their name, to cells with a `value` (bytes) and a `timestamp` (ms)."""

# Of Thrift 2, whose gateway can split a new table, all that creating one takes.
_ADMIN = """
struct TTableName { 1: optional binary ns, 2: required binary qualifier }
struct TColumnFamilyDescriptor {
  1: required binary name, 5: optional i32 bloomnFilterType, 8: optional i32 dataBlockEncoding,
  10: optional i32 maxVersions, 14: optional bool blockCacheEnabled
}
struct TTableDescriptor { 1: required TTableName tableName, 2: optional list<TColumnFamilyDescriptor> columns }
exception TIOError { 1: optional string message, 2: optional bool canRetry }
service THBaseService {
  void createTable(1: required TTableDescriptor desc, 2: optional list<binary> splitKeys) throws (1: TIOError io)
}
"""


@dataclass(frozen=True)
class Place:
    """What a URI says: where the gateway is, and how the store behaves there."""

    host: str
    port: int
    table: str = ""
    """What the names of HBase tables end with: tables of their own for some rows of a project."""
    timeout: float = 5.0
    """Seconds that one call may take."""
    pool: int = 16
    """Connections at most."""
    prefix: str = "fs1"
    """What the names of HBase tables begin with."""
    versions: int = 1
    """Rows of different times that are kept of one key."""
    ttl: int | None = None
    """Microseconds after its event time at which HBase forgets a row."""
    regions: int = 1
    """Regions that a new table begins with."""
    admin: str | None = None
    """HOST:PORT of a Thrift 2 gateway, which alone can create a table in several regions."""

    @staticmethod
    def of(uri: str) -> Place:
        """The place of a URI; `SettingsError` for what it cannot mean."""
        try:
            parts = urlsplit(uri)
            found = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            if not parts.hostname or parts.username:
                raise ValueError("it is not of the form hbase://HOST:PORT[/TABLE]?OPTION=VALUE")
            place = Place(parts.hostname, parts.port or _PORT, parts.path.strip("/"), **_options(found))
            place._check()
        except (ValueError, TypeError, KeyError, DefinitionError) as error:
            text = f"there is no option {error}" if isinstance(error, KeyError) else str(error)
            options = ", ".join(sorted(_READERS))
            raise SettingsError(
                f'the store "{uri}" cannot be opened: {text}', hint=f"Write hbase://HOST:{_PORT}; options are {options}"
            ) from None
        return place

    def _check(self) -> None:
        if not 0 < self.timeout <= 3600:
            raise ValueError(f"timeout={self.timeout:g} is not between 0 and 3600 seconds")
        if self.pool < 1 or self.versions < 1:
            raise ValueError("pool and versions are at least 1")
        if not 1 <= self.regions <= SALTS:
            raise ValueError(f"regions={self.regions} is not between 1 and {SALTS}")
        for what, name in (("prefix", self.prefix), ("table", self.table or "none")):
            if not _NAME.fullmatch(name):
                raise ValueError(f'the {what} "{name}" has signs other than letters, digits, "_", "-" and "."')
        if self.admin is not None and not self.admin.rpartition(":")[2].isdigit():
            raise ValueError(f'admin "{self.admin}" is not HOST:PORT')

    def name(self, project: str) -> bytes:
        """The name of a project's HBase table here."""
        return ".".join(filter(None, (self.prefix, project, self.table))).encode()

    @property
    def where(self) -> str:
        """For messages."""
        return f"hbase://{self.host}:{self.port}"

    @property
    def splits(self) -> list[bytes]:
        """The row keys at which a new table is split: by the salt that begins every key."""
        return [bytes([part * SALTS // self.regions]) for part in range(1, self.regions)]


_READERS: dict[str, Callable[[str], Any]] = {
    "timeout": float,
    "pool": int,
    "prefix": str,
    "versions": int,
    "ttl": lambda text: int(Duration.of(text)),
    "regions": int,
    "admin": str,
}


def _options(found: Mapping[str, str]) -> dict[str, Any]:
    return {name: _READERS[name](text) for name, text in found.items()}


class Change(NamedTuple):
    """Puts and deletes that go to HBase in one call, with one timestamp (ms), which is all that Thrift can say.

    A delete takes the cells of a column that are not newer than the timestamp; of all columns where it names none.
    """

    timestamp: int
    puts: Sequence[tuple[bytes, bytes, bytes]] = ()
    """Row, column without family, value."""
    deletes: Sequence[tuple[bytes, bytes | None]] = ()
    """Row, column without family."""
    ttl: int | None = None
    """Milliseconds after the timestamp at which HBase forgets the cells put."""


@dataclass
class Gateway:
    """One Thrift gateway. Connections are kept, and each is used by one call at a time; on any error it is dropped, so
    that no call ever reads the reply to another. A broken connection is replaced once: every call may be repeated.

    Raises `StoreUnavailableError` where the gateway, or HBase behind it, does not answer in time.
    """

    place: Place
    _idle: deque[Connection] = field(default_factory=deque)
    _process: int = field(default_factory=os.getpid)
    _workers: ThreadPoolExecutor | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._free = threading.BoundedSemaphore(self.place.pool)

    def rows(
        self, table: bytes, keys: list[bytes], before: int | None = None, column: bytes | None = None
    ) -> dict[bytes, Cells]:
        """The rows that are there, by key, in one round trip: cells with a timestamp below `before`, of one column; or
        all."""
        if not keys:
            return {}
        columns = [_FAMILY if column is None else b"f:" + column]

        def talk(connection: Connection) -> Any:
            if before is None:
                return connection.client.getRowsWithColumns(table, keys, columns, {})
            return connection.client.getRowsWithColumnsTs(table, keys, columns, before, {})

        return {row.row: row.columns for row in self._in(table, talk)}

    def change(self, table: bytes, changes: Iterable[Change]) -> None:
        """Carry out changes, in no order, several at once; all are in HBase when it returns."""
        parts = list(changes)
        if len(parts) == 1:
            self._change(table, parts[0])
        else:
            self.each(lambda part: self._change(table, part), parts)

    def each(self, work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        """Do the same to each part, some at once; the results in order, or the first error."""
        with self._lock:
            if self._workers is None:
                self._workers = ThreadPoolExecutor(min(_WORKERS, self.place.pool), "hbase")
            results = self._workers.map(work, parts)
        return list(results)

    def scan(self, table: bytes, prefix: bytes, chosen: bytes | None = None) -> Iterator[list[Any]]:
        """The rows whose keys begin with `prefix`, each with `row` and `columns`, in pages; `chosen` is a filter in
        HBase's own language. A page is a scan of its own: nothing expires between two."""
        start, stop, count = prefix, _after(prefix), _ROWS_A_PAGE
        while rows := self._page(table, start, stop, chosen, count):
            yield rows
            if len(rows) < count:
                return
            start = rows[-1].row + b"\0"
            size = sum(len(cell.value) for row in rows for cell in row.columns.values()) // len(rows)
            count = max(1, min(_LARGEST_PAGE, _BYTES_A_PAGE // (size + 1)))

    def _page(self, table: bytes, start: bytes, stop: bytes | None, chosen: bytes | None, count: int) -> list[Any]:
        scan = TScan(startRow=start, stopRow=stop, caching=count, filterString=chosen)

        def talk(connection: Connection) -> list[Any]:
            scanner = connection.client.scannerOpenWithScan(table, scan, {})
            rows: list[Any] = connection.client.scannerGetList(scanner, count)
            connection.client.scannerClose(scanner)
            return rows

        return self._in(table, talk)

    def increment(self, table: bytes, row: bytes, column: bytes) -> int:
        """Add one to a counter, in one step; what it is then."""
        name = _FAMILY + b":" + column
        return int(self._in(table, lambda connection: connection.client.atomicIncrement(table, row, name, 1)))

    def swap(self, table: bytes, row: bytes, column: bytes, expected: bytes | None, value: bytes) -> bool:
        """Put a value where the expected one (or none) stands, in one step; whether it stood there."""
        name = _FAMILY + b":" + column
        put = Mutation(isDelete=False, column=name, value=value, writeToWAL=True)
        return bool(self._in(table, lambda c: c.client.checkAndPut(table, row, name, expected, put, {})))

    def has(self, table: bytes) -> bool:
        """Whether there is a table of this name."""
        return table in self._attempt(lambda connection: connection.client.getTableNames())

    def create(self, table: bytes) -> None:
        """Make a table unless it is there, split by salt where the place says into how many regions."""
        if self.has(table):
            return
        try:
            if self.place.regions > 1:
                self._create_split(table)
            else:
                self._attempt(lambda c: c.create_table(table, {_FAMILY.decode(): _OPTIONS["family"]}))
        except (StoreUnavailableError, AlreadyExists):
            if not self.has(table):  # else another process was faster
                raise

    def _create_split(self, table: bytes) -> None:
        admin = self.place.admin
        if admin is None:
            raise SettingsError(
                f"the Thrift gateway {self.place.where} cannot make {self.place.regions} regions",
                hint=f"Add admin=HOST:PORT of a Thrift 2 gateway to the URI, or type in hbase shell: "
                f"{creation(table, self.place)}",
            )
        thrift, (host, _, port) = _admin_thrift(), admin.rpartition(":")
        options = thrift.TColumnFamilyDescriptor(_FAMILY, 1, 4, 1, True)  # Bloom filter by row, FAST_DIFF, one version
        client = None
        try:
            # Splitting takes the master longer than a call on rows.
            client = make_client(thrift.THBaseService, host, int(port), timeout=30_000 + int(1000 * self.place.timeout))
            client.createTable(thrift.TTableDescriptor(thrift.TTableName(None, table), [options]), self.place.splits)
        except (TException, OSError) as error:
            raise _unavailable(error, f"hbase://{admin} (admin)") from error
        finally:
            if client is not None:
                client.close()

    def close(self) -> None:
        """Close idle connections; the gateway can be used again."""
        with self._lock:
            workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown()
        self._drop_idle()

    def _change(self, table: bytes, change: Change) -> None:
        rows: dict[bytes, list[Any]] = {}
        for row, column, value in change.puts:
            put = Mutation(isDelete=False, column=b"f:" + column, value=value, writeToWAL=True)
            rows.setdefault(row, []).append(put)
        for row, name in change.deletes:
            column = _FAMILY if name is None else b"f:" + name
            rows.setdefault(row, []).append(Mutation(isDelete=True, column=column, writeToWAL=True))
        batch = [BatchMutation(row, mutations) for row, mutations in rows.items()]
        attributes = {} if change.ttl is None else {b"_ttl": change.ttl.to_bytes(8, "big")}
        self._in(table, lambda c: c.client.mutateRowsTs(table, batch, change.timestamp, attributes))

    def _in(self, table: bytes, talk: Callable[[Connection], Result]) -> Result:
        """Talk about a table; `NoSuchTableError` if there is none."""
        try:
            return self._attempt(talk)
        except StoreUnavailableError as error:
            # A batch does not say so: its error names the table, and no server with issues.
            unknown = "TableNotFound" in error.message or "servers with issues: null" in error.message
            if unknown and not self.has(table):
                text = f"HBase at {self.place.where} has no table {table.decode()}"
                raise NoSuchTableError(text, hint="Run: fs apply") from error
            raise

    def _attempt(self, talk: Callable[[Connection], Result]) -> Result:
        with _Mapped(self.place.where):
            try:
                return self._once(talk)
            except (TTransportException, ConnectionError, EOFError):
                self._drop_idle()  # after a restart of the gateway the other ones are broken, too
                return self._once(talk)

    def _once(self, talk: Callable[[Connection], Result]) -> Result:
        connection = self._take()
        whole = False
        try:
            answer = talk(connection)
            whole = True
        except (IOError, IllegalArgument, AlreadyExists):
            whole = True  # an answer, too
            raise
        finally:
            self._give(connection, whole)
        return answer

    def _take(self) -> Connection:
        if self._process != os.getpid():
            self._idle, self._process = deque(), os.getpid()
            self._workers, self._lock = None, threading.Lock()
            self._free = threading.BoundedSemaphore(self.place.pool)
        if not self._free.acquire(timeout=self.place.timeout):
            raise StoreUnavailableError(
                f"all {self.place.pool} connections to {self.place.where} were busy for {self.place.timeout:g} s",
                hint="Raise ?pool= in its URI, or send it less",
            )
        try:
            with suppress(IndexError):
                return self._idle.pop()
            return happybase.Connection(self.place.host, self.place.port, timeout=int(1000 * self.place.timeout))
        except BaseException:
            self._free.release()
            raise

    def _give(self, connection: Connection, whole: bool) -> None:
        """Take a connection back; one that may hold half a reply, or the reply to a call that gave up, is closed."""
        if whole:
            self._idle.append(connection)
        else:
            with suppress(Exception):
                connection.close()
        self._free.release()

    def _drop_idle(self) -> None:
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                with suppress(Exception):
                    connection.close()


class _Mapped:
    """Turns errors of the driver into ours."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, IllegalArgument) or (isinstance(error, IOError) and "size too large" in _text(error)):
            raise InvalidInputError(f"HBase at {self._where} refuses a row: {_text(error)}") from error
        if isinstance(error, (TException, OSError, EOFError)):
            raise _unavailable(error, self._where) from error


class NoSuchTableError(StoreUnavailableError):
    """HBase has no table of this name: not created yet, or removed behind the store's back."""


def _unavailable(error: BaseException, where: str) -> StoreUnavailableError:
    text = _text(error)
    if isinstance(error, TimeoutError):
        text, hint = "it did not answer in time", "Check its load and that HBase behind it runs, or raise ?timeout="
    elif isinstance(error, (OSError, TTransportException, EOFError)):
        hint = "Check that an HBase Thrift gateway (hbase thrift start) runs there"
    elif isinstance(error, IOError):
        hint = "The gateway runs, HBase behind it does not answer; the logs of its master and region servers say more"
    else:
        hint = "Check that the port is that of a Thrift 1 gateway with the default transport and protocol"
    return StoreUnavailableError(f"the store {where} cannot be used: {text}", hint=hint)


def _text(error: BaseException) -> str:
    message = getattr(error, "message", None) or str(error) or type(error).__name__
    text = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
    return text.strip().splitlines()[0][:300]


def beginning_with(columns: Iterable[bytes]) -> bytes:
    """A filter of scans: the columns that begin as one of these does, and only rows that have any."""
    quoted = [b"'%b'" % column.replace(b"'", b"''") for column in columns]
    return b"MultipleColumnPrefixFilter(%b)" % b", ".join(quoted)


def _after(prefix: bytes) -> bytes | None:
    """The first key behind all that begin with a prefix."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


def creation(table: bytes, place: Place) -> str:
    """What an operator types in `hbase shell` to make a table as the store would."""
    splits = ", ".join(f'"\\x{split.hex()}"' for split in place.splits)
    options = "NAME => 'f', VERSIONS => 1, BLOOMFILTER => 'ROW', DATA_BLOCK_ENCODING => 'FAST_DIFF'"
    return f"create '{table.decode()}', {{{options}}}" + (f", SPLITS => [{splits}]" if splits else "")


@cache
def _admin_thrift() -> Any:
    return thriftpy2.load_fp(io.StringIO(_ADMIN), "feature_store_hbase_admin_thrift")
