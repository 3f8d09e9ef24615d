"""The registry of one project, in any database that SQLAlchemy speaks to.

Every version of every record stays; a record is live from the serial that wrote it until the serial that replaced it.
A commit moves the project's serial by compare-and-set as its first statement, so of two commits that read the same
serial one waits on the other's row (or file) lock, then finds the serial moved and fails whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc

from feature_store.errors import (
    ConflictError,
    FeatureStoreError,
    MissingExtraError,
    NotFoundError,
    SettingsError,
    StoreUnavailableError,
    nearest,
)
from feature_store.registry.records import Change, Progress, Record, State, canonical, content_hash

SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 10

_METADATA = sa.MetaData()
_SCHEMA = sa.Table(
    "fs_schema",
    _METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
)
_PROJECTS = sa.Table(
    "fs_projects",
    _METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("serial", sa.BigInteger, nullable=False),
)
_RECORDS = sa.Table(
    "fs_records",
    _METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("kind", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("bound", sa.Text, nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("since_serial", sa.BigInteger, nullable=False),
    sa.Column("until_serial", sa.BigInteger, nullable=True),
)
_PROGRESS = sa.Table(
    "fs_progress",
    _METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("view", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)


class Loadable(Protocol):
    """A class of definitions, as far as the registry needs to know it."""

    kind: ClassVar[str]

    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...


D = TypeVar("D", bound=Loadable)


class Registry:
    """Named, versioned records of one project. Threads and processes may share the database; each process opens its
    own. `StoreUnavailableError` when the database cannot be reached or written, `SettingsError` when it is not one."""

    def __init__(self, url: str, project: str) -> None:
        self.project = project
        self._engine, self._where = _open(url)
        with self._mapped():
            self._prepare()

    def serial(self) -> int:
        """The number of commits so far, 0 for a project that has none."""
        with self._mapped(), self._engine.connect() as connection:
            return self._serial(connection)

    def load(self, serial: int | None = None) -> State:
        """The live records as of now, or as of an earlier serial."""
        with self._mapped(), self._engine.connect() as connection:
            at = self._serial(connection) if serial is None else serial
            table = _RECORDS.c
            query = (
                sa.select(_RECORDS)
                .where(table.project == self.project, table.since_serial <= at, table.deleted.is_(sa.false()))
                .where(sa.or_(table.until_serial.is_(None), table.until_serial > at))
            )
            rows = connection.execute(query).all()
        # Ordered here: databases differ in their collations.
        return State(at, tuple(sorted(map(_record, rows), key=lambda record: (record.kind, record.name))))

    def commit(self, changes: Sequence[Change], expected_serial: int, forget: Collection[tuple[str, str]] = ()) -> int:
        """Write all changes or none, and return the new serial; `ConflictError` if the serial is not as expected.

        `forget`: (view, version) whose progress goes away in the same step. Changes that change nothing are left out;
        if none is left (and nothing to forget) the serial stays.
        """
        with self._mapped():
            self._ensure_project()
            with self._engine.begin() as connection:
                serial = self._advance(connection, expected_serial)
                heads = self._heads(connection)
                rows = [row for change in changes if (row := self._row(change, heads, serial))]
                if not rows and not forget:
                    connection.rollback()
                    return expected_serial
                self._write(connection, rows, serial)
                for view, version in forget:
                    connection.execute(_PROGRESS.delete().where(*self._progress_key(view, version)))
                return serial

    def history(self, kind: str, name: str) -> list[Record]:
        """Every version, oldest first; tombstones too. Empty if there never was one."""
        table = _RECORDS.c
        query = (
            sa.select(_RECORDS)
            .where(table.project == self.project, table.kind == kind, table.name == name)
            .order_by(table.version)
        )
        with self._mapped(), self._engine.connect() as connection:
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
        query = sa.select(_PROGRESS).where(*self._progress_key(view, version))
        with self._mapped(), self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return _progress(row) if row else None

    def all_progress(self) -> list[Progress]:
        """The progress of every view and version, ordered."""
        query = sa.select(_PROGRESS).where(_PROGRESS.c.project == self.project)
        with self._mapped(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return sorted(map(_progress, rows), key=lambda progress: (progress.view, progress.version))

    def save_progress(self, progress: Progress) -> Progress:
        """Save, and return it with its next revision; `ConflictError` if another run saved since it was read."""
        saved = replace(progress, revision=progress.revision + 1)
        row = {"revision": saved.revision, "body": saved.body()}
        with self._mapped():
            if not (self._replace_progress(progress, row) if progress.revision else self._add_progress(progress, row)):
                raise ConflictError(
                    f'another materialization of "{progress.view}" saved its progress first',
                    hint="Read again and retry",
                )
        return saved

    def forget_progress(self, view: str, version: str | None = None) -> None:
        """Remove the progress of a version of a view, or of all its versions."""
        with self._mapped(), self._engine.begin() as connection:
            connection.execute(_PROGRESS.delete().where(*self._progress_key(view, version)))

    def drop(self) -> None:
        """Remove this project's records, history and progress; other projects in the database stay."""
        with self._mapped(), self._engine.begin() as connection:
            for table in (_PROJECTS, _RECORDS, _PROGRESS):
                connection.execute(table.delete().where(table.c.project == self.project))

    def close(self) -> None:
        self._engine.dispose()

    def _serial(self, connection: sa.Connection) -> int:
        query = sa.select(_PROJECTS.c.serial).where(_PROJECTS.c.project == self.project)
        return connection.execute(query).scalar_one_or_none() or 0

    def _ensure_project(self) -> None:
        with self._engine.connect() as connection:
            query = sa.select(_PROJECTS.c.serial).where(_PROJECTS.c.project == self.project)
            if connection.execute(query).one_or_none() is not None:
                return
        _insert(self._engine, _PROJECTS, {"project": self.project, "serial": 0})

    def _advance(self, connection: sa.Connection, expected: int) -> int:
        """The compare-and-set; first in its transaction, so that it takes the write lock before anything is read."""
        mine = (_PROJECTS.c.project == self.project, _PROJECTS.c.serial == expected)
        if connection.execute(_PROJECTS.update().where(*mine).values(serial=expected + 1)).rowcount != 1:
            raise ConflictError(
                f'project "{self.project}" moved on: somebody else applied since serial {expected}',
                hint="Read again and retry",
            )
        return expected + 1

    def _heads(self, connection: sa.Connection) -> dict[tuple[str, str], tuple[int, str, bool]]:
        """The newest (version, hash, deleted) of each kind and name."""
        table = _RECORDS.c
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
        table = _RECORDS.c
        ends = (
            _RECORDS.update()
            .where(table.project == self.project, table.kind == sa.bindparam("k"), table.name == sa.bindparam("n"))
            .where(table.until_serial.is_(None))
            .values(until_serial=serial)
        )
        replaced = [{"k": row["kind"], "n": row["name"]} for row in rows if row["version"] > 1]
        if replaced:
            connection.execute(ends, replaced)
        connection.execute(_RECORDS.insert(), list(rows))

    def _add_progress(self, progress: Progress, row: Mapping[str, Any]) -> bool:
        key = {"project": self.project, "view": progress.view, "version": progress.version}
        return _insert(self._engine, _PROGRESS, {**key, **row})

    def _replace_progress(self, progress: Progress, row: Mapping[str, Any]) -> bool:
        key = self._progress_key(progress.view, progress.version)
        update = _PROGRESS.update().where(*key, _PROGRESS.c.revision == progress.revision).values(**row)
        with self._engine.begin() as connection:
            return connection.execute(update).rowcount == 1

    def _progress_key(self, view: str, version: str | None) -> tuple[sa.ColumnElement[bool], ...]:
        key = (_PROGRESS.c.project == self.project, _PROGRESS.c.view == view)
        return key if version is None else (*key, _PROGRESS.c.version == version)

    def _prepare(self) -> None:
        """Make the tables if there are none, and refuse those of a newer release."""
        with self._engine.connect() as connection:
            try:
                stamp = connection.execute(sa.select(_SCHEMA.c.version)).scalar_one_or_none()
            except (exc.OperationalError, exc.ProgrammingError):  # no such table, as far as SQL can tell
                stamp = None
        if stamp is None:
            _create(self._engine)
        elif stamp != SCHEMA_VERSION:
            raise SettingsError(
                f"the registry {self._where} has tables of version {stamp}; this release reads {SCHEMA_VERSION}",
                hint="Install the release that wrote it, or use another registry",
            )

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except exc.SQLAlchemyError as error:
            raise _map(error, self._where) from error


