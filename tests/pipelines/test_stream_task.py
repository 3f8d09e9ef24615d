"""A worker of a stream, handed messages as an engine hands them: what it cannot take, waits for, and says of itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from feature_store import FeatureStore
from feature_store.engines.streams import Bad, Messages, TopicId
from feature_store.errors import StoreUnavailableError
from feature_store.expressions.instants import to_datetime
from feature_store.pipelines.stream_task import LAND_ROWS, StreamTask
from feature_store.storage.keys import MOST_BYTES
from tests.live import until
from tests.servers import PostgresServer

REPO = """
entity: {name: user, join_key: user_id, type: INT32}
---
source:
  name: clicks
  timestamp: at
  columns: [{name: user_id, type: INT64}, {name: at, type: TIMESTAMP}]
  stream: {kafka: {topic: clicks}}
---
feature_view: {name: counts, entities: [user], source: clicks, aggregations: [{name: n, function: count, window: 1h}]}
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    (tmp_path / "feature_store.yaml").write_text("project: p\n")
    (tmp_path / "views.yaml").write_text(REPO)
    store = FeatureStore(tmp_path)
    store.apply()
    yield store
    store.close()


def clicks(*users: int, start: int = 0) -> Messages:
    now = time.time_ns() // 1000
    at = to_datetime(now).isoformat()
    return Messages.of([json.dumps({"user_id": user, "at": at}).encode() for user in users], 0, start, now)


def test_an_event_whose_key_does_not_fit_spoils_no_other(store: FeatureStore) -> None:
    task = StreamTask(store, "clicks", "worker")
    task.assigned(TopicId("clicks"), {0: (0, 3)}, [0])
    ((place, reason),) = task.handle(clicks(1, 2**40, 1))
    assert place == 1 and "its key does not fit: Integer value 1099511627776 not in range" in reason
    task.close()
    assert store.get_online_features(["counts:n"], [{"user_id": 1}]).to_dict()["n"] == [2]


def test_an_event_whose_key_is_too_long_for_a_store_is_bad(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: p\n")
    (tmp_path / "views.yaml").write_text(REPO.replace("INT32", "STRING").replace("INT64", "STRING"))
    store = FeatureStore(tmp_path)
    store.apply()
    task = StreamTask(store, "clicks", "worker")
    task.assigned(TopicId("clicks"), {0: (0, 3)}, [0])
    longest, now = "é" * (MOST_BYTES // 2), time.time_ns() // 1000
    users = [longest, f"{longest}!", None, longest]
    values = [json.dumps({"user_id": user, "at": to_datetime(now).isoformat()}).encode() for user in users]
    ((place, reason),) = task.handle(Messages.of(values, 0, 0, now))
    assert place == 1 and "its key has 16001 bytes, and stores take 16000" in reason
    task.close()
    assert store.get_online_features(["counts:n"], [{"user_id": longest}]).to_dict()["n"] == [2]
    store.close()


def test_what_keeps_rows_from_landing_is_said_until_they_land(store: FeatureStore) -> None:
    task = StreamTask(store, "clicks", "worker")
    task.assigned(TopicId("clicks"), {0: (0, 3)}, [0])
    commits = Path(store.offline_store.path("stream/clicks")) / "_delta_log"
    spoilt = commits / f"{len(list(commits.glob('*.json'))):020}.json"
    spoilt.write_text("spoilt")
    task.handle(clicks(*[1] * LAND_ROWS))
    until(lambda: said(store) and "stream/clicks" in str(said(store)))
    task.handle(clicks(1, start=LAND_ROWS))
    task.failing(None)  # as an engine says after each batch
    until(lambda: store.registry.streams.workers("clicks")[0].events > LAND_ROWS)
    assert "stream/clicks" in str(said(store))
    spoilt.unlink()
    task.handle(clicks(1, start=LAND_ROWS + 1))
    until(lambda: said(store) is None)
    task.close()


def test_what_a_worker_left_is_landed_and_bad_messages_are_told_once(store: FeatureStore) -> None:
    """A worker took four messages, of which one was bad, and landed none; two more came meanwhile, one of them bad."""
    good, bad = clicks(1).values[0], b"not JSON"
    messages = Messages.of([good, bad, good, good, good, bad], 0, 0, time.time_ns() // 1000)
    first = StreamTask(store, "clicks", "first", topic=TopicId("clicks", "1"))
    first.handle(messages.take(np.arange(4)))
    until(lambda: store.registry.streams.workers("clicks")[0].positions == {0: 4})
    first.abandon()
    told: list[int] = []

    def between(partition: int, start: int, end: int) -> Iterator[Messages]:
        yield messages.take(np.flatnonzero((messages.offsets >= start) & (messages.offsets < end)))

    def reject(of: Messages, which: Bad) -> None:
        told.extend(int(of.offsets[at]) for at, _ in which)

    last = StreamTask(store, "clicks", "last", topic=TopicId("clicks", "1"), read=between)
    last.catch_up({0: (0, 6)}, reject)
    last.close()
    assert told == [5]
    assert store.offline_store.read("stream/clicks").num_rows == 4
    assert store.get_online_features(["counts:n"], [{"user_id": 1}]).to_dict()["n"] == [4]


def test_catching_up_waits_for_no_store(store: FeatureStore) -> None:
    def between(partition: int, start: int, end: int) -> Iterator[Messages]:
        raise StoreUnavailableError("the brokers are away")

    at_once = threading.Event()
    at_once.set()
    first = StreamTask(store, "clicks", "first", topic=TopicId("clicks", "1"))
    first.handle(clicks(1))
    first.abandon()
    task = StreamTask(store, "clicks", "last", topic=TopicId("clicks", "1"), read=between, stop=at_once)
    with pytest.raises(StoreUnavailableError, match="the brokers are away"):
        task.catch_up({0: (0, 6)}, lambda messages, bad: None)
    task.close()


def test_while_the_registry_is_away_events_count_and_land(tmp_path: Path) -> None:
    with closing(PostgresServer().start()) as server:
        (tmp_path / "feature_store.yaml").write_text(f"project: p\nregistry: {server.url}\n")
        (tmp_path / "views.yaml").write_text(REPO)
        store = FeatureStore(tmp_path)
        store.apply()
        task = StreamTask(store, "clicks", "worker")
        task.assigned(TopicId("clicks"), {0: (0, 3)}, [0])
        task.handle(clicks(1))
        plan = store.online
        server.stop()
        taken, began = 1, time.monotonic()
        while time.monotonic() < began + 3:  # longer than workers go without looking for changes
            task.handle(clicks(1, start=taken))
            taken += 1
        assert plan.get(["counts:n"], [{"user_id": 1}]).to_dict()["n"] == [taken]
        task.close()
        assert store.offline_store.read("stream/clicks").num_rows == taken
        store.close()


def said(store: FeatureStore) -> str | None:
    return next((worker.error for worker in store.registry.streams.workers("clicks")), None)
