"""A repository whose source reads a topic of a real Kafka, and its workers, in threads here or in processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from confluent_kafka import ConsumerGroupTopicPartitions

from feature_store import FeatureStore
from feature_store.expressions.instants import to_datetime
from feature_store.pipelines.streams import Streams
from feature_store.pipelines.topics import group_of
from tests.servers import KafkaServer

SOURCE = """
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
  stream: {{kafka: {{topic: {topic}}}, push: true, engine: {engine}}}
---
"""
VIEWS = (
    SOURCE
    + """feature_view:
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
)

FEATURES = ["counts:n", "counts:total", "counts:newest", "latest:x", "latest:twice"]
"""All features of both views."""

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

    def process(self) -> subprocess.Popen[bytes]:
        """Start a worker in a process of its own."""
        command = [sys.executable, "-m", "feature_store.cli", "-c", str(self.store.root)]
        with (self.store.root / "workers.log").open("ab") as log:
            return subprocess.Popen([*command, "stream", "start", "clicks", "--foreground"], stdout=log, stderr=log)

    def fs(self, *arguments: str) -> str:
        """Run a command; what it prints."""
        command = [sys.executable, "-m", "feature_store.cli", "-c", str(self.store.root)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        for _, stop in self.workers:
            stop.set()
        for thread, _ in self.workers:
            thread.join()
        self.workers.clear()

    def caught_up(self) -> bool:
        (status,) = self.streams.status(["clicks"])
        return bool(status["state"] == "running" and status["lag_events"] == 0)

    def committed(self) -> dict[int, int]:
        """The offsets that the group of the stream has committed, by partition."""
        group, admin = group_of(self.store, "clicks"), self.kafka.client()
        asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
        found = asked[group].result(30).topic_partitions  # projects of one name share a group
        return {each.partition: each.offset for each in found if each.topic == self.topic}

    def ends(self) -> dict[int, int]:
        """The offsets behind the last messages of the topic, by partition."""
        return {partition: end for partition, (_, end) in self.store.topic("clicks").ranges().items()}

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


def repository(
    folder: Path, kafka: KafkaServer, topic: str, engine: str = "kafka", settings: dict[str, Any] | None = None
) -> FeatureStore:
    place = {"brokers": kafka.url, "conf": {"session.timeout.ms": 6000}}
    written = {"project": "p", "kafka": place} | (settings or {})
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(written))
    (folder / "views.yaml").write_text(VIEWS.format(topic=topic, engine=engine))
    store = FeatureStore(folder)
    store.apply()
    return store


def made(count: int, users: int, ages: Sequence[int], start: int = 0) -> list[Event]:
    now = time.time_ns() // 1000
    return [
        {"id": n, "user_id": n % users, "x": n, "at": to_datetime(now - ages[n % len(ages)] - n).isoformat()}
        for n in range(start, start + count)
    ]
