"""Runs by the clock, which is the test's own: what is run, by whom, and what becomes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from feature_store import FeatureStore
from feature_store.errors import NotFoundError
from feature_store.expressions.instants import HOUR, MINUTE, SECOND, instant
from feature_store.pipelines.due import Retries
from feature_store.pipelines.runner import LEASE, Ended, Runner

DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: events, path: events, timestamp: at}
---
feature_views:
  - {name: latest, entities: [user], source: events, features: [{name: price, type: INT64}], schedule: hourly}
  - {name: unscheduled, entities: [user], source: events, features: [{name: cost, type: INT64, column: price}]}
  - name: windows
    entities: [user]
    source: events
    aggregations: [{name: n7d, function: count, window: 7d}]
  - name: queried
    entities: [user]
    schedule: "0 6 * * *"
    delay: 30m
    sql: |
      SELECT user_id, COUNT(*) AS n, MAX('${date}') AS day FROM events
      WHERE at < date_add('${date}', 1) GROUP BY user_id
    features: [{name: n, type: INT64}, {name: day, type: STRING}]
"""
START = instant("2026-03-04T07:30:00Z")


class Clock:
    """A time that moves when it is told to."""

    def __init__(self, now: int) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    (tmp_path / "events").mkdir()
    (tmp_path / "feature_store.yaml").write_text("project: scheduled\n")
    (tmp_path / "views.yaml").write_text(DEFINITIONS)
    write(tmp_path, "first", "2026-03-01T10:00:00Z", 1)
    found = FeatureStore(tmp_path)
    found.apply()
    yield found
    found.close()


def write(root: Path, name: str, at: str, price: int) -> None:
    rows = pd.DataFrame({"user_id": [1], "at": [pd.Timestamp(at)], "price": [price]})
    rows.to_parquet(root / "events" / f"{name}.parquet")


def runner(store: FeatureStore, clock: Clock, retries: Retries | None = None, views: list[str] | None = None) -> Runner:
    return Runner(store, views, retries or Retries(), clock=clock)


def test_what_definitions_say_is_run_once_a_boundary(store: FeatureStore) -> None:
    clock = Clock(START)
    mine = runner(store, clock)
    assert mine.scheduled().keys() == {"latest", "windows", "queried"}, "windows of files are daily without a word"
    assert sorted(mine.due()) == ["latest", "queried", "windows"]
    found = {outcome.view: outcome for outcome in mine.run_all()}
    assert {name: outcome.at for name, outcome in found.items()} == {
        "latest": instant("2026-03-04T07:00:00Z"),
        "windows": instant("2026-03-04T00:00:00Z"),
        "queried": instant("2026-03-04T06:30:00Z"),
    }
    assert all(outcome.ended is Ended.DONE and outcome.rows == 1 for outcome in found.values())
    assert mine.run_all() == []
    clock.now = START + 30 * MINUTE
    assert [(o.view, o.at) for o in mine.run_all()] == [("latest", instant("2026-03-04T08:00:00Z"))]


def test_boundaries_that_were_missed_are_made_up_for(store: FeatureStore) -> None:
    """Of a query every snapshot is kept, each as of its own date."""
    clock = Clock(START)
    mine = runner(store, clock, views=["queried"])
    mine.run_all()
    write(store.root, "second", "2026-03-05T10:00:00Z", 2)
    clock.now = instant("2026-03-08T07:00:00Z")
    (outcome,) = mine.run_all()
    assert outcome.at == instant("2026-03-08T06:30:00Z")
    times = ["2026-03-04T06:30:00Z", "2026-03-05T06:30:00Z", "2026-03-06T06:29:59Z", "2026-03-06T06:30:00Z",
             "2026-03-08T06:30:00Z"]  # fmt: skip
    spine = pd.DataFrame({"user_id": 1, "event_timestamp": pd.to_datetime(times)})
    job = store.get_historical_features(spine, ["queried:n", "queried:day"])
    days = ["2026-03-03", "2026-03-04", "2026-03-04", "2026-03-05", "2026-03-07"]
    assert job.to_arrow()["day"].to_pylist() == days
    assert job.to_arrow()["n"].to_pylist() == [1, 1, 1, 2, 2]
    assert job.metadata["computed_snapshots"] == {}, "all of them were kept"
    online = store.online.get(["queried:day"], {"user_id": [1]}, now=clock.now).to_dict()
    assert online["day"] == ["2026-03-07"]


def test_a_source_that_fails_is_tried_again_later_and_later(store: FeatureStore) -> None:
    clock = Clock(START)
    mine = runner(store, clock, Retries(attempts=3, wait=10 * SECOND), ["latest"])
    item = mine.scheduled()["latest"]
    (store.root / "events/broken.parquet").write_bytes(b"PAR1 no file")
    outcome = mine.run(item)
    assert outcome is not None
    assert (outcome.ended, outcome.attempt, outcome.retry_at) == (Ended.FAILED, 1, START + 10 * SECOND)
    assert "broken.parquet" in str(outcome)
    assert mine.run(item) is None, "it waits"
    assert mine.due() == []
    clock.now += 10 * SECOND
    assert mine.due() == ["latest"]
    outcome = mine.run(item)
    assert outcome is not None
    assert outcome.retry_at == clock.now + 20 * SECOND
    (listed,) = mine.listing()
    assert (listed["attempts"], listed["next_run"], listed["through"]) == (2, "2026-03-04T07:30:30Z", None)
    assert "broken.parquet" in listed["error"]
    clock.now += 20 * SECOND
    outcome = mine.run(item)
    assert outcome is not None
    assert outcome.retry_at is None
    clock.now += 20 * MINUTE
    assert mine.due() == [], "the last attempt at this boundary"
    clock.now += 10 * MINUTE
    (store.root / "events/broken.parquet").unlink()
    outcome = mine.run(item)
    assert outcome is not None
    assert (outcome.ended, outcome.attempt, outcome.at) == (Ended.DONE, 1, START + 30 * MINUTE)
    (listed,) = mine.listing()
    assert (listed["attempts"], listed["error"], listed["next_run"]) == (0, None, "2026-03-04T09:00:00Z")


