"""Commands that compute and write online."""

from __future__ import annotations

import click

from feature_store.cli.command import Invocation, command, instant_argument
from feature_store.errors import UsageError

_VIEWS = click.option("-v", "--view", "views", metavar="VIEW", multiple=True, help="Only this view; may be repeated.")


@command("materialize")
@instant_argument("start")
@instant_argument("end")
@_VIEWS
def materialize(invocation: Invocation, start: int, end: int, views: tuple[str, ...]) -> None:
    """Compute START to END and write it online.

    Both ends count. Times are ISO 8601, or now; without a zone they are UTC. Killed and run again,
    it goes on where it was.
    """
    from feature_store.cli.progress import reporting
    from feature_store.expressions.instants import to_datetime, to_iso

    if start > end:
        raise UsageError(f"START {to_iso(start)} is after END {to_iso(end)}")
    with reporting() as report:
        rows = invocation.store.materialize(to_datetime(start), to_datetime(end), list(views) or None, report)
    click.echo(f"Materialized {rows:,} rows from {to_iso(start)} to {to_iso(end)}.")


@command("materialize-incremental")
@instant_argument("end")
@_VIEWS
def materialize_incremental(invocation: Invocation, end: int, views: tuple[str, ...]) -> None:
    """Write online what is new up to END.

    Late rows since the last run are loaded too. END is ISO 8601, or now; without a zone it is UTC.
    """
    from feature_store.cli.progress import reporting
    from feature_store.expressions.instants import to_datetime, to_iso

    with reporting() as report:
        rows = invocation.store.materialize_incremental(to_datetime(end), list(views) or None, report)
    click.echo(f"Materialized {rows:,} rows up to {to_iso(end)}.")
