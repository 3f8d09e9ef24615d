"""From the tables of an older release to those of this one, with Alembic; `feature_store.registry.tables` says how to
add a step. Imported only where there is something to upgrade."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from feature_store.registry.tables import MIGRATIONS, SCHEMA_VERSION, revision

_FIRST = 1  # the release that made it kept no version of Alembic's


def upgrade(connection: sa.Connection, to: int = SCHEMA_VERSION) -> None:
    """Bring the tables to a version, within the transaction that the caller began and locked."""
    config = configured(connection)
    if not sa.inspect(connection).has_table(MIGRATIONS.name):
        command.stamp(config, revision(_FIRST))
    command.upgrade(config, revision(to))


def configured(connection: sa.Connection) -> Config:
    """Alembic's configuration: the steps beside this file, run over a connection."""
    config = Config()
    # A percent sign is the parser's own.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
