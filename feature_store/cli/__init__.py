"""The command `fs`. Nothing heavy is imported before a command needs it: `fs --help` answers within 0.3 s."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from feature_store.cli.command import Invocation, repository_options
from feature_store.errors import (
    DefinitionError,
    FeatureStoreError,
    MissingExtraError,
    SettingsError,
    UsageError,
    nearest,
)

COMMANDS = {
    "init": "repo",
    "plan": "repo",
    "apply": "repo",
    "list": "registry",
    "describe": "registry",
    "lineage": "registry",
    "registry": "registry",
    "materialize": "materialize",
    "materialize-incremental": "materialize",
    "backfill": "backfill",
    "schedule": "schedule",
    "stream": "stream",
    "refill": "materialize",
    "get-online-features": "online",
    "get-historical-features": "offline",
    "push": "push",
    "serve": "serve",
    "teardown": "repo",
}
"""The module of each command, in the order of `fs --help`; a command `do-this` is its function `do_this`."""

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

EXIT_CODES: dict[type[FeatureStoreError], int] = {
    MissingExtraError: FAILED,
    DefinitionError: WRONG,
    SettingsError: WRONG,
    UsageError: WRONG,
    FeatureStoreError: FAILED,
}
"""The exit code of an error is that of the first class here that it is."""


class _Commands(click.Group):
    """Imports the module of a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__name__}.{COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise UsageError(f'there is no command "{name}"', hint=nearest(name, COMMANDS) or "See: fs --help")
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"fs {version('feature_store')}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="The version."
)
@repository_options
def fs() -> None:
    """Feature definitions to training data and online features.

    A repository is a directory with feature_store.yaml and definitions below it: fs init makes one.
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Errors are one line on standard error."""
    invocation = Invocation()
    try:
        code = fs.main(list(arguments), prog_name="fs", obj=invocation, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True)
        return WRONG
    except click.ClickException as error:
        return _fail(invocation, _click_message(error), WRONG)
    except click.Abort as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            return _fail(invocation, "interrupted", INTERRUPTED)
        return _fail(invocation, "not confirmed, nothing was done", FAILED)
    except BrokenPipeError:
        # Whoever read our output has gone. Without this, Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except FeatureStoreError as error:
        return _fail(invocation, str(error), exit_code(error))
    except Exception as error:
        text = f"{type(error).__name__}: {error} (this is a fault of feature_store; --traceback shows where)"
        return _fail(invocation, text, FAILED)
    finally:
        invocation.close()


def exit_code(error: FeatureStoreError) -> int:
    """The exit code that an error means."""
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))


def main() -> None:
    """The console script."""
    # What a command makes it mostly keeps until it ends: to look for garbage there often takes a tenth of its time.
    gc.set_threshold(50_000)
    sys.exit(run(sys.argv[1:]))


def _click_message(error: click.ClickException) -> str:
    text = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    stop = "" if text.endswith("?") else "."
    return f"{text}{stop} See: {context.command_path} --help" if context else text


def _fail(invocation: Invocation, text: str, code: int) -> int:
    if invocation.traceback:
        click.echo(traceback.format_exc().rstrip(), err=True)
    click.echo(click.style("error: ", fg="red") + " ".join(text.split()), err=True)
    return code
