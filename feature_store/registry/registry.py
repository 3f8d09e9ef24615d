"""The registry of one project, in any database that SQLAlchemy speaks to.

Every version of every record stays; a record is live from the serial that wrote it until the serial that replaced it.
A commit moves the project's serial by compare-and-set as its first statement, so of two commits that read the same
serial one waits on the other's row (or file) lock, then finds the serial moved and fails whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self, TypeVar

import sqlalchemy as sa

from feature_store.errors import ConflictError, NotFoundError, nearest
from feature_store.registry.backfills import Backfills
from feature_store.registry.database import Database
from feature_store.registry.leases import Leases
from feature_store.registry.records import Change, Progress, Record, Role, State, Version, canonical, content_hash
from feature_store.registry.runs import RunLog
from feature_store.registry.streams import Streams
from feature_store.registry.tables import BACKFILLS, METADATA, PROGRESS, PROJECTS, RECORDS, STREAM_CLAIMS, VERSIONS


class Loadable(Protocol):
    """A class of definitions, as far as the registry needs to know it."""

    kind: ClassVar[str]

    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...


D = TypeVar("D", bound=Loadable)


class Registry:
    """Named, versioned records of one project. Threads and processes may share the database; each process opens its
    own. `upgrade`: also where an older release made it (see `Database`). `StoreUnavailableError` when the database
    cannot be reached or written, `SettingsError` when it is not one of this release's."""

    def __init__(self, url: str, project: str, upgrade: bool = False) -> None:
        self.project = project
        self._database = Database(url, upgrade)
        self.upgraded_from = self._database.upgraded_from
        """The version of the tables that were upgraded now; None where they were of this release or are new."""

    def serial(self) -> int:
        """The number of commits so far, 0 for a project that has none."""
        with self._database.reading() as connection:
            return self._serial(connection)

    def load(self, serial: int | None = None) -> State:
        """The live records as of now, or as of an earlier serial."""
        with self._database.reading() as connection:
            at = self._serial(connection) if serial is None else serial
            table = RECORDS.c
            query = (
                sa.select(RECORDS)
                .where(table.project == self.project, table.since_serial <= at, table.deleted.is_(sa.false()))
                .where(sa.or_(table.until_serial.is_(None), table.until_serial > at))
            )
            rows = connection.execute(query).all()
            mine = VERSIONS.c.project == self.project
            versions = connection.execute(sa.select(VERSIONS).where(mine)).all() if serial is None else []
        # Ordered here: databases differ in their collations.
        records = sorted(map(_record, rows), key=lambda record: (record.kind, record.name))
        return State(at, tuple(records), tuple(sorted(map(_version, versions), key=lambda v: (v.view, v.version))))

    def commit(
        self,
        changes: Sequence[Change],
        expected_serial: int,
        versions: Mapping[tuple[str, str], Version | None] | None = None,
    ) -> int:
        """Write all changes or none, and return the new serial; `ConflictError` if the serial is not as expected.

        `versions`: those beside the applied ones that get a role, or None for one that has none any more. Changes that
        change nothing are left out; if none is left, and no role changes, the serial stays.
        """
        self._ensure_project()
        with self._database.writing() as connection:
            serial = self._advance(connection, expected_serial)
            heads = self._heads(connection)
            rows = [row for change in changes if (row := self._row(change, heads, serial))]
            if not rows and not versions:
                connection.rollback()
                return expected_serial
            self._write(connection, rows, serial)
            for (view, version), role in (versions or {}).items():
                connection.execute(VERSIONS.delete().where(*self._key(VERSIONS, view, version)))
                if role is not None:
                    connection.execute(VERSIONS.insert(), {"project": self.project, **asdict(role)})
            return serial

    def history(self, kind: str, name: str) -> list[Record]:
        """Every version, oldest first; tombstones too. Empty if there never was one."""
        table = RECORDS.c
        query = (
            sa.select(RECORDS)
            .where(table.project == self.project, table.kind == kind, table.name == name)
            .order_by(table.version)
        )
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(query)]

    def get(self, definition: type[D], name: str) -> D:
        """The live definition of a class and name: `registry.get(FeatureView, "user_clicks")`."""
        state = self.load()
        record = state.get(definition.kind, name)
        if record is None:
            known = [record.name for record in state.records if record.kind == definition.kind]
            kind = definition.kind.replace("_", " ")
            raise NotFoundError(f'the registry has no {kind} "{name}"', hint=nearest(name, known))
        return definition.model_validate(record.spec)

    def progress(self, view: str, version: str) -> Progress | None:
        """How far a version of a view is materialized; None if it never was."""
        query = sa.select(PROGRESS).where(*self._progress_key(view, version))
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return _progress(row) if row else None

    def all_progress(self) -> list[Progress]:
        """The progress of every view and version, ordered."""
        query = sa.select(PROGRESS).where(PROGRESS.c.project == self.project)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return sorted(map(_progress, rows), key=lambda progress: (progress.view, progress.version))

    def save_progress(self, progress: Progress) -> Progress:
        """Save, and return it with its next revision; `ConflictError` if another run saved since it was read."""
        saved = replace(progress, revision=progress.revision + 1)
        row = {"revision": saved.revision, "body": saved.body()}
        if not (self._replace_progress(progress, row) if progress.revision else self._add_progress(progress, row)):
            raise ConflictError(
                f'another materialization of "{progress.view}" saved its progress first',
                hint="Read again and retry",
            )
        return saved

    def forget_progress(self, view: str, version: str | None = None) -> None:
        """Remove the progress of a version of a view, or of all its versions."""
        with self._database.writing() as connection:
            self._forget(connection, view, version)

    def forget_retired(self, versions: Iterable[tuple[str, str]]) -> None:
        """Forget retired versions of views, of which nothing is left. Nobody goes by them: the serial stays."""
        with self._database.writing() as connection:
            for view, version in versions:
                key = self._key(VERSIONS, view, version)
                connection.execute(VERSIONS.delete().where(*key, VERSIONS.c.role == Role.RETIRED))
                self._forget(connection, view, version)

    @cached_property
    def backfills(self) -> Backfills:
        """The backfills that have not ended."""
        return Backfills(self._database, self.project)

    @cached_property
    def leases(self) -> Leases:
        """Who works at what."""
        return Leases(self._database, self.project)

    @cached_property
    def runs(self) -> RunLog:
        """What became of scheduled runs."""
        return RunLog(self._database, self.project)

    @cached_property
    def streams(self) -> Streams:
        """Streams, and what is theirs."""
        return Streams(self._database, self.project)

    def drop(self) -> None:
        """Remove this project's records, history and progress; other projects in the database stay."""
        with self._database.writing() as connection:
            for table in METADATA.sorted_tables:
                if "project" in table.c:
                    connection.execute(table.delete().where(table.c.project == self.project))

    def close(self) -> None:
        self._database.close()

    def _serial(self, connection: sa.Connection) -> int:
        query = sa.select(PROJECTS.c.serial).where(PROJECTS.c.project == self.project)
        return connection.execute(query).scalar_one_or_none() or 0

    def _ensure_project(self) -> None:
        with self._database.reading() as connection:
            query = sa.select(PROJECTS.c.serial).where(PROJECTS.c.project == self.project)
            if connection.execute(query).one_or_none() is not None:
                return
        self._database.insert(PROJECTS, {"project": self.project, "serial": 0})

    def _advance(self, connection: sa.Connection, expected: int) -> int:
        """The compare-and-set; first in its transaction, so that it takes the write lock before anything is read."""
        mine = (PROJECTS.c.project == self.project, PROJECTS.c.serial == expected)
        if connection.execute(PROJECTS.update().where(*mine).values(serial=expected + 1)).rowcount != 1:
            raise ConflictError(
                f'project "{self.project}" moved on: somebody else applied since serial {expected}',
                hint="Read again and retry",
            )
        return expected + 1

    def _heads(self, connection: sa.Connection) -> dict[tuple[str, str], tuple[int, str, bool]]:
        """The newest (version, hash, deleted) of each kind and name."""
        table = RECORDS.c
        query = sa.select(table.kind, table.name, table.version, table.hash, table.deleted).where(
            table.project == self.project, table.until_serial.is_(None)
        )
        return {(row.kind, row.name): (row.version, row.hash, row.deleted) for row in connection.execute(query)}

    def _row(
        self, change: Change, heads: Mapping[tuple[str, str], tuple[int, str, bool]], serial: int
    ) -> dict[str, Any] | None:
        version, current, gone = heads.get((change.kind, change.name), (0, "", True))
        deleting = change.action == "delete"
        if deleting and gone:
            raise NotFoundError(f'there is no {change.kind.replace("_", " ")} "{change.name}" to delete')
        digest = content_hash(change.spec, change.bound)
        if not deleting and not gone and digest == current:
            return None
        return {
            "project": self.project,
            "kind": change.kind,
            "name": change.name,
            "version": version + 1,
            "hash": digest,
            "spec": canonical(change.spec),
            "bound": canonical(change.bound),
            "deleted": deleting,
            "created_at": time.time_ns() // 1000,
            "since_serial": serial,
        }

    def _write(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]], serial: int) -> None:
        if not rows:
            return
        table = RECORDS.c
        ends = (
            RECORDS.update()
            .where(table.project == self.project, table.kind == sa.bindparam("k"), table.name == sa.bindparam("n"))
            .where(table.until_serial.is_(None))
            .values(until_serial=serial)
        )
        replaced = [{"k": row["kind"], "n": row["name"]} for row in rows if row["version"] > 1]
        if replaced:
            connection.execute(ends, replaced)
        connection.execute(RECORDS.insert(), list(rows))

    def _add_progress(self, progress: Progress, row: Mapping[str, Any]) -> bool:
        key = {"project": self.project, "view": progress.view, "version": progress.version}
        return self._database.insert(PROGRESS, {**key, **row})

    def _replace_progress(self, progress: Progress, row: Mapping[str, Any]) -> bool:
        key = self._progress_key(progress.view, progress.version)
        update = PROGRESS.update().where(*key, PROGRESS.c.revision == progress.revision).values(**row)
        with self._database.writing() as connection:
            return connection.execute(update).rowcount == 1

    def _forget(self, connection: sa.Connection, view: str, version: str | None) -> None:
        for table in (PROGRESS, BACKFILLS, STREAM_CLAIMS):
            connection.execute(table.delete().where(*self._key(table, view, version)))

    def _progress_key(self, view: str, version: str | None) -> tuple[sa.ColumnElement[bool], ...]:
        return self._key(PROGRESS, view, version)

    def _key(self, table: sa.Table, view: str, version: str | None) -> tuple[sa.ColumnElement[bool], ...]:
        key = (table.c.project == self.project, table.c.view == view)
        return key if version is None else (*key, table.c.version == version)


def _record(row: Any) -> Record:
    return Record(
        kind=row.kind,
        name=row.name,
        version=row.version,
        hash=row.hash,
        spec=json.loads(row.spec),
        bound=json.loads(row.bound),
        created_at=row.created_at,
        serial=row.since_serial,
        deleted=row.deleted,
    )


def _version(row: Any) -> Version:
    return Version(row.view, row.version, Role(row.role), row.serial, row.timezone, row.since)


def _progress(row: Any) -> Progress:
    return Progress.read(row.view, row.version, row.revision, row.body)
