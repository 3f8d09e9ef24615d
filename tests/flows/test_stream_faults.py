"""Workers, Kafka and Redis die at random moments under load; in the end every acknowledged event counts once."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.jars import jars
from tests.live import FEATURES, VIEWS, Event, Live, repository, until
from tests.load import USERS, WEEK, Load, expected
from tests.servers import FlinkCluster, KafkaServer, RedisServer

pytestmark = pytest.mark.timeout(600)


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


def test_whatever_dies_every_acknowledged_event_counts_once(
    tmp_path: Path, kafka: KafkaServer, redis: RedisServer
) -> None:
    topic, chance = kafka.topic(3), random.Random(5)
    live = Live(repository(tmp_path, kafka, topic, settings={"online_store": redis.url}), kafka, topic)
    load = Load(kafka, topic, 600)
    workers = [live.process(), live.process()]

    def kill_worker() -> None:
        dead = workers.pop(chance.randrange(len(workers)))
        dead.kill()
        dead.wait()
        workers.append(live.process())

    def pause_worker() -> None:
        """It is taken for dead, and wakes up after another has gone on."""
        held = workers[chance.randrange(len(workers))]
        held.send_signal(signal.SIGSTOP)
        load.more(600 * 8)
        held.send_signal(signal.SIGCONT)

    def kill_redis() -> None:
        redis.stop()
        load.more(300)
        redis.start()

    def hang_redis() -> None:
        redis.pause(True)
        load.more(1200)
        redis.pause(False)

    def kill_kafka() -> None:
        kafka.stop()
        kafka.start()
        load.more(1)

    faults = [kill_worker, kill_redis, kill_kafka, pause_worker, kill_worker, hang_redis, kill_redis, kill_kafka]
    try:
        load.start()
        for fault in faults:
            load.more(chance.randrange(200, 1500))
            fault()
            if fault is pause_worker:  # a view that begins in the middle of it all
                (tmp_path / "views.yaml").write_text(VIEWS.format(topic=topic, engine="kafka") + WEEK)
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
    """Its parts and what it works with die at any moment, some while another is away, whether it works again or not."""
    topic = kafka.topic(3)
    conf = {"pipeline.jars": f"{jars('flink')}/*.jar", "parallelism.default": 2}
    conf |= {"execution.checkpointing.interval": "1 s", "restart-strategy.exponential-delay.max-backoff": "2 s"}
    conf |= {"execution.checkpointing.savepoint-dir": (tmp_path / "savepoints").as_uri()}
    settings = {"online_store": redis.url, "engines": {"flink": {"master": flink.url, "conf": conf}}}
    live = Live(repository(tmp_path, kafka, topic, "flink", settings), kafka, topic)
    load = Load(kafka, topic, 400)
    seed = int(os.environ.get("FAULTS_SEED") or time.time_ns() % 10_000)
    print(f"FAULTS_SEED={seed}")  # shown where the test fails
    chance = random.Random(seed)
    watch = live.process()  # submits the job, and again where the cluster has lost it

    def goes_on() -> bool:
        (status,) = live.streams.status(["clicks"])
        return status["state"] == "running" and status["lag_events"] is not None and status["lag_events"] < 1000

    def pause(most: float) -> None:
        """Faults come at moments that nothing else decides."""
        time.sleep(chance.uniform(0.2, most))

    def kill_task_manager() -> None:
        flink.kill_task_manager()
        pause(2)
        flink.start()

    def kill_job_manager() -> None:
        flink.kill_job_manager()
        pause(2)
        flink.start()

    @contextmanager
    def no_redis() -> Iterator[None]:
        redis.stop()
        pause(3)
        yield
        redis.start()

    @contextmanager
    def no_kafka() -> Iterator[None]:
        kafka.stop()
        pause(3)
        yield
        kafka.start()

    kills, absences = [flink.kill_worker, kill_task_manager, kill_job_manager], [no_redis, no_kafka]
    rounds: list[tuple[Any, Any]] = [*((None, each) for each in kills), *((each, None) for each in absences)]
    rounds += zip([*absences, chance.choice(absences)], chance.sample(kills, 3), strict=True)
    chance.shuffle(rounds)
    try:
        until(goes_on, 180)
        load.start()
        load.more(800)
        for number, (absence, kill) in enumerate(rounds):
            if kill == flink.kill_worker:
                until(flink.workers, 120)  # without one to kill it would be no fault
            pause(6)
            with absence() if absence else nullcontext():
                if kill:
                    kill()
            if number == 3:  # a view that begins in the middle of it all
                (tmp_path / "views.yaml").write_text(VIEWS.format(topic=topic, engine="flink") + WEEK)
                live.store.apply()
        until(goes_on, 180)
        load.more(400)
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
