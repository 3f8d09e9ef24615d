"""The online store in Redis: a string for each key, or a hash of items; a script in the server decides each write.

A row of project P, table T and entity key K is at `fs1:P:T:{K}`. The braces make Redis Cluster keep all rows of an
entity key in one place.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import pyarrow as pa

from feature_store.errors import MissingExtraError, SettingsError, StoreUnavailableError
from feature_store.storage.codecs import codecs
from feature_store.storage.online import Key, Row, Table
from feature_store.storage.rows import Items, columns_of, items_of, to_batch

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ModuleNotFoundError:
    raise MissingExtraError("redis", "an online store in Redis") from None

_ROWS_A_PART = 65_536
_ROWS_A_SCRIPT = 256
_BYTES_A_SCRIPT = 4 << 20
_SCRIPTS_IN_FLIGHT = 32
_KEYS_A_SCAN = 1_000
_TIMEOUT = 5.0

Arguments = tuple[Any, ...]
"""Words of a command: text, bytes and integers."""
Answer = Row | Mapping[bytes, Row] | None
Connection = Any
"""A `redis.Connection`; the driver's own types are incomplete."""
ClusterClient = Any
"""A `redis.RedisCluster`."""

# Bytes are compared one by one: Lua's own `<` on strings follows the locale that the server was started in.
BELOW = """
local function below(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end
"""
_WRITE_ROWS = (
    BELOW
    + """
for i = 1, #KEYS do
  local old = redis.call('GETRANGE', KEYS[i], 1, 16)
  if old == '' or not below(string.sub(ARGV[i], 2, 17), old) then redis.call('SET', KEYS[i], ARGV[i]) end
end
"""
)
_WRITE_ITEMS = (
    BELOW
    + """
for i = 1, #KEYS do
  local item, row = ARGV[2 * i], ARGV[2 * i + 1]
  local old = redis.call('HGET', KEYS[i], item)
  if not old or not below(string.sub(row, 2, 17), string.sub(old, 2, 17)) then
    redis.call('HSET', KEYS[i], item, row)
  end
end
local keep_from = ARGV[1]
if keep_from ~= '' then
  local done = {}
  for i = 1, #KEYS do
    if not done[KEYS[i]] then
      done[KEYS[i]] = true
      for _, item in ipairs(redis.call('HKEYS', KEYS[i])) do
        if below(item, keep_from) then redis.call('HDEL', KEYS[i], item) end
      end
    end
  end
end
"""
)


class _AnotherLifeError(redis.RedisError):
    """The server is not the one that was meant."""


