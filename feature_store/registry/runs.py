"""What became of the scheduled runs of a project's views, written under their leases."""

from __future__ import annotations

import sqlalchemy as sa

from feature_store.registry.database import Database
from feature_store.registry.leases import fence
from feature_store.registry.records import Lease, Runs
from feature_store.registry.tables import RUNS


class RunLog:
    """One record a view. Only who holds the view's lease writes it."""

    def __init__(self, database: Database, project: str) -> None:
        self._database = database
        self._project = project

    def get(self, view: str) -> Runs:
        """The record of a view, an empty one where nothing ran yet."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(RUNS).where(*self._key(view))).one_or_none()
        return Runs.read(view, row.body) if row else Runs(view)

    def all(self) -> dict[str, Runs]:
        """The records there are, by view."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(RUNS).where(RUNS.c.project == self._project)).all()
        return {row.view: Runs.read(row.view, row.body) for row in rows}

    def save(self, runs: Runs, lease: Lease) -> None:
        """Replace the record of a view; `ConflictError` where another holder has taken the lease."""
        with self._database.writing() as connection:
            fence(connection, self._project, lease)
            connection.execute(RUNS.delete().where(*self._key(runs.view)))
            connection.execute(RUNS.insert(), {"project": self._project, "view": runs.view, "body": runs.body()})

    def _key(self, view: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (RUNS.c.project == self._project, RUNS.c.view == view)
