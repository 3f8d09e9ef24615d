"""Streams whose stores are slow, away, full or forget: rows wait, nothing is lost, and the status says for what."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feature_store.definitions.tables import latest_table
from feature_store.engines.streams import Messages, TopicId
from feature_store.expressions.instants import DAY, HOUR, MINUTE, to_datetime
from feature_store.pipelines.stream_task import StreamTask
from feature_store.storage.online import Row
from tests.flows.disks import fill, mounted
from tests.live import FEATURES, Live, made, repository, until
from tests.load import USERS, Load, expected
from tests.servers import KafkaServer, PostgresServer, RedisServer


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "2m") as folder:
        yield folder


def opened(root: Path, kafka: KafkaServer, **settings: Any) -> Live:
    root.mkdir(exist_ok=True)
    topic = kafka.topic(2)
    return Live(repository(root, kafka, topic, settings=settings), kafka, topic)


def status(live: Live) -> dict[str, Any]:
    (found,) = live.streams.status(["clicks"])
    return found


def close(live: Live, users: int, sent: int) -> None:
    """Every event counts once, online and in history."""
    live.stop()
    found, past = live.online(FEATURES, users), live.history(FEATURES, users)
    assert found == {name: past[name] for name in found}
    assert found["total"] == [sum(range(user, sent, users)) for user in range(users)]
    live.store.close()


def test_a_redis_that_hangs_holds_the_stream_back(
    tmp_path: Path, kafka_server: KafkaServer, redis: RedisServer
) -> None:
    live = opened(tmp_path / "repo", kafka_server, online_store=f"{redis.url}?timeout=1")
    live.send(made(100, 4, [MINUTE]))
    live.work()
    until(live.caught_up)
    taken = live.ends()
    redis.pause(True)
    live.send(made(20_000, 4, [MINUTE], start=100))
    until(lambda: f"127.0.0.1:{redis.port}" in str(status(live)["error"]))
    assert status(live)["state"] == "failing" and status(live)["lag_events"] > 0
    began = time.monotonic()
    live.stop()  # it does not wait for Redis: what was not taken is read again
    assert time.monotonic() - began < 30
    assert status(live)["workers"] == 0
    assert all(at <= taken[partition] for partition, at in live.committed().items())
    redis.pause(False)
    live.work()
    until(live.caught_up)
    close(live, 4, 20_100)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("stream_engine", ["flink"], indirect=True)
def test_a_job_that_waits_for_a_redis_that_hangs_can_be_stopped(
    tmp_path: Path, kafka_server: KafkaServer, redis: RedisServer, stream_engine: tuple[str, dict[str, Any]]
) -> None:
    """It makes no savepoint then: what was taken is in its checkpoint and the log."""
    (engine, settings), topic = stream_engine, kafka_server.topic(2)
    settings |= {"online_store": f"{redis.url}?timeout=1"}
    live = Live(repository(tmp_path, kafka_server, topic, engine, settings), kafka_server, topic)
    live.send(made(100, 4, [MINUTE]))
    live.fs("stream", "start")
    until(live.caught_up)
    redis.pause(True)
    try:
        live.send(made(100, 4, [MINUTE], start=100))
        until(lambda: f"127.0.0.1:{redis.port}" in str(status(live)["error"]))
        live.fs("stream", "stop")
        assert (status(live)["state"], status(live)["job_state"], status(live)["workers"]) == ("stopped", "CANCELED", 0)
    finally:
        redis.pause(False)
    live.fs("stream", "start")
    until(live.caught_up)
    live.fs("stream", "stop")
    close(live, 4, 200)


@pytest.mark.timeout(400)
def test_a_slow_redis_holds_the_stream_back(
    tmp_path: Path, kafka_server: KafkaServer, redis: RedisServer, stream_engine: tuple[str, dict[str, Any]]
) -> None:
    """Events come faster than it takes them for a while: they wait in the topic, and that is no fault."""
    (engine, settings), topic = stream_engine, kafka_server.topic(2)
    root = tmp_path / "repo"
    root.mkdir()
    settings |= {"online_store": redis.url}
    live = Live(repository(root, kafka_server, topic, engine, settings), kafka_server, topic)
    load = Load(kafka_server, topic, 1000)
    live.fs("stream", "start")
    seen: list[dict[str, Any]] = []

    def behind() -> int:
        """How often more waited than what comes between two looks of a worker at how far it is."""
        seen.append(status(live))
        return sum(each["lag_events"] > 1500 for each in seen)

    try:
        load.start()
        until(lambda: status(live)["events"], 120)
        with redis.slow(2.0):
            until(lambda: behind() > 5 and len(load.acknowledged) > 15_000, 120)
        events = load.stop()
        until(live.caught_up, 120)
    finally:
        live.fs("stream", "stop")
    assert {(each["state"], each["error"]) for each in seen} == {("running", None)}
    found, past = live.online(FEATURES, USERS), live.history(FEATURES, USERS)
    assert found == {"user_id": [*range(USERS)]} | expected(events)
    assert found == {name: past[name] for name in found}
    log = live.store.offline_store.read("stream/clicks").column("id").to_pylist()
    assert sorted(log) == [*range(len(events))]
    live.store.close()


def test_a_redis_that_forgot_everything_is_filled_again(
    tmp_path: Path, kafka_server: KafkaServer, redis: RedisServer
) -> None:
    live = opened(tmp_path / "repo", kafka_server, online_store=redis.url)
    live.work()
    live.send(made(200, 4, [MINUTE, 3 * HOUR, 2 * DAY]))
    until(live.caught_up)
    redis.stop()
    live.send(made(200, 4, [MINUTE, 3 * HOUR, 2 * DAY], start=200))
    until(lambda: status(live)["error"])
    redis.start()
    until(live.caught_up)
    live.streams.bootstrap("counts")
    live.send(made(200, 4, [MINUTE, 3 * HOUR, 2 * DAY], start=400))
    until(live.caught_up)
    with redis.client() as client:
        client.flushall()
    live.send(made(200, 4, [MINUTE, 3 * HOUR, 2 * DAY], start=600))
    until(live.caught_up)
    for view in ("counts", "latest"):
        live.streams.bootstrap(view)
    close(live, 4, 800)


def test_rows_wait_while_the_offline_store_is_full(tmp_path: Path, kafka_server: KafkaServer, small_disk: Path) -> None:
    live = opened(tmp_path / "repo", kafka_server, offline_store=str(small_disk / "offline"))
    live.send(made(100, 4, [MINUTE]))
    live.work()
    until(live.caught_up)
    filling = fill(small_disk)
    live.send(made(5_000, 4, [MINUTE], start=100))
    until(lambda: live.online(["counts:total"], 4)["total"] == [sum(range(user, 5100, 4)) for user in range(4)])
    until(lambda: "free space" in str(status(live)["error"]))
    live.send(made(100, 4, [MINUTE], start=5100))
    until(lambda: live.online(["counts:total"], 4)["total"] == [sum(range(user, 5200, 4)) for user in range(4)])
    assert "free space" in str(status(live)["error"])  # taking messages goes on, and does not hide it
    filling.unlink()
    until(live.caught_up)
    close(live, 4, 5_200)


def test_a_stream_goes_on_while_its_registry_is_locked(tmp_path: Path, kafka_server: KafkaServer) -> None:
    live = opened(tmp_path / "repo", kafka_server, registry="sqlite:///data/registry.db")
    live.send(made(100, 4, [MINUTE]))
    live.work()
    until(live.caught_up)
    lock = sqlite3.connect(live.store.root / "data" / "registry.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    live.send(made(100, 4, [MINUTE], start=100))
    until(lambda: live.online(["counts:total"], 4)["total"] == [sum(range(user, 200, 4)) for user in range(4)])
    lock.execute("ROLLBACK")
    lock.close()
    live.send(made(100, 4, [MINUTE], start=200))
    until(lambda: live.caught_up() and status(live)["events"] == 300)
    close(live, 4, 300)


def test_a_stream_goes_on_while_postgres_is_away(tmp_path: Path, kafka_server: KafkaServer) -> None:
    server = PostgresServer().start()
    try:
        live = opened(tmp_path / "repo", kafka_server, registry=server.database("fresh"))
        live.send(made(100, 4, [MINUTE]))
        live.work()
        until(live.caught_up)
        online, latest = live.store.online_store, latest_table(live.store.serving.views["latest"])
        server.stop()
        live.send(made(100, 4, [MINUTE], start=100))

        def newest() -> object:
            row = online.read([(latest, [(0,)])])[0][0]
            return row.values[0] if isinstance(row, Row) else None

        until(lambda: newest() == 100)
        server.start()
        live.send(made(100, 4, [MINUTE], start=200))
        until(lambda: live.caught_up() and status(live)["events"] == 300 and status(live)["error"] is None)
        close(live, 4, 300)
    finally:
        server.close()


def test_a_worker_whose_clock_jumps(tmp_path: Path, kafka_server: KafkaServer) -> None:
    """Back, it takes for the future what others sent; forth, tiles go too soon, which a bootstrap brings back."""
    live = opened(tmp_path / "repo", kafka_server)
    real, off = time.time_ns() // 1000, 0
    ranges, sent = {0: (0, 1 << 40)}, 0
    task = StreamTask(live.store, "clicks", "w", clock=lambda: time.time_ns() // 1000 + off)
    start = task.assigned(TopicId("t", "1"), ranges, [0])[0]

    def take(*ages: int) -> list[tuple[int, str]]:
        nonlocal sent, start
        values = []
        for age in ages:
            row = {"id": sent, "user_id": 0, "x": sent, "at": to_datetime(real - age + sent).isoformat()}
            values.append(json.dumps(row).encode())
            sent += 1
        bad = task.handle(Messages.of(values, start=start, produced=time.time_ns() // 1000))
        start += len(values)
        return list(bad)

    assert take(2 * MINUTE, 3 * DAY) == []
    off = -5 * MINUTE
    assert take(2 * MINUTE, MINUTE) == []
    off = -HOUR
    ((at, reason),) = take(3 * HOUR, MINUTE)
    assert at == 1 and "lies in the future" in reason
    off = 6 * DAY
    assert take(2 * MINUTE) == []
    off = 0
    assert take(2 * MINUTE) == []
    task.close()
    assert live.streams.bootstrap("counts", again=True) > 0
    found, past = live.online(FEATURES, 1), live.history(FEATURES, 1)
    assert found == {name: past[name] for name in found}
    assert found["n"] == [5] and found["total"] == [sum(range(sent)) - 5]
    live.store.close()
