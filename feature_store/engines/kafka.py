"""Kafka: a consumer group that feeds a handler, and what there is in a topic."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from feature_store.engines.streams import Bad, Member, Messages, TopicId
from feature_store.errors import FeatureStoreError, MissingExtraError, SourceError, StoreUnavailableError

try:
    from confluent_kafka import (
        TIMESTAMP_NOT_AVAILABLE,
        Consumer,
        IsolationLevel,
        KafkaError,
        KafkaException,
        Producer,
        TopicCollection,
        TopicPartition,
    )
    from confluent_kafka.admin import AclOperation, AdminClient, OffsetSpec  # type: ignore[attr-defined]
    from confluent_kafka.cimpl import NewTopic
except ImportError as error:
    raise MissingExtraError("kafka", "a stream from Kafka") from error

TIMEOUT_S = 10.0
"""How long one answer of the brokers may take."""

QUIET_S = 0.1
"""A topic that was made anew is quiet for so long first, unless much waits in the queue of the one before."""

_BATCH = 5_000
_GATHER_S = 0.005
"""Once there is a message, how long others are waited for that can share its round trips."""
_LOOK_EVERY_S = 1.0
_OLDEST_S = 2.0
_RETRY_S = (0.2, 10.0)


@dataclass(frozen=True)
class Topic:
    """A topic at its brokers. `conf` are librdkafka's options, such as for security."""

    name: str
    brokers: str
    conf: Mapping[str, str] = field(default_factory=dict)

    def ranges(self) -> dict[int, tuple[int, int]]:
        """The offsets that each partition holds, from (the first) to (behind the last that may be read)."""
        partitions = [TopicPartition(self.name, number) for number in range(self.check())]
        places: Any = OffsetSpec
        with self._failures():
            asked = [
                self._admin.list_offsets(dict.fromkeys(partitions, place), isolation_level=self._isolation)
                for place in (places.earliest(), places.latest())
            ]
            first, end = ({p.partition: of.result(TIMEOUT_S).offset for p, of in each.items()} for each in asked)
        return {partition: (first[partition], end[partition]) for partition in sorted(first)}

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

    def oldest(self, ranges: Mapping[int, tuple[int, int]]) -> dict[int, int | None]:
        """When the first message of each range of offsets, from (the first) to (behind the last), was written, by
        partition, in microseconds; None where none was read in time. A range without one is left out: such as hold only
        what transactions left behind, a marker for each."""
        few = {"auto.offset.reset": "earliest", "queued.min.messages": 1, "fetch.message.max.bytes": 65_536}
        found: dict[int, int | None] = dict.fromkeys(ranges)
        open_, until = set(ranges), time.monotonic() + _OLDEST_S
        with self._failures(), closing(self._consumer("none", **few)) as consumer:
            consumer.assign([TopicPartition(self.name, partition, start) for partition, (start, _) in ranges.items()])
            while open_ and time.monotonic() < until:
                for message in self._good(consumer.consume(100, 0.1)):
                    partition = message.partition()
                    if partition in open_ and message.offset() < ranges[partition][1]:
                        found[partition] = int(_messages([message]).produced[0])
                        open_.discard(partition)
                for at in consumer.position([TopicPartition(self.name, partition) for partition in open_]):
                    if at.offset >= ranges[at.partition][1]:
                        del found[at.partition]
                        open_.discard(at.partition)
        return found

    def create(self, partitions: int) -> None:
        """Make the topic, unless it is there, as the brokers' defaults say; `SourceError` if it may not be written."""
        with self._failures():
            try:
                self._admin.create_topics([NewTopic(self.name, partitions)])[self.name].result(TIMEOUT_S)
            except KafkaException as error:
                code = error.args[0].code()
                if code != KafkaError.TOPIC_ALREADY_EXISTS and (code not in _NO_RIGHTS or not self._exists):
                    raise
        self._refuse(self._made, AclOperation.WRITE, "written")

    def check(self) -> int:
        """The number of partitions; `SourceError` if the topic is not there or may not be read."""
        found = self._found
        self._refuse(found, AclOperation.READ, "read")
        return len(found.partitions)

    def check_group(self, group: str) -> None:
        """`SourceError` if the consumer group may not be used."""
        with self._failures():
            asked = self._admin.describe_consumer_groups([group], include_authorized_operations=True)
            self._refuse(asked[group].result(TIMEOUT_S), AclOperation.READ, f'read as group "{group}"')

    @property
    def identity(self) -> TopicId:
        """Which topic it is now; `SourceError` if there is none of the name."""
        return TopicId(self.name, str(self._found.topic_id or ""))

    def __str__(self) -> str:
        return f'topic "{self.name}" at {self.brokers}'

    @property
    def _found(self) -> Any:
        """The topic as its brokers describe it."""
        with self._failures():
            asked = self._admin.describe_topics(TopicCollection([self.name]), include_authorized_operations=True)
            return asked[self.name].result(TIMEOUT_S)

    @property
    def _made(self) -> Any:
        """The same of a topic that was just made: not every broker knows it at once."""
        until = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return self._found
            except SourceError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    @property
    def _exists(self) -> bool:
        return self.name in self._admin.list_topics(timeout=TIMEOUT_S).topics

    def _refuse(self, described: Any, operation: AclOperation, what: str) -> None:
        """An error where brokers say what is allowed, and that this is not."""
        allowed = described.authorized_operations
        if allowed and operation not in allowed:
            raise SourceError(f"{self} may not be {what}", hint=_GRANT)

    @property
    def _reason(self) -> KafkaError | None:
        """Why there is no answer, as far as the driver told: a call that runs out of time does not say."""
        self._admin.poll(0)
        told = [error for error in self._told if error.code() != KafkaError._ALL_BROKERS_DOWN]
        self._told.clear()
        return next((error for error in told if error.code() in _NO_RIGHTS), told[-1] if told else None)

    @cached_property
    def _admin(self) -> AdminClient:
        options = {"socket.timeout.ms": int(TIMEOUT_S * 1000), "error_cb": self._told.append}
        return AdminClient(self._options() | options)

    @cached_property
    def _told(self) -> deque[KafkaError]:
        return deque(maxlen=10)

    @property
    def _isolation(self) -> IsolationLevel:
        """Whether messages of open transactions are read; unless the options say so, they wait."""
        uncommitted = self.conf.get("isolation.level") == "read_uncommitted"
        return IsolationLevel.READ_UNCOMMITTED if uncommitted else IsolationLevel.READ_COMMITTED

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
        except TimeoutError as error:
            raise self._failure(KafkaError(KafkaError._TIMED_OUT)) from error

    def _failure(self, error: KafkaError) -> FeatureStoreError:
        if error.code() in _NO_ANSWER:
            error = self._reason or error
        code = error.code()
        if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION):
            return SourceError(
                f'there is no topic "{self.name}" at {self.brokers}', hint="Create it, or check its name"
            )
        if code in _NO_RIGHTS:
            return SourceError(f"{self} may not be used: {error.str()}", hint=_GRANT)
        if code in (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET):
            return SourceError(f"{self}: messages that were to be read are gone", hint="Keep them longer: retention.ms")
        hint = "Check that the brokers run, and kafka: in feature_store.yaml"
        return StoreUnavailableError(f"{self} cannot be read now: {error.str()}", hint=hint)


