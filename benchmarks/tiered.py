"""Reads of two tiers with every key in Redis, against Redis alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import data, ours
from benchmarks.clock import repeated
from benchmarks.processes import worker
from benchmarks.report import Report, number, ratio
from benchmarks.world import World
from feature_store import FeatureStore

SHAPES = ((1, 10), (10, 50), (100, 50))
MOST = 1.1
USERS = 2_000
_NAMES = {"alone": "Redis", "tiered": "Redis before SQLite, every key in Redis"}


def measure(world: World) -> Report:
    """Redis alone and the two tiers in turns in one process, over the same rows."""
    report = Report("Two tiers", ["entities x features", "online store", "p50 ms", "CPU ms"])
    root = data.ROOT / "tiered"
    shutil.rmtree(root, ignore_errors=True)
    pace = {"rounds": 2 * world.size.rounds, "seconds": world.size.seconds / 2}
    found = worker("tiered", "compare", root=str(root), port=world.port, **pace)
    for shape in SHAPES:
        name = f"{shape[0]}x{shape[1]}"
        for call, label in _NAMES.items():
            one = found[f"{call} {name}"]
            report.add(name, label, number(one["p50"]), number(one["cpu"]))
        times = ratio(found[f"tiered {name}"]["p50"], found[f"alone {name}"]["p50"])
        report.at_most(f"in process {name}: p50, two tiers over Redis alone", times, MOST)
    return report


def compare(root: str, port: int, rounds: int, seconds: float) -> dict[str, Any]:
    """The costs of reads of both, by call and shape."""
    online = {
        "alone": f"redis://127.0.0.1:{port}/4",
        "tiered": f"tiered:redis://127.0.0.1:{port}/5|sqlite:///data/online.db",
    }
    paths = [str(data.profiles(USERS, view)) for view in range(data.VIEWS)]
    calls: dict[str, Any] = {}
    for call, uri in online.items():
        store = FeatureStore(ours.repository(Path(root) / call, uri))
        store.apply(ours.views_over(paths), partial=False)
        store.materialize(data.NOW - data.SPAN, data.NOW)
        if call == "tiered":
            store.refill()
        for count, features in SHAPES:
            calls[f"{call} {count}x{features}"] = _call(store, count, data.spread(features))
    return repeated({name: calls[name] for name in sorted(calls, key=lambda name: name.split()[1])}, rounds, seconds)


def _call(store: FeatureStore, count: int, references: list[str]) -> Callable[[int], Any]:
    asked = [[(n * 7919 + row * 104_729) % USERS for row in range(count)] for n in range(500)]
    return lambda n: store.get_online_features(references, {"user_id": asked[n % 500]}).to_dict()


if __name__ == "__main__":
    print(json.dumps(compare(**json.loads(sys.argv[2]))))
