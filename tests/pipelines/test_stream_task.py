"""A worker of a stream, handed messages as an engine hands them: what it cannot take, waits for, and says of itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from feature_store import FeatureStore
from feature_store.engines.streams import Messages
from feature_store.errors import NotFoundError
from feature_store.expressions.instants import to_datetime
from feature_store.pipelines.stream_task import LAND_ROWS, StreamTask
from feature_store.pipelines.streams import Streams
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
    task.assigned({0: (0, 3)})
    ((place, reason),) = task.handle(clicks(1, 2**40, 1))
    assert place == 1 and "its key does not fit: Integer value 1099511627776 not in range" in reason
    task.close()
    assert store.get_online_features(["counts:n"], [{"user_id": 1}]).to_dict()["n"] == [2]


def test_what_keeps_rows_from_landing_is_said_until_they_land(store: FeatureStore) -> None:
    task = StreamTask(store, "clicks", "worker")
    task.assigned({0: (0, 3)})
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


def test_while_the_registry_is_away_events_count_and_land(tmp_path: Path) -> None:
    with closing(PostgresServer().start()) as server:
        (tmp_path / "feature_store.yaml").write_text(f"project: p\nregistry: {server.url}\n")
        (tmp_path / "views.yaml").write_text(REPO)
        store = FeatureStore(tmp_path)
        store.apply()
        task = StreamTask(store, "clicks", "worker")
        task.assigned({0: (0, 3)})
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


def test_what_ends_a_worker_unexpectedly_ends_its_process(store: FeatureStore) -> None:
    """Else it would live on without it, or end as if all were well."""
    stop = threading.Event()
    with pytest.raises(NotFoundError, match="nothing"):
        Streams(store).work(["nothing"], stop)
    assert stop.is_set()
