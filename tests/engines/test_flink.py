"""Jobs on a Flink cluster, and on an embedded Flink: what is read, in which order, and after what breaks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import psutil
import pytest
from confluent_kafka import Producer

from feature_store.engines.flink import UNKNOWN, FlinkJobs, JobStatus, StreamJob, newest_checkpoint, root_cause
from feature_store.engines.flink_kafka import java_properties
from feature_store.errors import SettingsError, StoreUnavailableError
from tests.jars import jars
from tests.servers import FlinkCluster, KafkaServer, S3Server, SecureKafka, free_port
from tests.servers.processes import command_line, family

pytest.importorskip("pyflink")
pytestmark = pytest.mark.timeout(400)


class Kept(NamedTuple):
    worker: str
    partition: int
    offset: int
    timestamp: int
    key: str | None
    value: str | None


class Stream:
    """A topic of two partitions, and a job that keeps its messages in a folder."""

    def __init__(self, kafka: KafkaServer, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        self.sent = 0
        self.began = time.time_ns() // 1_000_000
        self.job = StreamJob(
            name=f"stream {folder.name}",
            topic=kafka.topic(2),
            brokers=kafka.url,
            group=f"group-{folder.name}",
            handler="tests.engines.kept_messages:keeper",
            argument=json.dumps({"folder": str(folder)}),
            parallelism=2,
        )

    def send(self, count: int) -> None:
        producer = self.kafka.producer()
        for number in range(self.sent, self.sent + count):
            producer.produce(self.job.topic, b"%d" % number, partition=number % 2, timestamp=self.began + number)
        assert producer.flush(60) == 0
        self.sent += count

    def kept(self) -> list[Kept]:
        file = self.folder / "messages"
        return [Kept(*json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    def values(self) -> set[int]:
        return {int(each.value or 0) for each in self.kept()}

    def arrive(self) -> None:
        """All that was sent, once or more."""
        wait(lambda: self.values() == set(range(self.sent)))

    def runs(self) -> dict[tuple[str, int], list[int]]:
        """The offsets that each worker was handed, by partition, in that order."""
        found: dict[tuple[str, int], list[int]] = defaultdict(list)
        for each in self.kept():
            found[each.worker, each.partition].append(each.offset)
        return found


def wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def consecutive(offsets: list[int]) -> bool:
    return offsets == list(range(offsets[0], offsets[0] + len(offsets)))


CONF = {"execution.checkpointing.interval": "300 ms"}


@pytest.fixture
def stream(kafka_server: KafkaServer, tmp_path: Path) -> Stream:
    return Stream(kafka_server, tmp_path)


@pytest.fixture
def jobs(flink_cluster: FlinkCluster) -> Iterator[FlinkJobs]:
    flink_cluster.start()
    conf = CONF | {"pipeline.jars": f"{jars('flink')}/*.jar", "python.executable": flink_cluster.python}
    jobs = FlinkJobs(flink_cluster.url, conf)
    yield jobs
    for job in jobs.ids():
        jobs.cancel(job)


def test_messages_come_once_and_in_order_through_savepoints(
    jobs: FlinkJobs, stream: Stream, flink_cluster: FlinkCluster
) -> None:
    stream.send(4000)
    first = jobs.start(stream.job)
    stream.arrive()
    wait(lambda: jobs.status(first).completed_checkpoints > 0)
    status = jobs.status(first)
    assert (status.state, status.restarts, status.error) == ("RUNNING", 0, None)
    assert status.checkpoint is not None and status.checkpoint.size > 0
    savepoint = jobs.stop(first, flink_cluster.savepoints)
    assert jobs.status(first).state == "FINISHED"
    assert (stream.folder / "closed").exists()
    stream.send(4000)
    jobs.start(replace(stream.job, parallelism=1), savepoint)
    stream.arrive()
    kept = stream.kept()
    assert len(kept) == stream.sent
    assert all(each.timestamp == stream.began + int(each.value or 0) for each in kept)
    for partition in range(2):
        assert [each.offset for each in kept if each.partition == partition] == list(range(stream.sent // 2))
    assert len({worker for worker, _ in stream.runs()}) == 3


def test_nothing_is_lost_when_workers_and_the_task_manager_are_killed(
    jobs: FlinkJobs, stream: Stream, flink_cluster: FlinkCluster
) -> None:
    stream.send(1000)
    job = jobs.start(stream.job)
    stream.arrive()
    orphans = flink_cluster.workers()
    for kill in (flink_cluster.kill_worker, flink_cluster.kill_task_manager):
        stream.send(1000)
        orphans += flink_cluster.workers()
        kill()
        flink_cluster.start()
        stream.send(1000)
        stream.arrive()
    wait(lambda: jobs.status(job).restarts > 0)
    assert jobs.status(job).state == "RUNNING"
    assert all(consecutive(offsets) for offsets in stream.runs().values())
    assert psutil.wait_procs(orphans, timeout=60)[1] == []


def test_a_job_that_the_cluster_lost_goes_on_from_its_latest_checkpoint(
    jobs: FlinkJobs, stream: Stream, flink_cluster: FlinkCluster
) -> None:
    stream.send(1000)
    job = jobs.start(stream.job)
    stream.arrive()
    before = jobs.status(job).completed_checkpoints
    wait(lambda: jobs.status(job).completed_checkpoints >= before + 2)
    flink_cluster.kill_job_manager()
    with pytest.raises(StoreUnavailableError, match=r"Flink at http://127\.0\.0\.1:\d+ cannot be reached"):
        jobs.status(job)
    flink_cluster.start()
    assert jobs.status(job) == JobStatus(UNKNOWN)
    checkpoint = jobs.latest_checkpoint(job)
    assert checkpoint is not None
    stream.send(1000)
    jobs.start(stream.job, checkpoint)
    stream.arrive()
    assert len(stream.kept()) == stream.sent


def test_a_handler_that_fails_is_told_and_tried_again(jobs: FlinkJobs, stream: Stream) -> None:
    stream.send(100)
    job = jobs.start(stream.job)
    stream.arrive()
    (stream.folder / "broken").touch()
    stream.send(100)
    wait(lambda: jobs.status(job).error == "RuntimeError: the store is away")
    (stream.folder / "broken").unlink()
    stream.arrive()
    jobs.cancel(job)
    jobs.cancel(job)
    assert jobs.status(job).state == "CANCELED"
    assert jobs.latest_checkpoint(job) is not None


def test_a_job_that_cannot_run_is_refused_in_one_line(
    jobs: FlinkJobs, stream: Stream, flink_cluster: FlinkCluster
) -> None:
    with pytest.raises(StoreUnavailableError, match=r"'file:///there/is/none'") as caught:
        jobs.start(stream.job, "file:///there/is/none")
    assert "\n" not in str(caught.value)
    with pytest.raises(
        StoreUnavailableError, match=r'of topic "nobody_made_it", cannot be started: This server does not host'
    ):
        jobs.start(replace(stream.job, topic="nobody_made_it"))
    slots = flink_cluster.SLOTS
    flink_cluster.wait(slots)
    with pytest.raises(StoreUnavailableError, match=rf"has {slots} slots for all jobs, and this one takes {slots + 1}"):
        jobs.start(replace(stream.job, parallelism=slots + 1), timeout=30)
    assert all(jobs.status(job).has_ended for job in jobs.ids())


def test_a_job_that_nobody_waits_for_any_more_is_not_submitted(
    jobs: FlinkJobs, stream: Stream, flink_cluster: FlinkCluster
) -> None:
    """The driver's user is killed while it plans: a second job would follow that nobody knew of."""
    conf = {"pipeline.jars": ";".join(jar.as_uri() for jar in sorted(Path(jars("flink")).glob("*.jar")))}
    job = asdict(stream.job) | {"consumer": java_properties(stream.job.brokers, {}), "id": uuid4().hex}
    requests = [{"address": flink_cluster.url, "conf": conf}, {"job": job, "savepoint": None}]
    command = [sys.executable, "-m", "feature_store.engines.flink_driver"]
    told = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run(command, input=told, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[1]) == {"error": "nobody waits for the job any more"}
    assert job["id"] not in jobs.ids()


