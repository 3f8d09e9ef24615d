"""Spark for this process: started when first needed, shared by its engines, stopped by the last of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from feature_store import errors
from feature_store.errors import (
    FeatureStoreError,
    Location,
    MissingExtraError,
    SettingsError,
    SourceError,
    StoreUnavailableError,
)
from feature_store.storage.remote import unavailable

Batches = Iterator[pa.RecordBatch]

ROWS_A_BATCH = 65_536

_SESSION = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.caseSensitive": "true",
    "spark.sql.adaptive.enabled": "true",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(ROWS_A_BATCH),
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.datetimeRebaseModeInWrite": "CORRECTED",
    "spark.sql.parquet.int96RebaseModeInRead": "CORRECTED",
    "spark.sql.parquet.int96RebaseModeInWrite": "CORRECTED",
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # what pandas writes; `spark_rows` divides
}
"""What every answer depends on: no conf of the user's changes it."""

_PROCESS = {
    "spark.app.name": "feature_store",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
}
_ON_THIS_MACHINE = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.shuffle.partitions": "16",
}
_LOCAL = re.compile(r"^local\[([^],]+)\]$")
_LOOPBACK = re.compile(r"local(\[.*\])?|spark://(localhost|127\.0\.0\.1)(:\d+)?")
_MARK = "feature_store in an executor: "
_OURS = re.compile(_MARK + r"(\{.*\})")
_CAUSE = re.compile(r"^(?:Caused by: |: )?(?:[\w.$]+(?:Exception|Error)): (.+)$", re.MULTILINE)
_UNWRITABLE = ("No space left", "File too large", "quota of", "Permission denied", "DELTA_CANNOT_CREATE_LOG_PATH")
_IN_S3 = re.compile(r"s3a://([^\s:`',]+)")
_ANSWER = re.compile(r"Exception: ([^\n(:]*) \(Service: [^;,]*[;,] Status Code: (\d+)[;,](?: Error Code: ([^;]*);)?")
_NO_ANSWER = re.compile(r"Sdk(?:Client)?Exception: (Unable to (?:execute|load) .*)")
_CALL = re.compile(r"Call From \S+ to (\S+) failed on [\w ]+: (?:[\w.]+: )?(.*?); For more")
_ADVICE = re.compile(r"\s*(If necessary|Use [`']try|To return NULL).*")


@dataclass
class _Running:
    """The one Spark of this process. `log`: what the driver's JVM says, where we started it."""

    session: Any
    master: str
    log: Path | None
    users: int = 0


_lock = Lock()
_running: _Running | None = None


def acquire(master: str, conf: Mapping[str, str], connect_timeout: float) -> Any:
    """A session of this process's Spark, which is started if it does not run: `release` it. Where the process has a
    Spark that somebody else started, such as in a notebook, a session of that. `connect_timeout`: seconds that each
    address of the master has to answer.

    Raises:
        MissingExtraError: PySpark is not installed.
        SettingsError: Java is missing, or this process runs Spark at another master.
        StoreUnavailableError: the master cannot be reached.
    """
    global _running
    with _lock:
        if _running is None:
            _running = _started(master, conf, connect_timeout)
        elif _running.log and _running.master != master:
            raise SettingsError(
                f"Spark runs at {_running.master} in this process: it cannot run at {master}, too",
                hint="Close the other store first, or use another process",
            )
        _running.users += 1
        session = _running.session.newSession()
    for name, value in _SESSION.items():
        session.conf.set(name, value)
    return session


def release() -> None:
    """Gives back what `acquire` gave; the last one stops what was started."""
    global _running
    with _lock:
        assert _running is not None
        _running.users -= 1
        if _running.users:
            return
        found, _running = _running, None
        if found.log:
            _stop(found.log.parent)


def _started(master: str, conf: Mapping[str, str], connect_timeout: float) -> _Running:
    try:
        from pyspark import SparkContext
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise MissingExtraError("spark", f"the Spark engine (master {master})") from error
    if SparkContext._active_spark_context is not None:
        return _Running(SparkSession.builder.getOrCreate(), master, None)
    _reach(master, connect_timeout)
    folder = Path(tempfile.mkdtemp(prefix="feature_store-spark-"))
    log = folder / "driver.log"
    try:
        return _Running(_start(SparkContext, SparkSession, _configured(master, conf, folder), log), master, log)
    except BaseException:
        _stop(folder)
        raise


