"""Options of a Kafka client in librdkafka's names, as settings have them, told to the Java client inside Flink."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from feature_store.errors import SettingsError, nearest

_SHADED = "org.apache.flink.kafka.shaded.org.apache.kafka.common.security"
"""Where flink-sql-connector-kafka keeps the Java client's login modules."""

_BOTH = {
    "client.id": "client.id",
    "client.dns.lookup": "client.dns.lookup",
    "connections.max.idle.ms": "connections.max.idle.ms",
    "metadata.max.age.ms": "metadata.max.age.ms",
    "reconnect.backoff.max.ms": "reconnect.backoff.max.ms",
    "reconnect.backoff.ms": "reconnect.backoff.ms",
    "retry.backoff.max.ms": "retry.backoff.max.ms",
    "retry.backoff.ms": "retry.backoff.ms",
    "sasl.kerberos.kinit.cmd": "sasl.kerberos.kinit.cmd",
    "sasl.kerberos.service.name": "sasl.kerberos.service.name",
    "sasl.mechanism": "sasl.mechanism",
    "sasl.mechanisms": "sasl.mechanism",
    "security.protocol": "security.protocol",
    "socket.connection.setup.timeout.ms": "socket.connection.setup.timeout.ms",
    "socket.receive.buffer.bytes": "receive.buffer.bytes",
    "socket.send.buffer.bytes": "send.buffer.bytes",
    "ssl.ca.pem": "ssl.truststore.certificates",
    "ssl.certificate.pem": "ssl.keystore.certificate.chain",
    "ssl.cipher.suites": "ssl.cipher.suites",
    "ssl.endpoint.identification.algorithm": "ssl.endpoint.identification.algorithm",
    "ssl.key.password": "ssl.key.password",
    "ssl.key.pem": "ssl.keystore.key",
    "topic.metadata.refresh.interval.ms": "metadata.max.age.ms",
}
_CONSUMER = {
    "allow.auto.create.topics": "allow.auto.create.topics",
    "check.crcs": "check.crcs",
    "client.rack": "client.rack",
    "fetch.max.bytes": "fetch.max.bytes",
    "fetch.message.max.bytes": "max.partition.fetch.bytes",
    "fetch.min.bytes": "fetch.min.bytes",
    "fetch.wait.max.ms": "fetch.max.wait.ms",
    "isolation.level": "isolation.level",
    "max.partition.fetch.bytes": "max.partition.fetch.bytes",
}
_OF_PRODUCERS = (
    "acks",
    "batch.size",
    "compression.codec",
    "compression.type",
    "delivery.timeout.ms",
    "enable.idempotence",
    "linger.ms",
    "message.max.bytes",
    "message.timeout.ms",
    "queue.buffering.max.ms",
    "request.required.acks",
)
_FILES = {
    "ssl.ca.location": "ssl.ca.pem",
    "ssl.certificate.location": "ssl.certificate.pem",
    "ssl.key.location": "ssl.key.pem",
}
_LOGIN = (
    "sasl.username",
    "sasl.password",
    "sasl.kerberos.principal",
    "sasl.kerberos.keytab",
)
_OF_THE_C_CLIENT = ("debug", "log_level", "log.connection.close", "socket.keepalive.enable", "statistics.interval.ms")
_OF_GROUPS = ("session.timeout.ms", "heartbeat.interval.ms", "max.poll.interval.ms", "group.instance.id")
"""What changes no message is left out; Flink's readers are no members of a group, and write nothing."""

_UPPER = ("security.protocol", "sasl.mechanism")


def java_properties(brokers: str, conf: Mapping[str, str]) -> dict[str, str]:
    """Options in librdkafka's names as properties of the Java client. Files of certificates are read here: their text
    goes along, so that task managers need no copy.

    Raises:
        SettingsError: an option has no counterpart, or a file cannot be read.
    """
    idle = {*_OF_THE_C_CLIENT, *_OF_GROUPS, *_OF_PRODUCERS}
    options = {name: value for name, value in _with_files(conf).items() if name not in idle}
    if options.get("enable.ssl.certificate.verification") == "true":
        del options["enable.ssl.certificate.verification"]
    known = {*_BOTH, *_CONSUMER, *_LOGIN}
    for name in options:
        if name not in known:
            raise SettingsError(
                f'kafka: conf: "{name}" has no counterpart in the Kafka client of Flink',
                hint=nearest(name, known) or "Leave it out, or read the topic with engine: kafka",
            )
    both = {"bootstrap.servers": brokers} | _renamed(options, _BOTH) | _login(options)
    both |= {name: both[name].upper() for name in _UPPER if name in both}
    both |= {f"ssl.{store}.type": "PEM" for store in ("truststore", "keystore") if _holds(both, f"ssl.{store}.")}
    if both.get("ssl.endpoint.identification.algorithm") == "none":
        both["ssl.endpoint.identification.algorithm"] = ""
    committed = {"isolation.level": "read_committed"}  # what librdkafka does unasked, and Java does not
    return committed | both | _renamed(options, _CONSUMER)


def _renamed(options: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {names[name]: value for name, value in options.items() if name in names}


def _holds(properties: Mapping[str, str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in properties)


def _with_files(conf: Mapping[str, str]) -> dict[str, str]:
    """The options with the text of PEM files in place of their paths."""
    options = {_FILES.get(name, name): _text(name, value) if name in _FILES else value for name, value in conf.items()}
    if re.search("BEGIN (RSA|EC|DSA) PRIVATE KEY", options.get("ssl.key.pem", "")):
        raise SettingsError(
            "kafka: conf: the private key is not in PKCS#8, which Java wants",
            hint="Run: openssl pkcs8 -topk8 -nocrypt -in KEY -out KEY.pk8, and name that",
        )
    return options


def _text(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not PEM"
        raise SettingsError(
            f"kafka: conf: {name}: {path} cannot be read: {reason}", hint="Flink takes certificates as PEM files"
        ) from error


def _login(options: Mapping[str, str]) -> dict[str, str]:
    """Java's way to say who logs in: a class and its arguments in one text."""
    mechanism = options.get("sasl.mechanisms", options.get("sasl.mechanism", "GSSAPI")).upper()
    if "sasl.kerberos.keytab" in options:
        module, arguments = "com.sun.security.auth.module.Krb5LoginModule", "useKeyTab=true storeKey=true"
        arguments += f" keyTab={_quoted(options['sasl.kerberos.keytab'])}"
        arguments += f" principal={_quoted(options.get('sasl.kerberos.principal', 'kafkaclient'))}"
    elif "sasl.username" in options or "sasl.password" in options:
        kinds = {"PLAIN": "plain.PlainLoginModule", "SCRAM": "scram.ScramLoginModule"}
        kind = kinds.get(mechanism.partition("-")[0])
        if kind is None:
            raise SettingsError(
                f"kafka: conf: sasl.username does not log in by {mechanism}",
                hint="Write sasl.mechanisms: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
            )
        module = f"{_SHADED}.{kind}"
        arguments = " ".join(f"{name}={_quoted(options.get(f'sasl.{name}', ''))}" for name in ("username", "password"))
    else:
        return {}
    return {"sasl.jaas.config": f"{module} required {arguments};"}


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
