"""A Kafka broker of its own."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from tests.jars import jars
from tests.servers.certificates import make_certificates
from tests.servers.processes import JavaProcess, free_port


class KafkaServer:
    """A Kafka broker that is its own controller. It can be stopped, killed and started again at the same port with the
    same data, and made to hang.
    """

    def __init__(self) -> None:
        self.port, self._controller = free_port(), free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="fs-kafka-"))
        (self._folder / "log4j2.properties").write_text(_LOG)
        lines = [f"{name}={value}" for name, value in self.settings().items()]
        (self._folder / "server.properties").write_text("\n".join(lines))
        self._broker = self._java("kafka.Kafka", "server.properties", heap=160)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> KafkaServer:
        """Start what is not running; returns when a message can be produced and consumed."""
        if not (self._folder / "data").exists():
            self._format()
        if not self._broker.alive:
            self._broker.start()
        self.wait()
        return self

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it, by default at once; what was acknowledged is on disk."""
        self._broker.stop(number)

    def pause(self, paused: bool) -> None:
        """Let it hang, or go on."""
        self._broker.pause(paused)

    def close(self, keep: bool = False) -> None:
        """End it; `keep` leaves logs and data where they are."""
        self.stop()
        if not keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def wait(self) -> None:
        """Until a message can be produced and consumed."""
        deadline = time.monotonic() + 90
        while not self._works():
            if time.monotonic() > deadline:
                self.close(keep=True)
                raise RuntimeError(f"Kafka did not answer within 90 s. Its log is in {self._folder}")
            time.sleep(0.05)

    def client(self) -> AdminClient:
        """What manages topics and groups. Keep it in a variable until its futures are done."""
        return AdminClient({"bootstrap.servers": self.url, "log_level": 0})

    def topic(self, partitions: int = 1, name: str | None = None, **config: str) -> str:
        """The name of a new topic."""
        name = name or f"t{uuid4().hex[:12]}"
        admin = self.client()
        admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(30)
        return name

    def delete(self, topic: str) -> None:
        """Delete a topic; one of its name can be made when this returns."""
        admin = self.client()
        admin.delete_topics([topic])[topic].result(30)
        while topic in admin.list_topics(timeout=10).topics:
            time.sleep(0.05)

    def producer(self, **config: object) -> Producer:
        """One that loses nothing and sends nothing twice."""
        return Producer({"bootstrap.servers": self.url, "log_level": 0, "enable.idempotence": True} | config)

    def produce(
        self, topic: str, values: Sequence[bytes | None], key: bytes | Sequence[bytes | None] | None = None
    ) -> None:
        """Messages of that key, or each of its own; returns when they are acknowledged. Without a key they go to any
        partition."""
        producer = self.producer()
        keys = [key] * len(values) if key is None or isinstance(key, bytes) else key
        for value, each in zip(values, keys, strict=True):
            producer.produce(topic, value, each)
            producer.poll(0)
        if left := producer.flush(60):
            raise RuntimeError(f"{left} messages were not acknowledged within 60 s")

    def messages(self, topic: str) -> list[Message]:
        """All messages of a topic, partition by partition."""
        with closing(self._consumer()) as consumer:
            partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
            return [each for number in partitions for each in _read(consumer, topic, number)]

    def settings(self) -> dict[str, object]:
        """What the broker runs with."""
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self._controller}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": self._folder / "data",
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": 1,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "log.cleaner.dedupe.buffer.size": 8_388_608,
            "broker.session.timeout.ms": 3_000,
            "broker.heartbeat.interval.ms": 500,
        }

    def _format(self) -> None:
        tool = self._java(
            "kafka.tools.StorageTool", "format", "-t", uuid4().hex[:22], "-c", "server.properties", heap=64
        )
        tool.start()
        if tool.wait():
            raise RuntimeError(f"Kafka's folder cannot be made. The log is in {self._folder}")

    def _java(self, main: str, *arguments: str, heap: int) -> JavaProcess:
        return JavaProcess(main, jars("kafka"), self._folder, self._folder / "log", heap, *arguments)

    def _works(self) -> bool:
        value = str(time.monotonic()).encode()
        admin, topics = self.client(), [NewTopic("ready", 1, 1)]
        try:
            if "ready" not in admin.list_topics(timeout=2).topics:
                admin.create_topics(topics)["ready"].result(5)
            producer = self.producer()
            producer.produce("ready", value)
            if producer.flush(5):
                return False
            return any(message.value() == value for message in self.messages("ready"))
        except KafkaException:
            return False

    def _consumer(self) -> Consumer:
        config = {
            "group.id": "tests",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
        }
        return Consumer({"bootstrap.servers": self.url, "log_level": 0} | config)


class SecureKafka(KafkaServer):
    """A broker with one more door: whoever enters there shows a certificate and says a password. All may do everything
    with what no rights are granted of."""

    def __init__(self) -> None:
        self.secure_port = free_port()
        super().__init__()
        make_certificates(self._folder)

    @property
    def secure_url(self) -> str:
        return f"127.0.0.1:{self.secure_port}"

    @property
    def secure_conf(self) -> dict[str, str]:
        """What a client is to be told, in librdkafka's names."""
        return {
            "security.protocol": "sasl_ssl",
            "sasl.mechanisms": "PLAIN",
            "sasl.username": "reader",
            "sasl.password": 'a "good" \\ word',
            "ssl.ca.location": str(self._folder / "ca.pem"),
            "ssl.certificate.location": str(self._folder / "client.pem"),
            "ssl.key.location": str(self._folder / "client.key"),
        }

    def grant(self, kind: str, name: str, *operations: str) -> None:
        """Let who enters by the new door do these with a topic or group, and nothing else; all if none is named."""
        admin, of = self.client(), ResourceType[kind.upper()]
        literal, allow, user = ResourcePatternType.LITERAL, AclPermissionType.ALLOW, "User:reader"
        old = AclBindingFilter(of, name, literal, None, None, AclOperation.ANY, AclPermissionType.ANY)
        for deleted in admin.delete_acls([old]).values():
            deleted.result(30)
        new = [AclBinding(of, name, literal, user, "*", AclOperation[each.upper()], allow) for each in operations]
        for created in (admin.create_acls(new) if new else {}).values():
            created.result(30)

    def settings(self) -> dict[str, object]:
        """What the broker runs with."""
        plain = super().settings()
        user = self.secure_conf["sasl.username"], _java_text(self.secure_conf["sasl.password"])
        login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{user[0]}="{user[1]}";'
        return plain | {
            "listeners": f"{plain['listeners']},SASL_SSL://{self.secure_url}",
            "listener.security.protocol.map": f"{plain['listener.security.protocol.map']},SASL_SSL:SASL_SSL",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "allow.everyone.if.no.acl.found": "true",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": login.replace("\\", "\\\\"),  # a properties file's escape
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._folder / "broker.both",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self._folder / "ca.pem",
            "ssl.client.auth": "required",
        }


def _java_text(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _read(consumer: Consumer, topic: str, partition: int) -> Iterator[Message]:
    """The messages that a partition holds now."""
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING)])
    while True:
        message = consumer.poll(30)
        error = message.error() if message is not None else KafkaError(KafkaError._TIMED_OUT)
        if error and error.code() == KafkaError._PARTITION_EOF:
            return
        if error:
            raise KafkaException(error)
        yield message


_LOG = """\
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=out
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %p [%t] %c{2}: %m%n
"""
