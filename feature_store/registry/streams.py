"""Streams of one project: what was started, what its workers did, and where each version of a view begins to be filled.

Where a version begins is decided once a partition of the topic, by whoever asks first: events from there on are the
stream's, those before it are batch's. So none is left out and none counts twice. An online store that has lost its rows
is in a new epoch: then it is decided anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import sqlalchemy as sa

from feature_store.errors import ConflictError
from feature_store.registry.database import Database
from feature_store.registry.leases import SECOND, now_of
from feature_store.registry.records import Claim, StreamState, StreamWorker
from feature_store.registry.tables import COUNTS, STREAM_CLAIMS, STREAM_WORKERS, STREAMS

FORGOTTEN = 7 * 86_400 * SECOND
"""A worker that was killed is forgotten when another begins so much later."""


class Streams:
    """Each method is one transaction, or a few that may be repeated."""

    def __init__(self, database: Database, project: str) -> None:
        self._database = database
        self._project = project

    def get(self, source: str) -> StreamState | None:
        """The stream of a source; None where none was ever started."""
        return self.all().get(source)

    def all(self) -> dict[str, StreamState]:
        """The streams that were started, by source."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(STREAMS).where(STREAMS.c.project == self._project)).all()
        return {row.source: StreamState.read(row.source, row.revision, row.body) for row in rows}

    def save(self, state: StreamState) -> StreamState:
        """Save, and return it with its next revision; `ConflictError` if another saved since it was read."""
        saved = replace(state, revision=state.revision + 1)
        row = {"revision": saved.revision, "body": saved.body()}
        if state.revision:
            mine = (*self._key(STREAMS, state.source), STREAMS.c.revision == state.revision)
            with self._database.writing() as connection:
                done = connection.execute(STREAMS.update().where(*mine).values(**row)).rowcount == 1
        else:
            done = self._database.insert(STREAMS, {"project": self._project, "source": state.source, **row})
        if not done:
            raise ConflictError(
                f'the stream of "{state.source}" was started or stopped by another', hint="Read again and retry"
            )
        return saved

    def counts(self, source: str) -> dict[str, int]:
        """What all workers of a stream counted since it was first started: `tables.COUNTS`."""
        asked = sa.select(*(STREAMS.c[name] for name in COUNTS)).where(*self._key(STREAMS, source))
        with self._database.reading() as connection:
            row = connection.execute(asked).one_or_none()
        return dict(zip(COUNTS, row or (0,) * len(COUNTS), strict=True))

    def leave(self, worker: StreamWorker, told: StreamWorker | None = None) -> None:
        """Forget a worker that has ended, not what it counted. `told`: as for `beat`."""
        with self._database.writing() as connection:
            self._count(connection, worker, told)
            mine = (*self._key(STREAM_WORKERS, worker.source), STREAM_WORKERS.c.worker == worker.name)
            connection.execute(STREAM_WORKERS.delete().where(*mine))

    def forget(self, source: str) -> None:
        """Remove the stream of a source, and its workers."""
        with self._database.writing() as connection:
            for table in (STREAMS, STREAM_WORKERS):
                connection.execute(table.delete().where(*self._key(table, source)))

    def beat(self, worker: StreamWorker, told: StreamWorker | None = None) -> None:
        """Say what a worker has done so far. What it counted since it `told` that last, is counted of its stream."""
        key = {"project": self._project, "source": worker.source, "worker": worker.name}
        with self._database.writing() as connection:
            now = now_of(connection)
            row = {"seen": now, "body": worker.body()}
            mine = (*self._key(STREAM_WORKERS, worker.source), STREAM_WORKERS.c.worker == worker.name)
            self._count(connection, worker, told)
            if connection.execute(STREAM_WORKERS.update().where(*mine).values(**row)).rowcount:
                return
            gone = (*self._key(STREAM_WORKERS, worker.source), STREAM_WORKERS.c.seen < now - FORGOTTEN)
            connection.execute(STREAM_WORKERS.delete().where(*gone))
            connection.execute(STREAM_WORKERS.insert(), {**key, **row})

    def sweep(self, source: str, silent: int) -> None:
        """Forget workers that were not heard of for longer than this (microseconds)."""
        with self._database.writing() as connection:
            gone = STREAM_WORKERS.c.seen < now_of(connection) - silent
            connection.execute(STREAM_WORKERS.delete().where(*self._key(STREAM_WORKERS, source), gone))

    def workers(self, source: str) -> list[StreamWorker]:
        """The workers of a stream, those that are gone too, each with the time since it was last heard of."""
        with self._database.reading() as connection:
            now = now_of(connection)
            rows = connection.execute(sa.select(STREAM_WORKERS).where(*self._key(STREAM_WORKERS, source))).all()
        found = (StreamWorker.read(source, row.worker, row.body, now - row.seen) for row in rows)
        return sorted(found, key=lambda worker: worker.name)

    def claims(self, view: str, version: str) -> dict[int, Claim]:
        """Where a version of a view begins, by partition."""
        table = STREAM_CLAIMS.c
        mine = (table.project == self._project, table.view == view, table.version == version)
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(STREAM_CLAIMS).where(*mine)).all()
        return {row.partition: Claim(row.begin, row.epoch) for row in rows}

    def claim(self, view: str, version: str, begins: Mapping[int, int], epoch: str) -> dict[int, Claim]:
        """Let a version begin at these offsets, where nobody decided yet in this epoch, or in a later one, of which who
        asks does not know; where it begins now."""
        table = STREAM_CLAIMS
        key = {"project": self._project, "view": view, "version": version}
        known = self.claims(view, version)
        for partition, begin in begins.items():
            found = known.get(partition)
            if found is None:
                row = {**key, "partition": partition, "begin": begin, "epoch": epoch}
                self._database.insert(table, row)
            elif not found.holds(int(epoch)):
                mine = [table.c[name] == value for name, value in key.items()]
                this = (*mine, table.c.partition == partition, table.c.epoch == found.epoch)
                with self._database.writing() as connection:
                    connection.execute(table.update().where(*this).values(begin=begin, epoch=epoch))
        return self.claims(view, version)

    def _count(self, connection: sa.Connection, worker: StreamWorker, told: StreamWorker | None) -> None:
        more = {name: getattr(worker, name) - getattr(told, name, 0) for name in COUNTS}
        if any(more.values()):
            counted = {STREAMS.c[name]: STREAMS.c[name] + count for name, count in more.items()}
            connection.execute(STREAMS.update().where(*self._key(STREAMS, worker.source)).values(counted))

    def _key(self, table: sa.Table, source: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (table.c.project == self._project, table.c.source == source)
