"""Sources that are tables of a Hive metastore: applied, materialized and looked up through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from feature_store import FeatureStore
from feature_store.engines.spark import SparkEngine
from feature_store.errors import DefinitionError
from feature_store.expressions.instants import instant
from tests.flows.broken import END, FS, add, events

pytestmark = pytest.mark.timeout(900)

ROWS = events(2_000, 50)
USERS = {"user_id": list(range(55))}
DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: clicks, PLACE, timestamp: at, created: seen_at}
---
feature_views:
  - name: latest
    entities: [user]
    source: clicks
    features: [{name: price, type: FLOAT64}, {name: kind, type: STRING}]
  - name: moving
    entities: [user]
    source: clicks
    aggregations: [{name: c7d, function: count, window: 7d}, {name: p400d, function: mean, column: price, window: 400d}]
  - name: queried
    entities: [user]
    schedule: daily
    sql: SELECT user_id, COUNT(*) AS n FROM clicks WHERE at < date_add('${date}', 1) GROUP BY user_id
    features: [{name: n, type: INT64}]
"""
FEATURES = ["latest:price", "latest:kind", "moving:c7d", "moving:p400d", "queried:n"]
FILL = """
import json, sys
from feature_store.engines.spark import SparkEngine

engine = SparkEngine("local[1]", json.loads(sys.argv[1]))
session = engine.session
session.sql("CREATE DATABASE shop")
rows = session.read.parquet(sys.argv[2])
rows.write.format("parquet").saveAsTable("shop.clicks")
print(session.table("shop.clicks").count())
engine.close()
"""


def repo(root: Path, place: str, **settings: Any) -> Path:
    (root / "data" / "events").mkdir(parents=True)
    (root / "feature_store.yaml").write_text(yaml.safe_dump({"project": "shop", **settings}))
    (root / "features.yaml").write_text(DEFINITIONS.replace("PLACE", place))
    return root


def test_a_table_of_a_metastore(tmp_path: Path) -> None:
    laptop = repo(tmp_path / "laptop", "path: data/events")
    file = add(laptop, "all", ROWS)
    conf = {
        "spark.sql.catalogImplementation": "hive",
        "spark.sql.warehouse.dir": f"file://{tmp_path}/warehouse",
        "spark.hadoop.javax.jdo.option.ConnectionURL": f"jdbc:derby:;databaseName={tmp_path}/metastore;create=true",
        "spark.driver.extraJavaOptions": f"-Dderby.system.home={tmp_path}",
        "spark.driver.memory": "512m",
        "spark.sql.shuffle.partitions": "1",
    }
    filled = done(tmp_path, sys.executable, "-c", FILL, json.dumps(conf), str(file))
    assert filled.strip() == "2000"
    cluster = repo(
        tmp_path / "cluster",
        "table: shop.clicks",
        engine="spark",
        engines={"spark": {"master": "local[1]", "conf": conf}},
    )
    asked = tmp_path / "asked.csv"
    asked.write_text("user_id,event_timestamp\n" + "".join(f"{user},{END}\n" for user in USERS["user_id"]))
    out = tmp_path / "answer.parquet"
    history = ("get-historical-features", "--entities", str(asked), "--features", ",".join(FEATURES), "-o", str(out))
    for command in (("apply",), ("materialize-incremental", END), history):
        done(tmp_path, FS, "-c", str(cluster), *command)
    with closing(FeatureStore(laptop)) as store, closing(FeatureStore(cluster)) as other:
        store.apply()
        store.materialize_incremental(END)
        expected = store.get_historical_features(asked, FEATURES).to_arrow().to_pydict()
        assert pq.read_table(out).to_pydict() == expected
        online = [each.online.get(FEATURES, USERS, now=instant(END)).to_dict() for each in (store, other)]
    assert online[1] == online[0]
    assert sum(n is not None for n in online[0]["n"]) == sum(n is not None for n in expected["n"]) == 50


def done(folder: Path, *command: str) -> str:
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=400)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_a_view_over_it_wants_an_engine_with_the_metastore(spark_engine: SparkEngine, tmp_path: Path) -> None:
    session = spark_engine.session
    file = add(repo(tmp_path / "repo", "table: metastore.clicks", engines={"spark": spark_engine.master}), "all", ROWS)
    session.sql("CREATE DATABASE metastore")
    session.sql(f"CREATE TABLE metastore.clicks USING parquet LOCATION 'file://{file.parent}'")
    store = FeatureStore(tmp_path / "repo")
    try:
        with pytest.raises(
            DefinitionError,
            match=r'"latest": engine "local" cannot read source "clicks", the metastore table metastore\.clicks\. '
            r"Write engine: spark, or give the source a path \(features\.yaml:\d+\)",
        ):
            store.apply()
        assert store.list_feature_views() == []
    finally:
        store.close()
        session.sql("DROP DATABASE metastore CASCADE")
