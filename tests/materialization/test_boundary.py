"""The boundary between batch and stream: whatever starts, ends or is lost when, each event is on one side of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store import FeatureStore
from feature_store.engines.streams import Messages, TopicId
from feature_store.errors import ConflictError
from feature_store.expressions.instants import MINUTE, to_datetime
from feature_store.materialization.epochs import begin_epoch
from feature_store.materialization.steps import steps_between
from feature_store.pipelines.stream_task import StreamTask

VIEW = """
feature_view:
  name: counts
  entities: [user]
  source: clicks
  aggregations: [{name: n, function: count, window: 6h}, {name: d, function: count, window: 1d}]
"""
REPO = """
entity: {name: user, join_key: user_id, type: INT64}
---
source:
  name: clicks
  path: data/clicks
  timestamp: at
  columns: [{name: user_id, type: INT64}, {name: at, type: TIMESTAMP}]
  stream: {kafka: {topic: clicks}}
---
feature_view: {name: latest, entities: [user], source: clicks, features: [{name: at, type: TIMESTAMP}]}
---
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    (tmp_path / "data" / "clicks").mkdir(parents=True)
    at = pa.array([to_datetime(NOW - 30 * MINUTE)], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user_id": [1], "at": at}), tmp_path / "data" / "clicks" / "past.parquet")
    (tmp_path / "feature_store.yaml").write_text("project: p\n")
    (tmp_path / "views.yaml").write_text(REPO + VIEW)
    store = FeatureStore(tmp_path)
    store.apply()
    yield store
    store.close()


NOW = time.time_ns() // 1000


def clicks(count: int, start: int, partition: int = 0) -> Messages:
    value = json.dumps({"user_id": 1, "at": to_datetime(NOW - 20 * MINUTE).isoformat()}).encode()
    return Messages.of([value] * count, partition, start, produced=NOW)


def worker(store: FeatureStore, end: int = 100) -> StreamTask:
    task = StreamTask(store, "clicks", "worker")
    task.assigned(TopicId("clicks"), {0: (0, end)}, [0])
    return task


def counted(store: FeatureStore) -> list[Any]:
    return store.get_online_features(["counts:n"], [{"user_id": 1}]).to_dict()["n"]


def look(store: FeatureStore, task: StreamTask) -> None:
    """Have the worker see what was applied."""
    store.refresh()
    task.revoked([0], lost=False)
    task.assigned(TopicId("clicks"), {0: (0, 100)}, [0])


def test_a_stream_that_is_started_while_batch_computes_counts_all_of_its_events(store: FeatureStore) -> None:
    batch = store._materializer(None)
    bound, _ = batch.begin(store.catalog.views["counts"])
    task = worker(store)
    task.handle(clicks(3, 0))
    task.close()
    for step in steps_between(bound, 0, time.time_ns() // 1000):
        batch.step(bound, store._engine(), step)
    assert counted(store) == [4]


def test_batch_that_began_before_the_store_lost_its_rows_leaves_the_boundary_as_it_is(store: FeatureStore) -> None:
    batch, view = store._materializer(None), store.catalog.views["counts"]
    epoch = str(begin_epoch(store.online_store, view))
    task = worker(store)
    task.handle(clicks(3, 0))
    store.clear_online("counts")
    task.handle(clicks(2, 3))
    task.close()
    batch._boundary.before(view, epoch)
    assert store.registry.streams.claims("counts", view.version)[0].begin == 3
    store.materialize_incremental(to_datetime(time.time_ns() // 1000), ["counts"])
    assert counted(store) == [6]


@pytest.mark.parametrize("times", [1, 3])
def test_an_event_that_comes_by_the_stream_after_batch_took_it_from_a_file_counts_once_again(
    store: FeatureStore, times: int
) -> None:
    """It counts twice until the next run: then batch leaves it to the stream."""
    views = store.root / "views.yaml"
    views.write_text(views.read_text().replace("timestamp: at\n", "timestamp: at\n  unique: [user_id, at]\n"))
    store.apply()
    now = to_datetime(time.time_ns() // 1000)
    store.materialize_incremental(now, ["counts"])
    assert counted(store) == [1]
    task = worker(store)
    past = json.dumps({"user_id": 1, "at": to_datetime(NOW - 30 * MINUTE).isoformat()}).encode()
    task.handle(Messages.of([past] * times, 0, 0, produced=NOW))
    task.handle(clicks(1, times))
    task.close()
    assert counted(store) == [3]
    for _ in range(2):
        store.materialize_incremental(now, ["counts"])
        assert counted(store) == [2]
    (history,) = store.get_historical_features([{"user_id": 1, "event_timestamp": now}], ["counts:n"]).to_arrow()["n"]
    assert history.as_py() == 2


MORE = VIEW.replace("window: 1d", "window: 2d")


@pytest.mark.parametrize(
    "meanwhile", ["", MORE, VIEW + "  online: false\n"], ids=["removed", "changed", "not kept online"]
)
def test_a_view_that_a_stream_did_not_fill_for_a_while_starts_over(store: FeatureStore, meanwhile: str) -> None:
    """What it holds of before lacks the events in between, and nobody else would fill these."""
    views, beside = store.root / "views.yaml", FeatureStore(store.root)
    task = worker(beside)
    try:
        task.handle(clicks(3, 0))
        views.write_text(REPO + meanwhile)
        store.apply(allow_destructive=True)
        task.handle(clicks(1, 3))
        look(beside, task)
        task.handle(clicks(2, 4))
        views.write_text(REPO + VIEW)
        store.apply()
        look(beside, task)
        task.handle(clicks(1, 6))
    finally:
        task.close()
        beside.close()
    assert counted(store) != [8]
    store.materialize_incremental(to_datetime(time.time_ns() // 1000), ["counts"])
    assert counted(store) == [8]


def test_a_worker_that_lost_a_partition_begins_again_with_all_of_them(store: FeatureStore) -> None:
    """Nothing waits any more to be landed of the others either, whatever comes to it before it knows."""
    first, second = StreamTask(store, "clicks", "first"), StreamTask(store, "clicks", "second")
    first.assigned(TopicId("clicks"), {0: (0, 10), 1: (0, 10)}, [0, 1])
    second.assigned(TopicId("clicks"), {0: (0, 10)}, [0])
    second.handle(clicks(3, 0))
    second.close()
    with suppress(ConflictError):  # as soon as it tries to land
        first.handle(clicks(3, 0, partition=1))
        first.handle(clicks(3, 0))
    first.revoked([0], lost=False)
    first.assigned(TopicId("clicks"), {2: (0, 10)}, [2])
    with pytest.raises(ConflictError, match="another worker has taken over"):
        first.handle(clicks(1, 3, partition=1))
    first.revoked([1, 2], lost=False)
    start = first.assigned(TopicId("clicks"), {1: (0, 10)}, [1])[1]
    first.handle(clicks(4 - start, start, partition=1))
    first.close()
    assert store.offline_store.read("stream/clicks").num_rows == 7
