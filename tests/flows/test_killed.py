"""Materialization killed at any point, and several at once: in the end the online store holds the same."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feature_store import FeatureStore
from feature_store.definitions.tables import snapshot_table, snapshots_path, tile_table
from feature_store.expressions.instants import instant
from tests.flows.broken import DAYS, END, RUNS, START, add, events, fs, make, start, visible, wait_for

USERS = 2_000
ROWS = pa.concat_tables([events(16_000, USERS), events(2_000, USERS, seed=1, since="2024-04-20T11:40:00Z")])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What runs that nobody disturbed leave."""
    root = make(tmp_path_factory.mktemp("undisturbed") / "repo")
    add(root, "all", ROWS)
    store = FeatureStore(root)
    store.apply()
    for run in RUNS:
        store.materialize(*run[1:3], run[4::2])
    found = visible(store)
    store.close()
    assert len(found["a_latest"]) > 1_900
    assert all(len(tiles) > 10 for tiles in found["b_moving"].values())
    assert len(found["c_daily"][1]) > 1_900
    assert len(found["d_queried"][1]) > 1_900
    return found


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureStore]:
    """A repository with data and nothing materialized, seen by a process that only looks."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "sqlite:///data/online.db"
    root = make(tmp_path / "repo", url)
    add(root, "all", ROWS)
    store = FeatureStore(root)
    store.apply()
    yield store
    store.close()


def moments(store: FeatureStore, seed: int) -> list[tuple[tuple[str, ...], str, Callable[[], bool]]]:
    """Runs, and points to kill them at: in each kind of view, amid its writes, with more to come."""
    chance = random.Random(seed)
    views = store.catalog.views
    latest, moving, daily, queried = (views[name] for name in ("a_latest", "b_moving", "c_daily", "d_queried"))
    chunks, snapshots, hop = chance.randint(1, 8), chance.randint(1, DAYS - 3), chance.choice(moving.relation.levels)  # type: ignore[union-attr]

    def done() -> int:
        progress = store.registry.progress(latest.name, latest.version)
        return len(progress.done) if progress else 0

    def kept() -> int:
        return len(store.offline_store.partitions(snapshots_path(queried)))

    def begun(table: Any) -> bool:
        return any(batch.num_rows for batch in store.online_store.scan(table))

    return [
        (RUNS[0], "a snapshot of windows", lambda: begun(snapshot_table(daily))),
        (RUNS[0], f"tiles of {hop}", lambda: begun(tile_table(moving, hop))),
        (RUNS[0], f"{chunks} chunks of rows", lambda: done() >= chunks),
        (RUNS[1], f"{snapshots} snapshots of a query", lambda: kept() >= snapshots),
    ]  # fmt: skip


def test_killed_at_any_point_and_run_again(store: FeatureStore, expected: dict[str, Any]) -> None:
    for run, name, reached in moments(store, seed=random.randrange(2**32)):
        process = start(store.root, *run)
        wait_for(reached, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, name
    for run in RUNS:
        fs(store.root, *run)
    assert visible(store) == expected


@pytest.mark.parametrize(
    ("store", "view", "run"),
    [
        ("sqlite", "a_latest", ("materialize", START, END)),
        ("redis", "a_latest", ("materialize-incremental", END)),
        ("sqlite", "b_moving", ("materialize-incremental", END)),
        ("redis", "b_moving", ("materialize", START, END)),
    ],
    indirect=["store"],
)
def test_a_killed_run_is_taken_up_where_it_was(
    store: FeatureStore, expected: dict[str, Any], view: str, run: tuple[str, ...]
) -> None:
    bound = store.catalog.views[view]
    process = start(store.root, *run, "-v", view)
    wait_for(lambda: bool((p := store.registry.progress(bound.name, bound.version)) and len(p.done) >= 4), process)
    process.kill()
    process.communicate()
    done = store.registry.progress(bound.name, bound.version)
    assert done is not None
    assert done.through is None
    assert len(done.done) >= 4
    reports: list[tuple[int, int, int]] = []

    def report(view: str, *told: int) -> None:
        reports.append(told)  # type: ignore[arg-type]

    if run[0] == "materialize":
        written = store.materialize(START, END, [view], report)
    else:
        written = store.materialize_incremental(END, [view], report)
    assert len(done.done) < reports[-1][1], "it was killed amid its work"
    through = [step for step, _, rows in reports if rows == 0]
    assert through[: len(done.done) + 1] == list(range(len(done.done) + 1)), "the steps done were not repeated"
    assert written == reports[-1][2] > 0
    finished = store.registry.progress(bound.name, bound.version)
    assert finished is not None
    assert finished.through
    assert finished.done == ()
    assert visible(store)[view] == expected[view]


def test_two_at_once_end_in_the_same_state(store: FeatureStore, expected: dict[str, Any]) -> None:
    processes = [start(store.root, *run) for run in RUNS for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, out + err
    assert visible(store) == expected
    progress = {p.view: p for p in store.registry.all_progress()}
    assert len(progress) == 4
    assert all(p.through and not p.done for p in progress.values())
    days = store.offline_store.partitions(snapshots_path(store.catalog.views["d_queried"]))
    assert len(days) == len(progress["d_queried"].snapshots) == DAYS


@pytest.mark.parametrize("store", ["redis"], indirect=True)
def test_an_incremental_run_killed_then_two_at_once(store: FeatureStore, expected: dict[str, Any]) -> None:
    process = start(store.root, "materialize-incremental", END)
    wait_for(lambda: any(store.online_store.scan(snapshot_table(store.catalog.views["c_daily"]))), process)
    process.kill()
    process.communicate()
    processes = [start(store.root, "materialize-incremental", END) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, out + err
    assert visible(store) == expected


def test_rows_that_come_late_are_loaded_by_the_next_run(tmp_path: Path) -> None:
    """Late files older than everything loaded, between incremental and explicit runs."""
    parts = [ROWS.filter((ROWS["id"].to_numpy() % 4) == part) for part in range(4)]
    root = make(tmp_path / "repo")
    add(root, "0", parts[0])
    store = FeatureStore(root)
    store.apply()
    try:
        store.materialize_incremental("2024-04-15")
        add(root, "1", parts[1])
        store.materialize("2024-04-15", "2024-04-17")
        add(root, "2", parts[2])
        store.materialize_incremental(END)
        add(root, "3", parts[3])
        fs(root, "materialize-incremental", END)
        names = ["a_latest", "b_moving", "c_daily"]  # a stored snapshot of a query stays as it was served
        users = {"user_id": list(range(USERS))}
        online = store.online.get(names, users, now=instant(END)).to_dict()
        past = pa.table(users | {"event_timestamp": [END] * USERS})
        history = store.get_historical_features(past, names).to_arrow().to_pydict()
        history.pop("event_timestamp")
        assert online == history
        assert sum(online["dc400d"]) > 10_000
        assert store.materialize_incremental(END) == 0
    finally:
        store.close()
