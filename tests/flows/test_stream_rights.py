"""Streams that may not, or cannot, read their topic: said in one line, within seconds, and put right while they run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from feature_store.expressions.instants import MINUTE
from tests.flows.broken import error_of, fs, start
from tests.live import Live, made, repository, until
from tests.servers import SecureKafka, free_port

GROUP = "feature_store.p.clicks"
BOUNDED_S = 40
"""Far more than any of these takes, on a busy machine too: a command that hangs is what is looked for."""


@pytest.fixture(scope="module")
def kafka() -> Iterator[SecureKafka]:
    server = SecureKafka().start()
    yield server
    server.close()


@pytest.fixture
def live(tmp_path: Path, kafka: SecureKafka) -> Iterator[Live]:
    topic = kafka.topic(1)
    store = repository(tmp_path, kafka, topic, settings={"kafka": place(kafka)})
    live = Live(store, kafka, topic)
    yield live
    live.stop()
    store.close()
    kafka.grant("group", GROUP)


def place(kafka: SecureKafka, **conf: Any) -> dict[str, Any]:
    return {"brokers": kafka.secure_url, "conf": {**kafka.secure_conf, "session.timeout.ms": 6000, **conf}}


def refused(live: Live) -> str:
    """What `fs stream start` says where it cannot."""
    began = time.monotonic()
    said = fs(live.store.root, "stream", "start", "clicks", code=1)
    assert time.monotonic() - began < BOUNDED_S
    assert live.streams.status(["clicks"])[0]["state"] == "stopped"
    return said


def test_a_topic_that_is_not_there(live: Live) -> None:
    live.kafka.delete(live.topic)
    assert f'there is no topic "{live.topic}" at {live.kafka.secure_url}. Create it' in refused(live)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "granted", "said"),
    [
        ("topic", ["describe"], "may not be read. Check the user"),
        ("topic", ["alter"], "may not be"),
        ("group", ["describe"], 'may not be read as group "feature_store.p.clicks"'),
        ("group", ["delete"], 'may not be read as group "feature_store.p.clicks"'),
        ("dead letters", ["read"], "may not be written"),
    ],
)
def test_rights_that_lack_are_said_at_the_start(
    live: Live, kafka: SecureKafka, kind: str, granted: list[str], said: str
) -> None:
    letters = f"{live.topic}.dead-letters"
    if kind == "dead letters":
        kafka.topic(1, letters)
    name = {"topic": live.topic, "group": GROUP, "dead letters": letters}[kind]
    kafka.grant("group" if kind == "group" else "topic", name, *granted)
    line = refused(live)
    assert said in line and "grant the user READ of the topic" in line


def test_brokers_that_do_not_answer_or_let_in(live: Live, kafka: SecureKafka) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    places = {
        "brokers": place(kafka) | {"brokers": nobody},
        "password": place(kafka, **{"sasl.password": "guessed"}),
        "certificate": place(kafka, **{"ssl.ca.location": kafka.secure_conf["ssl.certificate.location"]}),
    }
    written = yaml.safe_load((live.store.root / "feature_store.yaml").read_text())
    began, processes = time.monotonic(), {}
    for wrong, settings in places.items():
        file = live.store.root / f"{wrong}.yaml"
        file.write_text(yaml.safe_dump(written | {"kafka": settings}))
        processes[wrong] = start(live.store.root, "-f", str(file), "stream", "start", "clicks")
    lines = {}
    for wrong, process in processes.items():
        lines[wrong] = error_of(process.communicate(timeout=BOUNDED_S)[1])
        assert process.returncode == 1
    assert time.monotonic() - began < BOUNDED_S
    assert nobody in lines["brokers"] and "Check that the brokers run" in lines["brokers"]
    assert "Authentication failed" in lines["password"] and "Check the user and the password" in lines["password"]
    assert "certificate verify failed" in lines["certificate"]


def test_rights_that_are_taken_while_it_runs_stop_it_until_they_are_given(live: Live, kafka: SecureKafka) -> None:
    def said() -> str:
        return str(live.streams.status(["clicks"])[0]["error"])

    live.send(made(10, 2, [MINUTE]))
    live.work()
    until(live.caught_up)
    kafka.grant("topic", live.topic, "describe")
    live.send(made(10, 2, [MINUTE], start=10))
    until(lambda: "may not be" in said())
    kafka.grant("topic", live.topic)
    until(live.caught_up)
    letters = f"{live.topic}.dead-letters"
    kafka.topic(1, letters)
    kafka.grant("topic", letters, "describe")
    live.send([b"no event", *made(10, 2, [MINUTE], start=20)])
    until(lambda: letters in said())
    kafka.grant("topic", letters)
    until(live.caught_up)
    assert [message.value() for message in kafka.messages(letters)] == [b"no event"]
    live.stop()
    assert live.online(["counts:total"], 2)["total"] == [sum(range(0, 30, 2)), sum(range(1, 30, 2))]
