"""Kafka: a consumer group that feeds a handler, and what there is in a topic."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from feature_store.engines.streams import Bad, Handler, Messages
from feature_store.errors import FeatureStoreError, MissingExtraError, SourceError, StoreUnavailableError

try:
    from confluent_kafka import (
        TIMESTAMP_NOT_AVAILABLE,
        Consumer,
        KafkaError,
        KafkaException,
        Producer,
        TopicPartition,
    )
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic
except ImportError as error:
    raise MissingExtraError("kafka", "a stream from Kafka") from error

TIMEOUT_S = 10.0
"""How long one answer of the brokers may take."""

_BATCH = 5_000
_GATHER_S = 0.005
"""Once there is a message, how long others are waited for that can share its round trips."""
_COMMIT_EVERY_S = 1.0
_RETRY_S = (0.2, 10.0)


@dataclass(frozen=True)
class Topic:
    """A topic at its brokers. `conf` are librdkafka's options, such as for security."""

    name: str
    brokers: str
    conf: Mapping[str, str] = field(default_factory=dict)

    def ranges(self, partitions: Sequence[int] | None = None) -> dict[int, tuple[int, int]]:
        """The offsets that each partition holds, from (the first) to (behind the last)."""
        with self._failures(), closing(self._consumer("none")) as consumer:
            if partitions is None:
                partitions = self._partitions(consumer)
            return {p: consumer.get_watermark_offsets(TopicPartition(self.name, p), TIMEOUT_S) for p in partitions}

    def read(self, partition: int, start: int, end: int) -> Iterator[Messages]:
        """The messages of a partition with start <= offset < end that are still there."""
        with self._failures(), closing(self._consumer("none")) as consumer:
            first, _ = consumer.get_watermark_offsets(TopicPartition(self.name, partition), TIMEOUT_S)
            start = max(start, first)
            consumer.assign([TopicPartition(self.name, partition, start)])
            heard = time.monotonic()
            while start < end:
                found = self._good(consumer.consume(min(_BATCH, end - start), 0.1))
                if found:
                    heard, start = time.monotonic(), found[-1].offset() + 1
                    yield _messages([message for message in found if message.offset() < end])
                    continue
                # What transactions and compaction leave behind has no message: the position moves past it.
                (at,) = consumer.position([TopicPartition(self.name, partition)])
                start = max(start, at.offset)
                if time.monotonic() - heard > TIMEOUT_S:
                    raise StoreUnavailableError(f"{self}: nothing came from partition {partition} at offset {start}")

    def create(self, partitions: int) -> None:
        """Make the topic, unless it is there, as the brokers' defaults say."""
        admin = AdminClient(self._options() | {"socket.timeout.ms": int(TIMEOUT_S * 1000)})
        with self._failures():
            if self.name in admin.list_topics(timeout=TIMEOUT_S).topics:
                return
            try:
                admin.create_topics([NewTopic(self.name, partitions)])[self.name].result(TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise

    def check(self) -> int:
        """The number of partitions; `SourceError` if the topic is not there or may not be read."""
        with self._failures(), closing(self._consumer("none")) as consumer:
            return len(self._partitions(consumer))

    def __str__(self) -> str:
        return f'topic "{self.name}" at {self.brokers}'

    def _partitions(self, consumer: Any) -> list[int]:
        found = consumer.list_topics(self.name, timeout=TIMEOUT_S).topics[self.name]
        if found.error is not None:
            raise KafkaException(found.error)
        return sorted(found.partitions)

    def _options(self) -> dict[str, Any]:
        return {**self.conf, "bootstrap.servers": self.brokers, "log_level": 0}

    def _consumer(self, group: str, **more: Any) -> Any:
        options = {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 50,
            "session.timeout.ms": 10_000,
            "partition.assignment.strategy": "cooperative-sticky",
            "topic.metadata.refresh.interval.ms": 10_000,
            "allow.auto.create.topics": False,
        }
        return Consumer({**options, **self._options(), "group.id": group, **more})

    def _good(self, found: list[Any]) -> list[Any]:
        for message in found:
            if message.error() is not None:
                raise KafkaException(message.error())
        return found

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns the driver's errors into ours."""
        try:
            yield
        except KafkaException as error:
            raise self._failure(error.args[0]) from error

    def _failure(self, error: KafkaError) -> FeatureStoreError:
        code = error.code()
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
            return SourceError(
                f'there is no topic "{self.name}" at {self.brokers}', hint="Create it, or check its name"
            )
        if code in _NO_RIGHTS:
            hint = "Grant the user of kafka: in feature_store.yaml the right to read the topic and to use the group"
            return SourceError(f"{self} may not be used: {error.str()}", hint=hint)
        if code in (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET):
            return SourceError(f"{self}: messages that were to be read are gone", hint="Keep them longer: retention.ms")
        hint = "Check that the brokers run, and kafka: in feature_store.yaml"
        return StoreUnavailableError(f"{self} cannot be read now: {error.str()}", hint=hint)


_NO_RIGHTS = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
)


