"""Rows from a file into the stores."""

from __future__ import annotations

import click

from feature_store.cli.command import Invocation, command, existing_file

_PLACES = ("online", "offline", "online_and_offline")


@command("push")
@click.argument("name", metavar="VIEW_OR_SOURCE")
@click.argument("rows_file", metavar="FILE")
@click.option("--to", type=click.Choice(_PLACES), default="online", show_default=True, help="Where the rows go.")
def push(invocation: Invocation, name: str, rows_file: str, to: str) -> None:
    """Write the rows of a Parquet or CSV file."""
    path = existing_file(rows_file)
    rows = invocation.store.push(name, path, to=to)
    click.echo(f"Pushed {rows:,} rows to {name}, {to.replace('_', ' ')}.")
