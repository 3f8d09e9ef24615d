"""The ads repository, unchanged, through the command line: embedded, and on Spark, Redis before HBase, PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas.testing
import pyarrow.parquet as pq
import pytest

from feature_store.templates import create
from tests.servers import SparkCluster

pytestmark = pytest.mark.timeout(900)

SQL_VIEW = "user_click_cnt_7d:user_click_cnt_7d"
REQUEST = ("--request", "request_time=2026-01-05T10:30:00Z", "--request", "os=ios")


@dataclass
class Repo:
    """A copy of the repository and the settings it runs with."""

    root: Path
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def fs(self, *arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("fs")), "-c", str(self.root), *self.options, *arguments]
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def fill(self) -> None:
        self.fs("apply")
        self.fs("materialize-incremental", self.end)

    @property
    def end(self) -> str:
        """The hour at which the generated data ends."""
        newest = pq.read_table(self.root / "data" / "dwd_ad_impression")["event_time"].to_pandas().max()
        return str(newest.ceil("h").isoformat())

    def online(self, pairs: Sequence[tuple[int, int]]) -> tuple[Any, Any]:
        keys = [word for user, ad in pairs for word in ("--entity", f"user_id={user},ad_id={ad}")]
        users = [word for user in sorted({user for user, _ in pairs}) for word in ("--entity", f"user_id={user}")]
        get = ("get-online-features", "--json")
        service = self.fs(*get, "--service", "ctr_v1", *keys, *REQUEST)
        return json.loads(service), json.loads(self.fs(*get, "--features", SQL_VIEW, *users))

    def history(self, entities: Path, *what: str) -> Any:
        out = self.root / "data" / "answer.parquet"
        shutil.rmtree(out, ignore_errors=True)
        self.fs("get-historical-features", "--entities", str(entities), *what, "-o", str(out))
        found = pq.read_table(out).to_pandas()
        return found.sort_values("row", ignore_index=True)[sorted(found.columns)]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create(tmp_path_factory.mktemp("generated") / "ads", "ads", events=3_000)


@pytest.fixture(scope="module")
def spark_cluster() -> Iterator[SparkCluster]:
    cluster = SparkCluster().start()
    yield cluster
    cluster.close()


def test_the_cluster_answers_what_the_laptop_answers(
    generated: Path, spark_cluster: SparkCluster, redis_url: str, hbase_url: str, postgres_url: str, tmp_path: Path
) -> None:
    laptop = Repo(Path(shutil.copytree(generated, tmp_path / "laptop")))
    addresses = {
        "REGISTRY": postgres_url,
        "ONLINE_STORE": f"tiered:{redis_url}|{hbase_url}",
        "FEATURE_CACHE": redis_url,
        "FEATURE_HISTORY": hbase_url,
        "SPARK_MASTER": spark_cluster.url,
        "SPARK_EXECUTOR_MEMORY": "512m",
    }
    settings = ("-f", str(tmp_path / "cluster" / "feature_store.cluster.yaml"))
    cluster = Repo(Path(shutil.copytree(generated, tmp_path / "cluster")), settings, addresses)
    for repo in (laptop, cluster):
        repo.fill()
    asked = pq.read_table(generated / "data" / "impressions_labelled.parquet").to_pandas().tail(150)
    asked["row"] = range(len(asked))
    entities = tmp_path / "entities.parquet"
    asked.to_parquet(entities, index=False)
    for what in (("--service", "ctr_v1", "--statuses"), ("--features", SQL_VIEW, "--statuses")):
        expected = laptop.history(entities, *what)
        assert len(expected) == len(asked)
        pandas.testing.assert_frame_equal(cluster.history(entities, *what), expected, check_exact=False, rtol=1e-12)
    pairs = list(dict.fromkeys(zip(asked["user_id"].tolist(), asked["ad_id"].tolist(), strict=True)))[:20]
    expected_now = laptop.online(pairs)
    assert any(row["user_click_cnt_7d"] for row in expected_now[0])
    for _ in range(3):  # between two commands the far end of a window may move on
        found, expected_now = cluster.online(pairs), laptop.online(pairs)
        if found == expected_now:
            break
    assert found == expected_now
    # Said once more, everything is there: nothing is written again, nothing changes.
    assert "nothing to change" in cluster.fs("plan")
