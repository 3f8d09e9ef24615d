"""What all commands share: the repository they work on, common options, and values as people type them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from feature_store.errors import InvalidInputError, UsageError

if TYPE_CHECKING:
    from feature_store.cli.output import Output
    from feature_store.store import FeatureStore
    from feature_store.types import Type

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Invocation:
    """One run of `fs`: the options that count for every command, and the store once it is asked for."""

    directory: str = "."
    settings_file: str | None = None
    traceback: bool = False
    _store: FeatureStore | None = field(default=None, init=False)

    @property
    def store(self) -> FeatureStore:
        if self._store is None:
            from feature_store.store import FeatureStore

            self._store = FeatureStore(self.directory, self.settings_file)
        return self._store

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


pass_invocation = click.make_pass_decorator(Invocation)


def _common(*spellings: str, name: str, **attributes: Any) -> Callable[[F], F]:
    """An option that sets a field of the Invocation, given before or after the command's name."""

    def remember(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value not in (None, False) and not ctx.resilient_parsing:  # not given, it leaves what was
            setattr(ctx.ensure_object(Invocation), name, value)

    # Its own parameter name: commands have arguments called directory.
    return click.option(*spellings, f"{name}_option", expose_value=False, callback=remember, **attributes)


def repository_options(command: F) -> F:
    """-c, -f and --traceback, which `fs` and each of its commands take."""
    for option in (
        _common("--traceback", name="traceback", is_flag=True, is_eager=True, help="Show where an error comes from."),
        _common(
            "-f", "--file", name="settings_file", metavar="FILE", help="Another settings file than the repository's."
        ),
        _common("-c", "--chdir", name="directory", metavar="DIR", help="The feature repository.  [default: .]"),
    ):
        command = option(command)
    return command


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of `fs`: takes the common options, and its function gets the Invocation first."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        return click.command(name, context_settings={"help_option_names": ["-h", "--help"]})(
            repository_options(pass_invocation(function))
        )

    return decorate


def group(name: str, *commands: click.Command) -> Callable[[Callable[..., Any]], click.Group]:
    """A command of `fs` that has commands: `fs registry upgrade`."""

    def decorate(function: Callable[..., Any]) -> click.Group:
        settings = {"help_option_names": ["-h", "--help"]}
        return click.group(name, commands=commands, context_settings=settings)(repository_options(function))

    return decorate


def _output(_ctx: click.Context, _parameter: click.Parameter, as_json: bool) -> Output:
    from feature_store.cli.output import JsonOutput, TextOutput

    return JsonOutput(sys.stdout) if as_json else TextOutput(sys.stdout)


json_option = click.option("--json", "output", is_flag=True, callback=_output, help="JSON instead of a table.")
"""Gives the function `output`, an Output."""


def read_instant(text: str) -> int:
    """Microseconds since the epoch of ISO 8601 text, or of `now`."""
    from feature_store.expressions.instants import instant

    if text == "now":
        import time

        return time.time_ns() // 1000
    return instant(text)


def _instant(_ctx: click.Context, _parameter: click.Parameter, text: str) -> int:
    try:
        return read_instant(text)
    except InvalidInputError as error:
        raise click.BadParameter(f"{error.message}. {error.hint}" if error.hint else error.message) from None


def instant_argument(name: str) -> Callable[[F], F]:
    """An argument that gives the function microseconds."""
    return click.argument(name, callback=_instant)


def features_options(command: F) -> F:
    """--features and --service; `chosen_features` makes one of them."""
    for option in (
        click.option("--full-feature-names", is_flag=True, help="Columns are called view__feature."),
        click.option("--service", metavar="NAME", help="The features of a feature service."),
        click.option("--features", metavar="REF,...", multiple=True,
                     help="view:feature, view, or a feature that one view has; several with commas."),
    ):  # fmt: skip
        command = option(command)
    return command


def chosen_features(features: tuple[str, ...], service: str | None) -> str | list[str]:
    """A service's name, or the references of all --features."""
    references = [part.strip() for text in features for part in text.split(",") if part.strip()]
    if bool(references) == bool(service):
        raise UsageError("give either --features or --service", hint="For example --features user_profile:user_age")
    return service or references


def typed(text: str, type_: Type | None, name: str) -> Any:
    """A value typed on the command line, as Python data of a type; without a type, a number if it looks like one."""
    if type_ is None:
        return int(text) if text.removeprefix("-").isdigit() else text
    try:
        return _READERS.get(type_.kind, str)(text)
    except (ValueError, ArithmeticError, InvalidInputError):
        raise UsageError(f'{name}: "{text}" is not of type {type_}') from None


def _bool(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise ValueError(text)


def _timestamp(text: str) -> Any:
    from feature_store.expressions.instants import to_datetime

    return to_datetime(read_instant(text))


def _date(text: str) -> Any:
    from datetime import date

    return date.fromisoformat(text)


def _decimal(text: str) -> Any:
    from decimal import Decimal

    return Decimal(text)


def _bytes(text: str) -> bytes:
    from base64 import b64decode

    return b64decode(text, validate=True)


def _json(text: str) -> Any:
    from json import loads

    return loads(text)


_READERS: dict[str, Callable[[str], Any]] = {
    "INT32": int,
    "INT64": int,
    "FLOAT32": float,
    "FLOAT64": float,
    "BOOL": _bool,
    "TIMESTAMP": _timestamp,
    "DATE": _date,
    "DECIMAL": _decimal,
    "BYTES": _bytes,
    "ARRAY": _json,
}


def existing_file(path: str) -> Path:
    """The path of a file that must be there."""
    found = Path(path)
    if not found.exists():
        raise UsageError(f"there is no file {path}")
    return found
