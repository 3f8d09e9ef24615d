"""What users run by docker-compose.yml is what the tests run: versions, settings, addresses."""

from __future__ import annotations

import re
import shlex
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree
from zipfile import ZipFile

import pytest
import sqlalchemy
import yaml

from feature_store.definitions import Source
from feature_store.definitions.files import load_file
from feature_store.settings import Settings, load_settings
from tests.servers import FlinkCluster, HBaseServer, KafkaServer, RedisServer, SparkCluster

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = COMPOSE["x-feature-store"]
CLUSTER = ROOT / "repo_example" / "feature_store.cluster.yaml"
KAFKA_PLACES = {
    "advertised.listeners",
    "controller.quorum.voters",
    "listener.security.protocol.map",
    "listeners",
    "log.dirs",
}
FLINK_PLACES = {
    "execution.checkpointing.dir",
    "heartbeat.interval",
    "heartbeat.timeout",
    "io.tmp.dirs",
    "jobmanager.bind-host",
    "jobmanager.memory.process.size",
    "jobmanager.rpc.address",
    "jobmanager.rpc.port",
    "python.executable",
    "rest.address",
    "rest.bind-address",
    "rest.port",
    "taskmanager.bind-host",
    "taskmanager.host",
    "taskmanager.memory.process.size",
    "taskmanager.numberOfTaskSlots",
}
PLACES = {
    "hbase.rootdir",
    "hbase.tmp.dir",
    "hbase.zookeeper.property.dataDir",
    "hbase.zookeeper.property.clientPort",
    "hbase.regionserver.thrift.port",
    "hbase.regionserver.thrift.ipaddress",
}
"""Where a server's files are and what it listens to: the only settings that may differ."""


