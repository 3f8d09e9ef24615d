"""Work that `feature_store` does in a process of its own, measured there. `python -m benchmarks.ours TASK JSON`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from benchmarks import data
from benchmarks.clock import measured, peak_mib, repeated
from feature_store import Aggregation, Entity, FeatureStore, FeatureView, Field, Source

USER = Entity(name="user", join_key="user_id")
WINDOWS = {"1h": 2, "7d": 4, "30d": 4}
"""Of ten windowed features how many look how far back."""


def repository(root: Path, online: str = "sqlite:///data/online.db", memory: str | None = None) -> Path:
    """An empty feature repository."""
    root.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"project": "bench", "online_store": online}
    if memory:
        settings["limits"] = {"memory": memory}
    (root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    return root


def views_over(paths: Sequence[str]) -> list[Any]:
    """The views of the benchmarks, each over a file."""
    definitions: list[Any] = [USER]
    for view, path in enumerate(paths):
        source = Source(name=f"source_{view}", path=path, timestamp="event_timestamp")
        fields = [Field(name=name, type=type_) for name, type_ in data.features(view).items()]
        definitions += [
            source,
            FeatureView(name=f"view_{view}", entities=["user"], source=source.name, features=fields),
        ]
    return definitions


def windows_over(path: str) -> list[Any]:
    """A temporal view of ten windowed features over events."""
    return [
        USER,
        Source(name="events", path=path, timestamp="event_timestamp", stream={"push": True}),
        FeatureView(name="windows", entities=["user"], source="events", aggregations=_aggregations()),
    ]


def _aggregations() -> list[Aggregation]:
    functions = [("count", None), ("sum", "price"), ("mean", "price"), ("max", "amount")]
    return [
        Aggregation(name=f"{function}_{window}", function=function, column=column, window=window)
        for window, take in WINDOWS.items()
        for function, column in functions[:take]
    ]


def apply(root: str, paths: list[str], online: str, memory: str | None = None) -> dict[str, Any]:
    """Applies the three views."""
    store = FeatureStore(repository(Path(root), online, memory))
    store.apply(views_over(paths), partial=False)
    return {}


def apply_many(root: str, paths: list[str], views: int) -> dict[str, Any]:
    """Writes the files of a repository of many views, for `fs apply`."""
    folder = repository(Path(root)) / "features"
    folder.mkdir(exist_ok=True)
    documents: list[Any] = [{"entity": {"name": "user", "join_key": "user_id", "type": "INT64"}}]
    documents.append({"source": {"name": "source", "path": paths[0], "timestamp": "event_timestamp"}})
    fields = [{"name": name, "type": type_} for name, type_ in data.features(0).items()]
    for n in range(views):
        view = {"name": f"view_{n}", "entities": ["user"], "source": "source", "features": fields}
        documents.append({"feature_view": view})
    (folder / "views.yaml").write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return {}


def materialize(root: str, views: list[str]) -> dict[str, Any]:
    """Writes all rows of some views online."""
    store = FeatureStore(root)
    before = peak_mib()
    rows, cost = measured(lambda: store.materialize(data.NOW - data.SPAN, data.NOW, views))
    return {"rows": rows, "before": before, **cost}


def historical(
    root: str, paths: list[str], entities: str, out: str, memory: str | None = None, windows: bool = False
) -> dict[str, Any]:
    """The features of entity rows at their times, written to a file afterwards."""
    store = FeatureStore(repository(Path(root), memory=memory))
    store.apply(windows_over(paths[0]) if windows else views_over(paths), partial=False)
    references = ["windows"] if windows else [f"view_{view}" for view in range(len(paths))]
    table, cost = measured(lambda: store.get_historical_features(entities, references).to_arrow())
    pq.write_table(table, out)
    return {"rows": table.num_rows, **cost}


def online(root: str, port: int, users: int, shapes: list[list[int]], rounds: int, seconds: float) -> dict[str, Any]:
    """`get_online_features` in turns with redis-py reading the same bytes."""
    from benchmarks import by_hand

    store = FeatureStore(root)
    calls: dict[str, Any] = {}
    for count, features in shapes:
        references = data.spread(features)
        asked = [[(n * 7919 + row * 104_729) % users for row in range(count)] for n in range(500)]
        keys = [by_hand.redis_keys(store, references, ids) for ids in asked]
        shape = f"{count}x{features}"
        calls[f"ours {shape}"] = lambda n, a=asked, r=references: store.get_online_features(
            r, {"user_id": a[n % 500]}
        ).to_dict()
        calls[f"unread {shape}"] = lambda n, a=asked, r=references: store.get_online_features(
            r, {"user_id": a[n % 500]}
        )
        calls |= by_hand.redis_readers(port, keys, shape)
    return repeated(calls, rounds, seconds)


def windowed(root: str, online: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Ten windowed features of a busy user in turns with ten features of a plain row; every minute has an event."""
    store = FeatureStore(repository(Path(root), online))
    now = time.time_ns() // 1000
    events = str(data.busy(4, now))
    profiles = str(data.profiles(10_000, 0))
    plain = FeatureView(
        name="plain", entities=["user"], source="profiles", features=[Field(name=n, type=t) for n, t in _ten().items()]
    )
    store.apply(
        [*windows_over(events), Source(name="profiles", path=profiles, timestamp="event_timestamp"), plain],
        partial=False,
    )
    # The last twenty minutes come by push, as they would.
    store.materialize(now - 40 * data.DAY, now - 20 * 60_000_000, ["windows"])
    store.materialize(data.NOW - data.SPAN, data.NOW, ["plain"])
    table = pq.read_table(events)
    store.push("events", table.filter(_since(table, now - 20 * 60_000_000)))
    calls = {
        "windows": lambda n: store.get_online_features(["windows"], {"user_id": [n % 4]}).to_dict(),
        "plain": lambda n: store.get_online_features(["plain"], {"user_id": [n % 4]}).to_dict(),
    }
    answer = calls["windows"](0)
    costs = repeated(calls, rounds, seconds)
    return {**costs, "count_1h": answer["count_1h"][0], "count_30d": answer["count_30d"][0]}


def _ten() -> dict[str, str]:
    return dict(list(data.features(0).items())[:10])


def _since(table: Any, instant: int) -> Any:
    import pyarrow.compute as pc

    return pc.greater_equal(table["event_timestamp"].cast("int64"), instant)


TASKS = {each.__name__: each for each in (apply, apply_many, materialize, historical, online, windowed)}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](**json.loads(sys.argv[2]))))
