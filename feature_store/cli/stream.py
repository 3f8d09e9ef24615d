"""Commands on streams: start and stop what reads topics, look at it, fill a view's past."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import click

from feature_store.cli.backfill import tell_versions
from feature_store.cli.command import Invocation, command, group, json_option
from feature_store.cli.schedule import on_signals
from feature_store.errors import UsageError

if TYPE_CHECKING:
    from feature_store.cli.output import Output
    from feature_store.pipelines.streams import Streams

_VIEWS = click.argument("views", metavar="[VIEW]...", nargs=-1)
_SHOWN = ("source", "engine", "state", "workers", "lag_events", "lag_seconds", "events", "late", "bad", "error")
_SHOWN_OF_JOBS = (*_SHOWN[:-1], "checkpoints", "restarts", "error")


@command("start")
@_VIEWS
@click.option("--foreground", is_flag=True, help="Be a worker, here, until SIGTERM or fs stream stop.")
@click.option("--from", "start_at", type=click.Choice(["earliest", "latest"]),
              help="Where a stream begins in a topic that it has never read.  [default: earliest]")  # fmt: skip
def start(invocation: Invocation, views: tuple[str, ...], foreground: bool, start_at: str | None) -> None:
    """Start the streams that fill views.

    One for each source of theirs that reads a topic; all sources without a name. They go on where they were.
    With --foreground this process is a worker: start as many as the topic has partitions, on any machines.
    """
    streams = _streams(invocation)
    sources = _some(streams.sources(views))
    if not foreground:
        for source in sources:
            streams.start(source, start_at)
            click.echo(f"The stream of {source} runs.")
        return
    from feature_store.pipelines.stream_task import spare_collections

    stop = threading.Event()
    on_signals(lambda *_: stop.set())
    for source in sources:
        streams.check(source, start_at)
        streams.want(source, True, start_at)
    spare_collections()
    streams.work(sources, stop)


@command("stop")
@_VIEWS
def stop(invocation: Invocation, views: tuple[str, ...]) -> None:
    """Stop the streams that fill views.

    Every worker ends, on whatever machine, once what it took is stored.
    """
    streams = _streams(invocation)
    for source in _some(streams.started(views)):
        streams.stop(source)
        click.echo(f"The stream of {source} has ended.")


@command("status")
@_VIEWS
@json_option
def status(invocation: Invocation, output: Output, views: tuple[str, ...]) -> None:
    """Show what streams do.

    How many messages wait, for how long, what was late or bad, and what is wrong.
    """
    streams = _streams(invocation)
    rows = streams.status(streams.started(views))
    shown = _SHOWN_OF_JOBS if any(row["job"] for row in rows) else _SHOWN
    output.rows(rows, shown, empty="No source reads a topic. Write for example stream: {kafka: {topic: clicks}}")


@command("bootstrap")
@click.argument("view", metavar="VIEW")
@click.option(
    "--again",
    is_flag=True,
    help="Drop what is online of the view first, as after a store lost writes. Stop its stream before.",
)
def bootstrap(invocation: Invocation, view: str, again: bool) -> None:
    """Fill the past of VIEW while its stream runs.

    The stream has the events from where it began on, this has all before that, so each counts once.
    """
    from feature_store.cli.progress import reporting

    before = invocation.store.filling()
    with reporting() as report:
        rows = _streams(invocation).bootstrap(view, again, report)
    click.echo(f"Bootstrapped {view}: {rows:,} rows.")
    tell_versions(invocation, before)


@group("stream", start, status, stop, bootstrap)
def stream() -> None:
    """Fill views from topics as events come."""


def _streams(invocation: Invocation) -> Streams:
    from feature_store.pipelines.streams import Streams

    return Streams(invocation.store, lambda text: click.echo(text, err=True))


def _some(sources: list[str]) -> list[str]:
    if not sources:
        raise UsageError("no source reads a topic", hint="Write for example stream: {kafka: {topic: clicks}}")
    return sources
