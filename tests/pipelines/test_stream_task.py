"""A worker of a stream, handed messages as an engine hands them: what it cannot take, waits for, and says of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_store import FeatureStore
from feature_store.engines.streams import Messages
from feature_store.expressions.instants import to_datetime
from feature_store.pipelines.stream_task import StreamTask

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
