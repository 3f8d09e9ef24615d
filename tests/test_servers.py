"""The servers that other tests rely on keep what they acknowledged, and come back where they were."""

from __future__ import annotations

import signal

import pytest
from confluent_kafka import KafkaError

from tests.servers import KafkaServer


def values(server: KafkaServer, topic: str) -> list[bytes | None]:
    return sorted(message.value() for message in server.messages(topic))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_kafka_has_what_it_acknowledged_after_it_ended(kafka_server: KafkaServer, number: int) -> None:
    topic = kafka_server.topic(3)
    kafka_server.produce(topic, [b"%d" % each for each in range(1000)])
    kafka_server.stop(number)
    url = kafka_server.url
    kafka_server.start()
    assert kafka_server.url == url
    kafka_server.produce(topic, [b"after"])
    assert values(kafka_server, topic) == sorted([b"after", *(b"%d" % each for each in range(1000))])


def test_kafka_that_hangs_takes_messages_when_it_goes_on(kafka_server: KafkaServer, kafka_topic: str) -> None:
    producer = kafka_server.producer()
    kafka_server.pause(True)
    producer.produce(kafka_topic, b"late")
    waiting = producer.flush(0.5)
    kafka_server.pause(False)
    assert waiting == 1
    assert producer.flush(60) == 0
    assert values(kafka_server, kafka_topic) == [b"late"]


def test_messages_of_a_key_come_in_order_from_one_partition(kafka_server: KafkaServer, kafka_topic: str) -> None:
    for key in (b"a", b"b"):
        kafka_server.produce(kafka_topic, [key + b"%d" % each for each in range(5)], key)
    found = kafka_server.messages(kafka_topic)
    for key in (b"a", b"b"):
        assert [each.value() for each in found if each.key() == key] == [key + b"%d" % each for each in range(5)]
        assert len({each.partition() for each in found if each.key() == key}) == 1


def test_kafka_makes_no_topic_by_itself(kafka_server: KafkaServer) -> None:
    topics = kafka_server.client().list_topics("nobody_made_it", timeout=30).topics
    assert topics["nobody_made_it"].error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
