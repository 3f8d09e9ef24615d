"""Feast's own client, in an environment of its own, reads from the service and writes to it.

`make feast` makes that environment; FEAST_PYTHON names the Python of another one.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.serving.conftest import Served

CLIENT = """
import json, sys, warnings
from datetime import datetime, timedelta
warnings.simplefilter("ignore")
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float64, Int64, String, Bytes, UnixTimestamp, Array

url, folder = sys.argv[1:]
store = FeatureStore(config=RepoConfig(
    project="serving", provider="local", registry=folder + "/registry.db", entity_key_serialization_version=3,
    online_store={"type": "remote", "path": url}, offline_store={"type": "dask"},
))
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
source = FileSource(name="stats", path=folder + "/nothing.parquet", timestamp_field="event_timestamp")
fields = {"clicks": Int64, "ctr": Float64, "city": String, "seen": UnixTimestamp}
view = FeatureView(name="user_stats", entities=[user], ttl=timedelta(days=90), source=source,
                   schema=[Field(name="user_id", dtype=Int64)] + [Field(name=n, dtype=t) for n, t in fields.items()])
store.registry.apply_entity(user, "serving")
store.registry.apply_feature_view(view, "serving")
refs = ["user_stats:" + name for name in fields]

def read(full):
    rows = [{"user_id": 1}, {"user_id": 2}, {"user_id": 999}]
    return store.get_online_features(refs, rows, full_feature_names=full).to_dict()

small = FeatureView(name="small", entities=[user], source=source, schema=[
    Field(name="user_id", dtype=Int64), Field(name="small_clicks", dtype=Int64),
    Field(name="small_city", dtype=String)])
store.registry.apply_feature_view(small, "serving")
now = pd.Timestamp.now("UTC").floor("s")
store.write_to_online_store("small", pd.DataFrame({
    "user_id": [1, 55], "small_clicks": [77, 78], "small_city": ["Ulm", None],
    "event_timestamp": [now, now], "created": [now, now]}))
refs_small = ["small:small_clicks", "small:small_city"]
written = store.get_online_features(refs_small, [{"user_id": 55}, {"user_id": 1}]).to_dict()
print(json.dumps([read(False), read(True), written], default=str))
"""


@pytest.fixture
def feast_python() -> str:
    """The Python of an environment with Feast 0.67."""
    path = Path(os.environ.get("FEAST_PYTHON", "benchmarks/.feast/bin/python"))
    if not path.exists():
        pytest.fail(f"there is no {path}. Run: make feast")
    return str(path)


def test_feasts_client_reads_and_writes(fresh: Served, feast_python: str, tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    done = subprocess.run(
        [feast_python, str(script), fresh.url, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "FEAST_USAGE": "False"},
    )
    assert done.returncode == 0, done.stderr
    short, full, written = json.loads(done.stdout.splitlines()[-1])
    assert short["user_id"] == [1, 2, 999]
    assert short["clicks"] == [10, None, None]
    assert short["city"] == ["Wien]", "nowhere", "nowhere"]
    assert short["seen"] == [1_700_000_000, None, None]
    assert full["user_stats__clicks"] == [10, None, None]
    assert written == {"user_id": [55, 1], "small_clicks": [78, 77], "small_city": [None, "Ulm"]}
