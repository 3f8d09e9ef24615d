"""Dead letters: whatever a message holds, it gets one that its topic takes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from feature_store.engines.kafka import DeadLetters, Topic
from feature_store.engines.streams import Messages
from tests.servers import KafkaServer

noise = random.Random(3).randbytes
"""Bytes that no compression shortens."""


def rejected(
    kafka: KafkaServer, most: int, keys: Sequence[bytes | None], values: Sequence[bytes], reason: str, **conf: str
) -> list[tuple[bytes | None, bytes | None, dict[str, str]]]:
    """The letters of messages, in order, in a topic that takes no more bytes than `most` at once."""
    source = Topic(kafka.topic(1), kafka.url)
    letters = Topic(kafka.topic(1, **{"max.message.bytes": str(most)}), kafka.url, conf)
    messages = replace(Messages.of(values), keys=keys)
    DeadLetters(letters, source).send(messages, [(at, reason) for at in range(len(values))])
    found = [
        (letter.key(), letter.value(), {name: text.decode() for name, text in letter.headers()})
        for letter in kafka.messages(letters.name)
    ]
    return sorted(found, key=lambda letter: int(letter[2]["offset"]))


def test_a_letter_is_as_long_as_its_topic_takes(kafka_server: KafkaServer) -> None:
    key, value = noise(50), noise(500)
    kept, without_value, shortest, without_key = rejected(
        kafka_server, 1200, [key, key, noise(3000), None], [value, noise(3000), value, noise(3000)], "it is \u00e9 odd"
    )
    assert kept[:2] == (key, value)
    assert "left_out" not in kept[2]
    assert without_value[:2] == (key, None)
    assert without_value[2]["left_out"] == "a value of 3000 bytes, more than this topic takes"
    assert len(shortest[0] or b"") == 100
    left_out = "a value of 500 bytes, a key of 3000 bytes but for the first 100, more than this topic takes"
    assert shortest[2]["left_out"] == left_out
    assert without_key[:2] == (None, None)
    assert {letter[2]["reason"] for letter in (kept, without_value, shortest, without_key)} == {"it is \u00e9 odd"}


@pytest.mark.parametrize("size", [10_000, 10_000_000])
def test_a_reason_of_any_length_is_cut(kafka_server: KafkaServer, size: int) -> None:
    reason = noise(size // 2).hex()
    [(_, value, headers)] = rejected(kafka_server, 2000, [None], [b"v"], reason)
    assert (value, headers["reason"]) == (b"v", f"{reason[:997]}...")
    [(_, value, headers)] = rejected(kafka_server, 800, [None], [b"v"], reason)
    assert (value, headers["reason"]) == (None, f"{reason[:97]}...")
    assert headers["left_out"] == "a value of 1 bytes, the end of the reason, more than this topic takes"


def test_letters_that_are_too_large_together_are_whole_each(kafka_server: KafkaServer) -> None:
    values = [noise(500) for _ in range(100)]
    found = rejected(kafka_server, 1000, [None] * 100, values, "odd")
    assert [value for _, value, _ in found] == values
    assert not any("left_out" in headers for _, _, headers in found)


def test_more_letters_than_a_producer_holds(kafka_server: KafkaServer) -> None:
    values = [b"%d" % at for at in range(50)]
    conf = {"queue.buffering.max.messages": "3"}
    assert [value for _, value, _ in rejected(kafka_server, 10_000, [None] * 50, values, "odd", **conf)] == values


def test_a_topic_that_takes_no_letter_stops_nothing(kafka_server: KafkaServer) -> None:
    assert rejected(kafka_server, 100, [b"k"], [b"v"], "odd") == []