def test_who_asks_for_one_run_does_not_wait(store: FeatureStore) -> None:
    clock = Clock(START)
    mine = runner(store, clock, views=["latest"])
    (store.root / "events/broken.parquet").write_bytes(b"PAR1 no file")
    assert [o.ended for o in mine.run_all()] == [Ended.FAILED]
    (store.root / "events/broken.parquet").unlink()
    assert [o.ended for o in mine.run_all()] == [Ended.DONE]


def test_a_view_that_somebody_runs_is_left_to_them(store: FeatureStore) -> None:
    clock = Clock(START)
    lease = store.registry.leases.acquire(f"{LEASE}latest", "somebody", 60)
    assert lease is not None
    mine = runner(store, clock, views=["latest"])
    assert mine.run_all() == []
    (listed,) = mine.listing()
    assert listed["running"] == "somebody"
    store.registry.leases.release(lease)
    assert len(mine.run_all()) == 1


def test_many_runners_at_once_run_each_boundary_once(store: FeatureStore) -> None:
    stores = [FeatureStore(store.root) for _ in range(4)]
    clock = Clock(START)
    found = []
    for hour in range(3):
        clock.now = START + hour * HOUR
        together = threading.Barrier(4)

        def work(mine: Runner, together: threading.Barrier = together) -> None:
            together.wait()
            found.extend(mine.run_all())

        threads = [threading.Thread(target=work, args=(runner(each, clock),)) for each in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(outcome.ended is Ended.DONE for outcome in found)
    runs = sorted((outcome.view, outcome.at) for outcome in found)
    hours = [instant(f"2026-03-04T0{hour}:00:00Z") for hour in (7, 8, 9)]
    once = [("queried", instant("2026-03-04T06:30:00Z")), ("windows", instant("2026-03-04T00:00:00Z"))]
    assert runs == sorted([("latest", at) for at in hours] + once)
    for each in stores:
        each.close()


def test_a_runner_that_is_told_to_stop_ends_between_two_steps(store: FeatureStore) -> None:
    clock = Clock(START)
    mine = runner(store, clock, views=["latest"])
    item = mine.scheduled()["latest"]
    mine.stop()
    outcome = mine.run(item)
    assert outcome is not None
    assert outcome.ended is Ended.STOPPED
    assert store.registry.leases.all_held() == []
    other = runner(store, clock, views=["latest"])
    assert [(o.ended, o.attempt) for o in other.run_all()] == [(Ended.DONE, 1)]


def test_after_a_run_by_hand_that_went_further_late_rows_are_still_read(store: FeatureStore) -> None:
    store.materialize_incremental("2026-03-04T12:00:00Z", ["latest"])
    write(store.root, "late", "2026-03-04T11:00:00Z", 9)
    runner(store, Clock(START), views=["latest"]).run_all()
    found = store.online.get(["latest:price"], {"user_id": [1]}, now=instant("2026-03-04T12:00:00Z")).to_dict()
    assert found["price"] == [9]


def test_a_view_that_is_not_there_is_refused(store: FeatureStore) -> None:
    with pytest.raises(NotFoundError, match="latst"):
        runner(store, Clock(START), views=["latst"]).scheduled()


@pytest.mark.parametrize("change", ["changed", "removed for a while"])
def test_a_view_whose_tables_are_empty_is_due_whatever_was_run_before(store: FeatureStore, change: str) -> None:
    clock = Clock(START)
    mine = runner(store, clock, views=["windows"])
    assert [outcome.ended for outcome in mine.run_all()] == [Ended.DONE]
    views = store.root / "views.yaml"
    if change == "changed":
        views.write_text(DEFINITIONS.replace("window: 7d", "window: 14d"))
    else:
        views.write_text(DEFINITIONS.replace("window: 7d}]", "window: 7d}]\n    online: false"))
        store.apply(allow_destructive=True)
        kept = DEFINITIONS.index("  - name: windows"), DEFINITIONS.index("  - name: queried")
        views.write_text(DEFINITIONS[: kept[0]] + DEFINITIONS[kept[1] :])
        store.apply(allow_destructive=True)
        views.write_text(DEFINITIONS)
    store.apply()
    (listed,) = mine.listing()
    assert (listed["through"], listed["next_run"]) == (None, "2026-03-04T07:30:00Z")
    (outcome,) = mine.run_all()
    assert (outcome.at, outcome.ended, outcome.rows) == (instant("2026-03-04T00:00:00Z"), Ended.DONE, 1)
    assert store.plan().serving == {}
    online = store.online.get(["windows:n7d"], {"user_id": [1]}, now=clock.now).to_dict()
    assert online["n7d"] == [1]
    assert mine.due() == []
