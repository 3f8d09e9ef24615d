"""What is particular to the Spark engine; what every engine must do is in `tests.conformance.engine`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store.engines.local import LocalEngine
from feature_store.engines.spark import SparkEngine
from feature_store.engines.spark_joins import Spread
from feature_store.errors import ConflictError, SettingsError, SourceError, StoreUnavailableError
from feature_store.expressions.instants import DAY, HOUR, instant
from feature_store.expressions.relations import Computed, LatestRow, Rows, Schedule, ScheduledQuery, Window, Windows
from feature_store.expressions.scalars import bind
from feature_store.storage.offline import OfflineStore
from feature_store.storage.online import EVENT_TIME
from feature_store.types import FLOAT64, INT64, STRING, TIMESTAMP, Schema
from tests.servers import free_port

pytestmark = pytest.mark.timeout(600)

SCHEMA = Schema.of(user_id=INT64, at=TIMESTAMP, price=FLOAT64)
KEYS = Schema.of(user_id=INT64)
NOON = instant("2026-01-01T12:00:00Z")
EVER = 2**55


@pytest.fixture(scope="module")
def local() -> Iterator[LocalEngine]:
    engine = LocalEngine(memory_limit="500MB", threads=2)
    yield engine
    engine.close()


def source(path: Path | None, schema: Schema = SCHEMA, **changes: Any) -> Rows:
    options: dict[str, Any] = {"timestamp": "at", **changes}
    return Rows("events", schema, path=None if path is None else str(path), **options)


def latest(rows: Rows, *names: str) -> LatestRow:
    return LatestRow(rows, KEYS, tuple(Computed(name, bind(name, rows.schema)) for name in names or ("price",)))


def counts(rows: Rows, schedule: Schedule | None = None) -> Windows:
    price = bind("price", rows.schema)
    return Windows(
        rows, KEYS,
        (Window("n", "count", INT64, 2 * DAY, HOUR), Window("s", "sum", FLOAT64, 7 * DAY, HOUR, price)), schedule,
    )  # fmt: skip


def sorted_rows(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=repr)


def write(path: Path, users: Any, at: Any, price: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"user_id": users, "at": at, "price": price}), path, **options)
    return path


def micros(*times: int) -> pa.Array:
    return pa.array(times, pa.timestamp("us", "UTC"))


# Where rows come from


def test_files_of_one_source_may_store_a_column_in_different_types(
    spark_engine: SparkEngine, local: LocalEngine, tmp_path: Path
) -> None:
    times = [NOON, NOON + 1]
    write(tmp_path / "s/0.parquet", pa.array([1, 2], pa.int32()), micros(*times), [1.5, None])
    naive = pa.array(times, pa.timestamp("us"))
    write(tmp_path / "s/1.parquet", pa.array([3, 4], pa.uint32()), naive, pa.array([1, 2], pa.int8()))
    nanos = pa.array([1000 * at for at in times], pa.timestamp("ns", "UTC"))
    write(tmp_path / "s/2.parquet", [5, 6], nanos, pa.nulls(2))
    write(tmp_path / "s/3.parquet", [7, 8], pa.array(times, pa.timestamp("us")), pa.array([1.5, 2.5], pa.float32()),
          use_deprecated_int96_timestamps=True)  # fmt: skip
    pq.write_table(pa.table({"user_id": [9], "at": micros(NOON - DAY)}), tmp_path / "s/4.parquet")
    relation = latest(source(tmp_path / "s"))
    for since, until in ((None, EVER), (NOON, NOON), (NOON + 1, EVER), (None, NOON - 1)):
        found = sorted_rows(spark_engine.latest(relation, since, until).read().read_all())
        assert found == sorted_rows(local.latest(relation, since, until).read().read_all())
        assert len(found) == {(None, EVER): 9, (NOON, NOON): 4, (NOON + 1, EVER): 4, (None, NOON - 1): 1}[since, until]


def test_names_of_folders_are_names_and_no_patterns(
    spark_engine: SparkEngine, local: LocalEngine, tmp_path: Path
) -> None:
    folder = tmp_path / "a {b} c%20d"
    write(folder / "kind=[x]*" / "part-0.parquet", [1], micros(NOON), [2.0])
    schema = Schema.of(**{column.name: column.type for column in SCHEMA}, kind=STRING)
    relation = latest(source(folder, schema), "price", "kind")
    found = spark_engine.latest(relation, None, EVER).read().read_all()
    assert found["kind"].to_pylist() == ["[x]*"]
    assert sorted_rows(found) == sorted_rows(local.latest(relation, None, EVER).read().read_all())


def test_a_metastore_table(spark_engine: SparkEngine, tmp_path: Path) -> None:
    session = spark_engine.session
    write(tmp_path / "t/0.parquet", [1, 2], micros(NOON, NOON), [1.0, 2.0])
    session.sql("CREATE DATABASE IF NOT EXISTS shop")
    session.sql(f"CREATE TABLE shop.events USING parquet LOCATION 'file://{tmp_path}/t'")
    try:
        rows = source(None, table="shop.events")
        assert spark_engine.schema(rows) == SCHEMA
        before = spark_engine.inputs(rows)
        write(tmp_path / "t/1.parquet", [2], micros(NOON + 1), [3.0])
        session.sql("REFRESH TABLE shop.events")
        changed = frozenset(spark_engine.inputs(rows)) - frozenset(before)
        assert (len(before), len(changed)) == (1, 1)
        found = spark_engine.latest(latest(rows), None, EVER, changed).read().read_all()
        assert (found["user_id"].to_pylist(), found["price"].to_pylist()) == ([2], [3.0])
        gone = source(None, Schema.of(user_id=INT64, at=TIMESTAMP, cost=FLOAT64), table="shop.events")
        with pytest.raises(SourceError, match=r'column "cost" was FLOAT64 at apply and is gone from shop\.events'):
            spark_engine.latest(latest(gone, "cost"), None, EVER).read()
    finally:
        session.sql("DROP TABLE shop.events")


# Where rows go


@dataclass(frozen=True)
class Noting:
    """A sink that writes each part to a file named by the process that it is called in."""

    folder: str
    anywhere: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> int:
        rows = sum(batch.num_rows for batch in batches)
        with open(f"{self.folder}/{os.getpid()}", "a") as file:
            file.write(f"{rows}\n")
        return rows


@dataclass(frozen=True)
class Refusing:
    anywhere: bool = True

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> int:
        raise StoreUnavailableError("the store (its name) is down", hint="Start it")


@pytest.mark.parametrize("anywhere", [True, False])
def test_a_sink_is_called_where_rows_are_computed_if_it_can_be(
    spark_engine: SparkEngine, tmp_path: Path, anywhere: bool
) -> None:
    users = list(range(1000))
    write(tmp_path / "a.parquet", users, micros(*[NOON] * 1000), [1.0] * 1000)
    (tmp_path / "noted").mkdir()
    rows = spark_engine.latest(latest(source(tmp_path / "a.parquet")), None, EVER)
    assert rows.write(Noting(str(tmp_path / "noted"), anywhere)) == rows.count() == 1000
    processes = {path.name for path in (tmp_path / "noted").iterdir()}
    assert (str(os.getpid()) in processes) == (not anywhere)


def test_what_a_sink_raises_is_raised_here(spark_engine: SparkEngine, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1], micros(NOON), [1.0])
    with pytest.raises(StoreUnavailableError) as raised:
        spark_engine.latest(latest(source(tmp_path / "a.parquet")), None, EVER).write(Refusing())
    assert str(raised.value) == "the store (its name) is down. Start it"


def queried(rows: Rows, value: str) -> ScheduledQuery:
    sql = f"SELECT user_id, {value} AS v FROM events GROUP BY user_id"
    return ScheduledQuery(sql, (rows,), KEYS, (("v", "v", INT64),), Schedule("daily"))


def test_both_engines_keep_snapshots_in_one_table(
    spark_engine: SparkEngine, local: LocalEngine, tmp_path: Path
) -> None:
    rows = source(write(tmp_path / "a.parquet", [1, 1, 2], micros(NOON, NOON, NOON), [1.0, 2.0, 3.0]))
    store = OfflineStore("offline", tmp_path)

    def keep(engine: Any, day: int, value: str) -> Any:
        return engine.snapshot(queried(rows, value), DAY).save(store, "snapshots/v", {"day": str(day)})

    for day, engine in enumerate((spark_engine, local)):
        assert keep(engine, day, f"count(1) + {day}").count() == 2
    none = keep(spark_engine, 1, "count(1) + 7")
    assert sorted_rows(none.read().read_all()) == [{"user_id": 1, "v": 9}, {"user_id": 2, "v": 8}]
    kept = {day: store.read("snapshots/v", {"day": str(day)})["v"].to_pylist() for day in range(2)}
    assert {day: sorted(values) for day, values in kept.items()} == {0: [1, 2], 1: [8, 9]}
    assert none.read().schema.names == ["user_id", "v"]


def test_of_two_that_keep_a_snapshot_at_once_one_is_told(spark_engine: SparkEngine, tmp_path: Path) -> None:
    rows = source(write(tmp_path / "a.parquet", [1], micros(NOON), [1.0]))
    store = OfflineStore("offline", tmp_path)

    def keep(value: int) -> str:
        try:
            spark_engine.snapshot(queried(rows, f"count(1) + {value}"), DAY).save(store, "v", {"day": "1"})
        except ConflictError:
            return "told"
        return "kept"

    keep(0)
    with ThreadPoolExecutor(3) as pool:
        assert "kept" in set(pool.map(keep, range(1, 4)))
    assert store.read("v", {"day": "1"}).num_rows == 1


# Keys of very many events


def test_the_snapshot_of_a_heavy_key_is_merged_from_its_tiles(
    spark_engine: SparkEngine, local: LocalEngine, tmp_path: Path
) -> None:
    bot = [NOON + n * HOUR // 7 for n in range(900)]
    others = [NOON + n * HOUR for n in range(100)]
    users = [1] * 900 + [2 + n % 7 for n in range(100)]
    rows = source(write(tmp_path / "a.parquet", users, micros(*bot, *others), [n / 4 for n in range(1000)]))
    relation, at = counts(rows, Schedule("daily")), NOON + 5 * DAY + 1
    spread = SparkEngine(spark_engine.master, spark_engine.conf, Spread(rows=100, one_in=1))
    try:
        found = spread.snapshot(relation, at).read().read_all()
    finally:
        spread.close()
    assert sorted_rows(found) == sorted_rows(local.snapshot(relation, at).read().read_all())
    assert len(found) == 8


def test_the_tiles_of_one_key_are_spread(spark_engine: SparkEngine, tmp_path: Path) -> None:
    rows = source(write(tmp_path / "a.parquet", [1] * 500, micros(*(NOON + n * HOUR for n in range(500))), [1.0] * 500))
    session = spark_engine.session
    before = session.conf.get("spark.sql.adaptive.enabled")
    session.conf.set("spark.sql.adaptive.enabled", "false")  # it would bring so few rows together
    try:
        frame = spark_engine.tiles(counts(rows), HOUR, None, EVER).frame()
        parts = frame.selectExpr("spark_partition_id() AS part").groupBy("part").count().collect()
    finally:
        session.conf.set("spark.sql.adaptive.enabled", before)
    assert len(parts) > 1
    assert sum(row["count"] for row in parts) == 500
    assert max(row["count"] for row in parts) < 350


def test_rows_that_tie_on_time_are_told_apart_by_value(
    spark_engine: SparkEngine, local: LocalEngine, tmp_path: Path
) -> None:
    prices = [None, 1.0, float("nan"), -1.0]
    rows = source(write(tmp_path / "a.parquet", [1, 1, 1, 1, 2, 2], micros(*[NOON] * 6), [*prices, None, -1.0]))
    found = sorted_rows(spark_engine.latest(latest(rows), None, EVER).read().read_all())
    assert repr(found) == repr(sorted_rows(local.latest(latest(rows), None, EVER).read().read_all()))
    assert [repr(row["price"]) for row in found] == ["nan", "-1.0"]
    assert {row[EVENT_TIME] for row in found} == {NOON}


# Starting


def test_a_process_has_one_spark(spark_engine: SparkEngine) -> None:
    assert spark_engine.session
    with pytest.raises(SettingsError, match=r"Spark runs at local\[2\] in this process: it cannot run at yarn, too"):
        _ = SparkEngine("yarn").session


def run(code: str, *arguments: str, **environment: str) -> str:
    given = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=given, timeout=300
    )
    assert not done.stderr, done.stderr
    return done.stdout.strip()


_ASK = """
import sys
from feature_store.engines.spark import SparkEngine
from feature_store.errors import FeatureStoreError
try:
    SparkEngine(*sys.argv[1:] or ["local[1]"], connect_timeout=2).session
