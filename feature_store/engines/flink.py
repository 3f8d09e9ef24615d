"""Flink as the runner of streams: a job reads a topic and hands its messages, in batches, to a handler in Python.

A job holds no state but the offsets in its checkpoints. What a message means, and that it counts once, is the handler's
matter; Flink sees to restarts, parallelism and savepoints. Jobs are planned and submitted by a process of its own
(`flink_driver`); all the rest is the REST API.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen
from uuid import uuid4

from feature_store.engines.flink_kafka import java_properties
from feature_store.errors import ConflictError, FeatureStoreError, MissingExtraError, NotFoundError, SettingsError
from feature_store.errors import StoreUnavailableError as Unavailable
from feature_store.storage import remote

UNKNOWN = "UNKNOWN"
"""The state of a job that the cluster does not know: it ended long ago, or the cluster lost it."""

_ENDED = ("FINISHED", "FAILED", "CANCELED", UNKNOWN)
_INITIALIZING = "INITIALIZING"
_EMBEDDED = ("embedded", "local")
_TIMEOUT = 10.0
_PLANNING = 180.0
_CHECKPOINTS = "execution.checkpointing.dir"
_CANCEL = "Cancel it: it goes on from its latest checkpoint when it is started again"
_CONNECTOR = "org.apache.flink:flink-sql-connector-kafka, from Maven Central"
_NO_JOB = "Could not find Flink job"  # for which some questions answer 500
_CAUSED = re.compile(r"^(?:Caused by: |: )?(?:[\w.$]+\.)?[\w$]*(?:Exception|Error|Throwable)\w*: (.+)$", re.MULTILINE)
_WHOLE = re.compile(r"/(chk-(\d+))/_metadata$")  # written last
_TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class StreamJob:
    """A topic, and the handler that takes its messages.

    `conf`: the options of the Kafka client, in librdkafka's names. `handler`: "package.module:function", which workers
    call as `function(argument, worker's name)` for a `streams.Handler`. What it does with messages that it cannot take
    is its own matter. `begin`: "earliest" or "latest", where neither a savepoint nor its group knows.
    """

    name: str
    topic: str
    brokers: str
    group: str
    handler: str
    argument: str = field(repr=False)
    parallelism: int = 1
    begin: str = "earliest"
    conf: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Checkpoint:
    """What a job would go on from: where its files are, when it was done, how long that took, and its size."""

    path: str
    at: datetime
    milliseconds: int
    size: int


@dataclass(frozen=True)
class JobStatus:
    """How a job is. `state` is Flink's word, or UNKNOWN; `error` the root cause of the latest failure, in one line."""

    state: str
    restarts: int = 0
    completed_checkpoints: int = 0
    failed_checkpoints: int = 0
    checkpoint: Checkpoint | None = None
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED


