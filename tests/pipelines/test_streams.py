"""Streams from a real Kafka, by a consumer group: what is posted is read online, and is what history computes."""

from __future__ import annotations

import json
import time
from uuid import uuid4

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from feature_store.errors import InvalidInputError
from feature_store.expressions.instants import DAY, HOUR, MINUTE, to_datetime
from feature_store.materialization.stream_log import StreamLog
from feature_store.pipelines.stream_task import StreamTask
from tests.live import FEATURES, VIEWS, Event, Live, made, until

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
    (live.store.root / "views.yaml").write_text(VIEWS.format(topic=live.topic, engine="kafka") + MORE)
    live.store.apply()
    live.send(made(300, 3, [2 * MINUTE, 5 * HOUR], start=600))
    assert live.streams.bootstrap("day") > 0
    live.send(made(300, 3, [3 * MINUTE, 5 * HOUR], start=900))
    until(live.caught_up)
    assert live.online(["day:seen", "day:most"], 3) == {
        "user_id": [0, 1, 2], "seen": [400] * 3, "most": [1197, 1198, 1199]
    }  # fmt: skip


def test_what_is_online_of_a_view_is_dropped_while_its_stream_does_not_run_only(live: Live) -> None:
    live.send(made(300, 3, [MINUTE]))
    live.work()
    until(live.caught_up)
    with pytest.raises(InvalidInputError, match=r'"clicks" runs: .*"counts" cannot be dropped.*fs stream stop clicks'):
        live.streams.bootstrap("counts", again=True)
    live.streams.stop("clicks")
    live.streams.bootstrap("counts", again=True)
    live.work()
    live.send(made(30, 3, [MINUTE], start=300))
    until(live.caught_up)
    assert live.online(["counts:n"], 3)["n"] == [110] * 3


def transact(live: Live, events: list[Event], commit: bool) -> None:
    """Write events in one transaction."""
    producer = live.kafka.producer(**{"transactional.id": uuid4().hex})
    producer.init_transactions(30)
    producer.begin_transaction()
    for event in events:
        producer.produce(live.topic, json.dumps(event), str(event["user_id"]))
    assert producer.flush(30) == 0
    (producer.commit_transaction if commit else producer.abort_transaction)(30)


def lag(live: Live) -> tuple[int, float]:
    (status,) = live.streams.status(["clicks"])
    return status["lag_events"], status["lag_seconds"]


def test_what_transactions_leave_behind_does_not_wait(live: Live) -> None:
    live.work()
    transact(live, made(50, 5, [MINUTE]), commit=True)
    until(lambda: live.online(["counts:n"], 5)["n"] == [10] * 5)
    until(live.caught_up)
    transact(live, made(50, 5, [MINUTE], start=50), commit=False)
    assert lag(live) == (0, 0.0)
    live.stop()
    assert lag(live) == (0, 0.0)
    transact(live, made(50, 5, [MINUTE], start=100), commit=True)
    waiting, seconds = lag(live)
    assert waiting >= 50 and seconds is not None
    live.work()
    until(lambda: lag(live) == (0, 0.0))
    assert live.online(["counts:n"], 5)["n"] == [20] * 5


def test_messages_of_an_open_transaction_do_not_wait_yet(live: Live) -> None:
    live.send(made(10, 2, [MINUTE]))
    live.work()
    until(live.caught_up)
    producer = live.kafka.producer(**{"transactional.id": uuid4().hex})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(live.topic, json.dumps(made(1, 1, [MINUTE])[0]))
    assert producer.flush(30) == 0
    assert lag(live) == (0, 0.0)
    producer.commit_transaction(30)
    until(lambda: live.online(["counts:n"], 2)["n"] == [6, 5])


def test_batch_does_not_wait_for_what_transactions_leave_behind(live: Live) -> None:
    """A view that is new while the stream is wanted, and no worker says where it begins."""
    live.work()
    transact(live, made(50, 5, [MINUTE]), commit=True)
    transact(live, made(50, 5, [MINUTE], start=50), commit=False)
    until(lambda: live.online(["counts:n"], 5)["n"] == [10] * 5)
    live.stop()
    (live.store.root / "views.yaml").write_text(VIEWS.format(topic=live.topic, engine="kafka") + MORE)
    live.store.apply()
    assert live.streams.bootstrap("day") > 0
    assert live.online(["day:seen"], 5)["seen"] == [10] * 5


def test_what_workers_counted_is_shown_when_they_have_ended(live: Live) -> None:
    late = {"user_id": 0, "x": 1, "at": to_datetime(time.time_ns() // 1000 - 30 * DAY).isoformat()}

    def counted() -> tuple[int, int, int]:
        (status,) = live.streams.status(["clicks"])
        return status["events"], status["late"], status["bad"]

    for run in (1, 2):
        live.work()
        live.send([*made(10, 2, [MINUTE]), late, b"not JSON"])
        until(live.caught_up)
        live.stop()
        assert counted() == (11 * run, run, run)
    live.streams.stop("clicks")
    assert counted() == (22, 2, 2)


def test_what_a_topic_does_not_hold_any_more_is_counted_as_lost(live: Live) -> None:
    """By a worker that an engine starts behind it, as Flink does."""
    live.send(made(30, 1, [MINUTE]))
    topic = live.store.topic("clicks")
    (partition,) = [part for part, (_, end) in topic.ranges().items() if end]
    log, schema = StreamLog(live.store.offline_store, "clicks"), live.store.catalog.rows["clicks"].schema
    log.meet(schema, topic.identity, {0: 0, 1: 0})
    admin = AdminClient({"bootstrap.servers": live.kafka.url})
    for done in admin.delete_records([TopicPartition(live.topic, partition, 10)]).values():
        done.result()
    (message,) = topic.read(partition, 29, 30)
    task = StreamTask(live.store, "clicks", "worker", topic=topic.identity, read=topic.read)
    task.handle(message)
    until(lambda: [worker.lost for worker in live.store.registry.streams.workers("clicks")] == [10])
    task.close()
    assert live.online(["counts:n"], 1)["n"] == [20]
