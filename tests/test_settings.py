from __future__ import annotations

from pathlib import Path

import pytest

from feature_store.errors import SettingsError
from feature_store.settings import load_settings, resolve_location, resolve_uri


def write(folder: Path, text: str) -> Path:
    file = folder / "feature_store.yaml"
    file.write_text(text)
    return file


def test_defaults_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "project: ads\n"))
    assert settings.project == "ads"
    assert settings.registry == f"sqlite:///{tmp_path}/data/registry.db"
    assert settings.online_store == f"sqlite:///{tmp_path}/data/online.db"
    assert settings.offline_store == f"{tmp_path}/data/offline"
    assert (settings.engine, settings.timezone, settings.limits.max_entities) == ("local", "UTC", 10_000)


def test_every_key_of_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_HOST", "cache")
    monkeypatch.delenv("FS_PORT", raising=False)
    text = """
project: ads
registry: postgresql://u@h/db
offline_store: s3://bucket/x
online_store: redis://${FS_HOST}:${FS_PORT:-6379}/0
engine: spark
engines: {spark: "local[2]", flink: embedded}
aliases: {feature_cache: "redis://localhost:6379/0", local: "sqlite:///x.db"}
timezone: Asia/Shanghai
limits: {max_entities: 5, max_body_mb: 0.5}
"""
    settings = load_settings(write(tmp_path, text))
    assert settings.registry == "postgresql://u@h/db"
    assert settings.offline_store == "s3://bucket/x"
    assert settings.online_store == "redis://cache:6379/0"
    assert settings.engines == {"spark": "local[2]", "flink": "embedded"}
    assert settings.aliases["local"] == f"sqlite:///{tmp_path}/x.db"
    assert settings.limits.max_entities == 5


def test_another_root(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "project: ads\n"), root=Path("/repo"))
    assert settings.offline_store == "/repo/data/offline"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("project: ads\nonlin_store: x\n", 2, 'Did you mean "online_store"?'),
        ("project: ads\n\nregistry: ${FS_NOPE}\n", 3, "FS_NOPE"),
        ("project: ads\nregistry: ${FS NOPE}\n", 2, '"${FS NOPE}" is not a variable'),
        ("project: ads\nlimits:\n  max_entitis: 3\n", 3, 'Did you mean "max_entities"?'),
        ("project: ads\nlimits:\n  max_entities: 0\n", 3, "greater than or equal to 1"),
        ("project: ads\ntimezone: Mars/Olympus\n", 2, '"Mars/Olympus" is not a time zone'),
        ("project: 1x\n", 1, '"1x" is not a project name'),
        ("project: ads\nengines: [spark]\n", 2, "engines"),
        ("project: ads\nengines:\n  spark: 3\n", 3, "engines.spark"),
        ("project: ads\nengines:\n  spark: {mastr: yarn}\n", 3, "engines.spark.master"),
        ("project: ads\nengines:\n  spark: {master: yarn, config: {}}\n", 3, 'Did you mean "conf"'),
        ("project: ads\nengines:\n  spark: {master: yarn, conf: [a]}\n", 3, "engines.spark.conf"),
        ("project: ads\nkafka: localhost:9092\n", 2, "kafka"),
        ("project: ads\nkafka:\n  broker: a:1\n", 3, 'Did you mean "brokers"?'),
        ("project: ads\nkafka:\n  brokers: a:1,b\n", 3, '"b" is not a broker; write host:port'),
        ("project: ads\nkafka:\n  brokers: a:70000\n", 3, '"a:70000" is not a broker'),
        ("project: ads\nkafka:\n  schema_registry: host:8081\n", 3, "kafka.schema_registry"),
        ("project: ads\nkafka:\n  conf: {group.id: x}\n", 3, '"group.id" is not to be set here. The group of'),
        ("- ads\n", 1, "not a mapping"),
        ("project: ads\nproject: other\n", 2, "twice"),
        ("", 1, "not a mapping"),
        ("project: ads\nengines: {\n", 3, "not YAML"),
        ("registry: x\n", 0, '"project" is missing'),
    ],
)
def test_errors_say_where_and_what(tmp_path: Path, text: str, line: int, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, text))
    assert says in str(caught.value)
    assert caught.value.location is not None
    assert caught.value.location.line == line


def test_a_missing_file_names_init(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="fs init"):
        load_settings(tmp_path / "feature_store.yaml")


def test_an_escaped_variable_stays(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "project: ads\nengine: $${X}\n")).engine == "${X}"


@pytest.mark.parametrize(
    ("uri", "resolved"),
    [
        ("sqlite:///a/b.db?timeout=1", "sqlite:////r/a/b.db?timeout=1"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("sqlite://", "sqlite://"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite+pysqlite:///a.db", "sqlite+pysqlite:////r/a.db"),
        ("redis://h:1/0", "redis://h:1/0"),
        ("tiered:redis://h:1|sqlite:///a.db", "tiered:redis://h:1|sqlite:////r/a.db"),
    ],
)
def test_resolve_uri(uri: str, resolved: str) -> None:
    assert resolve_uri(uri, Path("/r")) == resolved


def test_resolve_location() -> None:
    assert resolve_location("data/x", Path("/r")) == "/r/data/x"
    assert resolve_location("/data/x", Path("/r")) == "/data/x"
    assert resolve_location("hdfs://h/x", Path("/r")) == "hdfs://h/x"


def test_a_store_written_as_in_feast_is_told_how_it_is_written_here(tmp_path: Path) -> None:
    file = tmp_path / "feature_store.yaml"
    file.write_text("project: ads\nonline_store: {type: redis}\n")
    with pytest.raises(SettingsError, match=r"Write for example online_store: redis://localhost:6379/0 .*:2\)"):
        load_settings(file)


def test_an_engine_has_a_place_and_maybe_a_conf(tmp_path: Path) -> None:
    text = """
project: ads
engines: {spark: {master: yarn, conf: {spark.executor.cores: 4, spark.shuffle.service.enabled: true}}, flink: embedded}
"""
    settings = load_settings(write(tmp_path, text))
    place = settings.engine_place("spark")
    assert (place.master, place.is_spark, place.is_embedded) == ("yarn", True, False)
    assert place.conf_texts == {"spark.executor.cores": "4", "spark.shuffle.service.enabled": "true"}
    assert settings.engine_place("flink").is_embedded
    assert settings.engine_place("local").is_embedded
    assert settings.engine_place("other").is_embedded


def test_the_brokers_of_a_source_win(tmp_path: Path) -> None:
    text = """
project: ads
kafka:
  brokers: SASL_SSL://a:9092, b:9093
  schema_registry: http://registry:8081
  conf: {security.protocol: SASL_SSL, enable.ssl.certificate.verification: false}
"""
    settings = load_settings(write(tmp_path, text))
    place = settings.kafka_place("events", None)
    assert (place.brokers, place.schema_registry) == ("SASL_SSL://a:9092,b:9093", "http://registry:8081")
    assert place.conf_texts == {"security.protocol": "SASL_SSL", "enable.ssl.certificate.verification": "false"}
    assert settings.kafka_place("events", "c:1") == place.model_copy(update={"brokers": "c:1"})
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, "project: ads\n")).kafka_place("events", None)
    assert str(caught.value) == (
        'source "events" reads Kafka, and nothing says where that is. '
        "Write kafka: {brokers: host:port} in feature_store.yaml, or brokers: in the source's kafka:"
    )
