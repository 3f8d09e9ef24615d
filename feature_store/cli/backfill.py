"""Fill a version of a view, beside the one that is served."""

from __future__ import annotations

import click

from feature_store.cli.command import Invocation, command, instant_argument, read_instant
from feature_store.errors import UsageError


@command("backfill")
@click.argument("view", metavar="VIEW")
@instant_argument("start")
@instant_argument("end")
@click.option("--parallel", metavar="N", type=click.IntRange(1, 64), default=2, show_default=True,
              help="Chunks to compute and write at a time.")  # fmt: skip
def backfill(invocation: Invocation, view: str, start: int, end: int, parallel: int) -> None:
    """Fill VIEW as it is applied, in chunks.

    Computes START to END and writes it online. While a changed definition is being filled, the version
    before it is served; once the new one holds as much, services switch to it in one step. Killed and run
    again, it goes on where it was; several may run at once.
    """
    from feature_store.cli.progress import reporting
    from feature_store.expressions.instants import to_datetime, to_iso

    if start > end:
        raise UsageError(f"START {to_iso(start)} is after END {to_iso(end)}")
    end = min(end, read_instant("now"))
    store = invocation.store
    before = store.filling()
    with reporting() as report:
        rows = store.backfill(view, to_datetime(start), to_datetime(end), parallel, report, _tell)
    click.echo(f"Backfilled {view}: {rows:,} rows from {to_iso(start)} to {to_iso(end)}.")
    tell_versions(invocation, before)


def tell_versions(invocation: Invocation, before: dict[str, str]) -> None:
    """Say which of the views that were being filled are served now, and what the others lack."""
    after = invocation.store.filling()
    for name in before:
        if name not in after:
            version = invocation.store.serving.views[name].version
            click.echo(f"Version {version} of {name} is complete and served from now on.")
    for name, lack in after.items():
        click.echo(f"The version before is still served of {name}. The new one is not complete: {lack}.")


def _tell(notice: str) -> None:
    click.echo(click.style("note: ", fg="yellow") + notice, err=True)
