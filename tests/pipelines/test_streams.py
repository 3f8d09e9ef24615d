"""Streams from a real Kafka, by a consumer group: what is posted is read online, and is what history computes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feature_store import FeatureStore
from feature_store.expressions.instants import DAY, HOUR, MINUTE, to_datetime
from feature_store.pipelines.streams import Streams
from tests.servers import KafkaServer

VIEWS = """
entity: {{name: user, join_key: user_id, type: INT64}}
---
source:
  name: clicks
  timestamp: at
  columns:
    - {{name: id, type: INT64}}
    - {{name: user_id, type: INT64}}
    - {{name: x, type: INT64}}
    - {{name: at, type: TIMESTAMP}}
  stream: {{kafka: {{topic: {topic}}}, push: true, engine: kafka}}
---
feature_view:
  name: counts
  entities: [user]
  source: clicks
  aggregations:
    - {{name: n, function: count, window: 1h}}
    - {{name: total, function: sum, column: x, window: 7d}}
    - {{name: newest, function: last, column: x, window: 1d}}
---
feature_view:
  name: latest
  entities: [user]
  source: clicks
  features:
    - {{name: x, type: INT64}}
    - {{name: twice, type: INT64, expression: "x * 2"}}
"""

MORE = """
---
feature_view:
  name: day
  entities: [user]
  source: clicks
  aggregations:
    - {name: seen, function: count, window: 1d}
    - {name: most, function: max, column: x, window: 1d}
"""

Event = dict[str, Any]


@dataclass
class Live:
    """A repository whose source reads a topic, and its workers in threads of this process."""

    store: FeatureStore
    kafka: KafkaServer
    topic: str
    workers: list[tuple[threading.Thread, threading.Event]] = field(default_factory=list)
    sent: int = 0

    @property
    def streams(self) -> Streams:
        return Streams(self.store)

    def send(self, events: Sequence[Event | bytes]) -> None:
        """Put events into the topic, those of a user into the same partition."""
        values = [e if isinstance(e, bytes) else json.dumps(e, default=str).encode() for e in events]
        keys = [str(e["user_id"]).encode() if isinstance(e, dict) else None for e in events]
        self.kafka.produce(self.topic, values, keys)
        self.sent += len(values)

    def work(self) -> threading.Event:
        """Start a worker; what ends it."""
        stop = threading.Event()
        store = FeatureStore(self.store.root)

        def run() -> None:
            Streams(store).work(["clicks"], stop)
            store.close()

        self.streams.want("clicks", True)
        thread = threading.Thread(target=run)
        thread.start()
        self.workers.append((thread, stop))
        return stop

    def stop(self) -> None:
        for _, stop in self.workers:
            stop.set()
        for thread, _ in self.workers:
            thread.join()
        self.workers.clear()

    def caught_up(self) -> bool:
        (status,) = self.streams.status(["clicks"])
        return bool(status["state"] == "running" and status["lag_events"] == 0)

    def online(self, features: Sequence[str], users: int) -> dict[str, list[Any]]:
        rows = [{"user_id": user} for user in range(users)]
        return self.store.get_online_features(list(features), rows).to_dict()

    def history(self, features: Sequence[str], users: int) -> dict[str, list[Any]]:
        now = to_datetime(time.time_ns() // 1000)
        spine = pa.table({"user_id": list(range(users)), "event_timestamp": [now] * users})
        return self.store.get_historical_features(spine, list(features)).to_arrow().to_pydict()


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)
    return found


def repository(folder: Path, kafka: KafkaServer, topic: str, more: str = "") -> FeatureStore:
    (folder / "feature_store.yaml").write_text(f"project: p\nkafka: {{brokers: '{kafka.url}'}}\n")
    (folder / "views.yaml").write_text(VIEWS.format(topic=topic) + more)
    store = FeatureStore(folder)
    store.apply()
    return store


@pytest.fixture
def live(tmp_path: Path, kafka_server: KafkaServer, kafka_topic: str) -> Iterator[Live]:
    live = Live(repository(tmp_path, kafka_server, kafka_topic), kafka_server, kafka_topic)
    yield live
    live.stop()
    live.store.close()


def made(count: int, users: int, ages: Sequence[int], start: int = 0) -> list[Event]:
    now = time.time_ns() // 1000
    return [
        {"id": n, "user_id": n % users, "x": n, "at": to_datetime(now - ages[n % len(ages)] - n).isoformat()}
        for n in range(start, start + count)
    ]


FEATURES = ["counts:n", "counts:total", "counts:newest", "latest:x", "latest:twice"]


def test_an_event_posted_to_kafka_is_read_online_and_in_history(live: Live) -> None:
    live.work()
    live.send([{"id": 1, "user_id": 0, "x": 5, "at": to_datetime(time.time_ns() // 1000).isoformat()}])
    until(lambda: live.online(["counts:n"], 1)["n"] == [1])
    events = made(500, 5, [MINUTE, 30 * MINUTE, 3 * HOUR, 2 * DAY, 6 * DAY])
    live.send(events)
    until(live.caught_up)
    live.stop()
    found = live.online(FEATURES, 5)
    assert found["n"][1] == sum(
        event["user_id"] == 1 and event["at"] > to_datetime(time.time_ns() // 1000 - HOUR).isoformat()
        for event in events
    )
    past = live.history(FEATURES, 5)
    assert found == {name: past[name] for name in found}


def test_a_new_view_has_its_past_from_batch_and_its_present_from_the_stream(live: Live) -> None:
    live.send(made(300, 3, [MINUTE, 5 * HOUR]))
    live.work()
    until(live.caught_up)
    live.send(made(300, 3, [MINUTE, 5 * HOUR], start=300))
    (live.store.root / "views.yaml").write_text(VIEWS.format(topic=live.topic) + MORE)
    live.store.apply()
    live.send(made(300, 3, [2 * MINUTE, 5 * HOUR], start=600))
    assert live.streams.bootstrap("day") > 0
    live.send(made(300, 3, [3 * MINUTE, 5 * HOUR], start=900))
    until(live.caught_up)
    assert live.online(["day:seen", "day:most"], 3) == {
        "user_id": [0, 1, 2], "seen": [400] * 3, "most": [1197, 1198, 1199]
    }  # fmt: skip