def _open(url: str) -> tuple[sa.Engine, str]:
    """An engine for a URL, and the URL without its password."""
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        raise SettingsError(
            f'registry "{url}" is not a database URL', hint="Write for example sqlite:///data/registry.db"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    where = parsed.render_as_string(hide_password=True)
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and parsed.database and parsed.database != ":memory:" and not parsed.database.startswith("file:"):
        _make_folder(Path(parsed.database).parent, where)
    try:
        engine = sa.create_engine(parsed, pool_pre_ping=not sqlite, connect_args=_connect_args(parsed))
    except exc.NoSuchModuleError:
        raise SettingsError(
            f'registry "{where}": no database is called "{parsed.drivername}"', hint="Use sqlite:/// or postgresql://"
        ) from None
    except ModuleNotFoundError as error:
        if parsed.get_backend_name() == "postgresql":
            raise MissingExtraError("postgres", f'registry "{where}"') from error
        raise SettingsError(f'registry "{where}" needs the driver {error.name}, which is not installed') from error
    if sqlite:
        sa.event.listen(engine, "connect", _sqlite_pragmas)
    return engine, where


def _connect_args(url: sa.URL) -> dict[str, Any]:
    """PostgreSQL's driver would wait for a host that does not answer until TCP gives up, minutes."""
    wanted = url.get_backend_name() == "postgresql" and "connect_timeout" not in url.query
    return {"connect_timeout": CONNECT_TIMEOUT_S} if wanted else {}


def _make_folder(folder: Path, where: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailableError(f'registry "{where}": cannot make the folder {folder}: {error.strerror}') from error


def _sqlite_pragmas(connection: Any, _record: Any) -> None:
    """Readers beside one writer, and a wait instead of an error when another process writes."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    if cursor.execute("PRAGMA journal_mode").fetchone()[0].lower() == "delete":
        # Read-only, or another process is switching it now: WAL is speed, not correctness.
        with suppress(connection.OperationalError):
            cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _create(engine: sa.Engine) -> None:
    """Make the tables, beside other processes that may be making them at this moment."""
    for attempt in range(3):
        try:
            with engine.begin() as connection:
                for table in _METADATA.sorted_tables:
                    connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            _insert(engine, _SCHEMA, {"id": 1, "version": SCHEMA_VERSION})
            return
        except (exc.IntegrityError, exc.ProgrammingError):
            # PostgreSQL's IF NOT EXISTS can still meet another's creation half-way.
            if attempt == 2:
                raise


def _insert(engine: sa.Engine, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert a row, in a transaction of its own, unless its key is taken; whether it was inserted."""
    try:
        with engine.begin() as connection:
            connection.execute(table.insert(), dict(row))
        return True
    except exc.IntegrityError:
        return False


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


def _progress(row: Any) -> Progress:
    return Progress.read(row.view, row.version, row.revision, row.body)


def _map(error: exc.SQLAlchemyError, where: str) -> FeatureStoreError:
    """The error of this package that a driver's error means."""
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    text = f'registry "{where}": {reason}'
    if "not a database" in reason or "malformed" in reason:
        return SettingsError(text, hint="Restore the file from a backup, or name another one in feature_store.yaml")
    if "readonly" in reason or "read-only" in reason:
        return StoreUnavailableError(text, hint="Give this user write access to the database")
    if "could not serialize" in reason:
        return ConflictError(text, hint="Read again and retry")
    return StoreUnavailableError(text, hint="Check that the database can be reached, and the registry URL")
