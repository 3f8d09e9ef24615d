"""Stores that fail: a Redis that is away or forgets, a full disk, folders that cannot be written, a broken registry."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from feature_store import FeatureStore
from feature_store.definitions.tables import latest_table, snapshots_path
from feature_store.errors import FeatureStoreError, SettingsError, StoreUnavailableError
from feature_store.expressions.instants import instant
from tests.flows.broken import END, FS, RUNS, START, add, error_of, events, fs, make, start, visible, wait_for
from tests.flows.disks import fill, small_disk
from tests.servers import RedisServer, free_port

__all__ = ["small_disk"]

ROWS = events(3_000, 300)
LAST_DAYS = ("2024-04-18T12:00:00Z", END)


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    server = RedisServer().start()
    yield server
    server.close()


def opened(root: Path, rows: pa.Table = ROWS) -> FeatureStore:
    add(root, "all", rows)
    store = FeatureStore(root)
    store.apply()
    return store


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, Any]:
    """What the runs of all views leave where nothing fails."""
    store = opened(make(tmp_path / "undisturbed"))
    for run in RUNS:
        store.materialize(*run[1:3], run[4::2])
    found = visible(store)
    store.close()
    return found


def test_redis_is_down_at_the_start(tmp_path: Path) -> None:
    """`apply` and `materialize` say so in one line; nothing counts as done."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    store = opened(make(tmp_path / "repo", url))
    store.close()
    for command in (RUNS[0], ("materialize-incremental", END)):
        message = fs(store.root, *command, code=1)
        assert url in message
        assert "Check that Redis runs there" in message
    message = fs(store.root, "get-online-features", "--features", "a_latest", "--entity", "user_id=1", code=1)
    assert url in message
    assert all(progress.through is None for progress in store.registry.all_progress())
    store.close()


def test_redis_restarts_while_a_run_writes(tmp_path: Path, own_redis: RedisServer, expected: dict[str, Any]) -> None:
    """It forgets what was written; the run says so and fails, and the next one writes everything."""
    store = opened(make(tmp_path / "repo", own_redis.url))
    bound = store.catalog.views["a_latest"]
    process = start(store.root, *RUNS[0])
    wait_for(lambda: any(store.online_store.scan(latest_table(bound))), process)
    own_redis.stop()
    own_redis.start()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, out + err
    assert "online store" in error_of(err)
    for run in RUNS:
        fs(store.root, *run)
    assert visible(store) == expected
    store.close()


@pytest.mark.parametrize("view", ["a_latest", "b_moving", "c_daily", "d_queried"])
def test_a_restart_between_two_writes_is_noticed(
    tmp_path: Path, own_redis: RedisServer, expected: dict[str, Any], view: str
) -> None:
    """The connection comes back by itself, so that no call fails."""
    store = opened(make(tmp_path / "repo", own_redis.url))
    run = next(run for run in RUNS if view in run)

    def restart(name: str, done: int, total: int, rows: int) -> None:
        if done == total // 2 and name == view:
            own_redis.stop()
            own_redis.start()

    with pytest.raises(StoreUnavailableError, match=f'lost its rows while "{view}" was written.*Run it again'):
        store.materialize(*run[1:3], [view], restart)
    store.materialize(*run[1:3], [view])
    assert visible(store)[view] == expected[view]
    store.close()


def test_an_incremental_run_fills_a_redis_that_lost_everything(
    tmp_path: Path, own_redis: RedisServer, expected: dict[str, Any]
) -> None:
    store = opened(make(tmp_path / "repo", own_redis.url))
    for run in RUNS:
        store.materialize(*run[1:3], run[4::2])
    kept = store.offline_store.partitions(snapshots_path(store.catalog.views["d_queried"]))
    own_redis.stop()
    own_redis.start()
    assert store.materialize_incremental(END) > 0
    assert visible(store) == expected
    assert store.offline_store.partitions(snapshots_path(store.catalog.views["d_queried"])) == kept
    assert store.materialize_incremental(END) == 0
    store.close()


@pytest.mark.parametrize("engine", ["local", pytest.param("spark", marks=pytest.mark.timeout(900))])
def test_a_redis_that_was_flushed_is_rebuilt_by_one_command(tmp_path: Path, redis_url: str, engine: str) -> None:
    settings = {"engine": "spark", "engines": "{spark: 'local[2]'}"} if engine == "spark" else {}
    store = opened(make(tmp_path / "repo", redis_url, **settings))

    def run() -> None:
        process = start(store.root, "materialize-incremental", END)
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, out + err

    def answers() -> dict[str, Any]:
        return store.online.get("everything", {"user_id": list(range(300))}, now=instant(END)).to_dict()

    run()
    before = answers()
    assert all(len(set(before[name])) > 5 for name in ("price", "s7d", "p400d", "dc400d", "n", "most"))
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert not any(answers()["price"]) and not any(answers()["n"])
    run()
    assert answers() == before
    store.close()


