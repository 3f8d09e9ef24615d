from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from feature_store.engines.spark import SparkEngine
from tests.jars import jars
from tests.live import Live, repository
from tests.servers import (
    FlinkCluster,
    HBaseServer,
    HdfsServer,
    KafkaServer,
    PostgresServer,
    RedisServer,
    S3Server,
    SchemaServer,
    SparkCluster,
)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A redis-server for the whole session. Use `redis_url`, which empties it, unless you stop or start it."""
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole session. Use `postgres_url`, unless you stop or start it: then leave it on."""
    server = PostgresServer().start()
    yield server
    server.close()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of an empty PostgreSQL database; it goes when the next test takes one."""
    return postgres_server.database("fresh")


@pytest.fixture(scope="session")
def spark_engine() -> Iterator[SparkEngine]:
    """Spark in this process, for the whole session. The machine's and the user's time zones, and other things that
    must not matter, are odd."""
    conf = {
        "spark.driver.memory": "1g",
        "spark.sql.shuffle.partitions": "3",
        "spark.sql.session.timeZone": "America/St_Johns",
        "spark.sql.ansi.enabled": "false",
        "spark.sql.caseSensitive": "false",
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 "
        "-Duser.timezone=Asia/Kathmandu -Duser.language=tr -Duser.country=TR",
    }
    engine = SparkEngine("local[2]", conf)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def hbase_server(request: pytest.FixtureRequest) -> Iterator[HBaseServer]:
    """An HBase with its Thrift gateway for the whole session. What stops it starts it again."""
    server = HBaseServer().start()
    failed = request.session.testsfailed
    yield server
    server.close(keep=request.session.testsfailed > failed)


@pytest.fixture
def hbase_url(hbase_server: HBaseServer) -> str:
    """The URI of an HBase in which no other test's tables have this prefix."""
    return f"{hbase_server.url}?prefix=t{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3-compatible server for the whole session."""
    server = S3Server().start()
    yield server
    server.close()


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket, which the environment says how to reach."""
    bucket = f"bucket-{uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=bucket)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def hdfs_server(request: pytest.FixtureRequest) -> Iterator[HdfsServer]:
    """An HDFS for the whole session. What stops it starts it again."""
    server = HdfsServer().start()
    failed = request.session.testsfailed
    yield server
    server.close(keep=request.session.testsfailed > failed)


@pytest.fixture
def hdfs_url(hdfs_server: HdfsServer) -> str:
    """The URI of an HDFS folder that is not there yet."""
    return f"{hdfs_server.url}/{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def spark_cluster() -> Iterator[SparkCluster]:
    """A standalone Spark cluster for the whole session: a process of its own must drive it."""
    cluster = SparkCluster().start()
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def kafka_server(request: pytest.FixtureRequest) -> Iterator[KafkaServer]:
    """A Kafka broker for the whole session. What stops it starts it again."""
    server = KafkaServer().start()
    failed = request.session.testsfailed
    yield server
    server.close(keep=request.session.testsfailed > failed)


@pytest.fixture
def kafka_topic(kafka_server: KafkaServer) -> str:
    """The name of an empty topic of two partitions."""
    return kafka_server.topic(2)


@pytest.fixture
def ads_topics(kafka_server: KafkaServer) -> Iterator[tuple[str, ...]]:
    """The names of the ads repository's topics. Whoever asks makes them; they are deleted afterwards."""
    names = ("ad_click", "ad_impression")
    yield names
    for name in names:
        kafka_server.delete(name)


@pytest.fixture
def live(tmp_path: Path, kafka_server: KafkaServer, kafka_topic: str) -> Iterator[Live]:
    """A repository whose source reads that topic. Workers that it started end with the test."""
    live = Live(repository(tmp_path, kafka_server, kafka_topic), kafka_server, kafka_topic)
    yield live
    live.stop()
    live.store.close()


@pytest.fixture(scope="session")
def flink_cluster(request: pytest.FixtureRequest) -> Iterator[FlinkCluster]:
    """A Flink cluster for the whole session. What kills a part of it starts it again."""
    cluster = FlinkCluster().start()
    failed = request.session.testsfailed
    yield cluster
    cluster.close(keep=request.session.testsfailed > failed)


@pytest.fixture(params=["kafka", "flink"])
def stream_engine(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """Each engine of streams: its name, and the settings that it needs."""
    if request.param == "kafka":
        return "kafka", {}
    pytest.importorskip("pyflink")
    cluster: FlinkCluster = request.getfixturevalue("flink_cluster")
    saved = (tmp_path / "saved").as_uri()
    conf = {"pipeline.jars": f"{jars('flink')}/*.jar", "execution.checkpointing.savepoint-dir": saved}
    return "flink", {"engines": {"flink": {"master": cluster.url, "conf": conf}}}


@pytest.fixture
def schema_server() -> Iterator[SchemaServer]:
    """A schema registry that holds nothing yet."""
    server = SchemaServer().start()
    yield server
    server.close()
