"""Events that come without a pause, and what they come to."""

from __future__ import annotations

import json
import threading
import time

from feature_store.expressions.instants import DAY, HOUR, MINUTE, to_datetime
from tests.live import FEATURES, Event, until
from tests.servers import KafkaServer

USERS = 20
AGES = [MINUTE, 2 * MINUTE, 3 * HOUR, DAY, 3 * DAY, 6 * DAY, 20 * DAY]
WEEK = """
---
feature_view:
  name: week
  entities: [user]
  source: clicks
  aggregations:
    - {name: seen, function: count, window: 7d}
    - {name: mean, function: mean, column: x, window: 7d}
"""
"""A view that is applied while they come."""


class Load(threading.Thread):
    """Sends so many events a second until told to stop; `acknowledged` has those that Kafka has taken."""

    def __init__(self, kafka: KafkaServer, topic: str, rate: int) -> None:
        super().__init__(daemon=True)
        self._producer = kafka.producer(**{"linger.ms": 5, "delivery.timeout.ms": 300_000})
        self._topic, self._rate = topic, rate
        self._ended = threading.Event()
        self.acknowledged: list[Event] = []
        self.refused: list[str] = []

    def run(self) -> None:
        number = 0
        while not self._ended.wait(0.05):
            now = time.time_ns() // 1000
            for _ in range(self._rate // 20):
                at = to_datetime(now - AGES[number % len(AGES)] - number).isoformat()
                event = {"id": number, "user_id": number * 7 % USERS, "x": number, "at": at}
                self._send(event)
                number += 1
            self._producer.poll(0)

    def _send(self, event: Event) -> None:
        def told(error: object, _: object) -> None:
            (self.refused if error else self.acknowledged).append(str(error) if error else event)  # type: ignore[arg-type]

        self._producer.produce(
            self._topic, json.dumps(event).encode(), str(event["user_id"]).encode(), on_delivery=told
        )

    def more(self, count: int, seconds: float = 120) -> None:
        """Wait until Kafka has taken so many more."""
        wanted = len(self.acknowledged) + count
        until(lambda: len(self.acknowledged) >= wanted, seconds)

    def stop(self) -> list[Event]:
        """Send no more; all that were sent."""
        self._ended.set()
        self.join()
        assert self._producer.flush(120) == 0 and not self.refused
        return self.acknowledged


def expected(events: list[Event]) -> dict[str, list[int | None]]:
    """By brute force: what is in which window is plain, no event is near an edge."""
    found: dict[str, list[int | None]] = {name.partition(":")[2]: [] for name in FEATURES}
    now = time.time_ns() // 1000
    for user in range(USERS):
        mine = sorted((event for event in events if event["user_id"] == user), key=lambda event: event["at"])
        recent = [event for event in mine if event["at"] >= to_datetime(now - 50 * MINUTE).isoformat()]
        week = [event for event in mine if event["at"] >= to_datetime(now - 6 * DAY - HOUR).isoformat()]
        found["n"].append(len(recent))
        found["total"].append(sum(event["x"] for event in week))
        found["newest"].append(recent[-1]["x"])
        found["x"].append(mine[-1]["x"])
        found["twice"].append(2 * mine[-1]["x"])
    return found
