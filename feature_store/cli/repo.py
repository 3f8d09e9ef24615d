"""Commands on a repository: make one, and bring its stores to what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from feature_store.cli.command import Invocation, command, json_option

if TYPE_CHECKING:
    from feature_store.cli.output import Output
    from feature_store.definitions.difference import Plan


@command("init")
@click.argument("directory", metavar="DIR")
@click.option("--template", metavar="ads|minimal", default="ads", show_default=True, help="What to start from.")
@click.option("--events", type=click.IntRange(min=1), default=100_000, show_default=True,
              help="How many impressions the ads template gets.")  # fmt: skip
@click.option("--seed", type=int, default=7, show_default=True, help="Of the generated data.")
def init(invocation: Invocation, directory: str, template: str, events: int, seed: int) -> None:
    """Make a working repository with some data."""
    from feature_store.cli.progress import counting
    from feature_store.templates import create

    with counting("generating", events if template == "ads" else None) as report:
        path = create(directory, template, events=events, seed=seed, progress=report)
    click.echo(f"Made {path} from the template {template}. Next: cd {path} && fs apply")


@command("plan")
@json_option
def plan(invocation: Invocation, output: Output) -> None:
    """Show what apply would change and touch."""
    planned = invocation.store.plan()
    output.plan(planned, done=False)
    _warn(planned)


@command("apply")
@click.option("--allow-destructive", is_flag=True, help="Also remove or retype what holds data.")
@json_option
def apply(invocation: Invocation, output: Output, allow_destructive: bool) -> None:
    """Make the stores what the repository says.

    Removing or retyping what holds data needs --allow-destructive. A second apply changes nothing.
    """
    done = invocation.store.apply(allow_destructive=allow_destructive)
    output.plan(done, done=True)
    _warn(done)


@command("teardown")
@click.option("--yes", is_flag=True, help="Do not ask.")
def teardown(invocation: Invocation, yes: bool) -> None:
    """Drop this project's tables, keys and records."""
    store = invocation.store
    records = len(store.registry.load().records)
    what = f'the online tables, stored snapshots, pushed rows and {records} records of project "{store.project}"'
    if not yes:
        click.confirm(f"Drop {what}?", abort=True, err=True)
    store.teardown()
    click.echo(f'Dropped project "{store.project}".')


def _warn(plan: Plan) -> None:
    for warning in plan.warnings:
        click.echo(click.style("warning: ", fg="yellow") + " ".join(str(warning).split()), err=True)
