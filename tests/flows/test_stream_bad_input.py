"""Streams among what producers, topics and people do to them: nothing is skipped silently, nothing counts twice."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions

from feature_store.errors import InvalidInputError
from feature_store.expressions.instants import DAY, HOUR, MINUTE, SECOND, to_datetime
from tests.flows.broken import fs
from tests.live import FEATURES, SOURCE, VIEWS, Live, made, repository, until
from tests.servers import KafkaServer

pytestmark = pytest.mark.timeout(300)


def status(live: Live) -> dict[str, Any]:
    (found,) = json.loads(live.fs("stream", "status", "--json"))
    assert isinstance(found, dict)
    return found


def counted(live: Live, **wanted: Any) -> None:
    """Until the status counts so many: workers say so a moment after what they took is landed."""
    until(lambda: live.caught_up() and wanted.items() <= status(live).items(), 240)


def totals(live: Live, users: int) -> list[Any]:
    """The sums of x by user online, which history agrees with once everything is landed."""
    live.stop()
    found, past = live.online(FEATURES, users), live.history(FEATURES, users)
    assert found == {name: past[name] for name in found}
    return list(found["total"])


def event(**values: Any) -> bytes:
    return json.dumps({"id": 1, "user_id": 0, "x": 1, "at": event_time(), **values}).encode()


def event_time() -> str:
    return to_datetime(time.time_ns() // 1000 - MINUTE).isoformat()


# What producers send


def test_each_bad_message_is_a_dead_letter_and_the_others_count(tmp_path: Path, kafka_server: KafkaServer) -> None:
    topic = kafka_server.topic(1, **{"max.message.bytes": "4000000"})
    live = Live(repository(tmp_path, kafka_server, topic), kafka_server, topic)
    ahead = to_datetime(time.time_ns() // 1000 + DAY).isoformat()
    noise = random.Random(3).randbytes(2_000_000)
    bad: dict[bytes, str] = {
        b"not JSON": "not JSON",
        b"": "it is empty",
        b"\xff\xfe\x00": "not JSON",
        b"[" * 2000: "depth limit",
        b"[]": "it is a list",
        b'"text"': "it is a text",
        b"null": "it is null",
        event(user_id="0"): 'column "user_id": "0" is not an INT64',
        event(x=1.5): 'column "x": 1.5 is not an INT64',
        event(x=2**64): 'column "x"',
        event(x=[1]): 'column "x": [1] is not an INT64',
        event(at=None): 'column "at" is null: an event has a time',
        event(at="soon"): 'column "at": "soon" is not a TIMESTAMP',
        event(at=ahead): "lies in the future. Check the sender's clock",
        event(at="1969-12-31T00:00:00Z"): "is outside the years",
        event(x=2**62): 'feature view "latest"',
        event(x="a" * 900_000): 'column "x": "aaa',
        event(x="deep").replace(b'"deep"', b"[" * 1000 + b"]" * 1000): "too large to show, is not an INT64",
        noise: "not JSON",
    }
    good: list[bytes | None] = [event(x=n) for n in range(100)]
    others = [None, event(user_id=None), event(x=None), event(more=1)]
    sent = [*good, *bad, *others]
    random.Random(4).shuffle(sent)
    producer = kafka_server.producer(**{"message.max.bytes": 4_000_000})
    for value in sent:
        producer.produce(topic, value, b"key of " + (value or b"")[:20], 0)
    assert producer.flush(60) == 0
    live.work()
    counted(live, bad=len(bad), events=len(good) + len(others) - 1, error=None)
    letters = kafka_server.messages(f"{topic}.dead-letters")
    for letter in letters:
        headers = {name: text.decode() for name, text in letter.headers()}
        value = sent[int(headers["offset"])]
        assert value is not None and bad.pop(value) in headers["reason"] and len(headers["reason"]) < 1000
        assert letter.key() == b"key of " + value[:20] and (headers["topic"], headers["partition"]) == (topic, "0")
        if value is noise:
            assert letter.value() is None and "2000000 bytes" in headers["left_out"]
        else:
            assert letter.value() == value
    assert not bad
    assert totals(live, 1) == [sum(range(100)) + 1]
    assert live.store.offline_store.read("stream/clicks").num_rows == len(good) + len(others) - 1
    live.store.close()


def test_a_sum_that_is_too_large_stops_nothing_and_comes_back(tmp_path: Path, kafka_server: KafkaServer) -> None:
    """Of decimals, whose state could be as large as Arrow takes: within a batch, and over several."""
    topic = kafka_server.topic(1)
    live = Live(repository(tmp_path, kafka_server, topic), kafka_server, topic)
    (tmp_path / "views.yaml").write_text(DECIMALS.format(topic=topic, engine="kafka"))
    live.store.apply(allow_destructive=True)
    features, most = ["sums:total", "sums:middle"], 6 * 10**19

    def send(*amounts: int) -> None:
        live.send([{"id": 1, "user_id": 0, "x": str(x), "at": event_time()} for x in amounts])
        until(live.caught_up)

    live.work()
    send(1)
    send(most, most)
    send(most)
    live.stop()
    for read in (live.online, live.history):
        with pytest.raises(InvalidInputError, match='the sum of "total" does not fit'):
            read(features, 1)
    live.work()
    send(-most, -most, -1)
    live.stop()
    assert status(live)["bad"] == 0
    expected = {"user_id": [0], "total": [Decimal(most)], "middle": [most / 7]}
    found, past = live.online(features, 1), live.history(features, 1)
    assert found == {name: past[name] for name in found} == expected
    live.streams.want("clicks", False)
    live.streams.bootstrap("sums", again=True)
    assert live.online(features, 1) == expected
    live.store.close()


DECIMALS = (
    SOURCE.replace("x, type: INT64", 'x, type: "DECIMAL(38,18)"')
    + """feature_view:
  name: sums
  entities: [user]
  source: clicks
  aggregations:
    - {{name: total, function: sum, column: x, window: 7d}}
    - {{name: middle, function: mean, column: x, window: 7d}}
