"""What all workers of a stream have counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for name in ("events", "late", "bad", "lost"):
        op.add_column("fs_streams", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