def _reach(master: str, seconds: float) -> None:
    """Asks a master's addresses whether anybody is there, which takes Spark a minute to tell; of several, such as of
    standbys, one is enough. What a cluster manager's own configuration says (yarn) is left to its client."""
    reasons = []
    for host, port in _addresses(master):
        try:
            socket.create_connection((host, port), seconds).close()
            return
        except OSError as error:
            reasons.append(f"{host}:{port}: {error.strerror or error}")
    if reasons:
        raise StoreUnavailableError(
            f"Spark cannot be started at {master}: {', '.join(reasons)}",
            hint="Check the master's address, and that it runs; connect_timeout says how long to wait for it",
        )


def _addresses(master: str) -> list[tuple[str, int]]:
    """The hosts and ports that a master names, with those of its standbys; none for yarn and local."""
    scheme, _, rest = master.partition("://")
    if scheme == "spark":
        found = [each.rpartition(":") for each in rest.split(",")]
        return [(host.strip("[] "), int(port)) for host, _, port in found if host and port.isdecimal()]
    if scheme == "k8s":
        url = urlsplit(rest if "://" in rest else f"https://{rest}")
        return [(url.hostname, url.port or (80 if url.scheme == "http" else 443))] if url.hostname else []
    return []


def _start(context: Any, session: Any, settings: Mapping[str, str], log: Path) -> Any:
    """The JVM's own words go to a log: its warnings are none of the user's business."""
    from pyspark import SparkConf, java_gateway
    from pyspark.errors import PySparkRuntimeError

    launch: Any = java_gateway.launch_gateway
    conf = SparkConf(loadDefaults=False).setAll(list(settings.items()))
    python = {"PYSPARK_PYTHON": settings["spark.pyspark.python"]}
    with log.open("wb") as said, _environment(python):
        try:
            gateway = launch(conf, {"stdout": said, "stderr": subprocess.STDOUT})
        except PySparkRuntimeError as error:
            why = _why_not(log)
            packages = any(word in why for word in ("unresolved dependency", "download failed"))
            raise SettingsError(
                f"Spark cannot be started: {why or error}",
                hint="Maven Central must have these packages and be in reach, and ~/.m2 no halves of them"
                if packages
                else "It needs Java 17: install a JDK, or set JAVA_HOME",
            ) from error
        master = settings["spark.master"]
        try:
            context(conf=conf, gateway=gateway)
            return session.builder.getOrCreate()
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else _reason(error)
            raise StoreUnavailableError(
                f"Spark cannot be started at {master}: {reason}", hint="Check the master's address, and that it runs"
            ) from error


def _stop(folder: Path) -> None:
    """Ends the context and its JVM, which would live as long as this process."""
    from pyspark import SparkContext

    gateway = SparkContext._gateway
    if SparkContext._active_spark_context is not None:
        SparkContext._active_spark_context.stop()
    SparkContext._gateway = SparkContext._jvm = None
    if gateway is not None:
        gateway.shutdown()
        if process := getattr(gateway, "proc", None):
            process.stdin.close()
            process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _patient(master: str) -> str:
    """A local master that tries a task twice, as a cluster does more often: that an idle Python worker has died, Spark
    learns from the next task that it gives it."""
    return _LOCAL.sub(r"local[\1,2]", master)


def _configured(master: str, conf: Mapping[str, str], folder: Path) -> dict[str, str]:
    local = _ON_THIS_MACHINE if _LOOPBACK.fullmatch(master) else {}
    settings = _PROCESS | local | _delta(conf) | {"spark.sql.warehouse.dir": str(folder / "warehouse")}
    python = os.environ.get("PYSPARK_PYTHON", sys.executable)
    given = {name: value for name, value in conf.items() if name != "spark.jars.packages"}
    return settings | {"spark.pyspark.python": python} | given | _SESSION | {"spark.master": _patient(master)}


def _delta(conf: Mapping[str, str]) -> dict[str, str]:
    """What makes Spark read and write Delta; nothing where the user's conf sees to the extensions itself."""
    packages = conf.get("spark.jars.packages")
    if "spark.sql.extensions" in conf:
        return {"spark.jars.packages": packages} if packages else {}
    try:
        delta = _delta_package(version("pyspark"), version("delta-spark"))
    except PackageNotFoundError as error:
        raise MissingExtraError("spark", "Delta on Spark") from error
    return {
        "spark.jars.packages": f"{packages},{delta}" if packages else delta,
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    }


