"""Messages as others write them, from a topic through a worker into what is read online and what history says: Avro of
several schemas, and the changes of a database's table."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from feature_store import FeatureStore
from feature_store.expressions.instants import DAY, HOUR, SECOND, to_datetime
from tests.live import Live, until
from tests.messages import record, record_schema
from tests.servers import KafkaServer, SchemaServer

pytestmark = pytest.mark.timeout(400)

USERS = 4
StreamEngine = tuple[str, dict[str, Any]]


def opened(root: Path, kafka: KafkaServer, engine: StreamEngine, definitions: str, **place: Any) -> Live:
    """A repository of these definitions, whose topic and engine stand for {topic} and {engine}; its stream runs."""
    topic, (name, settings) = kafka.topic(2), engine
    written = {"project": "p", "kafka": {"brokers": kafka.url, **place}, **settings}
    (root / "feature_store.yaml").write_text(yaml.safe_dump(written))
    (root / "views.yaml").write_text(definitions.replace("{topic}", topic).replace("{engine}", name))
    store = FeatureStore(root)
    store.apply()
    live = Live(store, kafka, topic)
    live.fs("stream", "start")
    return live


def status(live: Live) -> dict[str, Any]:
    (found,) = live.streams.status(["clicks"])
    return found


# Avro


MICROS = {"type": "long", "logicalType": "timestamp-micros"}
FIRST = record_schema(id="long", user_id="long", x="int", at=MICROS)
SECOND_ONE = record_schema(id="long", user_id="long", x="long", at=MICROS, country="string")
SECOND_ONE["fields"][-1]["default"] = "nowhere"
CLICKS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source:
  name: clicks
  timestamp: at
  columns:
    - {name: id, type: INT64}
    - {name: user_id, type: INT64}
    - {name: x, type: INT64}
    - {name: country, type: STRING}
    - {name: at, type: TIMESTAMP}
  stream: {engine: {engine}, kafka: {topic: {topic}, format: avro, avro_schema: schemas/click.avsc, KIND}}
---
feature_view:
  name: counts
  entities: [user]
  source: clicks
  aggregations:
    - {name: total, function: sum, column: x, window: 7d}
    - {name: strays, function: count, where: "country = 'nowhere'", window: 7d}
---
feature_view:
  name: latest
  entities: [user]
  source: clicks
  features: [{name: x, type: INT64}, {name: country, type: STRING}]
"""
OF_CLICKS = ["counts:total", "counts:strays", "latest:x", "latest:country"]


def clicks(start: int, count: int, countries: list[str]) -> list[dict[str, Any]]:
    """Each newer than those before it, so that the last of a user is what it has."""
    now = time.time_ns() // 1000
    return [
        {"id": n, "user_id": n % USERS, "x": n, "at": to_datetime(now - DAY + n), "country": countries[n % 3]}
        for n in range(start, start + count)
    ]


def check_clicks(live: Live, sent: list[dict[str, Any]]) -> None:
    """Online, in history and in the log every click is what was sent."""
    live.fs("stream", "stop")
    of_user = [[each for each in sent if each["user_id"] == user] for user in range(USERS)]
    found, past = live.online(OF_CLICKS, USERS), live.history(OF_CLICKS, USERS)
    assert found == {
        "user_id": [*range(USERS)],
        "total": [sum(each["x"] for each in mine) for mine in of_user],
        "strays": [sum(each["country"] == "nowhere" for each in mine) for mine in of_user],
        "x": [mine[-1]["x"] for mine in of_user],
        "country": [mine[-1]["country"] for mine in of_user],
    }
    assert found == {name: past[name] for name in found}
    log = live.store.offline_store.read("stream/clicks").select(["id", "x", "country"]).sort_by("id").to_pylist()
    assert log == [{name: each[name] for name in ("id", "x", "country")} for each in sent]
    live.store.close()


def send(live: Live, messages: list[bytes | None], keys: list[bytes | None]) -> None:
    live.kafka.produce(live.topic, messages, keys)


