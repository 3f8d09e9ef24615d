"""What goes wrong around Spark is said in one line; nothing counts as done, and the next run does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from feature_store import FeatureStore
from feature_store.definitions.tables import snapshots_path
from feature_store.engines.spark import SparkEngine
from feature_store.errors import FeatureStoreError, StoreUnavailableError
from tests.flows.broken import END, add, error_of, events, make, start, visible
from tests.flows.disks import fill, small_disk
from tests.servers import RedisServer, S3Server, free_port
from tests.servers.processes import command_line

__all__ = ["small_disk"]

pytestmark = pytest.mark.timeout(600)

ROWS = events(20_000, 8_000)
DAYS = ("2024-04-18T12:00:00Z", END)
_SUBMITTED = "org.apache.spark.deploy.SparkSubmit"
LOCAL = {"engine": "spark", "engines": "{spark: 'local[2]'}"}


def opened(root: Path, online: str = "sqlite:///data/online.db", **settings: str) -> FeatureStore:
    make(root, online, **settings)
    add(root, "all", ROWS)
    store = FeatureStore(root)
    store.apply()
    return store


def said(work: Callable[[], object], kind: type[FeatureStoreError] = StoreUnavailableError) -> str:
    """The one line of the error that work ends with."""
    with pytest.raises(kind) as caught:
        work()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and "Exception" not in message, message
    return message


def test_a_disk_runs_full_while_a_snapshot_is_written(
    spark_engine: SparkEngine, small_disk: Path, tmp_path: Path
) -> None:
    store = opened(tmp_path / "repo", offline_store=str(small_disk / "offline"), **LOCAL)
    try:
        path = snapshots_path(store.catalog.views["d_queried"])
        filling = fill(small_disk)
        message = said(lambda: store.materialize(*DAYS, ["d_queried"]))
        assert f"{store.offline_store.path(path)} cannot be written now: " in message
        assert "No space left on device" in message and "Check the free space" in message
        assert store.offline_store.partitions(path) == []
        assert visible(store)["d_queried"] is None
        filling.unlink()
        store.materialize(*DAYS, ["d_queried"])
        assert len(store.offline_store.partitions(path)) == 2
    finally:
        store.close()


def test_files_cannot_grow_while_a_snapshot_is_written(spark_engine: SparkEngine, tmp_path: Path) -> None:
    """A quota, as a limit on the size of the files that Spark's JVM writes."""
    store = opened(tmp_path / "repo", **LOCAL)
    try:
        path = snapshots_path(store.catalog.views["d_queried"])
        assert spark_engine.session
        (jvm,) = (each for each in psutil.Process().children() if _SUBMITTED in command_line(each))
        limits = jvm.rlimit(psutil.RLIMIT_FSIZE)
        jvm.rlimit(psutil.RLIMIT_FSIZE, (8_192, limits[1]))
        try:
            message = said(lambda: store.materialize(*DAYS, ["d_queried"]))
        finally:
            jvm.rlimit(psutil.RLIMIT_FSIZE, limits)
        assert f"{store.offline_store.path(path)} cannot be written now: " in message
        assert "File too large" in message and "Check the free space" in message
        assert store.offline_store.partitions(path) == []
        assert visible(store)["d_queried"] is None
        store.materialize(*DAYS, ["d_queried"])
        assert len(store.offline_store.partitions(path)) == 2
    finally:
        store.close()


def test_a_folder_that_cannot_be_written(spark_engine: SparkEngine, tmp_path: Path) -> None:
    """In /proc not even root may make a folder."""
    store = opened(tmp_path / "repo", offline_store="/proc/nowhere", **LOCAL)
    try:
        message = said(lambda: store.materialize(*DAYS, ["d_queried"]))
        assert message.startswith("/proc/nowhere/broken/snapshots/d_queried/")
        assert "cannot be written now" in message
    finally:
        store.close()


@pytest.fixture
def unguarded(s3_server: S3Server) -> Iterator[S3Server]:
    """The S3-compatible server, which a test may let check credentials."""
    yield s3_server
    s3_server.guard(False)


