"""What a registry holds, as plain frozen data, and the one text form of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

Action = Literal["create", "update", "delete"]


def canonical(value: object) -> str:
    """The one JSON text of a value: keys sorted, no spaces, no escapes that UTF-8 does not need."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def content_hash(spec: Mapping[str, Any], bound: Mapping[str, Any]) -> str:
    """SHA-256 of a record's content, 64 hexadecimal digits."""
    return hashlib.sha256(canonical({"spec": spec, "bound": bound}).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """A version of a definition, 1, 2, ... per kind and name; `deleted` marks the version at which it went away.

    `spec` is the definition (`Definition.to_dict()`), `bound` what was settled about it at `apply`, such as a source's
    schema: {"columns": [["user_id", "INT64"], ...]}. `created_at` is in microseconds, `serial` the commit's.
    """

    kind: str
    name: str
    version: int
    hash: str
    spec: Mapping[str, Any]
    bound: Mapping[str, Any]
    created_at: int
    serial: int = 0
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One record to write: `create` and `update` put `spec` and `bound`, `delete` leaves a tombstone."""

    action: Action
    kind: str
    name: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    bound: Mapping[str, Any] = field(default_factory=dict)


class Role(StrEnum):
    """What an earlier version of a view is still there for."""

    SERVED = "served"
    """It answers online reads until the applied one is complete."""
    RETIRED = "retired"
    """Its tables are to be dropped once no server reads them any more."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a view beside the one that is applied: its definition is that of the registry at `serial`, read in
    `timezone`. It has its role `since` an instant (microseconds)."""

    view: str
    version: str
    role: Role
    serial: int
    timezone: str
    since: int


@dataclass(frozen=True, slots=True)
class State:
    """The live records of a project as of one serial, ordered by kind and name, and the versions beside those."""

    serial: int
    records: tuple[Record, ...]
    versions: tuple[Version, ...] = ()

    def get(self, kind: str, name: str) -> Record | None:
        return next((record for record in self.records if record.kind == kind and record.name == name), None)


Chunk = tuple[int, int, int]
"""What identifies a step of a run, or a chunk of a backfill: hop (0 where there is none), start, end."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one version of a view is materialized.

    Everything up to the instant `through` is online, of event times from `since` on (None: all there is). `inputs` are
    the fingerprints of what was read for it; `done` are the steps finished of a run still in flight over the inputs
    `running`; `snapshots` the boundaries kept. `revision` is 0 for a record that was never saved, and moves
    by one with every save.
    """

    view: str
    version: str
    through: int | None = None
    since: int | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    done: tuple[Chunk, ...] = ()
    running: Mapping[str, str] = field(default_factory=dict)
    snapshots: tuple[int, ...] = ()
    revision: int = 0

    def body(self) -> str:
        """The canonical text of all but the key and the revision."""
        return canonical(
            {
                "through": self.through,
                "since": self.since,
                "inputs": self.inputs,
                "done": self.done,
                "running": self.running,
                "snapshots": self.snapshots,
            }
        )

    @classmethod
    def read(cls, view: str, version: str, revision: int, body: str) -> Progress:
        """The inverse of `body`."""
        data = json.loads(body)
        return cls(
            view=view,
            version=version,
            through=data["through"],
            since=data.get("since"),  # releases before this one wrote none
            inputs=data["inputs"],
            done=tuple((mark[0], mark[1], mark[2]) for mark in data["done"] if len(mark) == 3),  # once there were pairs
            running=data["running"],
            snapshots=tuple(data["snapshots"]),
            revision=revision,
        )


@dataclass(frozen=True, slots=True)
class Filling:
    """A backfill of a version of a view that has not ended: the chunks written so far, of inputs as they were when it
    began (fingerprints) or newer. `revision` moves by one with every save."""

    view: str
    version: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    done: frozenset[Chunk] = frozenset()
    revision: int = 0

    def body(self) -> str:
        """The canonical text of all but the key and the revision."""
        return canonical({"inputs": self.inputs, "done": sorted(self.done)})

    @classmethod
    def read(cls, view: str, version: str, revision: int, body: str) -> Filling:
        """The inverse of `body`."""
        data = json.loads(body)
        return cls(view, version, data["inputs"], frozenset((hop, a, b) for hop, a, b in data["done"]), revision)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one holder to work at `name` until an instant of the database's clock (microseconds). The `token`
    grows with every holder, so that what an earlier one still writes can be told and refused."""

    name: str
    holder: str
    token: int
    until: int


@dataclass(frozen=True, slots=True)
class Runs:
    """What became of the scheduled runs of a view; instants in microseconds.

    The newest boundary that a run brought it up to (`through`), and the one that runs are `trying` to bring it to; of
    the newest run when it began and ended, and by whom it was done; how many `attempts` were made at that boundary, the
    last one's `error`, and when the next one is due (None: there is none).
    """

    view: str
    through: int | None = None
    trying: int | None = None
    began: int | None = None
    ended: int | None = None
    holder: str | None = None
    attempts: int = 0
    error: str | None = None
    retry_at: int | None = None

    def body(self) -> str:
        """The canonical text of all but the view."""
        return _body(self, "view")

    @classmethod
    def read(cls, view: str, body: str) -> Runs:
        """The inverse of `body`."""
        return cls(view, **json.loads(body))


@dataclass(frozen=True, slots=True)
class StreamState:
    """The stream of a source as it was asked for: on which engine ("kafka", "flink"), whether it is to run, where in
    the topic it starts that has no position yet ("earliest", "latest"), since when (microseconds), and what the engine
    needs to find it again (`job`, such as a savepoint's path)."""

    source: str
    engine: str
    running: bool
    start: str = "earliest"
    since: int = 0
    job: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 0

    def body(self) -> str:
        """The canonical text of all but the key and the revision."""
        return _body(self, "source", "revision")

    @classmethod
    def read(cls, source: str, revision: int, body: str) -> StreamState:
        """The inverse of `body`."""
        return cls(source, revision=revision, **json.loads(body))


@dataclass(frozen=True, slots=True)
class StreamWorker:
    """What a worker of a stream has done since it started: events applied, of those late (older than what their view
    holds, kept offline only), bad ones (in the dead-letter topic), those `lost` because the topic did not hold them any
    more, and the newest event time (microseconds).

    `positions` are the next offsets by partition, `error` is what it waits for, `silent` says for how long it was not
    heard of (microseconds)."""

    source: str
    name: str
    events: int = 0
    late: int = 0
    bad: int = 0
    lost: int = 0
    newest: int | None = None
    positions: Mapping[int, int] = field(default_factory=dict)
    error: str | None = None
    silent: int = 0

    def body(self) -> str:
        """The canonical text of all but the key and the silence."""
        return _body(self, "source", "name", "silent")

    @classmethod
    def read(cls, source: str, name: str, body: str, silent: int) -> StreamWorker:
        """The inverse of `body`."""
        found = json.loads(body)
        positions = {int(partition): at for partition, at in found.pop("positions").items()}
        return cls(source, name, silent=silent, positions=positions, **found)


@dataclass(frozen=True, slots=True)
class Claim:
    """Events of one partition from offset `begin` on are the stream's; what it wrote is in the online store as long as
    that `holds`, which it was said of in an `epoch` of the store (microseconds, as text)."""

    begin: int
    epoch: str

    def holds(self, epoch: int | None) -> bool:
        """Whether it counts in this epoch; None: there is none. One that follows a loss is later; of two that were
        begun at once the earlier stays."""
        return epoch is not None and epoch <= int(self.epoch)


def _body(record: Any, *left_out: str) -> str:
    return canonical({item.name: getattr(record, item.name) for item in fields(record) if item.name not in left_out})
