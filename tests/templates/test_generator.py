import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from feature_store.errors import UsageError
from feature_store.expressions.instants import DAY, HOUR
from feature_store.templates.generator import World, chunks, generate, main


def digest(folder: Path) -> dict[str, str]:
    """A hash of the values of each file: Parquet's own bytes depend on the version of Arrow."""
    hashes = {}
    for path in sorted(folder.rglob("*.parquet")):
        sink = pa.BufferOutputStream()
        table = pq.ParquetFile(path).read()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.combine_chunks())
        hashes[str(path.relative_to(folder))] = hashlib.sha256(sink.getvalue()).hexdigest()
    return hashes


def read(folder: Path, name: str) -> pa.Table:
    return ds.dataset(folder / name, partitioning="hive").to_table()


def column(table: pa.Table, name: str) -> np.ndarray:
    values = table[name]
    return values.cast(pa.int64()).to_numpy() if pa.types.is_timestamp(values.type) else values.to_numpy()


def auc(score: np.ndarray, truth: np.ndarray) -> float:
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = int(truth.sum())
    return float((rank[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("ads")
    world = World(events=60_000, chunk=20_000)
    return world, folder, generate(folder, world)


def test_same_seed_same_rows_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(tmp_path / name, World(events=2_000, seed=seed))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert set(digest(tmp_path / "a").values()).isdisjoint(digest(tmp_path / "c").values())


def test_a_tiny_world_is_whole(tmp_path: Path) -> None:
    counts = generate(tmp_path, World(events=1_000))
    assert 980 <= counts["dwd_ad_impression"] <= 1_020
    for name, rows in counts.items():
        assert read(tmp_path, name).num_rows == rows > 0


def test_counts_keys_and_times(world: tuple[World, Path, dict[str, int]]) -> None:
    made, folder, counts = world
    for name in ("dwd_ad_impression", "dwd_ad_click", "dwd_ad_conversion"):
        table = read(folder, name)
        assert table.num_rows == counts[name]
        times, arrived = column(table, "event_time"), column(table, "ingested_at")
        assert (times >= made.start).all()
        assert (arrived >= times).all()
        assert (arrived < made.end).all()
        days = np.array([np.datetime64(str(day)).astype(int) for day in table["dt"].to_pylist()])
        assert (days == times // DAY).all()
    shown = {row["impression_id"]: row for row in read(folder, "dwd_ad_impression").to_pylist()}
    for click in read(folder, "dwd_ad_click").to_pylist():
        cause = shown.get(click["impression_id"])
        if cause:  # an impression may arrive after the end, and its click before
            assert (cause["user_id"], cause["ad_id"]) == (click["user_id"], click["ad_id"])
            assert cause["event_time"] <= click["event_time"]


def test_late_and_repeated_rows(world: tuple[World, Path, dict[str, int]]) -> None:
    _, folder, _ = world
    table = read(folder, "dwd_ad_impression")
    ids = column(table, "impression_id")
    assert 0.003 < 1 - len(np.unique(ids)) / len(ids) < 0.008
    late = column(table, "ingested_at") - column(table, "event_time") > HOUR
    assert 0.008 < late.mean() < 0.03


def test_activity_is_heavy_tailed_and_has_a_rhythm(world: tuple[World, Path, dict[str, int]]) -> None:
    made, folder, _ = world
    table = read(folder, "dwd_ad_impression")
    for name, total, share in (("user_id", made.users, 0.3), ("ad_id", made.ads, 0.3)):
        count = np.sort(np.bincount(column(table, name), minlength=total + 1))[::-1]
        assert count[: total // 20].sum() > share * count.sum()
    hours = np.bincount(column(table, "event_time") % DAY // HOUR, minlength=24)
    assert hours[19:22].mean() > 3 * hours[3:6].mean()


def test_conversions_are_delayed(world: tuple[World, Path, dict[str, int]]) -> None:
    _, folder, _ = world
    clicked = {row["impression_id"]: row["event_time"] for row in read(folder, "dwd_ad_click").to_pylist()}
    rows = read(folder, "dwd_ad_conversion").to_pylist()
    delays = [
        (row["event_time"] - clicked[row["impression_id"]]).total_seconds() / 3600
        for row in rows
        if row["impression_id"] in clicked
    ]
    assert 1.5 < float(np.median(delays)) < 5
    assert max(delays) > 24


def test_dimensions_have_versions(world: tuple[World, Path, dict[str, int]]) -> None:
    made, folder, _ = world
    users = read(folder, "dim_user")
    ids, times = column(users, "user_id"), column(users, "updated_at")
    assert set(ids.tolist()) == set(range(1, made.users + 1))
    assert len(ids) > 1.4 * made.users
    first = {}
    for key, time in zip(ids.tolist(), times.tolist(), strict=True):
        first[key] = min(time, first.get(key, time))
    assert max(first.values()) < made.start
    genders = set(users["gender"].to_pylist())
    assert genders == {1, 2, None}


def test_clicks_can_be_learnt_up_to_the_documented_ceiling() -> None:
    world = World(events=120_000, users=2_000, ads=100)
    parts = [(chunk.impressions, chunk.clicked) for chunk in chunks(world)]
    user, ad, position = (
        np.concatenate([rows[name] for rows, _ in parts]) for name in ("user_id", "ad_id", "position")
    )
    clicked = np.concatenate([truth for _, truth in parts])
    assert 0.03 < clicked.mean() < 0.07
    assert 0.82 < auc(world.click_probability(user, ad, position), clicked) < 0.87
    assert 0.58 < auc(-position, clicked) < 0.64
    features = np.column_stack(
        [
            np.einsum("ij,ij->i", world.people.taste[user - 1], world.catalogue.taste[ad - 1]),
            np.log(position),
            world.people.bias[user - 1],
            world.catalogue.bias[ad - 1],
            np.ones(len(user)),
        ]
    )
    half = len(user) // 2
    weights = logistic_regression(features[:half], clicked[:half])
    assert auc(features[half:] @ weights, clicked[half:]) > 0.8


def logistic_regression(features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Newton's method, ten steps."""
    weights = np.zeros(features.shape[1])
    for _ in range(10):
        p = 1 / (1 + np.exp(-features @ weights))
        hessian = (features * (p * (1 - p))[:, None]).T @ features + 1e-6 * np.eye(len(weights))
        weights += np.linalg.solve(hessian, features.T @ (truth - p))
    return weights


def test_the_truth_of_the_labelled_impressions(world: tuple[World, Path, dict[str, int]]) -> None:
    made, folder, _ = world
    labelled = pq.read_table(folder / "impressions_labelled.parquet")
    assert 9_000 < labelled.num_rows < 11_000
    assert (labelled["event_timestamp"].to_numpy() == labelled["request_time"].to_numpy()).all()
    truth = made.click_probability(column(labelled, "user_id"), column(labelled, "ad_id"), column(labelled, "position"))
    assert auc(truth, column(labelled, "clicked").astype(bool)) > 0.8


def test_memory_is_that_of_a_chunk_whatever_the_number_of_events(tmp_path: Path) -> None:
    """Ten times the events in chunks of the same size: no more than a little more memory."""

    def peak(events: int) -> int:
        code = (
            "import resource, sys; from pathlib import Path; from feature_store.templates.generator import *;"
            f"generate(Path(sys.argv[1]), World(events={events}, users=1000, ads=100, chunk=25_000));"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / str(events))], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert peak(600_000) < 1.35 * peak(60_000)


def test_bounds_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        World(events=0)
    generate(tmp_path, World(events=1_000))
    with pytest.raises(UsageError, match="exists already"):
        generate(tmp_path, World(events=1_000))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "x"), "--events", "1000", "--days", "3"]) == 0
    assert "dwd_ad_impression" in capsys.readouterr().out
    assert len(list((tmp_path / "x/dwd_ad_impression").iterdir())) == 3
