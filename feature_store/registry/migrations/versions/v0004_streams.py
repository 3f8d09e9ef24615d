"""Streams that run, their workers, and from where in its topic a stream fills each version of a view."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "fs_streams",
        sa.Column("project", sa.String(128), primary_key=True),
        sa.Column("source", sa.String(128), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "fs_stream_workers",
        sa.Column("project", sa.String(128), primary_key=True),
        sa.Column("source", sa.String(128), primary_key=True),
        sa.Column("worker", sa.String(256), primary_key=True),
        sa.Column("seen", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "fs_stream_claims",
        sa.Column("project", sa.String(128), primary_key=True),
        sa.Column("view", sa.String(128), primary_key=True),
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("begin", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.String(64), nullable=False),
    )