def test_credentials_that_s3_refuses(
    spark_engine: SparkEngine, s3_url: str, unguarded: S3Server, tmp_path: Path
) -> None:
    store = opened(tmp_path / "repo", offline_store=f"{s3_url}/offline", **LOCAL)
    try:
        unguarded.guard(True)
        message = said(lambda: store.materialize(*DAYS, ["d_queried"]))
        assert message.startswith(f"{s3_url}/offline/broken/")
        assert "(InvalidAccessKeyId). Check AWS_ACCESS_KEY_ID" in message
    finally:
        store.close()


def test_credentials_that_s3_refuses_to_spark(
    spark_engine: SparkEngine, s3_url: str, unguarded: S3Server, tmp_path: Path
) -> None:
    """Where Spark is the first that asks."""
    store = opened(tmp_path / "repo", **LOCAL)
    try:
        job = store.get_historical_features([{"user_id": 1, "event_timestamp": END}], ["a_latest"])
        unguarded.guard(True)
        message = said(lambda: job.to_file(f"{s3_url}/answer"))
        assert message.startswith(f"{s3_url}/answer cannot be read or written now: ")
        assert "(AccessDenied). Check AWS_ACCESS_KEY_ID" in message
    finally:
        store.close()


def test_a_bucket_that_is_not_there(spark_engine: SparkEngine, s3_url: str, tmp_path: Path) -> None:
    store = opened(tmp_path / "repo", **LOCAL)
    try:
        message = said(lambda: store.get_historical_features("s3://no-such-bucket/rows.csv", ["a_latest"]).to_arrow())
        assert message.startswith("s3://no-such-bucket/rows.csv cannot be read or written now: ")
        assert "(NoSuchBucket). Make the bucket, or correct the URI" in message
    finally:
        store.close()


def test_a_name_node_that_is_not_there(spark_engine: SparkEngine, tmp_path: Path) -> None:
    store, port = opened(tmp_path / "repo", **LOCAL), free_port()
    try:
        rows = f"hdfs://127.0.0.1:{port}/rows.csv"
        message = said(lambda: store.get_historical_features(rows, ["a_latest"]).to_arrow())
        assert f":{port} cannot be read or written now: Connection refused" in message
    finally:
        store.close()


def test_a_redis_whose_password_is_another(spark_engine: SparkEngine, tmp_path: Path) -> None:
    server = RedisServer().start()
    store = opened(tmp_path / "repo", server.url, **LOCAL)
    try:
        with server.client() as client:
            client.config_set("requirepass", "secret")
        message = said(lambda: store.materialize(*DAYS, ["a_latest"]))
        assert server.url in message and "password" in message
        assert all(progress.through is None for progress in store.registry.all_progress())
    finally:
        store.close()
        server.close()


def test_hbase_is_not_where_the_settings_say(spark_engine: SparkEngine, tmp_path: Path) -> None:
    port = free_port()
    make(tmp_path / "repo", f"hbase://127.0.0.1:{port}", **LOCAL)
    add(tmp_path / "repo", "all", ROWS)
    store = FeatureStore(tmp_path / "repo")
    try:
        assert f"hbase://127.0.0.1:{port}" in said(store.apply)
        assert f"hbase://127.0.0.1:{port}" in said(lambda: store.materialize(*DAYS, ["a_latest"]))
    finally:
        store.close()


def test_a_master_that_is_not_there_at_the_command_line(tmp_path: Path) -> None:
    port = free_port()
    engines = f"{{spark: {{master: 'spark://127.0.0.1:{port}', connect_timeout: 2}}}}"
    store = opened(tmp_path / "repo", engine="spark", engines=engines)
    store.close()
    process = start(store.root, "materialize", *DAYS, "-v", "a_latest")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert f"Spark cannot be started at spark://127.0.0.1:{port}: 127.0.0.1:{port}: Connection refused" in error_of(err)
