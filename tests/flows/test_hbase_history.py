"""Snapshots of a scheduled query kept in HBase: the same history as from Delta tables."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feature_store import FeatureStore
from feature_store.definitions.tables import snapshots_path
from feature_store.expressions.instants import DAY, instant
from tests.flows.broken import DEFINITIONS, END, add, events, make
from tests.servers import HBaseServer

QUERIED = "  - name: d_queried\n"
OPTIONS = "user_features?ttl=36000d"
SINCE = "2024-04-14T12:34:56Z"


def opened(root: Path, rows: pa.Table, hbase_url: str | None = None) -> FeatureStore:
    """A repository whose query keeps its snapshots in HBase, by an alias; or in Delta tables."""
    storage = f"{QUERIED}    storage: {{offline: 'hbase://history/{OPTIONS}'}}\n" if hbase_url else QUERIED
    settings = {"aliases": f"{{history: '{hbase_url}'}}"} if hbase_url else {}
    add(make(root, definitions=DEFINITIONS.replace(QUERIED, storage), **settings), "all", rows)
    store = FeatureStore(root)
    store.apply()
    return store


@pytest.fixture
def stores(tmp_path: Path, hbase_url: str) -> Iterator[tuple[FeatureStore, FeatureStore]]:
    """The same, in Delta tables and in HBase."""
    rows = events(3_000, 300)
    both = opened(tmp_path / "delta", rows), opened(tmp_path / "hbase", rows, hbase_url)
    for store in both:
        store.materialize(SINCE, END, ["d_queried"])
    yield both
    for store in both:
        store.close()


def spine(rows: int = 400) -> pa.Table:
    """Entity rows in no order, some twice, some of nobody and of unknown users, some before the first snapshot."""
    chance = random.Random(1)
    users: list[int | None] = [chance.choice([None, *range(-5, 310)]) for _ in range(rows)]
    times = [instant(SINCE) + chance.randrange(-2 * DAY, 6 * DAY) for _ in range(rows)]
    return pa.table(
        {"user_id": pa.array(users, pa.int64()), "event_timestamp": pa.array(times, pa.timestamp("us", "UTC"))}
    )


def history(store: FeatureStore, **options: Any) -> pa.Table:
    return store.get_historical_features(spine(), ["d_queried"], statuses=True, **options).to_arrow()


def test_history_from_hbase_is_history_from_delta(
    stores: tuple[FeatureStore, FeatureStore], hbase_server: HBaseServer, hbase_url: str
) -> None:
    delta, hbase = stores
    path = snapshots_path(hbase.catalog.views["d_queried"])
    assert history(hbase).equals(history(delta))
    assert len(set(history(hbase)["n"].to_pylist())) > 5
    for store in stores:
        job = store.get_historical_features(spine(), ["d_queried"])
        early = [instant(f"2024-04-{day}") for day in (12, 13, 14)]
        assert job.metadata["computed_snapshots"] == {"d_queried": early}
    assert not hbase.offline_store.exists(path)
    assert len(delta.offline_store.partitions(path)) == 6
    with closing(hbase_server.connection()) as connection:
        name = f"{hbase_url.rpartition('=')[2]}.broken.user_features".encode()
        times = {time for _, cells in connection.table(name).scan(include_timestamp=True) for _, time in cells.values()}
        assert {instant(f"2024-04-{day}") // 1000 for day in range(15, 21)} <= times


def test_what_is_served_is_what_is_kept(stores: tuple[FeatureStore, FeatureStore]) -> None:
    answers = [store.get_online_features(["d_queried"], {"user_id": list(range(20))}).to_dict() for store in stores]
    assert answers[0] == answers[1]
    assert len(set(answers[0]["n"])) > 3


def test_a_snapshot_taken_again_replaces_the_whole(stores: tuple[FeatureStore, FeatureStore]) -> None:
    """Users that the new one lacks have no value, and nothing of the former is left."""
    _, hbase = stores
    bound = hbase.catalog.views["d_queried"]
    snapshots = hbase.offline_store.elsewhere(snapshots_path(bound))
    assert snapshots is not None
    at = instant("2024-04-18")
    before = snapshots.read(at)
    assert before.num_rows == snapshots.count(at) > 200
    snapshots.grace = 0
    add(hbase.root, "all", events(3_000, 300).slice(0, 40))
    hbase.materialize("2024-04-17T12:00:00Z", "2024-04-18T12:00:00Z", ["d_queried"])
    after = snapshots.read(at)
    assert 0 < after.num_rows == snapshots.count(at) <= 40
    asked = pa.table({"user_id": before["user_id"]})
    assert snapshots.read(at, asked).sort_by("user_id").equals(after.sort_by("user_id"))
    of_it = [b for b in snapshots.store.scan(snapshots.table) if at in b.column("__event_time").to_pylist()]
    assert sum(b.column("__event_time").to_pylist().count(at) for b in of_it) == after.num_rows
    assert snapshots.read(instant("2024-04-19")).num_rows > 200


def test_a_snapshot_without_rows_is_kept(tmp_path: Path, hbase_url: str) -> None:
    rows = events(50, 10, since="2024-04-18T00:00:00Z")
    with closing(opened(tmp_path, rows, hbase_url)) as store:
        store.materialize(SINCE, END, ["d_queried"])
        snapshots = store.offline_store.elsewhere(snapshots_path(store.catalog.views["d_queried"]))
        assert snapshots is not None
        assert snapshots.boundaries() == [instant(f"2024-04-{day}") for day in range(15, 21)]
        assert [snapshots.count(at) for at in snapshots.boundaries()[:4]] == [0, 0, 0, 0]
        asked = pa.table({"user_id": [1], "event_timestamp": ["2024-04-16"]})
        job = store.get_historical_features(asked, ["n"])
        assert job.to_arrow()["n"].to_pylist() == [None]
        assert job.metadata["computed_snapshots"] == {}


def test_teardown_and_dropped_views_leave_no_rows(
    stores: tuple[FeatureStore, FeatureStore], hbase_server: HBaseServer
) -> None:
    _, hbase = stores
    bound = hbase.catalog.views["d_queried"]
    snapshots = hbase.offline_store.elsewhere(snapshots_path(bound))
    assert snapshots is not None
    name = snapshots.store._name
    hbase.teardown()
    with closing(hbase_server.connection()) as connection:
        assert all(row[1:9] == bytes(8) for row, _ in connection.table(name).scan())


@pytest.mark.timeout(240)
def test_spark_keeps_and_reads_them_too(
    stores: tuple[FeatureStore, FeatureStore], tmp_path: Path, hbase_url: str
) -> None:
    """Executors write the rows of a snapshot, and read them back in shares, all of the same run."""
    delta, _ = stores
    root = tmp_path / "spark"
    spark = opened(root, events(3_000, 300), hbase_url.replace("prefix=", "prefix=s"))
    spark.close()
    settings = root / "feature_store.yaml"
    settings.write_text(settings.read_text() + "engine: spark\nengines: {spark: 'local[2]'}\n")
    with closing(FeatureStore(root)) as store:
        assert store.materialize(SINCE, END, ["d_queried"]) == delta_rows(delta)
        assert history(store).equals(history(delta))
        asked = pa.table({"user_id": list(range(300)), "event_timestamp": ["2024-04-18T06:00:00Z"] * 300})
        expected = delta.get_historical_features(asked, ["n"]).to_arrow()["n"].to_pylist()
        frame = store.get_historical_features(asked, ["n"]).to_spark_df()
        add(root, "all", events(3_000, 300).slice(0, 40))
        store.materialize("2024-04-17T12:00:00Z", "2024-04-18T12:00:00Z", ["d_queried"])
        assert sorted(str(row.n) for row in frame.collect()) == sorted(map(str, expected))
        again = store.get_historical_features(asked, ["n"]).to_arrow()["n"]
        assert again.null_count > expected.count(None)


def delta_rows(store: FeatureStore) -> int:
    """The rows of all snapshots."""
    return store.offline_store.read(snapshots_path(store.catalog.views["d_queried"])).num_rows
