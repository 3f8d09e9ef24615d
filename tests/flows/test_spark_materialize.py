"""Materialization on Spark: it leaves what the embedded engine leaves, whatever is killed on the way."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pyarrow as pa
import pytest

from feature_store import FeatureStore
from feature_store.definitions.catalog import BoundView
from feature_store.definitions.tables import is_snapshot, latest_table, snapshot_table, tile_table
from feature_store.engines.spark import SparkEngine
from feature_store.expressions.instants import instant
from feature_store.expressions.relations import Windows
from feature_store.materialization.steps import chunks
from feature_store.storage.online import OnlineStore, Table
from tests.flows.broken import END, START, add, events, make, start, visible, wait_for
from tests.servers import RedisServer, SparkCluster
from tests.servers.processes import command_line

pytestmark = pytest.mark.timeout(900)

USERS = 500
ROWS = pa.concat_tables([events(4_000, USERS), events(500, USERS, seed=1, since="2024-04-20T11:40:00Z")])
LATE = events(300, USERS, seed=2)
RUNS = ((START, END, ["c_daily", "b_moving", "a_latest"]), ("2024-04-18T12:34:56Z", END, ["d_queried"]))
LOCAL = {"engine": "spark", "engines": "{spark: 'local[2]'}"}
PROGRESS = re.compile(r"\w+: \d+/\d+, [\d,]+ rows")
OWN_STORE = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: events, path: data/events, timestamp: at, created: seen_at, unique: [id]}
---
feature_views:
  - name: a_latest
    entities: [user]
    source: events
    features: [{name: price, type: FLOAT64}, {name: kind, type: STRING}]
    storage: {online: "redis://other"}
  - name: b_moving
    entities: [user]
    source: events
    aggregations: [{name: c1h, function: count, window: 1h}]
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the embedded engine leaves, before and after an incremental run that finds late rows."""
    store = applied(tmp_path_factory.mktemp("embedded") / "repo", "sqlite:///data/online.db")
    materialize(store)
    found = visible(store)
    add(store.root, "late", LATE)
    store.materialize_incremental(END, ["a_latest", "b_moving"])
    after = visible(store)
    store.close()
    assert len(found["a_latest"]) > 450
    assert after["a_latest"] != found["a_latest"]
    assert after["b_moving"] != found["b_moving"]
    return found, after


def applied(root: Path, online: str, **settings: str) -> FeatureStore:
    make(root, online, **settings)
    add(root, "all", ROWS)
    store = FeatureStore(root)
    store.apply()
    return store


def materialize(store: FeatureStore) -> int:
    return sum(store.materialize(*run) for run in RUNS)


class Watched:
    """An online store that remembers which tables this process wrote to."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store
        self.written: set[str] = set()

    def write(self, table: Table, rows: pa.Table, keep_from: bytes | None = None) -> None:
        self.written.add(table.name)
        self._store.write(table, rows, keep_from)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def watched(store: FeatureStore) -> set[str]:
    """The tables that this process writes to from now on."""
    store.online_store = found = Watched(store.online_store)
    return found.written


def tables_of_rows(bound: BoundView) -> set[str]:
    """Those of what is computed, without markers and epochs."""
    if is_snapshot(bound):
        return {snapshot_table(bound).name}
    if isinstance(bound.relation, Windows):
        return {tile_table(bound, hop).name for hop in bound.relation.levels}
    return {latest_table(bound).name}


def connected_workers(url: str) -> set[int]:
    """The Python workers of this process's Spark that are connected to a server."""
    below = psutil.Process().children(recursive=True)
    workers = [each for each in below if "pyspark.daemon" in command_line(each)]
    return {
        each.pid
        for each in workers
        for connection in each.net_connections("tcp")
        if connection.raddr and connection.raddr.port == urlsplit(url).port
    }


