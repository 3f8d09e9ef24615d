"""Spark on this machine: point-in-time joins against hand-written Spark SQL, with and without a key of very many rows.

`python -m benchmarks.spark TASK JSON` runs one side in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import psutil

from benchmarks import data
from benchmarks.processes import redis_server, worker
from benchmarks.report import Report, number, ratio
from benchmarks.sizes import Size

TIMES_BY_HAND = 1.5
TIMES_UNSKEWED = 2.0
MASTER = "local[2]"
CONF = {"spark.driver.memory": "4g", "spark.sql.shuffle.partitions": "16"}
_TURNS = 2
_WARM_UP_ROWS = 10_000
Cost = dict[str, float]

_BY_HAND = """
SELECT row, user_id, event_timestamp, found.price, found.amount
FROM (
  SELECT *, last(row_found, true) OVER (
    PARTITION BY user_id ORDER BY event_timestamp, asked ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
  ) AS found
  FROM (
    SELECT NULL AS row, user_id, event_timestamp, 0 AS asked, struct(price, amount) AS row_found FROM events
    UNION ALL
    SELECT row, user_id, event_timestamp, 1 AS asked, NULL AS row_found FROM entities
  )
)
WHERE asked = 1
"""
"""What one writes: both sides in one table, and the last row before each question. It knows nothing of ties, `created`,
a ttl, statuses or the order of the rows."""


def measure(size: Size) -> Report:
    """Each case by hand and by us, in turns, one process a measurement."""
    report = Report(f"Spark at {MASTER}", ["case", "how", "wall s", "CPU s", "rows"])
    users = size.events // 100
    walls: dict[str, float] = {}
    for case, hot in (("even keys", 0), ("one key of 10 %", 10)):
        events = str(data.events(size.events, users, hot=hot))
        entities = str(data.entities(size.entity_rows, users, hot=hot))
        walls[case] = _join(report, case, size, {"events": events, "entities": entities})
    times = ratio(walls["one key of 10 %"], walls["even keys"])
    report.at_most("Spark, join: wall, one key of 10 % over even keys", times, TIMES_UNSKEWED)
    _materialize(report, size)
    return report


def _join(report: Report, case: str, size: Size, given: dict[str, str]) -> float:
    out = data.ROOT / "answers"
    out.mkdir(exist_ok=True)
    name = f"{size.entity_rows:,} rows over {size.events:,} events, {case}"
    costs: dict[str, list[Cost]] = {"ours": [], "by_hand": []}
    for _ in range(_TURNS):
        for how, of_one in costs.items():
            of_one.append(worker("spark", how, out=str(out / f"spark_{how}"), **given))
    best = {how: {key: min(cost[key] for cost in of_one) for key in of_one[0]} for how, of_one in costs.items()}
    for how, label in (("ours", "feature_store"), ("by_hand", "hand-written Spark SQL")):
        report.add(name, label, *(number(best[how][key]) for key in ("wall", "cpu", "rows")))
    same = _same(out / "spark_ours", out / "spark_by_hand")
    report.holds(f"Spark, {name}: the answer of hand-written SQL", "equal" if same else "differs", "equal", same)
    report.at_most(f"Spark, {name}: wall, ours over hand-written",
                   ratio(best["ours"]["wall"], best["by_hand"]["wall"]), TIMES_BY_HAND)  # fmt: skip
    report.state(
        f"Spark, {name}: CPU, ours over hand-written", number(best["ours"]["cpu"] / best["by_hand"]["cpu"], "x")
    )
    return best["ours"]["wall"]


def _materialize(report: Report, size: Size) -> None:
    """Executors write to Redis themselves; beside it, redis-py writing the same bytes."""
    root, users = data.ROOT / "spark_online", size.users
    shutil.rmtree(root, ignore_errors=True)
    with redis_server() as port:
        found = worker("spark", "materialize", root=str(root), path=str(data.profiles(users, 0)),
                       online=f"redis://127.0.0.1:{port}/0")  # fmt: skip
        raw = worker("by_hand", "redis_write", port=port, pattern="fs1:bench:view_0.*", rows=users)
    for label, cost in (("materialize by two executors", found), ("redis-py, pipelined SETs of the same bytes", raw)):
        report.add(
            f"{users:,} rows of 20 features into Redis", label, *(number(cost[k]) for k in ("wall", "cpu", "rows"))
        )
    rates = [cost["rows"] / cost["wall"] for cost in (found, raw)]
    report.at_least("Spark, materialize into Redis: rows/s, ours over redis-py", ratio(*rates), 0.5)


def _same(one: Path, other: Path) -> bool:
    """Whether two folders of Parquet hold the same rows, in whatever order."""
    columns = "row, user_id, event_timestamp, price, amount"
    read = [f"SELECT {columns} FROM '{path}/*.parquet'" for path in (one, other)]
    found = duckdb.sql(
        f"SELECT count(*) FROM (({read[0]} EXCEPT ALL {read[1]}) UNION ALL ({read[1]} EXCEPT ALL {read[0]}))"
    )
    return bool(found.fetchall() == [(0,)])


def ours(events: str, entities: str, out: str) -> Cost:
    """The latest event of each entity row, written by executors."""
    store = store_over(data.ROOT / "repositories" / "spark", events)
    warmed_up(store, "spark", out)
    return answered(lambda: store.get_historical_features(entities, ["latest"], engine="spark").to_file(out), out)


def by_hand(events: str, entities: str, out: str) -> Cost:
    """The same by SQL."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(MASTER).config("spark.sql.session.timeZone", "UTC")
    for name, value in {**CONF, "spark.ui.enabled": "false", "spark.log.level": "ERROR"}.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()

    def run(asked: str, path: str) -> None:
        spark.read.parquet(events).createOrReplaceTempView("events")
        spark.read.parquet(asked).createOrReplaceTempView("entities")
        spark.sql(_BY_HAND).write.parquet(path)

    _cleared(f"{out}_warm")
    run(str(data.entities(_WARM_UP_ROWS, 100)), f"{out}_warm")
    return answered(lambda: run(entities, out), out)


