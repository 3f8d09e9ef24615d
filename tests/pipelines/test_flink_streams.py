"""Streams on Flink, on a session cluster and embedded: started, stopped and looked at by the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from feature_store.engines.flink import FlinkJobs
from feature_store.expressions.instants import DAY, HOUR, MINUTE, to_datetime
from feature_store.pipelines.streams import Streams
from tests.jars import jars
from tests.live import FEATURES, VIEWS, Live, made, repository, until
from tests.servers import FlinkCluster, KafkaServer

pytest.importorskip("pyflink")
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(params=["cluster", "embedded"])
def live(request: pytest.FixtureRequest, tmp_path: Path, kafka_server: KafkaServer, kafka_topic: str) -> Iterator[Live]:
    conf = {"pipeline.jars": f"{jars('flink')}/*.jar"}
    master = "embedded"
    if request.param == "cluster":
        cluster: FlinkCluster = request.getfixturevalue("flink_cluster")
        master, conf = cluster.url, conf | {"execution.checkpointing.savepoint-dir": (tmp_path / "saved").as_uri()}
    flink = {"master": master, "conf": conf | {"parallelism.default": 2}}
    store = repository(tmp_path, kafka_server, kafka_topic, engine="flink", settings={"engines": {"flink": flink}})
    live = Live(store, kafka_server, kafka_topic)
    yield live
    live.fs("stream", "stop")
    live.store.close()


def test_a_stream_on_flink_goes_on_where_it_was_stopped(live: Live) -> None:
    live.fs("stream", "start")
    live.send([{"id": 1, "user_id": 0, "x": 5, "at": to_datetime(time.time_ns() // 1000).isoformat()}])
    until(lambda: live.online(["counts:n"], 1)["n"] == [1])
    live.send([*made(300, 5, [MINUTE, 30 * MINUTE, 3 * HOUR, 2 * DAY, 6 * DAY]), b"not JSON"])
    until(live.caught_up)
    (status,) = json.loads(live.fs("stream", "status", "counts", "--json"))
    assert (status["engine"], status["job_state"], status["restarts"], status["bad"]) == ("flink", "RUNNING", 0, 1)
    live.fs("stream", "stop", "counts")
    savepoint = _job(live)["savepoint"]
    live.send(made(300, 5, [MINUTE, 3 * HOUR], start=300))
    (status,) = json.loads(live.fs("stream", "status", "--json"))
    assert status["state"] == "stopped" and status["lag_events"] == 300
    live.fs("stream", "start", "clicks")
    until(live.caught_up)
    assert _restored(live) == urlsplit(savepoint).path
    live.fs("stream", "stop")
    status = _status(live)  # what is read again after a worker was killed may count again
    assert status["events"] >= 601 and status["bad"] >= 1
    assert live.store.offline_store.read("stream/clicks").num_rows == 601
    found, past = live.online(FEATURES, 5), live.history(FEATURES, 5)
    assert found == {name: past[name] for name in found}
    assert sum(found["total"]) == 5 + sum(range(600))
    letters = live.kafka.messages(f"{live.topic}.dead-letters")
    assert [letter.value() for letter in letters] == [b"not JSON"]


def test_a_stream_on_flink_reads_no_topic_for_another_one(live: Live) -> None:
    """Made anew, of the same name and with more messages than there were, and then one of another name."""
    live.send(made(50, 2, [MINUTE]))
    live.fs("stream", "start")
    until(live.caught_up)
    live.kafka.delete(live.topic)
    live.kafka.topic(2, live.topic)
    live.send(made(200, 2, [MINUTE], start=1000))
    until(lambda: "is another one than source" in str(_status(live)["error"]), 120)
    live.fs("stream", "start", "--from", "earliest")
    until(lambda: _counted(live, range(1000, 1200)))
    live.topic = live.kafka.topic(3)
    live.send(made(50, 2, [MINUTE], start=2000))
    (live.store.root / "views.yaml").write_text(VIEWS.format(topic=live.topic, engine="flink"))
    live.store.apply()
    live.fs("stream", "start")
    until(lambda: _counted(live, range(2000, 2050)))
    live.fs("stream", "stop")
    rows = live.store.offline_store.read("stream/clicks").column("x").to_pylist()
    assert sorted(rows) == [*range(50), *range(1000, 1200), *range(2000, 2050)]


@pytest.mark.parametrize("live", ["cluster"], indirect=True)
def test_the_status_counts_checkpoints_and_restarts(live: Live, flink_cluster: FlinkCluster) -> None:
    def shown() -> dict[str, Any]:
        (status,) = json.loads(live.fs("stream", "status", "--json"))
        return dict(status)

    live.send(made(50, 2, [MINUTE]))
    live.fs("stream", "start")
    until(live.caught_up)
    status = until(lambda: found if (found := shown())["checkpoints"] else None)
    assert (status["restarts"], status["last_failure"]) == (0, None)
    assert Path(status["checkpoint"]["path"].removeprefix("file:")).is_dir() and status["checkpoint"]["bytes"] > 0
    flink_cluster.kill_worker()
    live.send(made(50, 2, [MINUTE], start=50))
    status = until(lambda: found if (found := shown())["restarts"] and found["job_state"] == "RUNNING" else None, 120)
    assert status["last_failure"]
    until(live.caught_up)
    assert sum(live.online(["counts:total"], 2)["total"]) == sum(range(100))


@pytest.mark.parametrize("live", ["cluster"], indirect=True)
def test_a_job_that_makes_no_savepoint_is_cancelled_and_goes_on_from_its_checkpoint(
    live: Live, flink_cluster: FlinkCluster
) -> None:
    live.send(made(50, 5, [MINUTE]))
    live.fs("stream", "start")
    until(live.caught_up)
    until(lambda: _status(live)["checkpoints"])
    flink_cluster.kill_task_manager()
    try:
        until(lambda: _status(live)["job_state"] == "RESTARTING")
        said: list[str] = []
        Streams(live.store, said.append).stop("clicks")
    finally:
        flink_cluster.start()
    assert said and said[0].startswith("clicks: its job was cancelled, and goes on from its newest checkpoint: job ")
    assert (_status(live)["state"], _status(live)["job_state"]) == ("stopped", "CANCELED")
    checkpoint = _job(live)["savepoint"]
    live.send(made(50, 5, [MINUTE], start=50))
    live.fs("stream", "start")
    until(live.caught_up)
    assert "chk-" in checkpoint and _restored(live) == urlsplit(checkpoint).path
    assert sum(live.online(["counts:total"], 5)["total"]) == sum(range(100))


@pytest.mark.parametrize("live", ["cluster"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_start_that_is_cut_short_leaves_no_second_job(
    live: Live, flink_cluster: FlinkCluster, number: signal.Signals
) -> None:
    def going() -> list[str]:
        jobs = FlinkJobs(flink_cluster.url)
        return [job for job in jobs.ids() if not jobs.status(job).has_ended]

    command = [sys.executable, "-m", "feature_store.cli", "-c", str(live.store.root), "stream", "start"]
    flink_cluster.kill_task_manager()  # so that it waits
    try:
        # What a shell runs in the background ignores Ctrl-C.
        heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(command, preexec_fn=heeding) as starting:
            until(going, 120)
            starting.send_signal(number)
        assert starting.returncode != 0
        assert len(going()) == (0 if number == signal.SIGINT else 1)
    finally:
        flink_cluster.start()
    live.send(made(50, 5, [MINUTE]))
    until(lambda: subprocess.run(command).returncode == 0)  # as soon as nobody may be submitting it
    assert going() == [_job(live)["id"]]
    until(lambda: live.caught_up() and _status(live)["events"] == 50)
    live.fs("stream", "stop")
    assert going() == []


def _job(live: Live) -> Mapping[str, Any]:
    state = live.store.registry.streams.get("clicks")
    assert state is not None
    return state.job


def _restored(live: Live) -> str:
    """The path of what the job began at, as Flink says."""
    job = _job(live)
    found = httpx.get(f"{job['address']}/jobs/{job['id']}/checkpoints").json()
    return urlsplit(found["latest"]["restored"]["external_path"]).path


def _status(live: Live) -> dict[str, Any]:
    (status,) = live.streams.status(["clicks"])
    return status


def _counted(live: Live, sent: range) -> bool:
    return live.online(["counts:newest"], 2)["newest"] == [sent[0], sent[1]]


def test_a_stream_on_flink_that_has_never_run_may_begin_with_what_comes(live: Live) -> None:
    live.send(made(30, 1, [MINUTE]))
    live.fs("stream", "start", "--from", "latest")

    def is_there() -> bool:
        at = to_datetime(time.time_ns() // 1000).isoformat()
        live.send([{"id": live.sent, "user_id": user, "x": 5, "at": at} for user in (0, 1)])
        return live.online(["counts:n"], 2)["n"][1] not in (None, 0)

    until(is_there)
    live.fs("stream", "stop")
    found = live.online(["counts:n"], 2)["n"]
    assert found[0] is None or found[0] <= (live.sent - 30) / 2