class RedisOnlineStore:
    """`redis://`, `rediss://` or, for a cluster, `redis+cluster://[USER:PASSWORD@]HOST:PORT[/DB][?timeout=SECONDS]`,
    opened for one project. Thread-safe; each call takes a connection of its own.
    """

    def __init__(self, uri: str, project: str) -> None:
        self._server = _open(uri)
        self._project = project
        self._prefixes: dict[str, bytes] = {}

    def create(self, *tables: Table) -> None:
        """Nothing to do: Redis makes keys as they are written."""

    def drop(self, table: Table) -> None:
        for names in self._server.scan(self._prefix(table) + b"*"):
            self._server.unlink(names)

    def write(self, table: Table, rows: pa.Table, keep_from: bytes | None = None) -> None:
        for start in range(0, rows.num_rows, _ROWS_A_PART):
            self._write(table, rows.slice(start, _ROWS_A_PART), keep_from or b"")

    def read(self, requests: Sequence[tuple[Table, Sequence[Key]]]) -> list[list[Answer]]:
        plain: list[bytes] = []
        hashes: list[bytes] = []
        for table, keys in requests:
            (hashes if table.items else plain).extend(self._keys(table, codecs(table).keys.encode_all(keys)))
        found, found_items = self._server.fetch(plain, hashes)
        answers: list[list[Answer]] = []
        at, at_items = 0, 0
        for table, keys in requests:
            rows, count = codecs(table).rows, len(keys)
            if table.items:
                answers.append([Items(rows, dict(_pairs(each))) for each in found_items[at_items : at_items + count]])
                at_items += count
            else:
                decode = rows.decode
                answers.append([data if data is None else decode(data) for data in found[at : at + count]])
                at += count
        return answers

    def scan(self, table: Table) -> Iterator[pa.RecordBatch]:
        prefix, columns = self._prefix(table), columns_of(table)
        _, keys, values = codecs(table)
        seen: set[bytes] = set()
        for found in self._server.scan(prefix + b"*"):
            names = [name for name in dict.fromkeys(found) if name not in seen]
            seen.update(names)
            rows = []
            for name, items in zip(names, self._rows(table, names), strict=True):
                key = keys.decode(name[len(prefix) : -1])
                for item, data in items:
                    row = values.decode(data)
                    rows.append((*key, *row.values, row.event_time, row.created, *item))
            if rows:
                yield to_batch(columns, rows)

    def close(self) -> None:
        self._server.close()

    def _write(self, table: Table, rows: pa.Table, keep_from: bytes) -> None:
        _, keys, values = codecs(table)
        names, data = self._keys(table, keys.encode_table(rows)), values.encode(rows)
        if not table.items:
            self._server.run(_WRITE_ROWS, names, [(row,) for row in data], ())
        else:
            self._server.run(_WRITE_ITEMS, names, list(zip(items_of(rows), data, strict=True)), (keep_from,))

    def _rows(self, table: Table, names: list[bytes]) -> Iterator[list[tuple[tuple[bytes, ...], bytes]]]:
        """Of each Redis key its rows as bytes, each with its item in a table that has them."""
        if table.items:
            for reply in self._server.fetch([], names)[1]:
                yield [((item,), data) for item, data in _pairs(reply)]
        else:
            for data in self._server.fetch(names, [])[0]:
                yield [] if data is None else [((), data)]

    def _prefix(self, table: Table) -> bytes:
        prefix = self._prefixes.get(table.name)
        if prefix is None:
            # Quoted names hold no colon, no brace and none of the signs that mean something in a pattern.
            prefix = f"fs1:{quote(self._project, safe='@')}:{quote(table.name, safe='@')}:{{".encode()
            self._prefixes[table.name] = prefix
        return prefix

    def _keys(self, table: Table, keys: list[bytes]) -> list[bytes]:
        prefix = self._prefix(table)
        return [b"%b%b}" % (prefix, key) for key in keys]


