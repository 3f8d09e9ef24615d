"""Streams as jobs of Flink: what its Python workers do, and how a job is submitted, looked at and ended.

A job goes on from its savepoint or, where a cluster lost it, from its newest checkpoint. Both say no more than what was
taken; what was not landed by then, workers read again (see `stream_task`).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from feature_store.engines.flink import FlinkJobs, JobStatus, StreamJob
from feature_store.engines.kafka import QUIET_S, DeadLetters
from feature_store.engines.streams import Messages, TopicId
from feature_store.errors import ConflictError, FeatureStoreError, NotFoundError, SourceError, StoreUnavailableError
from feature_store.materialization.stream_log import StreamLog
from feature_store.pipelines.stream_task import StreamTask, spare_collections
from feature_store.pipelines.streams import FLINK
from feature_store.pipelines.topics import dead_letters_of, group_of
from feature_store.registry.leases import Heartbeat, this_holder
from feature_store.registry.records import StreamState
from feature_store.store import FeatureStore

_HANDLER = f"{__name__}:open_worker"
_PARALLELISM = "parallelism.default"
_SAVEPOINTS = "execution.checkpointing.savepoint-dir"
_CHECKPOINTS = "execution.checkpointing.dir"
_LEASE_S = 20.0
_LOOK_EVERY_S = 2.0


def open_worker(argument: str, name: str) -> _Worker:
    """What a Python worker of Flink hands messages to; `argument` as `FlinkStream` writes it."""
    worker = _Worker(json.loads(argument), name)
    spare_collections()
    return worker


class _Worker:
    """A `StreamTask` over a store of its own, whose repository is no more than settings: definitions are in the
    registry."""

    def __init__(self, told: Mapping[str, Any], name: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="feature_store-stream-")
        for path, text in told["files"].items():
            file = Path(self._folder.name) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        self._store = FeatureStore(self._folder.name)
        self._source, self._topic = told["source"], TopicId(*told["topic"])
        self._heard_at = time.monotonic()
        self._look()
        topic = self._store.topic(self._source)
        self._task = StreamTask(self._store, self._source, name, topic=self._topic, read=topic.read)
        self._dead_letters = DeadLetters(dead_letters_of(self._store, self._source), topic)

    def handle(self, messages: Messages) -> None:
        """As `StreamTask.handle`; what it raises can be seen in the status, too."""
        try:
            if (now := time.monotonic()) - self._looked_at > _LOOK_EVERY_S or now - self._heard_at > QUIET_S:
                with suppress(StoreUnavailableError):  # what came can be taken
                    self._look()
            self._task.handle(messages, self._dead_letters.send)
            self._heard_at = time.monotonic()
        except FeatureStoreError as error:
            self._task.failing(error)
            raise

    def _look(self) -> None:
        """An error where another topic is to be read than the job reads: by the definition, or as it was made anew.
        Flink would read on at the old offsets."""
        now = self._store.topic(self._source).identity
        if now != self._topic:
            was = "was deleted, and another one made of the same name" if now.name == self._topic.name else "was read"
            raise SourceError(
                f'topic "{self._topic.name}" {was}, and "{now.name}" is to be read now',
                hint=f"Run: fs stream start {self._source}",
            )
        self._looked_at = time.monotonic()

    def close(self) -> None:
        """Lands what was taken."""
        self._task.close()
        self._store.close()
        self._folder.cleanup()


@dataclass
class FlinkStream:
    """The job of one source's stream, on the Flink that the settings name."""

    store: FeatureStore
    source: str

    def __post_init__(self) -> None:
        place = self.store.settings.engine_place(FLINK)
        conf = dict(place.conf_texts)
        if place.is_embedded:
            conf = {_CHECKPOINTS: (self._folder / "checkpoints").as_uri()} | conf
        self._conf = conf
        self.jobs = FlinkJobs("embedded" if place.is_embedded else place.master, conf)

    @property
    def is_embedded(self) -> bool:
        """Whether Flink runs in this process, and ends with it."""
        return self.jobs.is_embedded

    @property
    def _folder(self) -> Path:
        return self.store.root / "data" / "streams" / self.source

    @property
    def runs(self) -> bool:
        """Whether there is a job that has not ended."""
        job = self._state.job.get("id")
        return job is not None and not self.jobs.status(job).has_ended

    @property
    def is_current(self) -> bool:
        """Whether the job reads the topic that is there now."""
        return bool(self._state.job.get("topic") == [*astuple(self.store.topic(self.source).identity)])

    def start(self) -> str:
        """Submit the job, unless it runs; its id. `ConflictError` where another is about to: two jobs would take the
        topic from each other for good."""
        leases = self.store.registry.leases
        lease = leases.acquire(f"job {self.source}", this_holder(), _LEASE_S)
        if lease is None:
            raise ConflictError(
                f'another process submits the job of "{self.source}" now', hint="See fs stream status, and try again"
            )
        with Heartbeat(leases, lease, _LEASE_S):
            return self._start()

    def _start(self) -> str:
        state = self._state
        job = state.job.get("id")
        topic = astuple(self.store.topic(self.source).identity)
        is_other = tuple(state.job.get("topic", topic)) != topic
        if job and self.runs:
            if not is_other:
                return str(job)
            self.jobs.cancel(job)
            self.land()
        savepoint = state.job.get("savepoint") or (job and self.jobs.latest_checkpoint(job))
        if is_other:
            savepoint = None  # it would go on with the partitions of the topic before
        started = self.jobs.start(self._job(topic), savepoint)
        self._save(id=started, address=self.jobs.address, savepoint=None, topic=topic)
        return started

    def stop(self) -> None:
        """End the job with a savepoint; nothing happens where it has ended."""
        if not self.runs:
            return
        job = self._state.job["id"]
        default = (self._folder / "savepoints").as_uri() if self.is_embedded else None
        self._save(savepoint=self.jobs.stop(job, self._conf.get(_SAVEPOINTS, default)))

    def land(self) -> None:
        """Land what workers took and did not land before their job ended: Flink does not wait for them. What cannot be
        landed now, the next job's workers land."""
        with suppress(FeatureStoreError):
            read = self._state.job.get("topic")
            topic = self.store.topic(self.source, read and read[0])
            identity = topic.identity
            if read != [*astuple(identity)] or StreamLog(self.store.offline_store, self.source).base(identity) is None:
                return
            task = StreamTask(self.store, self.source, this_holder(), topic=identity, read=topic.read)
            try:
                task.catch_up(topic.ranges())
            finally:
                task.close()

    def status(self) -> JobStatus | None:
        """How the job is, wherever it runs; None if there is none, or its Flink does not answer."""
        job, address = self._state.job.get("id"), self._state.job.get("address")
        if job is None or address is None:
            return None
        with suppress(FeatureStoreError):
            return FlinkJobs(address, self._conf).status(job)
        return None

    def close(self) -> None:
        """End an embedded Flink."""
        self.jobs.close()

    @property
    def _state(self) -> StreamState:
        state = self.store.registry.streams.get(self.source)
        if state is None:
            raise NotFoundError(f'no stream of source "{self.source}" was ever started', hint="Run: fs stream start")
        return state

    def _save(self, **job: Any) -> None:
        while True:
            state = self._state
            try:
                self.store.registry.streams.save(replace(state, job={**state.job, **job}))
                return
            except ConflictError:
                continue

    def _job(self, read: tuple[str, ...]) -> StreamJob:
        topic, settings = self.store.topic(self.source), self.store.settings
        written = yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True), sort_keys=False)
        files = {"feature_store.yaml": written.replace("${", "$${"), **self._schema()}
        return StreamJob(
            name=f"{self.store.project}: {self.source}",
            topic=topic.name,
            brokers=topic.brokers,
            group=group_of(self.store, self.source),
            handler=_HANDLER,
            argument=json.dumps({"source": self.source, "topic": read, "files": files}),
            begin=self._state.start,
            parallelism=int(self._conf.get(_PARALLELISM, 1)),
            conf=topic.conf,
        )

    def _schema(self) -> dict[str, str]:
        """The file of an Avro schema, which workers read beside the settings."""
        path = self.store.catalog.kafka(self.source).avro_schema
        if path is None or not (self.store.root / path).is_file():
            return {}
        return {path: (self.store.root / path).read_text(encoding="utf-8")}
