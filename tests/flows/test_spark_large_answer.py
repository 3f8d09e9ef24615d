"""An answer that is larger than what Spark's driver may hold of results stays in the cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feature_store import FeatureStore
from tests.flows.broken import END, add, events, make

pytestmark = pytest.mark.timeout(600)

FEATURES = ["a_latest:price", "b_moving:s7d", "d_queried:n"]
ROWS = 60_000
SMALL = (
    "{master: 'local[2]', conf: {spark.driver.maxResultSize: 1m, spark.driver.memory: 512m, "
    "spark.sql.shuffle.partitions: 2}}"
)
ASK = """
import json, sys
from feature_store import FeatureStore
from feature_store.errors import FeatureStoreError

store, asked, answer, *features = FeatureStore(sys.argv[1]), *sys.argv[2:]
job = store.get_historical_features(asked, features, engine="spark")
job.to_file(answer)
sums = job.to_spark_df().selectExpr("count(1)", "sum(length(note))", "sum(price)", "sum(s7d)", "sum(n)").collect()[0]
try:
    job.to_arrow()
    said = ""
except FeatureStoreError as error:
    said = str(error)
print(json.dumps([list(sums), said]))
store.close()
"""


def test_an_answer_that_the_driver_has_no_room_for(tmp_path: Path) -> None:
    root = make(tmp_path / "repo", engines=f"{{spark: {SMALL}}}")
    add(root, "all", events(3_000, 300))
    random = np.random.default_rng(3)
    notes = [random.bytes(32).hex() for _ in range(ROWS)]
    users = random.integers(0, 330, ROWS)
    asked = pa.table({"note": notes, "user_id": users, "event_timestamp": [END] * ROWS})
    pq.write_table(asked, tmp_path / "asked.parquet")
    with closing(FeatureStore(root)) as store:
        store.apply()
        expected = store.get_historical_features(asked, FEATURES).to_arrow()
    arguments = [str(root), str(tmp_path / "asked.parquet"), str(tmp_path / "answer"), *FEATURES]
    done = subprocess.run([sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    sums, said = json.loads(done.stdout)
    assert "spark.driver.maxResultSize" in said, "here there is no room for it"
    totals = [pc.sum(expected[name]).as_py() for name in ("price", "s7d", "n")]
    assert sums == pytest.approx([ROWS, 64 * ROWS, *totals])
    order = ["note", "price", "s7d", "n"]
    found = pq.read_table(tmp_path / "answer").select(order).sort_by("note")
    assert found.to_pydict() == expected.select(order).sort_by("note").to_pydict()