def test_one_conf_opens_kafka_to_flink_and_to_librdkafka(jobs: FlinkJobs, tmp_path: Path) -> None:
    kafka = SecureKafka().start()
    try:
        stream = Stream(kafka, tmp_path)
        stream.job = replace(stream.job, brokers=kafka.secure_url, conf=kafka.secure_conf)
        producer = Producer({"bootstrap.servers": kafka.secure_url, "log_level": 0} | kafka.secure_conf)
        producer.produce(stream.job.topic, b"hello")
        assert producer.flush(60) == 0
        jobs.start(stream.job)
        wait(lambda: [each.value for each in stream.kept()] == ["hello"])
    finally:
        kafka.close()


def test_no_flink_no_job(stream: Stream) -> None:
    jobs = FlinkJobs(f"http://127.0.0.1:{free_port()}")
    for ask in (lambda: jobs.start(stream.job), lambda: jobs.status("0" * 32), lambda: jobs.cancel("0" * 32)):
        with pytest.raises(StoreUnavailableError, match="cannot be reached: Connection refused"):
            ask()


def embedded(folder: Path) -> FlinkJobs:
    conf = CONF | {"pipeline.jars": f"{jars('flink')}/*.jar", "execution.checkpointing.dir": f"file://{folder}/c"}
    return FlinkJobs("embedded", conf)