class DeadLetters:
    """Messages that could not be taken, as they came, in a topic of their own; headers say why and where they were."""

    def __init__(self, topic: Topic, source: Topic) -> None:
        self._topic, self._source = topic, source
        self._producer: Any = None

    def send(self, messages: Messages, bad: Bad) -> None:
        """Write bad messages; acknowledged when it returns. `StoreUnavailableError` if they are not."""
        if not bad:
            return
        with self._topic._failures():
            if self._producer is None:
                self._topic.create(self._source.check())
                limit = {"acks": "all", "enable.idempotence": True, "delivery.timeout.ms": int(TIMEOUT_S * 1000)}
                self._producer = Producer(self._topic._options() | limit)
            failed: list[KafkaError] = []
            for at, reason in bad:
                self._producer.produce(
                    self._topic.name,
                    messages.values[at],
                    messages.keys[at],
                    headers=[
                        ("reason", reason.encode()),
                        ("topic", self._source.name.encode()),
                        ("partition", str(int(messages.partitions[at])).encode()),
                        ("offset", str(int(messages.offsets[at])).encode()),
                    ],
                    timestamp=int(messages.produced[at]) // 1000,
                    on_delivery=lambda error, _: failed.append(error) if error else None,
                )
            left = self._producer.flush(TIMEOUT_S + 1)
            if failed:
                raise KafkaException(failed[0])
        if left:
            raise StoreUnavailableError(f"{self._topic}: {left} bad messages were not acknowledged")


class ConsumerGroup:
    """Feeds a handler with the partitions that fall to this member of a group, until it is told to stop.

    Where to begin is the handler's to say: it knows what it has stored. Offsets are committed for those who look.
    """

    def __init__(self, topic: Topic, group: str, dead_letters: Topic, handler: Handler) -> None:
        self._topic, self._group, self._handler = topic, group, handler
        self._dead_letters = DeadLetters(dead_letters, topic)

    def run(self, stop: threading.Event, failing: Callable[[FeatureStoreError | None], None]) -> None:
        """Read until `stop` is set. What goes wrong is told to `failing`, and tried again; None: it works again."""
        pause = _RETRY_S[0]
        while not stop.is_set():
            began = time.monotonic()
            try:
                self._topic.check()
                self._read(stop, failing)
            except FeatureStoreError as error:
                failing(error)
                pause = _RETRY_S[0] if time.monotonic() - began > _RETRY_S[1] else min(2 * pause, _RETRY_S[1])
                stop.wait(pause)

    def _read(self, stop: threading.Event, failing: Callable[[FeatureStoreError | None], None]) -> None:
        errors: list[FeatureStoreError] = []
        consumer = self._topic._consumer(self._group)
        mine: set[int] = set()

        def guarded(work: Callable[[], None]) -> None:
            try:  # what a callback raises the driver would only print
                work()
            except FeatureStoreError as error:
                errors.append(error)

        def assigned(_: Any, given: list[Any]) -> None:
            def begin() -> None:
                starts = self._handler.assigned(self._topic.ranges([each.partition for each in given]))
                consumer.incremental_assign([TopicPartition(self._topic.name, p, at) for p, at in starts.items()])
                mine.update(starts)

            guarded(begin)

        def revoked(_: Any, given: list[Any], lost: bool = False) -> None:
            partitions = [each.partition for each in given]
            guarded(lambda: self._handler.revoked(partitions, lost))
            mine.difference_update(partitions)
            with self._topic._failures():
                consumer.incremental_unassign(given)

        with self._topic._failures():
            try:
                consumer.subscribe([self._topic.name], assigned, revoked, lambda c, given: revoked(c, given, True))
                self._loop(consumer, stop, failing, errors, mine)
            finally:
                consumer.close()
        if errors:
            raise errors[0]

    def _loop(
        self,
        consumer: Any,
        stop: threading.Event,
        failing: Callable[[FeatureStoreError | None], None],
        errors: list[FeatureStoreError],
        mine: set[int],
    ) -> None:
        committed = time.monotonic()
        moved: dict[int, int] = {}
        while not stop.is_set():
            found = self._good(consumer.consume(1, 0.2))
            if errors:
                raise errors[0]
            if found:
                found += self._good(consumer.consume(_BATCH, _GATHER_S))
                messages = _messages([message for message in found if message.partition() in mine])
                bad = self._handler.handle(messages)
                self._dead_letters.send(messages, bad)
                moved |= messages.nexts
            if mine:
                failing(None)
            if time.monotonic() - committed > _COMMIT_EVERY_S:
                committed = time.monotonic()
                self._handler.seen({p: self._end(consumer, p) for p in mine})
                held = [TopicPartition(self._topic.name, p, at) for p, at in moved.items() if p in mine]
                moved.clear()
                if held:
                    consumer.commit(offsets=held, asynchronous=True)

    def _end(self, consumer: Any, partition: int) -> int:
        _, high = consumer.get_watermark_offsets(TopicPartition(self._topic.name, partition), cached=True)
        return int(high)

    def _good(self, found: list[Any]) -> list[Any]:
        """Messages without the events that are none; what can only be waited for is left to the driver."""
        good = []
        for message in found:
            error = message.error()
            if error is None:
                good.append(message)
            elif error.code() not in (KafkaError._PARTITION_EOF,) and (error.fatal() or not error.retriable()):
                raise KafkaException(error)
        return good


def _produced(message: Any) -> int:
    """When a message was written, in microseconds; topics of old brokers do not say, then it is now."""
    kind, at = message.timestamp()
    return time.time_ns() // 1000 if kind == TIMESTAMP_NOT_AVAILABLE else int(at) * 1000


def _messages(found: list[Any]) -> Messages:
    """Messages by partition, each in the order of its offsets."""
    found.sort(key=lambda message: message.partition())
    return Messages(
        np.fromiter((message.partition() for message in found), np.int64, len(found)),
        np.fromiter((message.offset() for message in found), np.int64, len(found)),
        np.fromiter((_produced(message) for message in found), np.int64, len(found)),
        [message.key() for message in found],
        [message.value() for message in found],
    )
