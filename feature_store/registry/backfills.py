"""The backfills of one project that have not ended: what they wrote so far."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from feature_store.errors import ConflictError
from feature_store.registry.database import Database
from feature_store.registry.records import Filling
from feature_store.registry.tables import BACKFILLS


class Backfills:
    """One record a view and version, shared by all that fill it at the same time."""

    def __init__(self, database: Database, project: str) -> None:
        self._database = database
        self._project = project

    def get(self, view: str, version: str) -> Filling | None:
        """The backfill of a version; None where there is none, or it has ended."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(BACKFILLS).where(*self._key(view, version))).one_or_none()
        return Filling.read(view, version, row.revision, row.body) if row else None

    def save(self, filling: Filling) -> Filling:
        """Save, and return it with its next revision; `ConflictError` if another saved since it was read."""
        saved = replace(filling, revision=filling.revision + 1)
        row = {"revision": saved.revision, "body": saved.body()}
        if not (self._replace(filling, row) if filling.revision else self._add(filling, row)):
            raise ConflictError(f'another backfill of "{filling.view}" saved first', hint="Read again and retry")
        return saved

    def end(self, view: str, version: str) -> None:
        """Remove the record of a backfill that has ended."""
        with self._database.writing() as connection:
            connection.execute(BACKFILLS.delete().where(*self._key(view, version)))

    def _add(self, filling: Filling, row: dict[str, object]) -> bool:
        key = {"project": self._project, "view": filling.view, "version": filling.version}
        return self._database.insert(BACKFILLS, {**key, **row})

    def _replace(self, filling: Filling, row: dict[str, object]) -> bool:
        key = self._key(filling.view, filling.version)
        update = BACKFILLS.update().where(*key, BACKFILLS.c.revision == filling.revision).values(**row)
        with self._database.writing() as connection:
            return connection.execute(update).rowcount == 1

    def _key(self, view: str, version: str) -> tuple[sa.ColumnElement[bool], ...]:
        table = BACKFILLS.c
        return (table.project == self._project, table.view == view, table.version == version)
