"""What one writes without a feature store: SQL for DuckDB, redis-py. `python -m benchmarks.by_hand TASK JSON`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import duckdb
import pyarrow.parquet as pq
import redis

from benchmarks import data
from benchmarks.clock import measured

_HOUR, _DAY = 3_600_000_000, 86_400_000_000
_PIPELINE = 1_000


def asof(paths: list[str], entities: str, out: str) -> dict[str, Any]:
    """The latest row of each source as of each entity row, in the order of the entity rows."""
    joins = [f"ASOF LEFT JOIN '{path}' s{n} ON e.user_id = s{n}.user_id AND e.event_timestamp >= s{n}.event_timestamp"
             for n, path in enumerate(paths)]  # fmt: skip
    columns = ", ".join(f"s{n}.{name}" for n in range(len(paths)) for name in data.features(n))
    sql = f"SELECT e.*, {columns} FROM '{entities}' e {' '.join(joins)} ORDER BY e.row"
    return _answered(sql, out)


def windows(path: str, entities: str, out: str) -> dict[str, Any]:
    """Ten windowed aggregates as of each entity row: a join by user and range, grouped by row."""
    since = {
        "1h": f"(t - {_HOUR}) // {_HOUR // 12} * {_HOUR // 12}",
        "7d": f"(t - {7 * _DAY}) // {_HOUR} * {_HOUR}",
        "30d": f"(t - {30 * _DAY}) // {_DAY} * {_DAY}",
    }
    functions = {"count": "count(happened)", "sum": "sum(price)", "mean": "avg(price)", "max": "max(amount)"}
    from benchmarks.ours import WINDOWS

    columns = ", ".join(
        f"{sql} FILTER (happened >= {since[window]}) AS {function}_{window}"
        for window, take in WINDOWS.items()
        for function, sql in list(functions.items())[:take]
    )
    sql = f"""
        WITH asked AS (SELECT *, epoch_us(event_timestamp) AS t FROM '{entities}'),
        found AS (SELECT user_id, epoch_us(event_timestamp) AS happened, price, amount FROM '{path}'),
        totals AS (
            SELECT row, {columns} FROM asked LEFT JOIN found
            ON asked.user_id = found.user_id AND happened < t AND happened >= {since["30d"]} GROUP BY row, t
        )
        SELECT e.*, totals.* EXCLUDE (row) FROM '{entities}' e JOIN totals USING (row) ORDER BY row"""
    return _answered(sql, out)


def _answered(sql: str, out: str) -> dict[str, Any]:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    table, cost = measured(lambda: connection.sql(sql).to_arrow_table())
    pq.write_table(table, out)
    return {"rows": table.num_rows, **cost}


def redis_keys(store: Any, references: Sequence[str], users: Sequence[int]) -> list[bytes]:
    """The Redis keys that one request reads: found by watching what the store sends."""
    from feature_store.storage.redis import _Server as Server

    seen: list[list[bytes]] = []
    fetch = Server.fetch

    def watched(server: Any, names: list[bytes], hashes: list[bytes]) -> Any:
        seen.append([*names, *hashes])
        return fetch(server, names, hashes)

    Server.fetch = watched  # type: ignore[method-assign]
    try:
        store.get_online_features(list(references), {"user_id": list(users)})
    finally:
        Server.fetch = fetch  # type: ignore[method-assign]
    assert len(seen) == 1, "one request is one round trip"
    return seen[0]


def redis_readers(port: int, keys: Sequence[Sequence[bytes]], shape: str) -> dict[str, Callable[[int], Any]]:
    """redis-py reading keys: pipelined GETs, and one MGET."""
    client = redis.Redis(port=port)

    def pipelined(n: int) -> Any:
        pipeline = client.pipeline(transaction=False)
        for key in keys[n % len(keys)]:
            pipeline.get(key)
        return pipeline.execute()

    return {f"redis {shape}": pipelined, f"mget {shape}": lambda n: client.mget(keys[n % len(keys)])}


def redis_write(port: int, pattern: str, rows: int) -> dict[str, Any]:
    """Rows that are in Redis already, written again by pipelined SETs into an empty database."""
    client, empty = redis.Redis(port=port), redis.Redis(port=port, db=9)
    keys = []
    for key in client.scan_iter(match=pattern, count=10_000):
        keys.append(key)
        if len(keys) == rows:
            break
    values: list[Any] = []
    for start in range(0, len(keys), _PIPELINE):
        values += client.mget(keys[start : start + _PIPELINE])

    def write() -> None:
        for start in range(0, len(keys), _PIPELINE):
            pipeline = empty.pipeline(transaction=False)
            for key, value in zip(keys[start : start + _PIPELINE], values[start : start + _PIPELINE], strict=True):
                pipeline.set(key, value)
            pipeline.execute()

    _, cost = measured(write)
    size = sum(map(len, values)) / max(len(values), 1)
    empty.flushdb()
    return {"rows": len(keys), "bytes": size, **cost}


def redis_hashes(port: int, paths: list[str], rows: int) -> dict[str, Any]:
    """A hash a user, a field a feature, as a naive service keeps them: `naive:USER` in database 2."""
    client = redis.Redis(port=port, db=2)
    for path in paths:
        table = pq.read_table(path).slice(0, rows).drop_columns(["event_timestamp"])
        for batch in table.to_batches(10_000):
            pipeline = client.pipeline(transaction=False)
            for row in batch.to_pylist():
                pipeline.hset(f"naive:{row.pop('user_id')}", mapping=row)
            pipeline.execute()
    return {}


TASKS = {each.__name__: each for each in (asof, windows, redis_write, redis_hashes)}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](**json.loads(sys.argv[2]))))
