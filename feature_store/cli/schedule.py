"""Commands on the schedules of views: run them, list them, hand them to Airflow."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from feature_store.cli.command import Invocation, command, group, json_option

if TYPE_CHECKING:
    from feature_store.cli.output import Output
    from feature_store.pipelines.due import Retries

_VIEWS = click.argument("views", metavar="[VIEW]...", nargs=-1)
_ATTEMPTS = click.option("--attempts", metavar="N", type=click.IntRange(min=1), default=5, show_default=True,
                         help="How often one boundary is tried.")  # fmt: skip
_WAIT = click.option("--retry-after", metavar="SECONDS", type=click.FloatRange(min=0.01), default=60, show_default=True,
                     help="Until the second attempt; twice as long each time, an hour at most.")  # fmt: skip
_SHOWN = ("view", "schedule", "through", "next_run", "attempts", "error", "running")


@command("run")
@_VIEWS
@click.option("--once", is_flag=True, help="Run what is due now and end; exit code 1 if a view failed.")
@click.option("--parallel", metavar="N", type=click.IntRange(1, 64), default=2, show_default=True,
              help="Views at a time.")  # fmt: skip
@_ATTEMPTS
@_WAIT
@click.option("--lease", metavar="SECONDS", type=click.FloatRange(min=0.5), default=60, show_default=True,
              help="Without a sign of life for so long a runner counts as dead, and another takes over.")  # fmt: skip
def run(
    invocation: Invocation,
    views: tuple[str, ...],
    once: bool,
    parallel: int,
    attempts: int,
    retry_after: float,
    lease: float,
) -> int:
    """Bring views up to date as they fall due.

    That is at the boundaries of their schedules. All views that have a schedule, or these. Boundaries that
    were missed are made up for. Any number of runners may share a registry: each view is run by one at a
    time. SIGTERM ends it between two steps.
    """
    from feature_store.pipelines.runner import Ended, Runner

    runner = Runner(invocation.store, list(views) or None, _retries(attempts, retry_after), lease)
    runner.scheduled()  # a view that is not there is said at once
    if once:
        on_signals(lambda *_: runner.stop())
        outcomes = runner.run_all()
        for outcome in outcomes:
            click.echo(str(outcome), err=outcome.ended is not Ended.DONE)
        return int(any(outcome.ended is not Ended.DONE for outcome in outcomes))
    from feature_store.pipelines.scheduler import Scheduler

    scheduler = Scheduler(runner, parallel, lambda text: click.echo(text, err=True), min(5.0, lease / 4))
    on_signals(scheduler.stop)
    scheduler.run()
    return 0


@command("list")
@json_option
def list_(invocation: Invocation, output: Output) -> None:
    """List the views that have a schedule.

    Up to where they are, when they run next, and what went wrong.
    """
    from feature_store.pipelines.runner import Runner

    rows = Runner(invocation.store).listing()
    output.rows(rows, _SHOWN, empty="No view has a schedule. Write for example schedule: daily")


@command("airflow")
@click.option("-o", "--output", "path", metavar="FILE", help="Where to write it.  [default: standard output]")
@click.option("--fs", "program", metavar="COMMAND", default="fs", show_default=True, help="The command fs there.")
@click.option("--repo", metavar="DIR", help="Where the repository is there.  [default: where it is here]")
@_ATTEMPTS
@_WAIT
def airflow(
    invocation: Invocation, path: str | None, program: str, repo: str | None, attempts: int, retry_after: float
) -> None:
    """Write a DAG file for Airflow: one DAG a view, instead of fs schedule run."""
    from feature_store.pipelines.airflow import dag_file
    from feature_store.pipelines.runner import Runner

    store = invocation.store
    here = store.root.absolute()
    root = Path(repo) if repo else here
    settings = store.repository.settings_file.absolute()
    if settings.is_relative_to(here):
        settings = root / settings.relative_to(here)
    items = Runner(store).scheduled().values()
    text = dag_file(
        items,
        store.project,
        root,
        settings if invocation.settings_file else None,
        program,
        _retries(attempts, retry_after),
    )
    if path is None:
        click.echo(text, nl=False)
        return
    Path(path).write_text(text, encoding="utf-8")
    click.echo(f"Wrote {len(items)} DAGs to {path}.")


@group("export", airflow)
def export() -> None:
    """Hand the schedules to another scheduler."""


@group("schedule", run, list_, export)
def schedule() -> None:
    """Run views by their schedules."""


def _retries(attempts: int, retry_after: float) -> Retries:
    from feature_store.expressions.instants import SECOND
    from feature_store.pipelines.due import Retries

    return Retries(attempts, int(retry_after * SECOND))


def on_signals(stop: signal._HANDLER) -> None:
    """Have SIGTERM and Ctrl-C call something instead of ending the process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
