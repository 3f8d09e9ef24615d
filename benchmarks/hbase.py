"""Rows into HBase and out of it: materializing and reading, against happybase with the same rows.

`python -m benchmarks.hbase TASK JSON` runs one side in a process of its own.
"""

from __future__ import annotations

import gc
import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import happybase

from benchmarks import data
from benchmarks.clock import measured
from benchmarks.processes import worker
from benchmarks.report import Report, number, ratio
from benchmarks.sizes import Size
from tests.servers import HBaseServer

SHARE_OF_HAPPYBASE = 0.5
TIMES_HAPPYBASE = 1.5
KEYS = 100
_BATCH = 1_000
_LABELS = {
    "ours": "get_online_features()",
    "store": "HBaseOnlineStore.read()",
    "happybase": "happybase, rows() of the same keys",
}


def measure(size: Size) -> Report:
    """A server of its own; each side writes twice, in turns, then reads in turns."""
    head = ["what", "rows", "rows/s", "CPU µs/row", "p50 ms", "p99 ms"]
    report = Report("HBase: 20 features of a user", head)
    users = max(size.users // 5, 100_000)
    root = data.ROOT / "hbase"
    shutil.rmtree(root, ignore_errors=True)
    server = HBaseServer().start()
    try:
        costs: dict[str, list[dict[str, float]]] = {"ours": [], "happybase": []}
        for attempt in range(2):
            _apply(root / str(attempt), users, f"{server.url}?prefix=try{attempt}")
            costs["ours"].append(worker("ours", "materialize", root=str(root / str(attempt)), views=["view_0"]))
            table = f"try{attempt}.bench"
            costs["happybase"].append(worker("hbase", "write", port=server.port, source=table, rows=users))
        found = worker(
            "hbase", "read", root=str(root / "0"), port=server.port, users=users,
            rounds=size.rounds, seconds=size.seconds,
        )  # fmt: skip
    finally:
        server.close()
    _report_writes(report, costs)
    _report_reads(report, found)
    return report


def _apply(root: Path, users: int, online: str) -> None:
    worker("ours", "apply", root=str(root), paths=[str(data.profiles(users, 0))], online=online)


def _report_writes(report: Report, costs: dict[str, list[dict[str, float]]]) -> None:
    best = {name: min(found, key=lambda cost: cost["wall"]) for name, found in costs.items()}
    size = best["happybase"]["bytes"]
    labels = {"ours": "materialize", "happybase": f"happybase, batches of {_BATCH} of the same {size:.0f} bytes a row"}
    for name, cost in best.items():
        rate, cpu = cost["rows"] / cost["wall"], 1e6 * cost["cpu"] / cost["rows"]
        report.add(labels[name], number(cost["rows"]), number(rate), number(cpu), "", "")
    rates = [best[name]["rows"] / best[name]["wall"] for name in ("ours", "happybase")]
    report.at_least("HBase: materialized rows/s, ours over happybase", ratio(*rates), SHARE_OF_HAPPYBASE)


def _report_reads(report: Report, found: dict[str, dict[str, float]]) -> None:
    for name, label in _LABELS.items():
        one = found[name]
        report.add(f"{label}, {KEYS} users", "", "", "", number(one["p50"]), number(one["p99"]))
    for quantile in ("p50", "p99"):
        times = ratio(found["ours"][quantile], found["happybase"][quantile])
        report.at_most(f"HBase, {KEYS} keys: {quantile}, ours over happybase", times, TIMES_HAPPYBASE)


def write(port: int, source: str, rows: int) -> dict[str, Any]:
    """The rows that are in one table written again to an empty one, by batches of happybase."""
    with closing(happybase.Connection("127.0.0.1", port, timeout=60_000)) as connection:
        found = []
        for key, cells in connection.table(source).scan():
            if key[1:9] != bytes(8):
                found.append((key, cells))
        random.Random(0).shuffle(found)  # as they would come from a table of users, not as HBase sorts them
        target = f"raw-{time.time_ns()}"
        connection.create_table(target, {"f": {"max_versions": 1, "bloom_filter_type": "ROW"}})

        def put() -> None:
            with connection.table(target).batch(batch_size=_BATCH) as batch:
                for key, cells in found[:rows]:
                    batch.put(key, cells)

        _, cost = measured(put)
        connection.delete_table(target, disable=True)
    sizes = [len(key) + sum(len(c) + len(v) for c, v in cells.items()) for key, cells in found]
    return {"rows": len(found[:rows]), "bytes": sum(sizes) / len(sizes), **cost}


def read(root: str, port: int, users: int, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Reads of some users in turns, one call of each kind after the other: milliseconds, of the best round."""
    from feature_store import FeatureStore
    from feature_store.definitions.tables import latest_table

    store = FeatureStore(root)
    table = latest_table(store.catalog.views["view_0"])
    asked = [[(n * 7919 + row * 104_729) % users for row in range(KEYS)] for n in range(500)]
    inner: Any = store.open_online_store()
    backing = inner._default
    backing.read([(table, [(0,)])])
    head = backing._heads[table.name][1]
    keys = [backing._rows(table, head, [(user,) for user in ids]) for ids in asked]
    with closing(happybase.Connection("127.0.0.1", port, timeout=60_000)) as connection:
        raw = connection.table(backing._name)
        calls: dict[str, Callable[[int], Any]] = {
            "ours": lambda n: store.get_online_features(["view_0"], {"user_id": asked[n]}),
            "store": lambda n: inner.read([(table, [(user,) for user in asked[n]])]),
            "happybase": lambda n: raw.rows(keys[n]),
        }
        assert len(calls["happybase"](0)) == KEYS
        best: dict[str, dict[str, float]] = {}
        for _ in range(rounds):
            for name, one in _round(calls, seconds * len(calls)).items():
                known = best.setdefault(name, one)
                best[name] = {key: min(known[key], one[key]) for key in one}
    store.close()
    inner.close()
    return best


def _round(calls: dict[str, Callable[[int], Any]], seconds: float) -> dict[str, dict[str, float]]:
    gc.collect()
    times: dict[str, list[float]] = {name: [] for name in calls}
    until, n = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        for name, call in calls.items():
            began = time.perf_counter()
            call(n % 500)
            times[name].append(1000 * (time.perf_counter() - began))
        n += 1
    return {
        name: {"p50": sorted(found)[len(found) // 2], "p99": sorted(found)[len(found) * 99 // 100]}
        for name, found in times.items()
    }


TASKS: dict[str, Callable[..., Any]] = {each.__name__: each for each in (write, read)}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](**json.loads(sys.argv[2]))))