_GRANT = (
    "Check the user and the password of kafka: in feature_store.yaml, and grant the user READ of the topic and of the "
    "group, WRITE of the topic for dead letters"
)
_NO_ANSWER = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
_NO_RIGHTS = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
)


class DeadLetters:
    """Messages that could not be taken, as they came, in a topic of their own; headers say why and where they were. One
    that is too large for that topic is shortened until it is not, and says so."""

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
                self._producer = Producer(self._topic._options() | _DURABLE)
            for letter in self._produce([self._letter(messages, at, reason) for at, reason in bad]):
                self._produce_shortened(letter)

    def _letter(self, messages: Messages, at: int, reason: str) -> _Letter:
        headers = {
            "reason": _cut(reason, _LONGEST_REASON),
            "topic": self._source.name,
            "partition": str(int(messages.partitions[at])),
            "offset": str(int(messages.offsets[at])),
            "timestamp": str(int(messages.produced[at]) // 1000),  # as the letter's own, brokers may refuse it
        }
        return _Letter(messages.keys[at], messages.values[at], headers)

    def _produce_shortened(self, letter: _Letter) -> None:
        """Write it as long as it may be. Alone: what was too large may have been several together. A topic that does
        not take the shortest letter takes none, and is no reason to stop; the message is counted as bad anyhow."""
        for each in (letter, letter.without_value, letter.shortest):
            if not self._produce([each]):
                return

    def _produce(self, letters: Sequence[_Letter]) -> list[_Letter]:
        """Write letters; those that are too large."""
        failed: list[tuple[_Letter, KafkaError]] = []

        def told(letter: _Letter) -> Callable[[KafkaError | None, Any], None]:
            return lambda error, _: failed.append((letter, error)) if error else None

        for letter in letters:
            self._put(letter, told(letter))
        left = self._producer.flush(TIMEOUT_S + 1)
        for _, error in failed:
            if error.code() not in _TOO_LARGE:
                raise KafkaException(error)
        if left:
            raise StoreUnavailableError(f"{self._topic}: {left} bad messages were not acknowledged")
        return [letter for letter, _ in failed]

    def _put(self, letter: _Letter, told: Callable[[KafkaError | None, Any], None]) -> None:
        """Into the producer's queue: where that is full, once something of it is written, or has failed."""
        headers = [(name, text.encode(errors="replace")) for name, text in letter.headers.items()]
        while True:
            try:
                self._producer.produce(self._topic.name, letter.value, letter.key, headers=headers, on_delivery=told)
            except BufferError:
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return


@dataclass(frozen=True)
class _Letter:
    """A message that could not be taken, and what is told of it; the header `left_out` says what is not there."""

    key: bytes | None
    value: bytes | None
    headers: Mapping[str, str]

    @property
    def without_value(self) -> _Letter:
        return replace(self, value=None, headers={**self.headers, "left_out": f"{self._value_left_out}, {_TOO_MUCH}"})

    @property
    def shortest(self) -> _Letter:
        """Less than a kilobyte, which any topic takes."""
        parts, headers = [self._value_left_out], dict(self.headers)
        if len(self.key or b"") > _SHORT:
            parts.append(f"a key of {len(self.key or b'')} bytes but for the first {_SHORT}")
        if len(headers["reason"]) > _SHORT:
            parts.append("the end of the reason")
            headers["reason"] = _cut(headers["reason"], _SHORT)
        headers["left_out"] = f"{', '.join(parts)}, {_TOO_MUCH}"
        return _Letter(self.key and self.key[:_SHORT], None, headers)

    @property
    def _value_left_out(self) -> str:
        return f"a value of {len(self.value or b'')} bytes"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


_LONGEST_REASON, _SHORT = 1000, 100
_TOO_MUCH = "more than this topic takes"
_TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
_DURABLE = {
    "acks": "all",
    "enable.idempotence": True,
    "delivery.timeout.ms": int(TIMEOUT_S * 1000),
    "compression.type": "lz4",
    "message.max.bytes": 1_000_000_000,  # what is too large is for the topic to say
    "queue.buffering.max.kbytes": 2_000_000,
}


class ConsumerGroup:
    """Feeds a handler with the partitions that fall to this member of a group, until it is told to stop.

    Where to begin is the handler's to say: it knows what it has stored. Offsets are committed for those who look.
    `topics` says what is to be read, which may change, and where its dead letters go.
    """

    def __init__(self, topics: Callable[[], tuple[Topic, Topic]], group: str, handler: Member) -> None:
        self._topics, self._group, self._handler = topics, group, handler

    def run(self, stop: threading.Event, failing: Callable[[FeatureStoreError | None], None]) -> None:
        """Read until `stop` is set. What goes wrong is told to `failing`, and tried again; None: it works again."""
        pause = _RETRY_S[0]
        while not stop.is_set():
            began = time.monotonic()
            try:
                _Membership(self._topics, self._group, self._handler).read(stop, failing)
            except FeatureStoreError as error:
                failing(error)
                pause = _RETRY_S[0] if time.monotonic() - began > _RETRY_S[1] else min(2 * pause, _RETRY_S[1])
                stop.wait(pause)


class _Membership:
    """One membership in a group, as long as the topics are the same and nothing fails."""

    def __init__(self, topics: Callable[[], tuple[Topic, Topic]], group: str, handler: Member) -> None:
        self._topics, self._handler = topics, handler
        self._topic, dead_letters = self._began = topics()
        self._dead_letters = DeadLetters(dead_letters, self._topic)
        self._topic.check()
        self._identity = self._topic.identity
        self._consumer = self._topic._consumer(group)
        self._mine: set[int] = set()
        self._moved: dict[int, int] = {}
        self._errors: list[FeatureStoreError] = []

    def read(self, stop: threading.Event, failing: Callable[[FeatureStoreError | None], None]) -> None:
        """Read until `stop` is set, or something fails."""
        with self._topic._failures():
            try:
                self._consumer.subscribe([self._topic.name], self._assigned, self._revoked, self._lost)
                self._loop(stop, failing)
            finally:
                self._consumer.close()
        if self._errors:
            raise self._errors[0]

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keeps what a callback raises, which the driver would only print."""
        try:
            yield
        except FeatureStoreError as error:
            self._errors.append(error)

    def _assigned(self, _: Any, given: list[Any]) -> None:
        with self._kept(), self._topic._failures():
            partitions = [each.partition for each in given]
            starts = self._handler.assigned(self._identity, self._topic.ranges(), partitions)
            self._consumer.incremental_assign([TopicPartition(self._topic.name, p, at) for p, at in starts.items()])
            self._mine.update(starts)

    def _revoked(self, _: Any, given: list[Any], lost: bool = False) -> None:
        partitions = [each.partition for each in given]
        with self._kept():
            self._handler.revoked(partitions, lost)
        if not lost:
            with self._kept(), self._topic._failures():
                self._commit()  # closing waits for it
        self._mine.difference_update(partitions)
        with self._kept(), self._topic._failures():
            self._consumer.incremental_unassign(given)

    def _lost(self, consumer: Any, given: list[Any]) -> None:
        self._revoked(consumer, given, lost=True)

    def _loop(self, stop: threading.Event, failing: Callable[[FeatureStoreError | None], None]) -> None:
        looked = heard = time.monotonic()
        while not stop.is_set():
            found = self._consumer.consume(1, 0.2)
            if found:
                found += self._consumer.consume(_BATCH, _GATHER_S)
            if self._errors:  # first: what the driver says then follows from it
                raise self._errors[0]
            found, now = self._good(found), time.monotonic()
            suspect = found and (now - heard > QUIET_S or len(found) > _BATCH)
            if suspect or now - looked > _LOOK_EVERY_S:
                looked = now
                self._look()  # before what was found is taken
                self._commit()
            if found:
                heard = now
                messages = _messages([message for message in found if message.partition() in self._mine])
                self._handler.handle(messages, self._dead_letters.send)
                self._moved |= messages.nexts
            if self._mine:
                failing(None)

    def _look(self) -> None:
        """An error where the topic is another one now: by the definition, or made anew, which the driver would read on
        at the old offsets."""
        with suppress(StoreUnavailableError):  # while the registry is away, it goes on
            if (now := self._topics()) != self._began:
                raise SourceError(f"{now[0]} is to be read now, and dead letters go to {now[1]}")
        if self._topic.identity != self._identity:
            raise SourceError(f"{self._topic} was deleted, and another one made of the same name")

    def _commit(self) -> None:
        held = [TopicPartition(self._topic.name, p, at) for p, at in self._moved.items() if p in self._mine]
        self._moved.clear()
        if held:
            self._consumer.commit(offsets=held, asynchronous=True)

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


def _written(message: Any) -> int:
    """When a message was written, in milliseconds; topics of old brokers do not say, then it is now."""
    kind, at = message.timestamp()
    return time.time_ns() // 1_000_000 if kind == TIMESTAMP_NOT_AVAILABLE else int(at)


def _messages(found: list[Any]) -> Messages:
    """Messages by partition, each in the order of its offsets."""
    found.sort(key=lambda message: message.partition())
    return Messages(
        np.fromiter((message.partition() for message in found), np.int64, len(found)),
        np.fromiter((message.offset() for message in found), np.int64, len(found)),
        Messages.written(np.fromiter((_written(message) for message in found), np.int64, len(found))),
        [message.key() for message in found],
        [message.value() for message in found],
    )
