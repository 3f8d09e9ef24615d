"""The tables of a registry, as this release reads and writes them.

To change them, in one commit:

1. change the tables here (one with a column `project` is emptied by `Registry.drop`),
2. add 1 to `SCHEMA_VERSION`,
3. add `migrations/versions/v<number>_<what>.py`, whose `upgrade` does the same to the tables of the version before
   it; its `revision` is the number in four digits. What is written there stays as it is once released.

tests/registry/test_migrations.py compares the two on SQLite and PostgreSQL and prints what differs.
"""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 5

COUNTS = ("events", "late", "bad", "lost")
"""What workers of a stream count."""

METADATA = sa.MetaData()
SCHEMA = sa.Table(
    "fs_schema",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
)
"""One row: the version of all tables. Every release reads it first, so it never changes itself."""

MIGRATIONS = sa.Table("fs_migrations", METADATA, sa.Column("version_num", sa.String(32), primary_key=True))
"""The same version as Alembic keeps it; under a name of its own, since others' tables may lie beside these."""

PROJECTS = sa.Table(
    "fs_projects",
    METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("serial", sa.BigInteger, nullable=False),
)
RECORDS = sa.Table(
    "fs_records",
    METADATA,
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
    sa.Index("fs_records_live", "project", "until_serial"),
)
PROGRESS = sa.Table(
    "fs_progress",
    METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("view", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
VERSIONS = sa.Table(
    "fs_versions",
    METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("view", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("serial", sa.BigInteger, nullable=False),
    sa.Column("timezone", sa.String(64), nullable=False),
    sa.Column("since", sa.BigInteger, nullable=False),
)
"""Versions of views beside those that are applied."""

BACKFILLS = sa.Table(
    "fs_backfills",
    METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("view", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
LEASES = sa.Table(
    "fs_leases",
    METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("name", sa.String(256), primary_key=True),
    sa.Column("holder", sa.String(256), nullable=False),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("until", sa.BigInteger, nullable=False),
)
"""Who works at what, until when; 0 is nobody. A row stays, since its token has to grow."""

RUNS = sa.Table(
    "fs_runs",
    METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("view", sa.String(128), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)
"""What became of the scheduled runs of each view."""

STREAMS = sa.Table(
    "fs_streams",
    METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("source", sa.String(128), primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    *(sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in COUNTS),
)
"""The streams that were started, one a source, and what all of their workers have counted."""

STREAM_WORKERS = sa.Table(
    "fs_stream_workers",
    METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("source", sa.String(128), primary_key=True),
    sa.Column("worker", sa.String(256), primary_key=True),
    sa.Column("seen", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
"""What each worker of a stream has done, and when it said so."""

STREAM_CLAIMS = sa.Table(
    "fs_stream_claims",
    METADATA,
    sa.Column("project", sa.String(128), primary_key=True),
    sa.Column("view", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("begin", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.String(64), nullable=False),
)
"""Of each version of a view, the offset from which on a stream fills it; what is before that is for batch. Whoever asks
first decides, once."""


def revision(version: int) -> str:
    """Alembic's name of a version."""
    return f"{version:04}"
