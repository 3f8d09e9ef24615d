"""Commands that compute and write online."""

from __future__ import annotations

import click

from feature_store.cli.backfill import tell_versions
from feature_store.cli.command import Invocation, command, instant_argument, read_instant
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
    asked, end = end, min(end, read_instant("now"))
    before = invocation.store.filling()
    with reporting() as report:
        rows = invocation.store.materialize(to_datetime(start), to_datetime(end), list(views) or None, report)
    click.echo(f"Materialized {rows:,} rows from {to_iso(start)} to {_reached(end, asked)}.")
    tell_versions(invocation, before)


@command("materialize-incremental")
@instant_argument("end")
@_VIEWS
def materialize_incremental(invocation: Invocation, end: int, views: tuple[str, ...]) -> None:
    """Write online what is new up to END.

    Late rows since the last run are loaded too. END is ISO 8601, or now; without a zone it is UTC.
    """
    from feature_store.cli.progress import reporting
    from feature_store.expressions.instants import to_datetime

    asked, end = end, min(end, read_instant("now"))
    before = invocation.store.filling()
    with reporting() as report:
        rows = invocation.store.materialize_incremental(to_datetime(end), list(views) or None, report)
    click.echo(f"Materialized {rows:,} rows up to {_reached(end, asked)}.")
    tell_versions(invocation, before)


@command("refill")
@_VIEWS
def refill(invocation: Invocation, views: tuple[str, ...]) -> None:
    """Copy online rows to the fast tier.

    Of an online store with two tiers, such as Redis before HBase, after the fast one was emptied.
    Without it, rows are copied as they are asked for.
    """
    keys = invocation.store.refill(list(views) or None)
    click.echo(f"Copied {keys:,} keys to the fast tier.")


def _reached(end: int, asked: int) -> str:
    """The instant that a run came to, which is now where the END asked for lies ahead."""
    from feature_store.expressions.instants import to_iso

    return to_iso(end) if end == asked else f"{to_iso(end)}, now: {to_iso(asked)} lies ahead"
