"""The program that plans jobs and hands them to Flink: `python -m feature_store.engines.flink_driver`.

PyFlink plans in a JVM. It is the child of this process, not of its user's, and ends with it; when a user asks for Flink
embedded, that JVM is the cluster, too. One line of JSON in is one request, one line out its answer:

    {"address": "http://host:8081" or null, "conf": {...}}    first     {"address": "http://..."}
    {"job": {...}, "savepoint": "file:///..." or null}        then      {"job": "4f0c..."}, the id that is in the job

or `{"error": "..."}`. It ends at the end of its input.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from pyflink.common import Configuration
from pyflink.java_gateway import get_gateway
from pyflink.table import DataTypes, EnvironmentSettings, Schema, TableDescriptor, TableEnvironment
from pyflink.table.udf import udf

from feature_store.engines.flink_worker import Handle

_SETTINGS = {
    "execution.checkpointing.interval": "10 s",
    "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
    "execution.checkpointing.tolerable-failed-checkpoints": "100",
    "execution.buffer-timeout.interval": "5 ms",
    "restart-strategy.type": "exponential-delay",
    "restart-strategy.exponential-delay.initial-backoff": "1 s",
    "restart-strategy.exponential-delay.max-backoff": "1 min",
    "python.fn-execution.bundle.time": "20",
    "python.fn-execution.bundle.size": "5000",
    "python.fn-execution.arrow.batch.size": "5000",
}
"""What a conf of the user's may change."""

_WORKERS = "_python_worker_execution_mode"
"""PyFlink's switch: unless it says process, this process would compute, too, and it may end before the job."""

_JOB_ID = "$internal.pipeline.job-id"
"""Without it Flink chooses one, which is known only when the job may run already."""

_KEY_AND_VALUE = {
    "key.format": "raw",
    "key.fields": "key",
    "value.format": "raw",
    "value.fields-include": "EXCEPT_KEY",
}

_MILLISECONDS = "EXTRACT(EPOCH FROM `at`) * 1000 + EXTRACT(MILLISECOND FROM `at`)"
"""Flink casts no such timestamp to a number."""

_INSERT = "INSERT INTO nowhere SELECT handle(`partition`, `offset`, `timestamp`, `key`, `value`) FROM messages"


def main() -> None:
    """Answers requests until there are no more."""
    os.environ[_WORKERS] = "process"
    requests, answer = _pipe()
    address: str | None = None
    conf: dict[str, str] = {}
    for request in requests:
        try:
            if "job" in request:
                answer({"job": _submitted(request["job"], request["savepoint"], address, conf)})
            else:
                conf = request["conf"]
                address = request["address"] or _embedded(conf)
                answer({"address": address})
        except Exception as error:
            answer({"error": str(error) or type(error).__name__})


def _pipe() -> tuple[Iterator[dict[str, Any]], Any]:
    """Requests, and what answers one. What Flink prints must not get between the answers."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    return (json.loads(line) for line in sys.stdin), answer


def _embedded(conf: Mapping[str, str]) -> str:
    """The REST address of a cluster in the JVM of this process, which ends with it."""
    jvm = get_gateway().jvm
    java_conf = jvm.org.apache.flink.configuration.Configuration()
    for name, value in ({"rest.address": "127.0.0.1", "rest.bind-port": "0"} | dict(conf)).items():
        java_conf.setString(name, value)
    minicluster = jvm.org.apache.flink.runtime.minicluster
    built = minicluster.MiniClusterConfiguration.Builder().setConfiguration(java_conf)
    slots = int(conf.get("taskmanager.numberOfTaskSlots", 16))
    cluster = minicluster.MiniCluster(built.setNumSlotsPerTaskManager(slots).build())
    cluster.start()
    return str(cluster.getRestAddress().get().toString())


def _submitted(job: dict[str, Any], savepoint: str | None, address: str | None, conf: Mapping[str, str]) -> str:
    """The id of a job that Flink has taken; its tasks may not run yet."""
    place = urlsplit(address or "")
    settings = _SETTINGS | dict(conf)
    settings |= {
        "execution.target": "remote",
        "rest.address": str(place.hostname),
        "rest.port": str(place.port or (443 if place.scheme == "https" else 80)),
        "security.ssl.rest.enabled": str(place.scheme == "https").lower(),
        "pipeline.name": job["name"],
        _JOB_ID: job["id"],
        "parallelism.default": str(job["parallelism"]),
        "table.local-time-zone": "UTC",
        "python.execution-mode": "process",
        "python.client.executable": sys.executable,
    }
    settings |= {"execution.state-recovery.path": savepoint} if savepoint else {}
    environment = _planned(job, settings)
    if _is_alone():
        raise RuntimeError("nobody waits for the job any more")
    client = environment.execute_sql(_INSERT).get_job_client()
    return str(client.get_job_id())


def _is_alone() -> bool:
    """Whether who asked is gone: nothing more is asked before there is an answer, so what can be read is the end."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _planned(job: dict[str, Any], settings: dict[str, str]) -> Any:
    configuration = Configuration()
    for name, value in settings.items():
        configuration.set_string(name, value)
    chosen = EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(configuration).build()
    environment = TableEnvironment.create(chosen)
    if jars := settings.get("pipeline.jars"):
        environment.get_config().set("pipeline.jars", jars)  # here PyFlink loads them into the planner, too
    environment.create_temporary_table("messages", _messages(job))
    environment.create_temporary_table("nowhere", _nowhere())
    handle = udf(
        Handle(job["handler"], job["argument"]), result_type=DataTypes.INT(), func_type="pandas", deterministic=False
    )
    environment.create_temporary_function("handle", handle)
    return environment


def _messages(job: dict[str, Any]) -> Any:
    columns = (
        Schema.new_builder()
        .column("key", DataTypes.BYTES())
        .column("value", DataTypes.BYTES())
        .column_by_metadata("partition", DataTypes.INT().not_null(), is_virtual=True)
        .column_by_metadata("offset", DataTypes.BIGINT().not_null(), is_virtual=True)
        .column_by_metadata("at", DataTypes.TIMESTAMP_LTZ(3).not_null(), "timestamp", is_virtual=True)
        .column_by_expression("timestamp", _MILLISECONDS)
    )
    options = {
        "topic": job["topic"],
        "properties.group.id": job["group"],
        "scan.startup.mode": "group-offsets",
        "properties.auto.offset.reset": job["begin"],
        "scan.topic-partition-discovery.interval": "30 s",
    }
    options |= {f"properties.{name}": value for name, value in job["consumer"].items()}
    table = TableDescriptor.for_connector("kafka").schema(columns.build())
    for name, value in (_KEY_AND_VALUE | options).items():
        table = table.option(name, value)
    return table.build()


def _nowhere() -> Any:
    columns = Schema.new_builder().column("handled", DataTypes.INT()).build()
    return TableDescriptor.for_connector("blackhole").schema(columns).build()


if __name__ == "__main__":
    main()