def _delta_package(spark: str, delta: str) -> str:
    """Where Maven has Delta's jar: from 4.1 on there is one for each release of Spark."""
    scala = "2.12" if spark.startswith("3.") else "2.13"
    release = f"_{'.'.join(spark.split('.')[:2])}" if tuple(map(int, delta.split(".")[:2])) >= (4, 1) else ""
    return f"io.delta:delta-spark{release}_{scala}:{delta}"


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def mapped(name: str, error: type[FeatureStoreError] = SourceError) -> Iterator[None]:
    """Turns errors of Spark, Arrow and the disk into ours; ours that were raised in an executor into themselves."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as raised:
        ours = _OURS.findall(str(raised))
        if ours:
            raise _unpacked(json.loads(ours[-1])) from raised
        if away := _away(str(raised)):
            raise away from raised
        raise error(f"{name} cannot be read: {_reason(raised)}") from raised
    except (OSError, pa.ArrowException) as raised:
        raise error(f"{name} cannot be read: {str(raised).splitlines()[0]}") from raised


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Tells a place that cannot be written from rows that cannot be computed: Spark says both alike. Goes within
    `mapped`."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as raised:
        why = _reason(raised)
        if not _OURS.search(str(raised)) and any(word in why for word in _UNWRITABLE):
            raise StoreUnavailableError(
                f"{path} cannot be written now: {why}",
                hint="Check the free space and permissions, there and where Spark spills; nothing was committed",
            ) from raised
        raise


def _away(text: str) -> StoreUnavailableError | None:
    """What is wrong with S3 or HDFS, if that is what an error of Hadoop's clients says."""
    place, call = _IN_S3.search(text), _CALL.search(text)
    if place and (answer := _ANSWER.search(text)):
        said, status, code = answer.groups()
        code = "AccessDenied" if status == "403" and (code or "403").startswith("403") else code or status
        return unavailable(f"s3://{place[1]}", OSError(f"{said.rstrip('.')} ({code})"))
    if place and (cause := _NO_ANSWER.search(text)):
        none = "credentials" in cause[1]
        return unavailable(f"s3://{place[1]}", OSError("there are no credentials for it" if none else cause[1]))
    return unavailable(f"hdfs://{call[1]}", OSError(call[2])) if call else None


def carried(function: Callable[[Batches], Batches]) -> Callable[[Batches], Batches]:
    """A function of Arrow batches for `mapInArrow`, whose errors of ours `mapped` finds again."""

    def run(batches: Batches) -> Batches:
        try:
            yield from function(batches)
        except FeatureStoreError as error:
            place = error.location and [error.location.file, error.location.line]
            said = {"kind": type(error).__name__, "message": error.message, "hint": error.hint, "place": place}
            raise RuntimeError(_MARK + json.dumps(said)) from error

    return run


def failing(kind: str, message: str, hint: str) -> str:
    """SQL that fails with an error of ours, whose message is an SQL expression; a quote has no place in the hint."""
    said = f"to_json(named_struct('kind', '{kind}', 'message', {message}, 'hint', \"{hint}\"))"
    return f"raise_error(concat('{_MARK}', {said}))"


def _unpacked(said: dict[str, Any]) -> FeatureStoreError:
    kind = getattr(errors, said["kind"])
    made: FeatureStoreError = kind.__new__(kind)
    place = Location(*said["place"]) if said.get("place") else None
    FeatureStoreError.__init__(made, said["message"], hint=said.get("hint"), location=place)
    return made


def _reason(raised: Exception) -> str:
    """The line that says most: that of the innermost cause."""
    text = str(raised)
    causes: list[str] = _CAUSE.findall(text)
    line = causes[-1] if causes else next((line for line in text.splitlines() if line.strip()), type(raised).__name__)
    return _ADVICE.sub("", line.strip())


def _why_not(log: Path) -> str:
    """What a JVM that ended before Spark ran has said of that: what it raised, or its last line."""
    text = log.read_text(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line.partition(": ")[2] for line in lines if line.startswith('Exception in thread "main"')]
    return (raised or lines or [""])[-1]