def test_a_disk_runs_full_while_snapshots_are_kept(tmp_path: Path, small_disk: Path) -> None:
    offline = small_disk / "offline"
    store = opened(make(tmp_path / "repo", offline_store=str(offline)), events(20_000, 8_000))
    path = snapshots_path(store.catalog.views["d_queried"])
    filling = fill(small_disk)
    for _ in range(2):
        message = fs(store.root, "materialize", *LAST_DAYS, "-v", "d_queried", code=1)
        assert str(offline) in message
        assert "No space left" in message
        assert "free space" in message
        assert store.offline_store.partitions(path) == []
        assert visible(store)["d_queried"] is None
    spine = pa.table({"user_id": [1], "event_timestamp": [END]})
    assert store.get_historical_features(spine, ["n"]).metadata["computed_snapshots"] == {
        "d_queried": [instant("2024-04-20")]
    }
    filling.unlink()
    fs(store.root, "materialize", *LAST_DAYS, "-v", "d_queried")
    assert len(store.offline_store.partitions(path)) == 2
    assert store.get_historical_features(spine, ["n"]).metadata["computed_snapshots"] == {}
    assert len(visible(store)["d_queried"][1]) > 7_000
    store.close()


def test_a_disk_runs_full_while_rows_are_pushed(tmp_path: Path, small_disk: Path) -> None:
    """Offline comes first: what is served can be found in history."""
    store = opened(make(tmp_path / "repo", offline_store=str(small_disk / "offline")))
    pushed = events(5_000, 100_000, seed=5)
    filling = fill(small_disk)
    with pytest.raises(StoreUnavailableError, match="No space left"):
        store.push("events", pushed, to="online_and_offline")
    assert not any(visible(store)["a_latest"])
    filling.unlink()
    store.push("events", pushed, to="online_and_offline")
    assert len(visible(store)["a_latest"]) > 4_000
    assert store.offline_store.read("push/events").num_rows == 5_000
    store.close()


def test_files_cannot_grow_while_snapshots_are_kept(tmp_path: Path) -> None:
    """A quota, as a limit on the size of files: the snapshot fails, what was there stays."""
    store = opened(make(tmp_path / "repo"), events(150_000, 100_000))
    path = snapshots_path(store.catalog.views["d_queried"])
    limit = 200_000
    process = subprocess.run(
        [FS, "-c", str(store.root), "materialize", *LAST_DAYS, "-v", "d_queried"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert process.returncode == 1, process.stderr
    message = error_of(process.stderr)
    assert "File too large" in message
    assert "free space" in message
    assert "snapshots/d_queried" in message
    assert store.offline_store.partitions(path) == []
    assert visible(store)["d_queried"] is None
    fs(store.root, "materialize", *LAST_DAYS, "-v", "d_queried")
    assert len(store.offline_store.partitions(path)) == 2
    store.close()


def test_an_answer_that_cannot_be_written_leaves_no_file(tmp_path: Path, small_disk: Path) -> None:
    store = opened(make(tmp_path / "repo"))
    store.close()
    entities = tmp_path / "entities.csv"
    entities.write_text("user_id,event_timestamp\n" + "".join(f"{user},{END}\n" for user in range(5_000)))
    fill(small_disk)
    arguments = ["get-historical-features", "--entities", str(entities), "--features", "a_latest,b_moving", "-o"]
    message = fs(store.root, *arguments, str(small_disk / "out.csv"), code=1)
    assert str(small_disk / "out.csv") in message
    assert "No space left" in message
    assert [path.name for path in small_disk.iterdir()] == ["filling"]
    message = fs(store.root, *arguments, "/proc/nowhere/out.parquet", code=1)
    assert "/proc/nowhere/out.parquet cannot be written" in message


@pytest.mark.parametrize("store", ["registry", "online_store", "offline_store"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, store: str) -> None:
    """In /proc not even root may make a folder."""
    place = {"registry": "sqlite:////proc/nowhere/r.db", "online_store": "sqlite:////proc/nowhere/o.db"}
    root = make(tmp_path / "repo", **{store: place.get(store, "/proc/nowhere")})
    add(root, "all", ROWS)
    if store != "registry":
        house = FeatureStore(root)
        if store == "offline_store":
            house.apply()
        else:
            with pytest.raises(StoreUnavailableError, match="/proc/nowhere"):
                house.apply()
        house.close()
    message = fs(root, "materialize", *LAST_DAYS, code=1)
    assert "/proc/nowhere" in message
    if store == "offline_store":
        with pytest.raises(StoreUnavailableError, match="/proc/nowhere"):
            FeatureStore(root).push("events", ROWS, to="offline")


def test_a_registry_that_is_no_database(tmp_path: Path) -> None:
    root = make(tmp_path / "repo")
    (root / "data" / "registry.db").write_bytes(b"\x00not a database" * 500)
    for command in ("apply", "list"):
        message = fs(root, command, code=2)
        assert "data/registry.db" in message
        assert "not a database" in message
        assert "backup" in message


def test_a_registry_that_was_damaged(tmp_path: Path) -> None:
    """Its head is right, its pages are not: an error, and no half-read definitions."""
    store = opened(make(tmp_path / "repo"))
    store.close()
    path = store.root / "data" / "registry.db"
    whole = path.read_bytes()
    for rest in Path(path.parent).glob("registry.db-*"):
        rest.unlink()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(FeatureStoreError, match=r"registry\.db.*(malformed|disk image|corrupt)") as caught:
        FeatureStore(store.root).materialize(*LAST_DAYS)
    assert isinstance(caught.value, SettingsError)
    path.write_bytes(whole)
    assert FeatureStore(store.root).materialize(START, END, ["a_latest"]) > 0