def _pairs(reply: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The items and rows of a hash."""
    return zip(reply[::2], reply[1::2], strict=True)


class _Server:
    """One Redis server. Connections are kept and each is used by one call at a time; on any error it is dropped, so
    that no call ever reads the reply to another. A broken connection is replaced once: every call may be repeated.
    """

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self._pool = redis.ConnectionPool.from_url(uri, **options)
        self._new()  # connects to nothing yet, but refuses unknown options
        self._idle: deque[Connection] = deque()
        self._process = os.getpid()
        self._where = _where(uri)

    def fetch(
        self, names: list[bytes], hashes: list[bytes], life: str = ""
    ) -> tuple[list[bytes | None], list[list[bytes]]]:
        """The values of some strings and the contents of some hashes, in one round trip: from the server of that
        `life` where one is named, and no other."""
        commands: list[Arguments] = [("MGET", *names)] if names else []
        commands += [("HGETALL", name) for name in hashes]
        replies = self._exchange(commands, life) if commands else []
        return (replies[0], replies[1:]) if names else ([], replies)

    def run(
        self, script: str, names: list[bytes], arguments: Sequence[Arguments], first: Arguments, life: str = ""
    ) -> list[Any]:
        """Run a script over keys, many at a time, in order: `first` and then each key's arguments go with them. What
        it answers each time."""
        commands = list(_script_calls(script, names, arguments, first))

        def talk(connection: Connection) -> list[Any]:
            _check_life(connection, life)
            return _stream(connection, commands)

        try:
            replies: list[Any] = self._attempt(talk)
        except redis.exceptions.NoScriptError:
            self._exchange([("SCRIPT", "LOAD", script)])
            replies = self._attempt(talk)
        return replies

    def put_once(self, names: list[bytes], value: bytes) -> list[bytes]:
        """The values of some strings, of each this one if there was none."""
        return self._exchange([c for name in names for c in (("SET", name, value, "NX"), ("GET", name))])[1::2]

    def life(self) -> str:
        """What names the server from its start to its end; another server, or this one started again, has another."""
        name: str = self._attempt(_life_of)
        return name

    def scan(self, pattern: bytes) -> Iterator[list[bytes]]:
        """The keys that match, in parts; a key may come twice."""
        cursor = b"0"
        while True:
            cursor, names = self._exchange([("SCAN", cursor, "MATCH", pattern, "COUNT", _KEYS_A_SCAN)])[0]
            if names:
                yield names
            if cursor == b"0":
                return

    def unlink(self, names: list[bytes]) -> None:
        self._exchange([("UNLINK", *names)])

    def close(self) -> None:
        while self._idle:
            self._idle.pop().disconnect()

    def _exchange(self, commands: list[Arguments], life: str = "") -> list[Any]:
        def talk(connection: Connection) -> list[Any]:
            if life:
                _check_life(connection, life)
            return _send_all(connection, commands)

        replies: list[Any] = self._attempt(talk)
        return replies

    def _attempt(self, talk: Callable[[Connection], Any]) -> Any:
        try:
            try:
                return self._once(talk)
            except (redis.exceptions.AuthenticationError, redis.exceptions.BusyLoadingError):
                raise
            except redis.ConnectionError:
                self.close()  # after a restart of the server the other ones are broken too
                return self._once(talk)
        except redis.exceptions.NoScriptError:
            raise
        except (redis.RedisError, OSError) as error:
            raise _unavailable(error, self._where) from error

    def _once(self, talk: Callable[[Connection], Any]) -> Any:
        connection = self._take()
        try:
            answer = talk(connection)
        except BaseException:
            connection.disconnect()
            raise
        self._idle.append(connection)
        return answer

    def _take(self) -> Connection:
        if self._process != os.getpid():
            self._idle, self._process = deque(), os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return self._new()

    def _new(self) -> Connection:
        # Not the pool's own make_connection: that counts, and these connections never go back to the pool.
        return self._pool.connection_class(**self._pool.connection_kwargs)


class _Cluster:
    """A Redis Cluster, with the same calls as a single server. A script takes keys of one slot at a time."""

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self._uri, self._options, self._where = uri, options, _where(uri)
        self._client: ClusterClient | None = None
        self._lock = threading.Lock()

    def fetch(
        self, names: list[bytes], hashes: list[bytes], life: str = ""
    ) -> tuple[list[bytes | None], list[list[bytes]]]:
        def talk(client: ClusterClient) -> list[Any]:
            pipeline = client.pipeline()
            for name in names:
                pipeline.get(name)
            for name in hashes:
                pipeline.hgetall(name)
            replies: list[Any] = pipeline.execute()
            return replies

        replies = self._attempt(talk) if names or hashes else []
        pairs = [[part for pair in reply.items() for part in pair] for reply in replies[len(names) :]]
        return replies[: len(names)], pairs

    def run(
        self, script: str, names: list[bytes], arguments: Sequence[Arguments], first: Arguments, life: str = ""
    ) -> list[Any]:
        by_slot: dict[int, list[int]] = {}
        for i, name in enumerate(names):
            by_slot.setdefault(redis.crc.key_slot(name), []).append(i)
        calls = [
            (names[rows[0]], _script_calls(script, [names[i] for i in rows], [arguments[i] for i in rows], first))
            for rows in by_slot.values()
        ]
        by_name = [(name, command) for name, commands in calls for command in commands]
        replies: list[Any] = self._attempt(lambda client: _run_on_nodes(client, script, by_name))
        return replies

    def put_once(self, names: list[bytes], value: bytes) -> list[bytes]:
        def talk(client: ClusterClient) -> list[Any]:
            pipeline = client.pipeline()
            for name in names:
                pipeline.set(name, value, nx=True)
                pipeline.get(name)
            replies: list[Any] = pipeline.execute()
            return replies[1::2]

        values: list[bytes] = self._attempt(talk)
        return values

    def life(self) -> str:
        """The same always: a cluster outlives its nodes, and which of them lost what it does not tell."""
        self._attempt(lambda client: client.ping())
        return "cluster"

    def scan(self, pattern: bytes) -> Iterator[list[bytes]]:
        names: list[bytes] = self._attempt(lambda client: list(client.scan_iter(match=pattern, count=_KEYS_A_SCAN)))
        for start in range(0, len(names), _KEYS_A_SCAN):
            yield names[start : start + _KEYS_A_SCAN]

    def unlink(self, names: list[bytes]) -> None:
        self._attempt(lambda client: client.unlink(*names))

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def _attempt(self, talk: Callable[[ClusterClient], Any]) -> Any:
        """Talk; once more with the cluster's layout read anew if it has moved or a node has gone."""
        try:
            try:
                return talk(self._connected())
            except (redis.ConnectionError, redis.exceptions.ClusterError, redis.exceptions.MovedError):
                self.close()
                return talk(self._connected())
        except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
            raise _unavailable(error, self._where) from error

    def _connected(self) -> ClusterClient:
        with self._lock:
            if self._client is None:
                self._client = redis.RedisCluster.from_url(self._uri, **self._options)
            return self._client


def _run_on_nodes(client: ClusterClient, script: str, calls: list[tuple[bytes, Arguments]]) -> list[Any]:
    """Script calls, each at the node that has its key, and their replies; one pipeline a node."""
    by_node: dict[str, list[Arguments]] = {}
    for name, command in calls:
        by_node.setdefault(client.get_node_from_key(name).name, []).append(command)
    replies: list[Any] = []
    for node, commands in by_node.items():
        connection = client.get_redis_connection(client.get_node(node_name=node))
        connection.script_load(script)
        pipeline = connection.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies += pipeline.execute()
    return replies


def _script_calls(
    script: str, names: list[bytes], arguments: Sequence[Arguments], first: Arguments
) -> Iterator[Arguments]:
    digest = _digest(script)
    largest = max(len(row) for *_, row in arguments) if arguments else 0
    step = max(1, min(_ROWS_A_SCRIPT, _BYTES_A_SCRIPT // (largest + 1)))
    for start in range(0, len(names), step):
        part = names[start : start + step]
        values = chain.from_iterable(arguments[start : start + step])
        yield ("EVALSHA", digest, len(part), *part, *first, *values)


@cache
def _digest(script: str) -> str:
    """The name of a script in the server."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _life_of(connection: Connection) -> str:
    """The life of the server that a connection reaches: asked once, a connection never reaches another."""
    if not hasattr(connection, "server_life"):
        told = _send_all(connection, [("INFO", "server")])[0]
        lines = dict(line.split(b":", 1) for line in told.splitlines() if b":" in line)
        connection.server_life = lines[b"run_id"].decode()
    name: str = connection.server_life
    return name


def _check_life(connection: Connection, life: str) -> None:
    """`_AnotherLifeError` if the server was started anew, or replaced, since it had that life."""
    if life and _life_of(connection) != life:
        raise _AnotherLifeError("it is another server, or was started again, with what it had kept of its rows")


def _send_all(connection: Connection, commands: list[Arguments]) -> list[Any]:
    """Commands in one packet, and their replies."""
    packed = [chunk for command in commands for chunk in connection.pack_command(*command)]
    connection.send_packed_command([b"".join(packed)], check_health=False)
    return [connection.read_response() for _ in commands]


def _stream(connection: Connection, commands: list[Arguments]) -> list[Any]:
    """Commands with short replies, and these: packed and sent while the server still works on the ones before."""
    replies: list[Any] = []
    for sent, command in enumerate(commands):
        if sent - len(replies) == _SCRIPTS_IN_FLIGHT:
            replies.append(connection.read_response())
        connection.send_packed_command(connection.pack_command(*command), check_health=False)
    return replies + [connection.read_response() for _ in range(len(commands) - len(replies))]


def _open(uri: str) -> _Server | _Cluster:
    """The server or cluster of a URI, with its options checked; nothing is connected yet."""
    parts = urlsplit(uri)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    scheme, _, kind = parts.scheme.partition("+")
    cluster = kind == "cluster" or query.pop("cluster", "false") == "true"
    try:
        timeout = float(query.pop("timeout", _TIMEOUT))
        plain = urlunsplit((scheme, parts.netloc, parts.path, urlencode(query), ""))
        options = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        return _Cluster(plain, options) if cluster else _Server(plain, options)
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"the online store {_where(uri)} cannot be opened: {error}", hint="Write redis://HOST:PORT/DB"
        ) from None


def _where(uri: str) -> str:
    """The URI without user, password and options, for messages."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _unavailable(error: Exception, where: str) -> StoreUnavailableError:
    text = str(error) or type(error).__name__
    hint: str | None
    if isinstance(error, redis.exceptions.AuthenticationError):
        hint = "Check the user and password in its URI"
    elif isinstance(error, redis.exceptions.OutOfMemoryError):
        hint = "Raise its maxmemory, or drop what nobody reads"
    elif isinstance(error, _AnotherLifeError):
        hint = None
    elif isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
        hint = "Check that Redis runs there and answers redis-cli PING"
    else:
        hint = "Redis refused the command; its log says more"
    return StoreUnavailableError(f"the online store {where} cannot be used: {text}", hint=hint)