def dockerfile(name: str) -> list[list[str]]:
    """The instructions of a Dockerfile, comments gone, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "docs" / "deployment" / name).read_text(), flags=re.MULTILINE)
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def published(service: str) -> dict[int, int]:
    """The ports of a service: inside, and on this machine."""
    ports = [port.rsplit(":", 2) for port in SERVICES[service].get("ports", ())]
    return {int(inside): int(outside) for _, outside, inside in ports}


def addresses(settings: Settings) -> list[tuple[str | None, int | None]]:
    """The host and port of each URI in some settings."""
    uris = [settings.registry, *settings.aliases.values()]
    uris += [settings.engine_place(engine).master for engine in ("spark", "flink")]
    uris += settings.online_store.removeprefix("tiered:").split("|")
    return [(parts.hostname, parts.port) for parts in map(urlsplit, uris)]


def test_redis_is_the_version_that_is_tested(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        tested = client.info("server")["redis_version"]
    assert re.match(r"redis:(\d+\.\d+)", SERVICES["redis"]["image"])[1] == ".".join(tested.split(".")[:2])  # type: ignore[index]


def test_redis_keeps_what_it_acknowledged_as_in_the_tests() -> None:
    given = shlex.split(SERVICES["redis"]["command"])
    options = dict(zip(given[1::2], given[2::2], strict=True))
    with closing(RedisServer(durable=True).start()) as server, server.client() as client:
        tested = {f"--{name}": value for name, value in client.config_get("append*").items()}
    assert options.items() <= tested.items()
    assert options.keys() >= {"--appendonly", "--appendfsync"}


def test_postgresql_is_the_version_that_is_tested(postgres_url: str) -> None:
    engine = sqlalchemy.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        tested = connection.execute(sqlalchemy.text("SHOW server_version")).scalar_one()
    engine.dispose()
    assert re.match(r"postgres:(\d+)", SERVICES["postgres"]["image"])[1] == tested.split(".")[0]  # type: ignore[index]


def test_spark_flink_and_python_are_the_versions_that_are_tested() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    for name in ("pyspark", "apache-flink"):
        assert f"{name}=={version(name)}\n" in lock
    (install,) = [line for line in dockerfile("Dockerfile") if line[:2] == ["RUN", "pip"]]
    assert install[install.index("--constraint") + 1] == "/opt/feature_store/requirements.lock"
    extras = set(re.search(r"\[(.*)\]", install[-1])[1].split(","))  # type: ignore[index]
    assert {"redis", "hbase", "kafka", "postgres", "spark", "flink"} <= extras


@pytest.mark.parametrize("name", ["master", "thrift"])
def test_hbase_runs_the_jars_and_settings_of_the_tests(hbase_server: HBaseServer, name: str) -> None:
    copied = [line[1] for line in dockerfile("hbase.Dockerfile") if line[0] == "COPY"]
    assert "tests/maven/hbase/pom.xml" in copied
    tree = ElementTree.parse(ROOT / "docs" / "deployment" / "hbase" / name / "hbase-site.xml")
    settings = {each.findtext("name"): each.findtext("value") for each in tree.iter("property")}
    tested = {name: str(value) for name, value in hbase_server.settings(name).items()}
    assert settings.keys() == tested.keys()
    assert {name for name in settings if settings[name] != tested[name]} <= PLACES


def test_hbase_and_spark_run_the_programs_of_the_tests(hbase_server: HBaseServer) -> None:
    for service, name in (("hbase", "master"), ("hbase-thrift", "thrift")):
        assert shlex.split(SERVICES[service]["command"])[-2:] == hbase_server.program(name)
    home = Path(next(iter(find_spec("pyspark").submodule_search_locations)))  # type: ignore[union-attr, arg-type]
    (jar,) = (home / "jars").glob("spark-core_*.jar")
    with ZipFile(jar) as classes:
        for service in ("spark-master", "spark-worker"):
            program, name = SERVICES[service]["entrypoint"]
            assert (home / "bin" / program).exists()
            assert f"{name.replace('.', '/')}.class" in classes.namelist()
    given = SERVICES["spark-worker"]["command"]
    assert given[::2] == [*SparkCluster().worker(0)[::2][:-1], "spark://spark-master:7077"]
    assert given[given.index("--work-dir") + 1] == "/tmp/spark", "where its user, who is not root, may write"


def test_the_data_of_the_repository_is_shared_and_may_be_written() -> None:
    mounts = dict(each.rsplit(":", 1)[::-1] for each in OURS["volumes"])
    assert mounts["/repo/data"] in COMPOSE["volumes"]
    (made,) = [line for line in dockerfile("Dockerfile") if line[:2] == ["RUN", "useradd"]]
    assert "/repo/data" in made and made[made.index("chown") + 1 :][:3] == ["-R", "feature_store", "/repo"]
    sources = load_file(CLUSTER.parent / "features" / "events.yaml", "events.yaml")
    paths = [located[0].path for located in sources if isinstance(located[0], Source)]
    assert paths and all(path.startswith("data/") for path in paths if path)
    assert load_settings(CLUSTER, Path("/repo")).offline_store == "/repo/data/offline"


def test_kafka_runs_the_version_and_settings_of_the_tests() -> None:
    pom = ElementTree.parse(ROOT / "tests" / "maven" / "kafka" / "pom.xml")
    versions = {
        each.findtext("{*}artifactId"): each.findtext("{*}version") for each in pom.iterfind(".//{*}dependency")
    }
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{versions['kafka_2.13']}"
    given = SERVICES["kafka"]["environment"].items()
    settings = {name.removeprefix("KAFKA_").lower().replace("_", "."): str(value) for name, value in given}
    with closing(KafkaServer()) as server:
        tested = {name: str(value) for name, value in server.settings().items()}
    assert settings.keys() - tested.keys() == {"advertised.listeners"}
    assert {name for name in settings if settings[name] != tested.get(name)} <= KAFKA_PLACES


def test_kafka_names_itself_as_it_is_reached() -> None:
    kafka = SERVICES["kafka"]["environment"]
    inside, outside = OURS["environment"]["KAFKA"], str(load_settings(CLUSTER).kafka.brokers)
    assert inside.partition(":")[0] == "kafka"
    assert kafka["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{outside},SERVICES://{inside}"
    assert int(outside.partition(":")[2]) in published("kafka")
    for address, name in ((inside, "SERVICES"), (outside, "PLAINTEXT")):
        assert f"{name}://:{address.partition(':')[2]}" in kafka["KAFKA_LISTENERS"].split(",")


def test_flink_runs_the_jars_and_settings_of_the_tests() -> None:
    lines = dockerfile("Dockerfile")
    assert ["COPY", "tests/maven/flink/pom.xml", "/build/pom.xml"] in lines
    assert ["COPY", "docs/deployment/flink/config.yaml", "/opt/flink/conf/config.yaml"] in lines
    settings = yaml.safe_load((ROOT / "docs" / "deployment" / "flink" / "config.yaml").read_text())
    with closing(FlinkCluster()) as cluster:
        tested = cluster.settings()
    opened = "env.java.opts.all"
    assert set(settings.pop(opened).split()) <= set(str(tested.pop(opened)).split())
    assert settings.keys() | {"taskmanager.host"} == tested.keys()
    assert {name for name in tested if settings.get(name) != tested[name]} <= FLINK_PLACES
    assert settings["jobmanager.rpc.address"] in SERVICES
    assert f"http://{settings['rest.address']}:{settings['rest.port']}" == OURS["environment"]["FLINK"]


@pytest.mark.parametrize("name", ["Dockerfile", "hbase.Dockerfile"])
def test_images_are_built_of_what_is_there_and_run_by_a_user_of_their_own(name: str) -> None:
    lines = dockerfile(name)
    for line in lines:
        if line[0] == "COPY" and not line[1].startswith("--from"):
            assert all((ROOT / source).exists() for source in line[1:-1]), line
    users = [line[1] for line in lines if line[0] == "USER"]
    assert users
    assert users[-1] not in ("root", "0")


def test_every_service_that_is_built_has_its_dockerfile() -> None:
    built = [service["build"]["dockerfile"] for service in SERVICES.values() if "build" in service]
    assert len(built) == 7
    assert all((ROOT / file).is_file() for file in built)


def test_this_machine_reaches_the_services_at_the_defaults_of_the_cluster_settings() -> None:
    ports = {port for service in SERVICES for port in published(service).values()}
    for host, port in addresses(load_settings(CLUSTER)):
        assert host == "localhost"
        assert port in ports


def test_services_reach_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OURS["environment"].items():
        monkeypatch.setenv(name, value)
    settings = load_settings(CLUSTER)
    assert settings.online_store == OURS["environment"]["ONLINE_STORE"]
    for host, port in addresses(settings):
        assert host in SERVICES
        assert port in published(host)  # type: ignore[arg-type]


def test_the_server_is_started_by_a_command_there_is() -> None:
    from click.testing import CliRunner

    from feature_store.cli import fs

    command = SERVICES["feature-server"]["command"]
    answer = CliRunner().invoke(fs, [*command, "--help"])
    assert answer.exit_code == 0, answer.output
    assert command[-1] == str(*published("feature-server"))
    assert (CLUSTER.parent / command[1]).is_file()
