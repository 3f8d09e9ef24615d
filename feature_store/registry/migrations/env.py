"""What Alembic runs a step with. It loads this file by its path."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo

from feature_store.registry.tables import METADATA, MIGRATIONS, SCHEMA


def run() -> None:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=METADATA,
        version_table=MIGRATIONS.name,
        on_version_apply=_set_version,
    )
    with context.begin_transaction():
        context.run_migrations()


def _set_version(ctx: MigrationContext, step: MigrationInfo, heads: Collection[Any], run_args: Any) -> None:
    """`fs_schema` moves with each step, in its transaction."""
    assert ctx.connection is not None and step.up_revision_id is not None
    ctx.connection.execute(SCHEMA.update().values(version=int(step.up_revision_id)))


run()