def keys_of(events: list[dict[str, Any]]) -> list[bytes | None]:
    return [str(each["user_id"]).encode() for each in events]


def test_avro_of_two_schemas_of_a_registry_and_a_time_without_it(
    tmp_path: Path, kafka_server: KafkaServer, stream_engine: StreamEngine, schema_server: SchemaServer
) -> None:
    """A field came with a default, which older records take; while the registry is down, new records wait."""
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "click.avsc").write_text(json.dumps(SECOND_ONE))
    schema_server.schemas["/schemas/ids/7"] = {"schema": json.dumps(FIRST)}
    text = CLICKS.replace("KIND", "schema_registry: true")
    place = {"schema_registry": f"http://{schema_server.address}"}
    live = opened(tmp_path, kafka_server, stream_engine, text, **place)
    sent: list[dict[str, Any]] = []

    def more(count: int, *ids: int) -> None:
        made = clicks(len(sent), count, ["de", "cn", "nowhere"])
        messages: list[bytes | None] = []
        for each in made:
            of = ids[each["id"] % len(ids)]
            messages.append(record(FIRST if of == 7 else SECOND_ONE, each, b"\0" + of.to_bytes(4, "big")))
            each["country"] = "nowhere" if of == 7 else each["country"]
        send(live, messages, keys_of(made))
        sent.extend(made)

    try:
        more(200, 7)
        until(live.caught_up)
        schema_server.broken = (503, b"")
        schema_server.schemas["/schemas/ids/70000"] = {"schema": json.dumps(SECOND_ONE)}
        more(200, 70000)
        until(lambda: "503 Service Unavailable" in str(status(live)["error"]))
        assert status(live)["lag_events"] > 0 and status(live)["bad"] == 0
        schema_server.broken = None
        more(200, 7, 70000, 70000)
        unknown = record(SECOND_ONE, sent[0], b"\0\0\0\0\x09")
        short = record(FIRST, sent[0], b"\0\0\0\0\x07")[:-1]
        send(live, [unknown, short], [b"0", b"1"])
        until(lambda: live.caught_up() and status(live)["bad"] == 2)
        check_clicks(live, sent)
    finally:
        live.fs("stream", "stop")
    letters = {dict(each.headers())["reason"].decode(): each.value() for each in letters_of(live)}
    assert letters == {
        f"the schema registry at http://{schema_server.address} has no /schemas/ids/9": unknown,
        "schema 7: it is no record of its schema: it ends too early": short,
    }


def letters_of(live: Live) -> list[Any]:
    return live.kafka.messages(f"{live.topic}.dead-letters")


def test_bare_avro_of_a_schema_in_a_file(
    tmp_path: Path, kafka_server: KafkaServer, stream_engine: StreamEngine
) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "click.avsc").write_text(json.dumps(SECOND_ONE))
    live = opened(tmp_path, kafka_server, stream_engine, CLICKS.replace("KIND", "schema_registry: false"))
    sent = clicks(0, 300, ["de", "cn", "nowhere"])
    odd = record(SECOND_ONE, sent[0]) + b"\0"
    try:
        send(live, [record(SECOND_ONE, each) for each in sent], keys_of(sent))
        send(live, [odd], [b"0"])
        until(lambda: live.caught_up() and status(live)["bad"] == 1)
        check_clicks(live, sent)
    finally:
        live.fs("stream", "stop")
    assert [each.value() for each in letters_of(live)] == [odd]


# Changes of a table


ACCOUNTS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source:
  name: clicks
  timestamp: __source_ts_ms
  deleted: __deleted
  columns:
    - {name: user_id, type: INT64}
    - {name: country, type: STRING}
    - {name: points, type: INT64}
    - {name: __deleted, type: BOOL}
    - {name: __source_ts_ms, type: TIMESTAMP}
  stream: {engine: {engine}, kafka: {topic: {topic}, envelope: debezium}}
