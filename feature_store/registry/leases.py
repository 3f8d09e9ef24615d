"""Leases: who may work at something that one at a time should, until when.

A lease ends by itself when its holder does not renew it, so that a killed holder's work is taken over. Every lease has
a token, greater than those before it; what a holder writes under an old token is refused (`Leases.fence`). Times are
those of the database's clock where it is a server, so that the clocks of holders need not agree.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from contextlib import suppress

import sqlalchemy as sa

from feature_store.errors import ConflictError, StoreUnavailableError
from feature_store.registry.database import Database
from feature_store.registry.records import Lease
from feature_store.registry.tables import LEASES

SECOND = 1_000_000
_FREE = 0


def this_holder() -> str:
    """A name for a holder in this process, unlike any other: host, process id, and some random digits."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class Leases:
    """The leases of one project. Each method is one transaction, which the database serializes."""

    def __init__(self, database: Database, project: str) -> None:
        self._database = database
        self._project = project

    def acquire(self, name: str, holder: str, seconds: float) -> Lease | None:
        """Take a lease that nobody holds; None where somebody does."""
        with self._database.reading() as connection:
            now = now_of(connection)
            row = connection.execute(sa.select(LEASES).where(*self._key(name))).one_or_none()
        lease = Lease(name, holder, row.token + 1 if row else 1, now + int(seconds * SECOND))
        if row is None:
            key = {"project": self._project, "name": name}
            return lease if self._database.insert(LEASES, {**key, **_values(lease)}) else None
        if row.until > now:
            return None
        # Of several that saw it free, the first moves the token; the others find it moved.
        with self._database.writing() as connection:
            update = LEASES.update().where(*self._key(name), LEASES.c.token == row.token, LEASES.c.until <= now)
            return lease if connection.execute(update.values(**_values(lease))).rowcount == 1 else None

    def renew(self, lease: Lease, seconds: float) -> Lease:
        """The lease until `seconds` from now; `ConflictError` where another holder has taken it."""
        with self._database.writing() as connection:
            until = now_of(connection) + int(seconds * SECOND)
            update = LEASES.update().where(*self._key(lease.name), LEASES.c.token == lease.token).values(until=until)
            if connection.execute(update).rowcount != 1:
                raise _lost(lease)
        return Lease(lease.name, lease.holder, lease.token, until)

    def release(self, lease: Lease) -> None:
        """Let go of a lease; nothing happens where another holder has taken it."""
        with self._database.writing() as connection:
            mine = (*self._key(lease.name), LEASES.c.token == lease.token)
            connection.execute(LEASES.update().where(*mine).values(until=_FREE))

    def held(self, name: str) -> Lease | None:
        """The lease as somebody holds it now; None where nobody does."""
        return next(iter(self.all_held(name)), None)

    def all_held(self, *names: str) -> list[Lease]:
        """The leases among these, or of all, that somebody holds now."""
        query = sa.select(LEASES).where(LEASES.c.project == self._project)
        with self._database.reading() as connection:
            now = now_of(connection)
            rows = connection.execute(query.where(LEASES.c.name.in_(names)) if names else query).all()
        return [Lease(row.name, row.holder, row.token, row.until) for row in rows if row.until > now]

    def _key(self, name: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (LEASES.c.project == self._project, LEASES.c.name == name)


class Heartbeat:
    """Renews a lease in a thread while its holder works, and releases it in the end: `with Heartbeat(...) as beat:`.

    `lost` says that another holder has taken it, or that it could not be renewed in time: stop then.
    """

    def __init__(self, leases: Leases, lease: Lease, seconds: float) -> None:
        self._leases = leases
        self._lease = lease
        self._seconds = seconds
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease {lease.name}", daemon=True)

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(StoreUnavailableError):  # it ends by itself
            self._leases.release(self._lease)

    def _run(self) -> None:
        until = time.monotonic() + self._seconds
        while not self._ended.wait(self._seconds / 4):
            began = time.monotonic()
            try:
                self._leases.renew(self._lease, self._seconds)
                until = began + self._seconds
            except ConflictError:
                self._lost.set()
                return
            except StoreUnavailableError:  # it may come back while the lease lasts
                if time.monotonic() > until:
                    self._lost.set()
                    return


def fence(connection: sa.Connection, project: str, lease: Lease) -> None:
    """`ConflictError` where another holder has taken the lease. What is written in the same transaction is written
    before another can take it: the row stays locked."""
    mine = (LEASES.c.project == project, LEASES.c.name == lease.name, LEASES.c.token == lease.token)
    if connection.execute(LEASES.update().where(*mine).values(holder=lease.holder)).rowcount != 1:
        raise _lost(lease)


def _values(lease: Lease) -> dict[str, object]:
    return {"holder": lease.holder, "token": lease.token, "until": lease.until}


def _lost(lease: Lease) -> ConflictError:
    return ConflictError(
        f'the lease of "{lease.name}" ran out, and another process has it now',
        hint="It goes on with the work; nothing is lost",
    )


def now_of(connection: sa.Connection) -> int:
    """Microseconds since the epoch by the server's clock; SQLite has none but the machine's."""
    if connection.dialect.name == "postgresql":
        clock = sa.text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)")
        return int(connection.execute(clock).scalar_one())
    return time.time_ns() // 1000
