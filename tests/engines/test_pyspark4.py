"""PySpark 4, which Flink's pins keep out of the environment of the other tests, answers as the embedded engine does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from feature_store.templates import create

PYTHON = Path(os.environ.get("PYSPARK4_PYTHON", "build/pyspark4/bin/python"))
ANSWERS = """
import json, sys
from datetime import datetime, timezone
import pyspark
from feature_store import FeatureStore

now = datetime.now(timezone.utc)
features = ["user_profile:user_age", "user_clicks:user_click_cnt_7d"]
users = list(range(1, 200))
rows = {"user_id": users, "event_timestamp": [now] * len(users)}
found = {"version": pyspark.__version__}
for engine, settings in (("local", sys.argv[2]), ("spark", sys.argv[3])):
    store = FeatureStore(sys.argv[1], settings)
    store.apply()
    history = store.get_historical_features(rows, features, engine=engine).to_arrow()
    store.materialize("2020-01-01", now, ["user_profile", "user_clicks"])
    online = store.online.get(features, {"user_id": users}, now=int(now.timestamp() * 1e6))
    found[engine] = [history[name].to_pylist() for name in history.column_names[2:]], online.to_dict()
    store.close()
print("FOUND " + json.dumps(found))
"""


@pytest.mark.timeout(600)
def test_pyspark_4_answers_as_the_embedded_engine(tmp_path: Path) -> None:
    if not PYTHON.exists():
        pytest.fail(f"there is no {PYTHON}. Run: make pyspark4")
    root = create(tmp_path / "ads", "ads", events=2_000)
    file, other = root / "feature_store.yaml", root / "feature_store.spark.yaml"
    settings = yaml.safe_load(file.read_text()) | {"engines": {"spark": "local[2]"}}
    file.write_text(yaml.safe_dump(settings | {"online_store": "sqlite:///local.db"}))
    other.write_text(yaml.safe_dump(settings | {"online_store": "sqlite:///spark.db", "engine": "spark"}))
    done = subprocess.run(
        [PYTHON.absolute(), "-c", ANSWERS, str(root), str(file), str(other)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout[done.stdout.index("FOUND ") :].removeprefix("FOUND "))
    assert found["version"].startswith("4.")
    assert found["local"] == found["spark"]
    history, online = found["spark"]
    assert [online["user_age"], online["user_click_cnt_7d"]] == history
    assert any(online["user_click_cnt_7d"])
