"""The HTTP service."""

from __future__ import annotations

import click

from feature_store.cli.command import Invocation, command


@command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=6566, show_default=True, help="The port to listen on.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="How many processes.")
def serve(invocation: Invocation, host: str, port: int, workers: int) -> None:
    """Serve features over HTTP."""
    from feature_store.serving import run

    run(invocation.directory, invocation.settings_file, host, port, workers)