---
feature_view:
  name: profile
  entities: [user]
  source: clicks
  features:
    - {name: country, type: STRING}
    - {name: double, type: INT64, expression: "points * 2"}
"""
OF_ACCOUNTS = ["profile:country", "profile:double"]
Rows = dict[int, dict[str, Any]]


class Table:
    """A table of a database, and what Debezium tells of its changes: `past` has how it was from when on."""

    def __init__(self, seed: int) -> None:
        self._chance, self._at = random.Random(seed), time.time_ns() // 1000 // SECOND * SECOND - HOUR
        self._rows: Rows = {}
        self.past: list[tuple[int, Rows]] = [(0, {})]
        self.told: list[tuple[bytes, bytes | None]] = []

    def change(self, count: int) -> list[tuple[bytes, bytes | None]]:
        """Insert, update and delete rows; the messages, by their keys."""
        begin = len(self.told)
        for _ in range(count):
            self._at += SECOND
            user = self._chance.randrange(3 * USERS)
            before = self._rows.get(user)
            gone = before is not None and self._chance.random() < 0.4
            points = self._chance.randrange(1000)
            after = None if gone else {"user_id": user, "country": self._chance.choice("abc"), "points": points}
            self._rows = {key: row for key, row in self._rows.items() if key != user} | ({user: after} if after else {})
            self.past.append((self._at, self._rows))
            op = "d" if gone else "u" if before else "c"
            told = {"before": before, "after": after, "op": op, "source": {"ts_ms": self._at // 1000}}
            key = str(user).encode()
            whole = {"schema": {"type": "struct"}, "payload": told} if self._chance.random() < 0.5 else told
            self.told.append((key, json.dumps(whole).encode()))
            if gone:
                self.told.append((key, None))  # so that compaction forgets the key
        return self.told[begin:]

    def answers(self, at: int) -> dict[str, list[Any]]:
        """What every user has at an instant."""
        rows = next(rows for since, rows in reversed(self.past) if since <= at)
        mine = [rows.get(user) for user in range(3 * USERS)]
        return {
            "country": [row and row["country"] for row in mine],
            "double": [row and row["points"] * 2 for row in mine],
        }


def test_the_changes_of_a_table_are_seen_online_and_in_history(
    tmp_path: Path, kafka_server: KafkaServer, stream_engine: StreamEngine
) -> None:
    """The connector starts again in between, and tells once more what it had told last."""
    live, table = opened(tmp_path, kafka_server, stream_engine, ACCOUNTS), Table(5)
    users = 3 * USERS

    def tell(told: list[tuple[bytes, bytes | None]]) -> None:
        send(live, [value for _, value in told], [key for key, _ in told])
        until(live.caught_up)
        found = live.online(OF_ACCOUNTS, users)
        assert found == {"user_id": [*range(users)]} | table.answers(table.past[-1][0])

    try:
        tell(table.change(150))
        tell(table.told[-120:])
        tell(table.change(150))
        tell([table.told[-1]] if table.told[-1][1] else table.told[-2:])
        assert status(live)["bad"] == 0
    finally:
        live.fs("stream", "stop")
    if stream_engine[0] == "kafka":
        assert live.committed() == {partition: end for partition, end in live.ends().items() if end}
    assert letters_of(live) == []
    now = time.time_ns() // 1000
    assert live.online(OF_ACCOUNTS, users) == {"user_id": [*range(users)]} | table.answers(now)
    times = [at + off for at, _ in table.past[1:] for off in (-1, 0)] + [now]
    asked = {
        "user_id": [*range(users)] * len(times),
        "event_timestamp": [to_datetime(at) for at in times for _ in range(users)],
    }
    past = live.store.get_historical_features(pa.table(asked), OF_ACCOUNTS).to_arrow()
    answers = [table.answers(at) for at in times]
    for name in ("country", "double"):
        assert past[name].to_pylist() == [value for answer in answers for value in answer[name]]
    live.store.close()