except FeatureStoreError as error:
    print(type(error).__name__, error)
"""


def test_without_pyspark_the_extra_is_named() -> None:
    said = run(f"import sys\nsys.modules['pyspark'] = None\n{_ASK}")
    assert said.startswith("MissingExtraError the Spark engine (master local[1]) needs the extra [spark]")
    assert said.endswith("pip install 'feature_store[spark]'")


def test_without_java_that_is_said(tmp_path: Path) -> None:
    said = run(_ASK, JAVA_HOME=str(tmp_path))
    assert said.startswith("SettingsError Spark cannot be started: ")
    assert said.endswith("It needs Java 17: install a JDK, or set JAVA_HOME")


@pytest.mark.parametrize("master", ["spark://127.0.0.1:{0}", "spark://127.0.0.1:{0},127.0.0.1:{0}",
                                    "k8s://https://127.0.0.1:{0}"])  # fmt: skip
def test_a_master_that_is_not_there(master: str) -> None:
    """No JVM starts for it."""
    port = free_port()
    said = run(_ASK, master.format(port), JAVA_HOME="/nowhere")
    assert said.startswith(
        f"StoreUnavailableError Spark cannot be started at {master.format(port)}: 127.0.0.1:{port}: "
    )
    assert "Connection refused" in said
    assert "Check the master's address, and that it runs" in said


def test_a_master_whose_host_is_not_known() -> None:
    said = run(_ASK, "spark://nowhere.invalid:7077")
    assert said.startswith("StoreUnavailableError Spark cannot be started at spark://nowhere.invalid:7077: ")


def test_a_master_that_does_not_answer() -> None:
    """As behind a wall that drops what comes: nobody accepts, and nobody refuses."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        try:
            said = run(_ASK, f"spark://127.0.0.1:{port}", JAVA_HOME="/nowhere")
        finally:
            for each in waiting:
                each.close()
    assert said.startswith(f"StoreUnavailableError Spark cannot be started at spark://127.0.0.1:{port}: ")
    assert "timed out" in said
