"""What the Java client inside Flink is told of options in librdkafka's names."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_store.engines.flink_kafka import java_properties
from feature_store.errors import SettingsError

PEM = "-----BEGIN {0}-----\nQUJD\n-----END {0}-----\n"


def test_without_options_it_reads_what_is_committed_as_librdkafka_does() -> None:
    told = java_properties("a:9092,b:9092", {})
    assert told == {"bootstrap.servers": "a:9092,b:9092", "isolation.level": "read_committed"}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "scram-sha-512"])
def test_a_user_and_password_become_one_text(mechanism: str) -> None:
    conf = {
        "security.protocol": "sasl_ssl",
        "sasl.mechanisms": mechanism,
        "sasl.username": "me",
        "sasl.password": 'a"b\\c',
    }
    told = java_properties("a:9092", conf)
    kind = "plain.Plain" if mechanism == "PLAIN" else "scram.Scram"
    assert told["security.protocol"] == "SASL_SSL"
    assert told["sasl.mechanism"] == mechanism.upper()
    assert told["sasl.jaas.config"] == (
        f"org.apache.flink.kafka.shaded.org.apache.kafka.common.security.{kind}LoginModule required "
        'username="me" password="a\\"b\\\\c";'
    )
    assert not told.keys() & conf.keys() - {"security.protocol"}


def test_kerberos_logs_in_by_its_keytab() -> None:
    conf = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.kerberos.service.name": "kafka",
        "sasl.kerberos.keytab": "/etc/me.keytab",
        "sasl.kerberos.principal": "me@HOME",
    }
    told = java_properties("a:9092", conf)
    assert told["sasl.kerberos.service.name"] == "kafka"
    assert told["sasl.jaas.config"] == (
        "com.sun.security.auth.module.Krb5LoginModule required useKeyTab=true storeKey=true "
        'keyTab="/etc/me.keytab" principal="me@HOME";'
    )


def test_the_text_of_certificates_goes_along(tmp_path: Path) -> None:
    for name, kind in (("ca", "CERTIFICATE"), ("mine", "CERTIFICATE"), ("key", "PRIVATE KEY")):
        (tmp_path / name).write_text(PEM.format(kind))
    conf = {
        "ssl.ca.location": str(tmp_path / "ca"),
        "ssl.certificate.location": str(tmp_path / "mine"),
        "ssl.key.location": str(tmp_path / "key"),
        "ssl.endpoint.identification.algorithm": "none",
    }
    told = java_properties("a:9092", conf)
    assert {name: value for name, value in told.items() if name.startswith("ssl.")} == {
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": PEM.format("CERTIFICATE"),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": PEM.format("CERTIFICATE"),
        "ssl.keystore.key": PEM.format("PRIVATE KEY"),
        "ssl.endpoint.identification.algorithm": "",
    }


def test_options_that_change_nothing_are_left_out() -> None:
    conf = {
        "fetch.wait.max.ms": "20",
        "linger.ms": "5",
        "client.id": "me",
        "log_level": "0",
        "group.instance.id": "x",
    }
    told = java_properties("a:9092", conf)
    assert told["fetch.max.wait.ms"] == "20" and told["client.id"] == "me"
    assert not {"linger.ms", "log_level", "group.instance.id"} & told.keys()


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"sasl.oauthbearer.method": "oidc"}, '"sasl.oauthbearer.method" has no counterpart'),
        ({"securty.protocol": "SSL"}, 'Did you mean "security.protocol"?'),
        ({"enable.ssl.certificate.verification": "false"}, "has no counterpart"),
        ({"sasl.username": "me", "sasl.mechanisms": "GSSAPI"}, "does not log in by GSSAPI"),
        ({"ssl.ca.location": "/nowhere/ca.pem"}, "/nowhere/ca.pem cannot be read: No such file or directory"),
        ({"ssl.key.pem": PEM.format("RSA PRIVATE KEY")}, "openssl pkcs8"),
    ],
)
def test_what_java_cannot_do_is_refused(conf: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        java_properties("a:9092", conf)
    assert message in str(caught.value)
