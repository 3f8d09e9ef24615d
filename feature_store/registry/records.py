"""What a registry holds, as plain frozen data, and the one text form of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class State:
    """The live records of a project as of one serial, ordered by kind and name."""

    serial: int
    records: tuple[Record, ...]

    def get(self, kind: str, name: str) -> Record | None:
        return next((record for record in self.records if record.kind == kind and record.name == name), None)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one version of a view is materialized.

    Everything up to the instant `through` is online; `inputs` are the fingerprints of what was read for it; `done` are
    the steps finished (start, end) of a run still in flight over the inputs `running`; `snapshots` the boundaries kept.
    `revision` is 0 for a record that was never saved, and moves by one with every save.
    """

    view: str
    version: str
    through: int | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    done: tuple[tuple[int, int], ...] = ()
    running: Mapping[str, str] = field(default_factory=dict)
    snapshots: tuple[int, ...] = ()
    revision: int = 0

    def body(self) -> str:
        """The canonical text of all but the key and the revision."""
        return canonical(
            {
                "through": self.through,
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
            inputs=data["inputs"],
            done=tuple((start, end) for start, end in data["done"]),
            running=data["running"],
            snapshots=tuple(data["snapshots"]),
            revision=revision,
        )
