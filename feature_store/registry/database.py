"""The database that a registry lies in: opened by URL, its tables made or upgraded, its errors turned into ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from feature_store.errors import (
    ConflictError,
    FeatureStoreError,
    MissingExtraError,
    SettingsError,
    StoreUnavailableError,
)
from feature_store.registry.tables import METADATA, MIGRATIONS, SCHEMA, SCHEMA_VERSION, revision

BUSY_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 10
UPGRADE_TIMEOUT_S = 60
_UPGRADES = 0x66735F7265676973
"""The key of PostgreSQL's advisory lock that one upgrade holds: "fs_regis"."""


class Database:
    """A database with the registry's tables, those of this release.

    Where there are none they are made. Older ones are upgraded with `upgrade`, and always in SQLite, where nobody else
    shares them; else, and for newer ones, `SettingsError`.
    """

    def __init__(self, url: str, upgrade: bool = False) -> None:
        self.engine, self.where = _open(url)
        self.upgraded_from: int | None = None
        try:
            with self.mapped():
                self._prepare(upgrade or self.engine.dialect.name == "sqlite")
        except FeatureStoreError:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection; the driver's errors come out as ours."""
        with self.mapped(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, committed at the end and rolled back by an error."""
        with self.mapped(), self.engine.begin() as connection:
            yield connection

    def insert(self, table: sa.Table, row: Mapping[str, Any]) -> bool:
        """Insert a row, in a transaction of its own, unless its key is taken; whether it was inserted."""
        with self.mapped():
            try:
                with self.engine.begin() as connection:
                    connection.execute(table.insert(), dict(row))
                return True
            except exc.IntegrityError:
                return False

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Turns the driver's errors into ours."""
        try:
            yield
        except exc.SQLAlchemyError as error:
            raise _map(error, self.where) from error

    def _prepare(self, upgrade: bool) -> None:
        with self.engine.connect() as connection:
            try:
                version = _version(connection)
            except (exc.OperationalError, exc.ProgrammingError):  # no such table, as far as SQL can tell
                version = None
        if version == SCHEMA_VERSION:
            return
        if version is not None and (version > SCHEMA_VERSION or not upgrade):
            raise self._misfit(version)
        with self._alone() as connection:  # another process may have done it meanwhile
            version = _version(connection) if sa.inspect(connection).has_table(SCHEMA.name) else None
            if version is None:
                _create(connection)
            elif version > SCHEMA_VERSION:
                raise self._misfit(version)
            elif version < SCHEMA_VERSION:
                from feature_store.registry import migrations  # Alembic, which takes as long to load as SQLAlchemy

                migrations.upgrade(connection)
                self.upgraded_from = version

    def _misfit(self, version: int) -> SettingsError:
        newer = version > SCHEMA_VERSION
        return SettingsError(
            f'registry "{self.where}" has tables of version {version}; this release works with {SCHEMA_VERSION}',
            hint="Install the release that wrote it, or use another registry"
            if newer
            else "Run: fs registry upgrade. Older releases cannot open it then",
        )

    @contextmanager
    def _alone(self) -> Iterator[sa.Connection]:
        """A transaction that one process at a time is in; it waits for the others, within bounds."""
        with self.engine.connect() as connection, connection.begin():
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            elif self.engine.dialect.name == "postgresql":
                connection.execute(sa.text(f"SET LOCAL lock_timeout = '{UPGRADE_TIMEOUT_S}s'"))
                connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_UPGRADES})"))
            yield connection


def _version(connection: sa.Connection) -> int | None:
    version: int | None = connection.execute(sa.select(SCHEMA.c.version)).scalar_one_or_none()
    return version


def _create(connection: sa.Connection) -> None:
    METADATA.create_all(connection)
    connection.execute(MIGRATIONS.insert(), {"version_num": revision(SCHEMA_VERSION)})
    connection.execute(SCHEMA.insert(), {"id": 1, "version": SCHEMA_VERSION})


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
    """PostgreSQL's driver would wait for a host that does not answer until TCP gives up, minutes: to be connected, for
    its acknowledgement, for the answer of one that is gone. What the URL says goes before."""
    if url.get_backend_name() != "postgresql":
        return {}
    silent = CONNECT_TIMEOUT_S * 3
    limits = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": silent * 1000, "keepalives_idle": silent // 2,
              "keepalives_interval": CONNECT_TIMEOUT_S // 2, "keepalives_count": 3}  # fmt: skip
    return {name: value for name, value in limits.items() if name not in url.query}


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


def _map(error: exc.SQLAlchemyError, where: str) -> FeatureStoreError:
    """The error of this package that a driver's error means."""
    reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    text = f'registry "{where}": {reason}'
    if "not a database" in reason or "malformed" in reason:
        return SettingsError(text, hint="Restore the file from a backup, or name another one in feature_store.yaml")
    if "readonly" in reason or "read-only" in reason or "permission denied" in reason:
        return StoreUnavailableError(text, hint="Give this user write access to the database")
    if "could not serialize" in reason:
        return ConflictError(text, hint="Read again and retry")
    return StoreUnavailableError(text, hint="Check that the database can be reached, and the registry URL")