"""
)


def test_a_flood_of_late_events_is_kept_offline_alone(live: Live) -> None:
    count, long_ago = 1_000_000, time.time_ns() // 1000 - 30 * DAY
    live.send(made(10, 2, [MINUTE]))
    producer = kafka_producer(live)
    times = [to_datetime(long_ago - number).isoformat().encode() for number in range(997)]
    for number in range(count):
        late = b'{"id": %d, "user_id": %d, "x": 1, "at": "%b"}' % (number, number % 1000, times[number % 997])
        producer.produce(live.topic, late)
        producer.poll(0)
    assert producer.flush(60) == 0
    live.send(made(10, 2, [MINUTE], start=10))
    live.work()
    counted(live, events=count + 20, late=count, bad=0)
    live.stop()
    assert live.store.offline_store.read("stream/clicks").num_rows == count + 20
    assert live.online(["counts:total"], 3)["total"] == [sum(range(0, 20, 2)), sum(range(1, 20, 2)), None]


def test_a_producer_whose_clock_is_ahead_hides_nothing(tmp_path: Path, kafka_server: KafkaServer) -> None:
    """Its messages say they were written tomorrow, which the worker's clock does not believe."""
    topic = kafka_server.topic(1, **{"message.timestamp.after.max.ms": str(2**62)})
    live = Live(repository(tmp_path, kafka_server, topic), kafka_server, topic)
    now, producer = time.time_ns() // 1000, kafka_producer(live)

    def send(written: int, at: int) -> None:
        value = json.dumps({"id": 1, "user_id": 0, "x": 1, "at": to_datetime(at).isoformat()})
        producer.produce(live.topic, value.encode(), b"0", timestamp=written // 1000)

    send(now + DAY, now + DAY)
    send(now + DAY, now - MINUTE)
    send(now - DAY, now - MINUTE)  # it was written yesterday, so it was not made today
    send(now, now + 9 * MINUTE)
    send(now, now + 20 * MINUTE)
    send(1000 * 2**62, now - MINUTE)  # it was written when no microseconds count any more
    assert producer.flush(30) == 0
    live.work()
    counted(live, events=3, bad=3)
    assert live.online(["counts:n"], 1)["n"] == [2]
    live.stop()
    live.store.close()


def kafka_producer(live: Live) -> Any:
    return live.kafka.producer(**{"queue.buffering.max.messages": 1_000_000, "linger.ms": 20})


# What becomes of topics


def test_messages_that_retention_took_are_counted_as_lost(live: Live) -> None:
    live.send(made(40, 2, [MINUTE]))
    live.work()
    until(live.caught_up)
    live.stop()
    live.send(made(60, 2, [MINUTE], start=40))
    admin, ends = live.kafka.client(), live.store.topic("clicks").ranges()
    gone = [TopicPartition(live.topic, partition, end - 10) for partition, (_, end) in ends.items() if end >= 30]
    for deleted in admin.delete_records(gone).values():
        deleted.result(30)
    live.work()
    until(live.caught_up)
    live.send(made(10, 2, [MINUTE], start=100))
    counted(live, lost=60 - 10 * len(gone), events=50 + 10 * len(gone), error=None)
    live.stop()
    rows = live.store.offline_store.read("stream/clicks").column("id").to_pylist()
    assert len(rows) == 50 + 10 * len(gone) and set(range(40)) | set(range(100, 110)) <= set(rows)
    assert sum(totals(live, 2)) == sum(rows)


def made_anew(live: Live) -> None:
    live.kafka.delete(live.topic)
    live.kafka.topic(2, live.topic)


@pytest.mark.parametrize("running", [True, False])
def test_a_topic_that_was_made_anew_is_not_read_until_someone_says_where(live: Live, running: bool) -> None:
    live.send(made(50, 2, [MINUTE]))
    live.work()
    until(live.caught_up)
    if not running:
        live.stop()
    made_anew(live)
    live.send(made(200, 2, [MINUTE], start=1000))  # more than the old one had: offsets alone do not tell
    if running:
        workers = live.store.registry.streams.workers
        until(lambda: all("is another one than source" in str(worker.error) for worker in workers("clicks")))
        live.stop()
    line = fs(live.store.root, "stream", "start", "clicks", code=1)
    assert f'topic "{live.topic}" is another one than source "clicks" has read' in line
    assert "fs stream start clicks --from earliest" in line
    live.streams.check("clicks", "earliest")
    live.work()
    until(live.caught_up)
    sums = [sum(range(user, 50, 2)) + sum(range(1000 + user, 1200, 2)) for user in range(2)]
    assert totals(live, 2) == sums


def test_a_topic_that_goes_away_while_it_is_read_is_said_and_waited_for(live: Live) -> None:
    live.send(made(10, 2, [MINUTE]))
    live.work()
    until(live.caught_up)
    live.kafka.delete(live.topic)
    until(lambda: f'there is no topic "{live.topic}"' in str(status(live)["error"]))
    assert status(live)["state"] == "failing"


def test_a_source_that_moves_to_another_topic_reads_all_of_both(live: Live) -> None:
    """Offsets of one are not those of the other, and coming back goes on where it was."""
    first, second = live.topic, live.kafka.topic(3)
    live.send(made(100, 4, [MINUTE, 2 * HOUR]))
    live.work()
    until(live.caught_up)
    for turn, topic in enumerate((second, first, second)):
        live.topic = topic
        start = 100 * (turn + 1)
        live.send(made(100, 4, [MINUTE, 2 * HOUR], start=start))
        (live.store.root / "views.yaml").write_text(VIEWS.format(topic=topic, engine="kafka"))
        live.store.apply()
        until(lambda wanted=topic: status(live)["topic"] == wanted and live.caught_up())
        live.send(made(10, 4, [MINUTE], start=1000 + 10 * turn))
        until(live.caught_up)
    assert totals(live, 4) == [sum(n for n in [*range(400), *range(1000, 1030)] if n % 4 == user) for user in range(4)]


def test_latest_leaves_out_what_is_there_at_the_start_and_no_partition_that_comes_later(live: Live) -> None:
    live.send(made(20, 2, [MINUTE]))
    live.streams.check("clicks", "latest")
    live.streams.want("clicks", True, "latest")
    live.send(made(20, 2, [MINUTE], start=100))
    live.work()
    until(live.caught_up)
    admin = live.kafka.client()
    admin.create_partitions([NewPartitions(live.topic, 4)])[live.topic].result(30)
    producer = kafka_producer(live)
    for partition in range(4):
        until(lambda here=partition: here in producer.list_topics(live.topic, timeout=10).topics[live.topic].partitions)
        producer.produce(live.topic, event(x=1000), b"0", partition)
    assert producer.flush(60) == 0
    until(lambda: status(live)["events"] == 24)
    assert totals(live, 2) == [sum(range(100, 120, 2)) + 4000, sum(range(101, 120, 2))]


# What people change meanwhile


MORE = """
---
feature_view:
  name: day
  entities: [user]
  source: clicks
  aggregations:
    - {name: seen, function: count, window: 1d}
"""


def test_definitions_change_while_it_runs(live: Live) -> None:
    views, plain = live.store.root / "views.yaml", VIEWS.format(topic=live.topic, engine="kafka")
    sent = 0

    def more() -> None:
        nonlocal sent
        live.send(made(40, 2, [MINUTE], start=sent))
        sent += 40
        until(live.caught_up)

    live.work()
    more()
    more()
    views.write_text(plain + MORE)
    live.store.apply()
    more()
    live.streams.bootstrap("day")
    assert live.online(["day:seen"], 2)["seen"] == [60, 60]
    views.write_text(plain)
    live.store.apply(allow_destructive=True)
    more()
    # Whole numbers become fractions, for which the log of the stream has no room.
    views.write_text(
        plain.replace("x, type: INT64", "x, type: FLOAT64").replace("twice, type: INT64", "twice, type: FLOAT64")
    )
    for command in ("plan", "apply"):
        line = fs(live.store.root, command, code=1)
        assert 'source "clicks": column "x" is FLOAT64, and int64 in the log of its stream' in line
    views.write_text(plain)
    live.store.apply(allow_destructive=True)
    more()
    for view in ("counts", "latest"):
        live.streams.bootstrap(view)
    counted(live, error=None, bad=0)
    assert totals(live, 2) == [sum(range(0, sent, 2)), sum(range(1, sent, 2))]


def test_a_source_that_is_removed_is_said_by_its_worker_and_can_be_stopped(live: Live) -> None:
    live.send(made(10, 2, [MINUTE]))
    worker = live.process()
    try:
        until(lambda: live.streams.status(["clicks"])[0]["workers"] == 1 and live.caught_up())
        views = live.store.root / "views.yaml"
        written = views.read_text()
        views.write_text(written.partition("---")[0])
        live.store.apply(allow_destructive=True)
        until(lambda: 'no source "clicks"' in str(status(live)["error"]))
        assert worker.poll() is None
        views.write_text(written)
        live.store.apply()
        live.send(made(10, 2, [MINUTE], start=10))
        until(lambda: status(live)["error"] is None and live.caught_up())
        views.write_text(written.partition("---")[0])
        live.store.apply(allow_destructive=True)
        assert "The stream of clicks has ended." in live.fs("stream", "stop", "clicks")
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()


def test_a_stream_without_a_time_is_refused_with_its_place(live: Live) -> None:
    views = live.store.root / "views.yaml"
    views.write_text(views.read_text().replace("  timestamp: at\n", ""))
    line = fs(live.store.root, "apply", code=2)
    assert "views.yaml:" in line and "timestamp" in line


# Workers


def test_workers_join_and_leave_under_load(live: Live) -> None:
    """More of them than partitions, which grow in number meanwhile."""
    first, sent = live.work(), 0

    def more(count: int = 300) -> None:
        nonlocal sent
        live.send(made(count, 10, [MINUTE, 2 * HOUR], start=sent))
        sent += count

    more()
    for _ in range(3):
        live.work()
        more()
    until(lambda: status(live)["workers"] == 4)
    first.set()
    more()
    admin = live.kafka.client()
    admin.create_partitions([NewPartitions(live.topic, 5)])[live.topic].result(30)
    for _ in range(3):
        more()
    live.work()
    more()
    until(lambda: len(live.store.topic("clicks").ranges()) == 5 and live.caught_up(), 90)
    found = status(live)
    assert (found["bad"], found["lost"], found["late"]) == (0, 0, 0)
    assert totals(live, 10) == [sum(range(user, sent, 10)) for user in range(10)]
    kept = live.store.offline_store.read("stream/clicks").column("id").to_pylist()
    assert Counter(kept) == Counter(range(sent))


def test_a_worker_that_was_killed_is_forgotten(live: Live) -> None:
    worker = live.process()
    until(lambda: status(live)["workers"] == 1)
    worker.kill()
    worker.wait()
    live.send(made(10, 2, [MINUTE]))
    live.work()
    until(live.caught_up)
    streams = live.store.registry.streams
    assert len(streams.workers("clicks")) == 2
    streams.sweep("clicks", 5 * SECOND)
    until(lambda: [streams.sweep("clicks", 5 * SECOND), len(streams.workers("clicks")) == 1][1])


# Commands


def test_commands_on_what_runs_does_not_run_or_is_not_there(live: Live) -> None:
    root, views = live.store.root, live.store.root / "views.yaml"
    views.write_text(views.read_text() + FILES.format(folder=root))
    (root / "rows.csv").write_text("user_id,y,at\n1,2,2024-01-01T00:00:00Z\n")
    live.store.apply()
    assert "has ended" in fs(root, "stream", "stop")
    for command in ("start", "stop", "status"):
        assert 'no feature view "nobody"' in fs(root, "stream", command, "nobody", code=1)
        line = fs(root, "stream", command, "still", code=1)
        assert 'source "files" reads no topic. Write in its definition stream: {kafka: {topic: NAME}}' in line
    assert (status(live)["state"], status(live)["workers"], status(live)["lag_events"]) == ("stopped", 0, 0)
    assert status(live)["lag_seconds"] == 0
    before = time.time()
    live.send(made(10, 2, [MINUTE]))
    after = time.time()
    assert status(live)["lag_events"] == 10
    until(lambda: time.time() > after + 1)
    assert time.time() - after - 1 < status(live)["lag_seconds"] < time.time() - before + 0.001
    try:
        assert "runs as process" in fs(root, "stream", "start", "counts")
        assert "runs already" in fs(root, "stream", "start", "clicks", "latest")
        until(live.caught_up)
        assert status(live)["workers"] == 1
        views.write_text(views.read_text().replace("engine: kafka", "engine: flink"))
        live.store.apply()
        line = fs(root, "stream", "start", code=1)
        assert 'the stream of "clicks" runs with engine kafka, and is to run with flink now' in line
    finally:
        fs(root, "stream", "stop")
    assert (status(live)["state"], status(live)["workers"], status(live)["lag_events"]) == ("stopped", 0, 0)
    assert live.store.registry.streams.workers("clicks") == []


FILES = """
---
source: {{name: files, path: {folder}/rows.csv, timestamp: at}}
---
feature_view: {{name: still, entities: [user], source: files, features: [{{name: y, type: INT64}}]}}
"""