def materialize(root: str, path: str, online: str) -> Cost:
    """All rows of a view, computed and written by executors. Half of them were before: what the JVM compiles while it
    works is compiled."""
    from feature_store import Entity, FeatureView, Field, Source

    store = _repository(Path(root), online)
    fields = [Field(name=name, type=type_) for name, type_ in data.features(0).items()]
    store.apply(
        [
            Entity(name="user", join_key="user_id", type="INT64"),
            Source(name="profiles", path=path, timestamp="event_timestamp"),
            FeatureView(name="view_0", entities=["user"], source="profiles", features=fields, engine="spark"),
        ]
    )
    store.materialize(data.NOW - data.SPAN, data.NOW - data.SPAN // 2, ["view_0"])
    began, cpu = time.perf_counter(), _cpu()
    rows = store.materialize(data.NOW - data.SPAN, data.NOW, ["view_0"])
    return {"rows": rows, "wall": time.perf_counter() - began, "cpu": _cpu() - cpu}


def store_over(root: Path, events: str) -> Any:
    """A repository of one view: the latest event of a user."""
    from feature_store import Entity, FeatureView, Field, Source

    shutil.rmtree(root, ignore_errors=True)
    store = _repository(root, "sqlite:///data/online.db")
    fields = [Field(name="price", type="FLOAT64"), Field(name="amount", type="INT64")]
    store.apply(
        [
            Entity(name="user", join_key="user_id", type="INT64"),
            Source(name="events", path=events, timestamp="event_timestamp"),
            FeatureView(name="latest", entities=["user"], source="events", features=fields),
        ]
    )
    return store


def _repository(root: Path, online: str) -> Any:
    import yaml

    from feature_store import FeatureStore

    root.mkdir(parents=True, exist_ok=True)
    settings = {"project": "bench", "online_store": online, "engines": {"spark": {"master": MASTER, "conf": CONF}}}
    (root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    return FeatureStore(root)


def warmed_up(store: Any, engine: str, out: str) -> None:
    """What starts once has started: a small retrieval was made."""
    path = f"{out}_warm" if engine == "spark" else f"{out}_warm.parquet"
    _cleared(path)
    rows = str(data.entities(_WARM_UP_ROWS, 100))
    store.get_historical_features(rows, ["latest"], engine=engine).to_file(path)


def answered(work: Callable[[], Any], out: str) -> Cost:
    """What work costs that writes Parquet: a file, or a folder."""
    _cleared(out)
    began, cpu = time.perf_counter(), _cpu()
    work()
    cost = {"wall": time.perf_counter() - began, "cpu": _cpu() - cpu}
    files = f"{out}/*.parquet" if Path(out).is_dir() else out
    ((count,),) = duckdb.sql(f"SELECT count(*) FROM '{files}'").fetchall()
    return {**cost, "rows": count}


def _cleared(path: str) -> None:
    """Spark writes to folders that are not there yet."""
    shutil.rmtree(path, ignore_errors=True)
    Path(path).unlink(missing_ok=True)


def _cpu() -> float:
    """Processor seconds of this process, Spark's JVM and its Python workers, so far."""
    process = psutil.Process()
    each = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(times.user + times.system + times.children_user + times.children_system for times in each)


TASKS = {each.__name__: each for each in (ours, by_hand, materialize)}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](**json.loads(sys.argv[2]))))