def test_spark_leaves_what_the_embedded_engine_leaves(
    spark_engine: SparkEngine, redis_url: str, tmp_path: Path, expected: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    store = applied(tmp_path / "repo", redis_url, **LOCAL)
    try:
        here = watched(store)
        assert materialize(store) > 5_000
        rows = set[str]().union(*map(tables_of_rows, store.catalog.views.values()))
        assert here and not here & rows, "this process writes markers and epochs, the executors write rows"
        assert connected_workers(redis_url)
        assert visible(store) == expected[0]
        add(store.root, "late", LATE)
        store.materialize_incremental(END, ["a_latest", "b_moving"])
        assert visible(store) == expected[1]
        users = {"user_id": list(range(USERS))}
        past = pa.table(users | {"event_timestamp": [END] * USERS})
        job = store.get_historical_features(past, ["d_queried"], engine="local")
        assert job.metadata["computed_snapshots"] == {}, "the embedded engine reads the snapshots that Spark kept"
        served = {row["user_id"]: (row["n"], row["most"]) for row in expected[0]["d_queried"][1]}
        found = zip(*(job.to_arrow()[name].to_pylist() for name in ("user_id", "n", "most")), strict=True)
        assert [(n, most) for _, n, most in found] == [served.get(user, (None, None)) for user in range(USERS)]
    finally:
        store.close()


def test_executors_write_to_hbase(
    spark_engine: SparkEngine, hbase_url: str, tmp_path: Path, expected: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    store = applied(tmp_path / "repo", hbase_url, **LOCAL)
    try:
        here = watched(store)
        store.materialize(START, END, ["b_moving", "c_daily"])
        assert not here & {
            name for view in ("b_moving", "c_daily") for name in tables_of_rows(store.catalog.views[view])
        }
        assert connected_workers(hbase_url)
        found = visible(store)
        assert found["b_moving"] == expected[0]["b_moving"]
        assert found["c_daily"] == expected[0]["c_daily"]
    finally:
        store.close()


def test_a_store_of_this_machine_is_written_by_the_driver(
    spark_engine: SparkEngine, tmp_path: Path, expected: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    store = applied(tmp_path / "repo", "sqlite:///data/online.db", **LOCAL)
    try:
        here = watched(store)
        store.materialize(START, END, ["c_daily"])
        assert here >= tables_of_rows(store.catalog.views["c_daily"])
        assert visible(store)["c_daily"] == expected[0]["c_daily"]
    finally:
        store.close()


def test_executors_write_to_the_store_that_a_view_names(
    spark_engine: SparkEngine, redis_url: str, tmp_path: Path
) -> None:
    other = RedisServer().start()
    aliases = f"{{other: '{other.url}'}}"
    store = applied(tmp_path / "repo", redis_url, definitions=OWN_STORE, aliases=aliases, **LOCAL)
    try:
        store.materialize("2024-04-01", END)
        with other.client() as client:
            assert any(b"a_latest" in key for key in client.scan_iter())
            assert not any(b"b_moving" in key for key in client.scan_iter())
        users = {"user_id": list(range(USERS))}
        found = store.online.get(["a_latest:price"], users).to_dict()
        assert sum(price is not None for price in found["price"]) > 100
    finally:
        store.close()
        other.close()


@pytest.fixture
def clustered(spark_cluster: SparkCluster, redis_url: str, tmp_path: Path) -> Iterator[FeatureStore]:
    """A repository whose runs go to the cluster; this process only looks."""
    small = "'-XX:+UseSerialGC -XX:TieredStopAtLevel=1'"
    conf = {
        "spark.executor.memory": "512m",
        "spark.executor.cores": "1",
        "spark.driver.memory": "512m",
        "spark.driver.extraJavaOptions": small,
        "spark.executor.extraJavaOptions": small,
        "spark.sql.shuffle.partitions": "2",
    }
    listed = ", ".join(f"{name}: {value}" for name, value in conf.items())
    engines = f"{{spark: {{master: '{spark_cluster.url}', conf: {{{listed}}}}}}}"
    store = applied(tmp_path / "repo", redis_url, engine="spark", engines=engines)
    yield store
    store.close()


def chunks_done(store: FeatureStore) -> int:
    bound = store.catalog.views["a_latest"]
    progress = store.registry.progress(bound.name, bound.version)
    return len(progress.done) if progress else 0


def rows_after(done: int) -> int:
    """How many rows the chunks after the first `done` write: one a user of each."""
    at, users = ROWS["at"].cast(pa.int64()).to_numpy(), ROWS["user_id"].to_numpy()
    rest = chunks(instant(START), instant(END))[done:]
    return sum(len(set(users[(at >= since) & (at <= until)])) for since, until in rest)


def test_an_executor_killed_amid_a_run(
    clustered: FeatureStore, spark_cluster: SparkCluster, expected: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    process = start(clustered.root, "materialize", START, END, "-v", "a_latest", "-v", "b_moving")
    wait_for(lambda: chunks_done(clustered) >= 1, process, 400)
    spark_cluster.kill_executor()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    assert all(PROGRESS.fullmatch(line) for line in err.splitlines()), "Spark keeps what it logs to itself"
    found = visible(clustered)
    assert found["a_latest"] == expected[0]["a_latest"]
    assert found["b_moving"] == expected[0]["b_moving"]


def test_the_driver_killed_and_run_again(
    clustered: FeatureStore, expected: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    process = start(clustered.root, "materialize", START, END, "-v", "a_latest")
    wait_for(lambda: chunks_done(clustered) >= 2, process, 400)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = chunks_done(clustered)
    assert 2 <= done < 16
    again = start(clustered.root, "materialize", START, END, "-v", "a_latest")
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, out + err
    assert f"a_latest: 16/16, {rows_after(done):,} rows" in err, "the chunks done are not computed again"
    assert visible(clustered)["a_latest"] == expected[0]["a_latest"]