class FlinkJobs:
    """The jobs of one Flink: a cluster at its REST address, or "embedded", which lives as long as this object.

    `conf`: Flink's options for jobs, and for an embedded Flink itself. `pipeline.jars` there may be paths, with `*`.

    >>> jobs = FlinkJobs("http://flink:8081", {"pipeline.jars": "/opt/flink/jars/*.jar"})
    """

    def __init__(self, address: str = "embedded", conf: Mapping[str, str] | None = None) -> None:
        self.is_embedded = address in _EMBEDDED
        if not self.is_embedded and not re.fullmatch(r"https?://[^/\s]+/?", address):
            raise SettingsError(
                f'"{address}" is not where a Flink is', hint="Write embedded, or a REST address: http://host:8081"
            )
        self._address = None if self.is_embedded else address.rstrip("/")
        self._conf = dict(conf or {})
        self._driver: _Driver | None = None

    @property
    def address(self) -> str:
        """The REST address. An embedded Flink has one when a job has been started."""
        return self._address or "embedded"

    def start(
        self, job: StreamJob, savepoint: str | None = None, *, identifier: str | None = None, timeout: float = 120
    ) -> str:
        """The id of the job, whose tasks run. It begins at `savepoint`, the path of a savepoint or checkpoint; else at
        the offsets that its group has committed; else where `job.begin` says.

        The id is `identifier`, 32 hexadecimal digits that no other job has: who keeps it before finds the job though
        this process is killed meanwhile. What else interrupts it cancels the job.

        Raises:
            MissingExtraError: PyFlink is not installed.
            SettingsError: Flink's Kafka connector or Java is missing, an option of Kafka has no counterpart.
            StoreUnavailableError: Flink cannot be reached, has no slots to spare, or the job fails at once.
        """
        told = asdict(job) | {"consumer": java_properties(job.brokers, job.conf), "id": identifier or uuid4().hex}
        if not self.is_embedded:
            self._check_version()
        if self._driver:
            self.ids()  # which notices if that Flink has died
        try:
            self._submit({"job": told, "savepoint": savepoint})
            self._wait_until_it_runs(told["id"], job, timeout)
        except BaseException:  # Ctrl-C, too
            with suppress(FeatureStoreError):
                self.cancel(told["id"])
            raise
        return str(told["id"])

    def stop(self, job: str, savepoints: str | None, *, timeout: float = 300) -> str:
        """Ends a job when all that it has read is handled; the path of its savepoint, in the folder `savepoints`, or in
        that of the cluster's settings."""
        answer = self._ask("POST", f"/jobs/{job}/stop", {"targetDirectory": savepoints, "drain": False})
        ask = f"/jobs/{job}/savepoints/{answer['request-id']}"
        deadline = time.monotonic() + timeout
        while (saved := self._get(ask))["status"]["id"] != "COMPLETED":
            if time.monotonic() > deadline:
                raise Unavailable(f"job {job} has made no savepoint within {timeout:g} s", hint=_CANCEL)
            time.sleep(0.1)
        operation = saved["operation"]
        if failure := operation.get("failure-cause"):
            raise Unavailable(f"job {job} makes no savepoint: {root_cause(failure['stack-trace'])}", hint=_CANCEL)
        self._wait(lambda: self._state(job) in _ENDED, timeout, f"job {job} has not ended")
        return str(operation["location"])

    def cancel(self, job: str, *, timeout: float = 60) -> None:
        """Ends a job at once; its latest checkpoint stays. Returns when it has ended; nothing to do where it had."""
        with suppress(NotFoundError, ConflictError):
            self._ask("PATCH", f"/jobs/{job}?mode=cancel")
        self._wait(lambda: self._state(job) in _ENDED, timeout, f"job {job} has not ended")

    def ids(self) -> list[str]:
        """The ids of the jobs that Flink knows, those that ended not long ago included."""
        try:
            return [job["id"] for job in self._get("/jobs")["jobs"]]
        except NotFoundError:
            return []

    def status(self, job: str) -> JobStatus:
        """How a job is. UNKNOWN: start it again, from `latest_checkpoint`."""
        try:
            state = self._state(job)
            if state in (UNKNOWN, _INITIALIZING):  # of which Flink can tell nothing more
                return JobStatus(state)
            checkpoints = self._get(f"/jobs/{job}/checkpoints")
            metrics = self._get(f"/jobs/{job}/metrics?get=numRestarts")
            error = self._error(job)
        except NotFoundError:  # forgotten between two questions
            return JobStatus(UNKNOWN)
        return JobStatus(
            state=state,
            restarts=int(metrics[0]["value"]) if metrics else 0,
            completed_checkpoints=checkpoints["counts"]["completed"],
            failed_checkpoints=checkpoints["counts"]["failed"],
            checkpoint=_checkpoint(checkpoints["latest"]),
            error=error,
        )

    def latest_checkpoint(self, job: str) -> str | None:
        """The path of the newest whole checkpoint of a job that ended or was lost; None if there is none."""
        folder = self._conf.get(_CHECKPOINTS) or self._cluster_conf().get(_CHECKPOINTS)
        return newest_checkpoint(f"{folder.rstrip('/')}/{job}") if folder else None

    def close(self) -> None:
        """Ends an embedded Flink, and its jobs with it."""
        if self._driver:
            self._driver.close()
            self._driver = None
            self._address = None if self.is_embedded else self._address

    def __enter__(self) -> FlinkJobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, request: Mapping[str, object]) -> None:
        try:
            self._started().ask(request)
        finally:
            if not self.is_embedded:
                self.close()

    def _started(self) -> _Driver:
        if self._driver is None:
            conf = self._conf | ({"python.executable": sys.executable} if self.is_embedded else {})
            conf |= {"pipeline.jars": _jars(conf["pipeline.jars"])} if "pipeline.jars" in conf else {}
            self._driver = _Driver()
            try:
                self._address = str(self._driver.ask({"address": self._address, "conf": conf})["address"])
            except BaseException:
                self.close()
                raise
        return self._driver

    def _check_version(self) -> None:
        """A job that was planned by another version may be misread in many ways."""
        running = self._get("/overview")["flink-version"]
        try:
            ours = version("apache-flink")
        except PackageNotFoundError as error:
            raise MissingExtraError("flink", f"Flink ({self.address})") from error
        if running.split(".")[:2] != ours.split(".")[:2]:
            raise SettingsError(
                f"Flink at {self.address} is {running}, and PyFlink here is {ours}",
                hint=f"Run: pip install 'apache-flink=={running}'",
            )

    def _wait_until_it_runs(self, identifier: str, job: StreamJob, timeout: float) -> None:
        try:
            self._wait(lambda: self._runs(identifier, job), timeout, f"{job.name} has not started")
        except Unavailable as error:
            with suppress(FeatureStoreError):
                slots = self._get("/overview")["slots-total"]
                error.hint = error.hint or f"It has {slots} slots for all jobs, and this one takes {job.parallelism}"
            raise

    def _runs(self, identifier: str, job: StreamJob) -> bool:
        found = self._get(f"/jobs/{identifier}")
        if error := self._error(identifier):
            raise Unavailable(
                f'{job.name}, of topic "{job.topic}", cannot be started: {error}', hint="Look into the logs of Flink"
            )
        # A vertex is said to run when one of its tasks does: where slots are missing, others never will.
        tasks = [(vertex["tasks"]["RUNNING"], vertex["parallelism"]) for vertex in found["vertices"]]
        return all(running == wanted for running, wanted in tasks) and found["state"] == "RUNNING"

    def _state(self, job: str) -> str:
        try:
            return str(self._get(f"/jobs/{job}/status")["status"])
        except NotFoundError:
            return UNKNOWN

    def _error(self, job: str) -> str | None:
        found = self._get(f"/jobs/{job}/exceptions?maxExceptions=1")
        entries = found["exceptionHistory"]["entries"]
        return root_cause(entries[0]["stacktrace"]) if entries else None

    def _cluster_conf(self) -> dict[str, str]:
        try:
            return {each["key"]: each["value"] for each in self._get("/jobmanager/config")}
        except NotFoundError:
            return {}

    def _wait(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            if time.monotonic() > deadline:
                raise Unavailable(f"{what} within {timeout:g} s, says Flink at {self.address}")
            time.sleep(0.1)

    def _get(self, path: str) -> Any:
        return self._ask("GET", path)

    def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        if self._address is None:
            raise NotFoundError("this embedded Flink has no jobs: none was started")
        data = json.dumps(body).encode() if body else None
        request = Request(self._address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=_TIMEOUT) as answer:
                return json.loads(answer.read() or b"{}")
        except HTTPError as error:
            with error:
                reason = root_cause(_said(error.read()))
            if error.code == 404 or _NO_JOB in reason:
                raise NotFoundError(f"Flink at {self.address} does not know that: {reason}") from error
            if error.code == 409:
                raise ConflictError(f"Flink at {self.address}: {reason}") from error
            raise Unavailable(f"Flink at {self.address} refuses: {reason}") from error
        except (URLError, OSError, ValueError) as error:
            cause = error.reason if isinstance(error, URLError) else error
            if self.is_embedded and isinstance(cause, ConnectionError):
                self.close()  # nobody else will start it again: `start` does
                raise NotFoundError("this embedded Flink has died, and its jobs with it") from error
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
            raise Unavailable(
                f"Flink at {self.address} cannot be reached: {reason}",
                hint="Check its address in feature_store.yaml, engines: flink, and that it runs",
            ) from error


class _Driver:
    """The process that plans and submits. Its JVM lives as long as it does."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="feature_store-flink-"))
        self._log = self._folder / "driver.log"
        command = [sys.executable, "-m", "feature_store.engines.flink_driver"]
        logs = os.environ | {"FLINK_LOG_DIR": str(self._folder)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=logs
            )

    def ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        """Its answer, or the error that it tells of."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):  # it has ended, and the log says why
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _PLANNING)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            log = self._log.read_text(errors="replace")
            raise _planning_error(log if ready else f"it did not answer within {_PLANNING:g} s")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _planning_error(answer["error"])
        return answer

    def close(self) -> None:
        """Ends it, and with it the JVM."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _planning_error(said: str) -> FeatureStoreError:
    reason = root_cause(said)
    if "No module named 'pyflink'" in said or "No module named 'pandas'" in said:
        return MissingExtraError("flink", "a stream on Flink")
    if "identifier 'kafka'" in said:
        return SettingsError(
            "Flink has no Kafka connector",
            hint=f"Get {_CONNECTOR}, and write engines: {{flink: {{conf: {{pipeline.jars: ITS PATH}}}}}}",
        )
    if "java'" in said or "JAVA_HOME" in said or "UnsupportedClassVersion" in said:
        return SettingsError(
            f"Flink cannot be started: {reason}", hint="It needs Java 17: install a JRE, or set JAVA_HOME"
        )
    return Unavailable(f"Flink takes no job: {reason}")


def _jars(places: str) -> str:
    """URLs, of URLs and paths."""
    found: list[str] = []
    for place in filter(None, map(str.strip, places.split(";"))):
        if "://" in place:
            found.append(place)
            continue
        files = sorted(glob(place))
        if not files:
            raise SettingsError(f"pipeline.jars: there is no {place}", hint=f"It takes {_CONNECTOR}")
        found += [Path(file).absolute().as_uri() for file in files]
    return ";".join(found)


def _checkpoint(latest: Mapping[str, Any]) -> Checkpoint | None:
    done = latest.get("completed")
    if done is None:
        return None
    at = datetime.fromtimestamp(done["latest_ack_timestamp"] / 1000, UTC)
    return Checkpoint(done["external_path"], at, done["end_to_end_duration"], done["checkpointed_size"])


def newest_checkpoint(folder: str) -> str | None:
    """The newest checkpoint in a job's folder, a URI or a path, that was written to its end; None without one.

    Raises:
        StoreUnavailableError: the folder cannot be read.
    """
    place = urlsplit(folder)
    try:
        if place.scheme in ("", "file"):
            files = [str(each) for each in Path(place.path).glob("chk-*/_metadata")]
        else:
            files = list(remote.list_files(folder))
    except Exception as error:  # the client of S3 and HDFS raises whatever there is
        raise remote.unavailable(folder, error) from error
    found = [match for match in map(_WHOLE.search, files) if match]
    newest = max(found, key=lambda match: int(match[2]), default=None)
    return f"{folder.rstrip('/')}/{newest[1]}" if newest else None


def root_cause(said: str) -> str:
    """The line that says most in what Java or Python says of an error: that of the innermost cause."""
    if _TRACEBACK in said:
        raised = said.rpartition(_TRACEBACK)[2]
        lines = [line for line in raised.splitlines()[1:] if line and not line[0].isspace()]
        if lines:
            return lines[0].strip()
    causes = _CAUSED.findall(said)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return str(causes[-1]).strip() if causes else (lines[-1] if lines else "it does not say why")


def _said(body: bytes) -> str:
    try:
        return "\n".join(json.loads(body)["errors"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")
