"""Two schedulers on one PostgreSQL registry: each boundary is run once, and what a killed one left is taken over."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from feature_store import FeatureStore
from feature_store.pipelines.runner import LEASE
from tests.flows.broken import add, error_of, events, make, start, wait_for

DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: events, path: data/events, timestamp: at, created: seen_at}
---
feature_views:
  - {name: latest, entities: [user], source: events, features: [{name: price, type: FLOAT64}], schedule: "0 0 1 1 *"}
  - name: windows
    entities: [user]
    source: events
    schedule: "0 0 1 1 *"
    aggregations: [{name: n400d, function: count, window: 400d}]
  - name: queried
    entities: [user]
    schedule: "0 0 1 1 *"
    sql: SELECT user_id, COUNT(*) AS n FROM events GROUP BY user_id
    features: [{name: n, type: INT64}]
"""
"""Boundaries a year apart: no test sees the next one by chance."""

pytestmark = pytest.mark.timeout(300)
Begin = Callable[..., subprocess.Popen[str]]
QUICK = ("--lease", "2", "--retry-after", "0.5")


@pytest.fixture
def store(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[FeatureStore]:
    root = make(tmp_path / "repo", redis_url, DEFINITIONS, registry=postgres_url, project="schedules")
    add(root, "all", events(2_000, 100))
    found = FeatureStore(root)
    found.apply()
    yield found
    found.teardown()
    found.close()


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts commands; what still runs in the end, since a test failed, is killed."""
    begun: list[subprocess.Popen[str]] = []

    def start_one(*arguments: Any) -> subprocess.Popen[str]:
        begun.append(start(*arguments))
        return begun[-1]

    yield start_one
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_each_boundary_is_run_once_by_two_schedulers(store: FeatureStore, begin: Begin) -> None:
    both = [begin(store.root, "schedule", "run", *QUICK) for _ in range(2)]
    done = lambda: len([r for r in store.registry.runs.all().values() if r.through and not r.trying]) == 3  # noqa: E731
    wait_for(done, seconds=120)
    lines = []
    for process in both:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        lines += err.splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["latest", "queried", "windows"], lines
    assert all(": up to " in line for line in lines)
    assert store.registry.leases.all_held() == [], "they are released, not left to end by themselves"
    counted = store.get_online_features(["windows:n400d", "queried:n"], [{"user_id": 7}]).to_dict()
    assert counted["n"][0] > 0


def test_a_killed_runner_s_view_is_taken_over(store: FeatureStore, begin: Begin) -> None:
    """While it holds the lease and has not begun to write: the source is a pipe that nobody writes to."""
    (store.root / "data/events/all.parquet").rename(store.root / "kept.parquet")
    os.mkfifo(store.root / "data/events/all.parquet")
    killed = begin(store.root, "schedule", "run", "latest", *QUICK)
    wait_for(lambda: (lease := store.registry.leases.held(f"{LEASE}latest")) is not None and lease.token == 1, killed)
    wait_for(lambda: store.registry.runs.get("latest").attempts == 1, killed)
    killed.kill()
    killed.communicate()
    assert store.registry.leases.held(f"{LEASE}latest") is not None
    (store.root / "data/events/all.parquet").unlink()
    (store.root / "kept.parquet").rename(store.root / "data/events/all.parquet")
    heir = begin(store.root, "schedule", "run", "latest", *QUICK)
    wait_for(lambda: store.registry.runs.get("latest").through is not None, heir, seconds=120)
    heir.terminate()
    _, err = heir.communicate(timeout=60)
    assert heir.returncode == 0, err
    runs = store.registry.runs.get("latest")
    assert (runs.attempts, runs.error) == (0, None)
    assert len([line for line in err.splitlines() if line.startswith("latest: up to ")]) == 1
    assert store.registry.leases.acquire(f"{LEASE}latest", "next", 1).token == 3  # type: ignore[union-attr]


def test_a_failing_source_is_tried_again_until_it_is_whole(store: FeatureStore, begin: Begin) -> None:
    broken = store.root / "data/events/broken.parquet"
    broken.write_bytes(b"PAR1 no file")
    process = begin(store.root, "schedule", "run", "latest", *QUICK, "--attempts", "50")
    wait_for(lambda: store.registry.runs.get("latest").attempts >= 3, process, seconds=120)
    assert "broken.parquet" in (store.registry.runs.get("latest").error or "")
    broken.unlink()
    wait_for(lambda: store.registry.runs.get("latest").through is not None, process, seconds=120)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = err.splitlines()
    assert lines[0].startswith("latest: attempt 1 failed, again at ")
    assert lines[1].startswith("latest: attempt 2 failed, again at ")
    assert lines[-1].startswith("latest: up to ")


def test_a_registry_that_is_away_is_said_in_one_line(tmp_path: Path) -> None:
    root = make(tmp_path / "repo", definitions=DEFINITIONS, registry="postgresql://127.0.0.1:1/none")
    process = start(root, "schedule", "run", *QUICK)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "registry" in error_of(err)
