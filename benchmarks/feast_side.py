"""Work that Feast does, measured in its own environment: `FEAST_PYTHON benchmarks/feast_side.py TASK JSON`."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parent.parent)
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import pandas as pd  # noqa: E402
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType  # noqa: E402
from feast.types import Float64, Int64, String  # noqa: E402

from benchmarks.clock import measured, peak_mib, repeated  # noqa: E402

_TYPES = {"INT64": Int64, "FLOAT64": Float64, "STRING": String}


def apply(
    root: str, paths: list[str], features: list[dict[str, str]], port: int | None = None, offline: str = "duckdb"
) -> dict[str, Any]:
    """A repository of the benchmarks' views."""
    folder = Path(root)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    online = f'{{type: redis, connection_string: "127.0.0.1:{port},db=1"}}' if port else "{type: sqlite}"
    (folder / "feature_store.yaml").write_text(
        f"project: bench\nprovider: local\nregistry: data/registry.db\nonline_store: {online}\n"
        f"offline_store: {{type: {offline}}}\nentity_key_serialization_version: 3\n"
    )
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    definitions: list[Any] = [user]
    for view, (path, types) in enumerate(zip(paths, features, strict=True)):
        definitions.append(
            FeatureView(
                name=f"view_{view}",
                entities=[user],
                ttl=timedelta(days=0),
                schema=[Field(name="user_id", dtype=Int64)]
                + [Field(name=name, dtype=_TYPES[type_]) for name, type_ in types.items()],
                source=FileSource(name=f"source_{view}", path=path, timestamp_field="event_timestamp"),
            )
        )
    FeatureStore(root).apply(definitions)
    return {}


def materialize(root: str, views: list[str], start: int, end: int) -> dict[str, Any]:
    """Writes all rows of some views online."""
    store = FeatureStore(root)
    before = peak_mib()
    span = [datetime.fromtimestamp(each / 1e6, UTC) for each in (start, end)]
    _, cost = measured(lambda: store.materialize(*span, feature_views=views))
    return {"before": before, **cost}


def historical(root: str, entities: str, features: list[str], out: str) -> dict[str, Any]:
    """The features of entity rows at their times; the entity rows are read before the clock starts."""
    store = FeatureStore(root)
    asked = pd.read_parquet(entities)
    table, cost = measured(lambda: store.get_historical_features(asked, features).to_arrow())
    return {"rows": table.num_rows, **cost}


def online(root: str, users: int, shapes: list[list[Any]], rounds: int, seconds: float) -> dict[str, Any]:
    """`get_online_features` in process; a shape is entities and references."""
    store = FeatureStore(root)
    calls = {}
    for count, features in shapes:
        asked = [[{"user_id": (n * 7919 + row * 104_729) % users} for row in range(count)] for n in range(500)]
        calls[f"feast {count}x{len(features)}"] = lambda n, a=asked, f=features: store.get_online_features(
            features=f, entity_rows=a[n % 500]
        ).to_dict()
    return repeated(calls, rounds, seconds)


TASKS = {each.__name__: each for each in (apply, materialize, historical, online)}

if __name__ == "__main__":
    answer = TASKS[sys.argv[1]](**json.loads(sys.argv[2]))
    print("\n" + json.dumps(answer))
