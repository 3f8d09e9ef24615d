"""Workers, Kafka and Redis die at random moments under load; in the end every acknowledged event counts once."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_store.expressions.instants import DAY, HOUR, MINUTE, to_datetime
from tests.jars import jars
from tests.live import FEATURES, VIEWS, Event, Live, repository, until
from tests.servers import FlinkCluster, KafkaServer, RedisServer

pytestmark = pytest.mark.timeout(600)

USERS = 20
AGES = [MINUTE, 2 * MINUTE, 3 * HOUR, DAY, 3 * DAY, 6 * DAY, 20 * DAY]
LATER = """
---
feature_view:
  name: week
  entities: [user]
  source: clicks
  aggregations:
    - {name: seen, function: count, window: 7d}
    - {name: mean, function: mean, column: x, window: 7d}
"""


@pytest.fixture
def kafka() -> Iterator[KafkaServer]:
    server = KafkaServer().start()
    yield server
    server.close()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer(durable=True).start()
    yield server
    server.close()


class Load(threading.Thread):
    """Sends events until told to stop; `acknowledged` has those that Kafka has taken."""

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

    def stop(self) -> list[Event]:
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


def test_whatever_dies_every_acknowledged_event_counts_once(
    tmp_path: Path, kafka: KafkaServer, redis: RedisServer
) -> None:
    topic, chance = kafka.topic(3), random.Random(5)
    live = Live(repository(tmp_path, kafka, topic, settings={"online_store": redis.url}), kafka, topic)
    load = Load(kafka, topic, 600)
    workers = [live.process(), live.process()]

    def wait_for_more(count: int) -> None:
        more = len(load.acknowledged) + count
        until(lambda: len(load.acknowledged) >= more, 120)

    def kill_worker() -> None:
        dead = workers.pop(chance.randrange(len(workers)))
        dead.kill()
        dead.wait()
        workers.append(live.process())

    def pause_worker() -> None:
        """It is taken for dead, and wakes up after another has gone on."""
        held = workers[chance.randrange(len(workers))]
        held.send_signal(signal.SIGSTOP)
        wait_for_more(600 * 8)
        held.send_signal(signal.SIGCONT)

    def kill_redis() -> None:
        redis.stop()
        wait_for_more(300)
        redis.start()

    def hang_redis() -> None:
        redis.pause(True)
        wait_for_more(1200)
        redis.pause(False)

    def kill_kafka() -> None:
        kafka.stop()
        kafka.start()
        wait_for_more(1)

    faults = [kill_worker, kill_redis, kill_kafka, pause_worker, kill_worker, hang_redis, kill_redis, kill_kafka]
    try:
        load.start()
        for fault in faults:
            wait_for_more(chance.randrange(200, 1500))
            fault()
            if fault is pause_worker:  # a view that begins in the middle of it all
                (tmp_path / "views.yaml").write_text(VIEWS.format(topic=topic, engine="kafka") + LATER)
                live.store.apply()
        live.fs("stream", "bootstrap", "week")
        events = load.stop()
        until(live.caught_up, 120)
        (status,) = json.loads(live.fs("stream", "status", "--json"))
        assert status["lag_events"] == status["lost"] == status["bad"] == 0
        live.fs("stream", "stop")
        assert [worker.wait(30) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    check(live, events)


def check(live: Live, events: list[Event]) -> None:
    """Online is what brute force counts, and what history says."""
    wanted, features = expected(events), [*FEATURES, "week:seen", "week:mean"]
    found = live.online(features, USERS)
    assert {name: found[name] for name in wanted} == wanted
    past = live.history(features, USERS)
    assert found == {name: past[name] for name in found}
    live.store.close()


@pytest.fixture
def flink() -> Iterator[FlinkCluster]:
    pytest.importorskip("pyflink")
    cluster = FlinkCluster().start()
    yield cluster
    cluster.close()


def test_whatever_dies_of_flink_every_acknowledged_event_counts_once(
    tmp_path: Path, kafka: KafkaServer, redis: RedisServer, flink: FlinkCluster
) -> None:
    topic = kafka.topic(3)
    conf = {"pipeline.jars": f"{jars('flink')}/*.jar", "parallelism.default": 2}
    conf |= {"execution.checkpointing.interval": "1 s", "restart-strategy.exponential-delay.max-backoff": "2 s"}
    conf |= {"execution.checkpointing.savepoint-dir": (tmp_path / "savepoints").as_uri()}
    settings = {"online_store": redis.url, "engines": {"flink": {"master": flink.url, "conf": conf}}}
    live = Live(repository(tmp_path, kafka, topic, "flink", settings), kafka, topic)
    load = Load(kafka, topic, 400)
    watch = live.process()  # submits the job, and again where the cluster has lost it

    def wait_for_more(count: int) -> None:
        more = len(load.acknowledged) + count
        until(lambda: len(load.acknowledged) >= more, 120)

    def goes_on() -> bool:
        (status,) = live.streams.status(["clicks"])
        return status["state"] == "running" and status["lag_events"] is not None and status["lag_events"] < 1000

    def kill_task_manager() -> None:
        flink.kill_task_manager()
        flink.start()

    def kill_job_manager() -> None:
        flink.kill_job_manager()
        flink.start()

    def kill_redis() -> None:
        redis.stop()
        wait_for_more(200)
        redis.start()

    def kill_kafka() -> None:
        kafka.stop()
        kafka.start()

    faults = [flink.kill_worker, kill_redis, kill_task_manager, kill_kafka, kill_job_manager]
    try:
        until(lambda: live.streams.status(["clicks"])[0]["state"] == "running", 180)
        load.start()
        for fault in faults:
            wait_for_more(800)
            until(goes_on, 180)
            fault()
            if fault is kill_redis:
                (tmp_path / "views.yaml").write_text(VIEWS.format(topic=topic, engine="flink") + LATER)
                live.store.apply()
        wait_for_more(400)
        live.fs("stream", "bootstrap", "week")
        events = load.stop()
        until(live.caught_up, 240)
        (status,) = json.loads(live.fs("stream", "status", "--json"))
        assert status["lag_events"] == status["lost"] == status["bad"] == 0
        live.fs("stream", "stop")
        assert watch.wait(60) == 0
    finally:
        watch.kill()
    check(live, events)
