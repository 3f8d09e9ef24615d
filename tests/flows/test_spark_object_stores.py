"""On Spark, sources and offline tables in S3 or HDFS lead to what everything on a disk leads to, embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store import FeatureStore
from feature_store.definitions.tables import snapshots_path
from feature_store.engines.spark import SparkEngine
from feature_store.storage.remote import list_files, open_file
from tests.flows.broken import DEFINITIONS, END, add, events, make, visible
from tests.remotes import Remote, remote

__all__ = ["remote"]

pytestmark = pytest.mark.timeout(900)

USERS = 200
START = "2024-04-12T00:00:00Z"
ROWS = events(1_500, USERS, since=START)
PUSHED = events(200, USERS, seed=1, since="2024-04-20T10:00:00Z")
RUNS = ((START, END, ["c_daily", "b_moving", "a_latest"]), ("2024-04-18T12:34:56Z", END, ["d_queried"]))
SPINE = pa.table(
    {
        "row": list(range(USERS + 50)),
        "user_id": list(range(USERS + 50)),
        "event_timestamp": pa.array(["2024-04-19T05:06:07Z"] * (USERS + 50)).cast(pa.timestamp("ns", "UTC")),
    }
)
SPARK = {"engine": "spark", "engines": "{spark: 'local[2]'}"}


def lived(store: FeatureStore) -> dict[str, Any]:
    """What a repository shows after its runs, a push to both stores, and one run more."""
    store.apply()
    for run in RUNS:
        store.materialize(*run)
    store.push("events", PUSHED, to="online_and_offline")
    store.materialize_incremental(END, ["a_latest", "b_moving", "c_daily"])
    return visible(store)


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, dict[str, Any]]:
    """The repository on a disk, embedded, and what it shows."""
    root = make(tmp_path_factory.mktemp("laptop") / "repo")
    add(root, "all", ROWS)
    store = FeatureStore(root)
    return store, lived(store)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: row["row"])


def test_spark_over_remote_files_is_as_embedded_on_a_disk(
    remote: Remote,
    laptop: tuple[FeatureStore, dict[str, Any]],
    spark_engine: SparkEngine,
    redis_url: str,
    tmp_path: Path,
) -> None:
    embedded, expected = laptop
    there = remote.put(embedded.root / "data" / "events", "events")
    offline = f"{remote.url}-offline" if there.startswith("hdfs") else f"{remote.url}/offline"
    pq.write_table(SPINE, tmp_path / "spine.parquet")
    spine = remote.put(tmp_path / "spine.parquet", "spine.parquet")
    definitions = DEFINITIONS.replace("data/events", there)
    store = FeatureStore(make(tmp_path / "repo", redis_url, definitions, offline_store=offline, **SPARK))
    try:
        assert lived(store) == expected
        assert not (store.root / "data" / "offline").exists()

        job = store.get_historical_features(spine, "everything")
        assert job.metadata["computed_snapshots"] == {}
        history = rows_of(embedded.get_historical_features(SPINE, "everything").to_arrow())
        assert [row["n"] for row in history].count(None) < len(history)
        answer = f"{remote.url}-answer" if there.startswith("hdfs") else f"{remote.url}/answer"
        job.to_file(answer)
        files = [uri for uri in list_files(answer) if uri.endswith(".parquet")]
        written = pa.concat_tables(pq.read_table(open_file(uri)) for uri in files)
        assert [_without_times(row) for row in rows_of(written)] == [_without_times(row) for row in history]

        # Each engine replaces a snapshot that the other kept, and reads what the other keeps.
        path = snapshots_path(store.catalog.views["d_queried"])
        kept = store.offline_store.partitions(path)
        same = store.get_historical_features(SPINE, "everything", engine="local")
        assert rows_of(same.to_arrow()) == history
        assert same.metadata["computed_snapshots"] == {}
        for engine in ("local", "spark"):
            bound = store.catalog.views["d_queried"]
            at = int(kept[0]["valid_from"])
            snapshot = store._engine(engine).snapshot(bound.relation, at)
            again = snapshot.save(store.offline_store, path, kept[0])
            assert again.count() == store.offline_store.read(path, kept[0]).num_rows > 100
        assert store.offline_store.partitions(path) == kept

        store.teardown()
        assert list_files(offline) == {}
        assert list_files(there) != {}
    finally:
        store.close()


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "event_timestamp"}
