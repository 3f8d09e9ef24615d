"""Streams as jobs of Flink: what its Python workers do, and how a job is submitted, looked at and ended.

A job goes on from its savepoint or, where it made none or a cluster lost it, from its newest checkpoint. Both say no
more than what was taken; what was not landed by then, workers read again (see `stream_task`).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import yaml

from feature_store.engines.flink import FlinkJobs, JobStatus, StreamJob
from feature_store.engines.kafka import QUIET_S, DeadLetters, Topic
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
_SUBMIT_S = 240.0
_LAND_S = 60.0
_SAVEPOINT_S = 30.0
"""A savepoint is some hundred bytes: what takes longer waits for a store, which may be away for hours."""
_LOOK_EVERY_S = 2.0
_BACKLOG = 5_000
"""Batches so large say that more waits."""


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
        self._source, self._reads = told["source"], told["reads"]
        self._topic, self._dead_letters = self._topics()
        self._began_at = 0.0
        self._look()
        identity = TopicId(*self._reads["topic"])
        self._task = StreamTask(self._store, self._source, name, topic=identity, read=self._topic.read)
        self._rejected = DeadLetters(self._dead_letters, self._topic)

    def handle(self, messages: Messages) -> None:
        """As `StreamTask.handle`; what it raises can be seen in the status, too."""
        now = time.monotonic()
        # Of a topic that is made anew nothing comes for a while: batches that follow each other at once are of the old
        # one, unless there is a backlog.
        quiet, self._began_at = now - self._began_at > QUIET_S, now
        try:
            if quiet or now - self._looked_at > _LOOK_EVERY_S or len(messages) >= _BACKLOG:
                with suppress(StoreUnavailableError):  # what came can be taken
                    self._look()
            self._task.handle(messages, self._rejected.send)
        except FeatureStoreError as error:
            self._task.failing(error)
            raise

    def _look(self) -> None:
        """An error where another topic is to be read than the job reads, by the definition or as it was made anew, or
        dead letters go to another one. Flink would read on at the old offsets."""
        self._looked_at = time.monotonic()
        known, reads = (self._topic, self._dead_letters), self._reads
        names = [topic.name for topic in known]
        if self._topics() != known or names != [reads["topic"][0], reads["dead_letters"]]:
            what = f'source "{self._source}" reads another topic now, or has another one for dead letters'
        elif self._topic.identity != TopicId(*reads["topic"]):
            what = f"{self._topic} was deleted, and another one made of the same name"
        else:
            return
        raise SourceError(what, hint=f"Run: fs stream start {self._source}")

    def _topics(self) -> tuple[Topic, Topic]:
        return self._store.topic(self._source), dead_letters_of(self._store, self._source)

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
        """Whether the job reads what is to be read now."""
        return bool(self._state.job.get("reads") == self._reads)

    @property
    def _reads(self) -> dict[str, Any]:
        """What a job is to read, and where what it cannot take goes: where that changes, it is submitted anew."""
        topic, schema = self.store.topic(self.source), "".join(self._schema().values())
        return {
            "topic": [*astuple(topic.identity)],
            "brokers": topic.brokers,
            "dead_letters": dead_letters_of(self.store, self.source).name,
            "schema": sha256(schema.encode()).hexdigest() if schema else None,
        }

    def start(self) -> str:
        """Submit the job, unless it runs; its id. `ConflictError` where another is about to, as two jobs would take the
        topic from each other for good, or where the stream was stopped meanwhile."""
        with self._alone(0):
            return self._start()

    def _start(self) -> str:
        state = self._state
        if not state.running:
            raise ConflictError(f'the stream of "{self.source}" was stopped', hint="Run: fs stream start")
        job, before, reads = state.job.get("id"), state.job.get("reads"), self._reads
        if job and self.runs:
            if before == reads:
                return str(job)
            self.jobs.cancel(job)
            self.land()
        place = state.job.get("savepoint") or (job and self._newest_place(job))
        if before and before["topic"] != reads["topic"]:
            place = None  # it would go on with the partitions of the topic before
        new = uuid4().hex
        # Saved before it is submitted: whatever becomes of this process, who comes next finds the job.
        self._save(id=new, address=self.jobs.address, savepoint=None, began_at=place, reads=reads)
        self.jobs.start(self._job(reads), place, identifier=new)
        self._save(address=self.jobs.address)  # that of an embedded Flink is known only now
        return new

    def _newest_place(self, job: str) -> str | None:
        """Where the last job is to go on that made no savepoint: where it began, if it has no checkpoint."""
        return self.jobs.latest_checkpoint(job) or self._state.job.get("began_at")

    def stop(self) -> str | None:
        """End the job with a savepoint; nothing happens where it has ended. It waits for one that is submitted now.

        One that makes no savepoint, as it restarts or waits for a store, is cancelled, and goes on from its newest
        checkpoint. The reason for that, else None.
        """
        with self._alone(_SUBMIT_S):
            if not self.runs:
                return None
            job, reason = self._state.job["id"], None
            default = (self._folder / "savepoints").as_uri() if self.is_embedded else None
            place: str | None
            try:
                place = self.jobs.stop(job, self._conf.get(_SAVEPOINTS, default), timeout=_SAVEPOINT_S)
            except FeatureStoreError as error:
                self.jobs.cancel(job)
                place, reason = self._newest_place(job), error.message
            self._save(savepoint=place)
            return reason

    @contextmanager
    def _alone(self, patience: float, what: str = "job") -> Iterator[None]:
        """While nobody else submits or stops the job, or lands; `ConflictError` where somebody does for so many
        seconds."""
        leases, until = self.store.registry.leases, time.monotonic() + patience
        while (lease := leases.acquire(f"{what} {self.source}", this_holder(), _LEASE_S)) is None:
            if time.monotonic() >= until:
                raise ConflictError(
                    f'another process is busy with the job of "{self.source}" now',
                    hint="See fs stream status, and try again",
                )
            time.sleep(0.2)
        with Heartbeat(leases, lease, _LEASE_S):
            yield

    def land(self) -> None:
        """Land what workers took and did not land before their job ended: Flink does not wait for them. What cannot be
        landed at once, the next job's workers land."""
        with suppress(FeatureStoreError), self._alone(_LAND_S, "land"):
            reads = self._state.job.get("reads")
            if reads is None or reads["brokers"] != self.store.topic(self.source).brokers:
                return
            topic, identity = self.store.topic(self.source, reads["topic"][0]), TopicId(*reads["topic"])
            if topic.identity != identity or StreamLog(self.store.offline_store, self.source).base(identity) is None:
                return
            at_once = Event()
            at_once.set()
            task = StreamTask(self.store, self.source, this_holder(), topic=identity, read=topic.read, stop=at_once)
            try:
                letters = self.store.topic(self.source, reads["dead_letters"])
                task.catch_up(topic.ranges(), DeadLetters(letters, topic).send)
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

    def _job(self, reads: dict[str, Any]) -> StreamJob:
        topic = self.store.topic(self.source)
        settings = self.store.settings.model_copy(update={"clients": {}})  # whose tokens are no business of Flink's
        written = yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True), sort_keys=False)
        files = {"feature_store.yaml": written.replace("${", "$${"), **self._schema()}
        return StreamJob(
            name=f"{self.store.project}: {self.source}",
            topic=topic.name,
            brokers=topic.brokers,
            group=group_of(self.store, self.source),
            handler=_HANDLER,
            argument=json.dumps({"source": self.source, "reads": reads, "files": files}),
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