def drivers() -> list[psutil.Process]:
    """The processes that plan, and all that they started."""
    children = psutil.Process().children(recursive=True)
    found = [each for each in children if "feature_store.engines.flink_driver" in command_line(each)]
    return [process for each in found for process in family(each.pid)]


def test_an_embedded_flink_runs_jobs_until_it_is_closed(stream: Stream) -> None:
    stream.send(1000)
    with embedded(stream.folder) as jobs:
        assert jobs.status("0" * 32).state == UNKNOWN
        first = jobs.start(stream.job)
        stream.arrive()
        savepoint = jobs.stop(first, f"file://{stream.folder}/savepoints")
        stream.send(1000)
        jobs.start(stream.job, savepoint)
        stream.arrive()
        processes = drivers()
    assert len(processes) > 3
    assert psutil.wait_procs(processes, timeout=30)[1] == []
    assert len(stream.kept()) == stream.sent


def test_an_embedded_flink_that_died_goes_on_from_its_latest_checkpoint(stream: Stream) -> None:
    stream.send(1000)
    with embedded(stream.folder) as jobs:
        job = jobs.start(stream.job)
        stream.arrive()
        before = jobs.status(job).completed_checkpoints
        wait(lambda: jobs.status(job).completed_checkpoints >= before + 2)
        (java,) = [each for each in drivers() if each.name() == "java"]
        orphans = [each for each in drivers() if any("beam_boot" in word for word in command_line(each))]
        java.kill()
        wait(lambda: jobs.status(job).state == UNKNOWN)
        stream.send(1000)
        jobs.cancel(job)
        jobs.start(stream.job, jobs.latest_checkpoint(job))
        stream.arrive()
    assert orphans and psutil.wait_procs(orphans, timeout=30)[1] == []
    assert len(stream.kept()) == stream.sent


def test_flink_says_which_jar_it_needs(stream: Stream) -> None:
    with FlinkJobs("embedded") as jobs, pytest.raises(SettingsError, match=r"no Kafka connector.*pipeline\.jars"):
        jobs.start(stream.job)
    nowhere = FlinkJobs("embedded", {"pipeline.jars": "/nowhere/*.jar"})
    with nowhere as jobs, pytest.raises(SettingsError, match=r"there is no /nowhere/\*\.jar"):
        jobs.start(stream.job)


def test_without_java_that_is_said(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(stream.folder))
    with FlinkJobs("embedded") as jobs, pytest.raises(SettingsError, match=r"It needs Java 17: install a JRE"):
        jobs.start(stream.job)


def test_the_newest_checkpoint_is_the_last_that_is_whole(tmp_path: Path, s3_url: str, s3_server: S3Server) -> None:
    bucket = s3_url.removeprefix("s3://")
    for name in ("chk-9/_metadata", "chk-10/_metadata", "chk-11/part", "shared/part", "taskowned/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        s3_server.client().put_object(Bucket=bucket, Key=f"jobs/j/{name}", Body=b"-")
    for folder in (str(tmp_path), f"file:{tmp_path}", f"file://{tmp_path}/", f"{s3_url}/jobs/j"):
        assert newest_checkpoint(folder) == f"{folder.rstrip('/')}/chk-10"
    assert newest_checkpoint(f"{tmp_path}/none") is None
    assert newest_checkpoint(f"{s3_url}/jobs/none") is None


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (
            "java.lang.RuntimeException: outer\n\tat a.b(C.java:1)\nCaused by: x.YException: inner\n\tat d.e(F.java)",
            "inner",
        ),
        ("An error occurred while calling o1.go.\n: org.x.TableException: no plan\n\tat a.b(C.java:1)", "no plan"),
        (
            "Caused by: r.Exc: Traceback (most recent call last):\n  File x\n    y\nValueError: bad\n\n\tat a",
            "ValueError: bad",
        ),
        ("Address already in use", "Address already in use"),
        ("", "it does not say why"),
    ],
)
def test_the_root_cause_is_one_line(said: str, cause: str) -> None:
    assert root_cause(said) == cause


def test_an_address_is_one() -> None:
    with pytest.raises(SettingsError, match='"flink:8081" is not where a Flink is'):
        FlinkJobs("flink:8081")
