"""Features as of now, for entities named on the command line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from feature_store.cli.command import (
    Invocation,
    chosen_features,
    command,
    features_options,
    json_option,
    typed,
)
from feature_store.errors import UsageError, nearest

if TYPE_CHECKING:
    from feature_store.cli.output import Output
    from feature_store.definitions.catalog import Catalog
    from feature_store.types import Type

_PAIRS = re.compile(r",(?=[A-Za-z_]\w*=)")


@command("get-online-features")
@features_options
@click.option("--entity", "entities", metavar="KEY=VALUE", multiple=True, required=True,
              help="An entity row; repeated for more. A composite key: user_id=1,ad_id=2.")  # fmt: skip
@click.option("--request", "requests", metavar="NAME=VALUE", multiple=True,
              help="A request-time value, one for all rows or one a row.")  # fmt: skip
@click.option("--statuses", is_flag=True, help="Also a column FEATURE__status for each.")
@json_option
def get_online_features(
    invocation: Invocation,
    output: Output,
    features: tuple[str, ...],
    service: str | None,
    full_feature_names: bool,
    entities: tuple[str, ...],
    requests: tuple[str, ...],
    statuses: bool,
) -> None:
    """Show features as of now."""
    asked = chosen_features(features, service)
    texts, request_texts = entity_rows(entities), request_columns(requests)
    store = invocation.store
    keys, request = key_types(store.catalog), request_types(store.catalog)
    check_names(request_texts, request)
    rows = [
        {name: typed(text, keys.get(name) or request.get(name), name) for name, text in row.items()} for row in texts
    ]
    data = {
        name: broadcast(name, [typed(text, request.get(name), name) for text in values], len(rows))
        for name, values in request_texts.items()
    }
    answer = store.get_online_features(asked, rows, full_feature_names, request_data=data or None)
    columns = answer.to_dict()
    if statuses:
        columns = {
            key: values for name in columns for key, values in _with_status(name, columns[name], answer, rows[0])
        }
    output.rows([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)], list(columns))


def _with_status(name: str, values: list[Any], answer: Any, row: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    column = [(name, values)]
    return column if name in row else [*column, (f"{name}__status", [s.name for s in answer.statuses(name)])]


def entity_rows(texts: Sequence[str]) -> list[dict[str, str]]:
    """The rows that --entity options mean: a key that the row has already begins the next one.

    >>> entity_rows(["user_id=1", "ad_id=7", "user_id=2,ad_id=8"])
    [{'user_id': '1', 'ad_id': '7'}, {'user_id': '2', 'ad_id': '8'}]
    """
    rows: list[dict[str, str]] = [{}]
    for text in texts:
        pairs = dict(_pair(part, "--entity") for part in _PAIRS.split(text))
        if pairs.keys() & rows[-1].keys():
            rows.append({})
        rows[-1].update(pairs)
    names = set().union(*rows)
    for number, row in enumerate(rows, 1):
        if missing := names - row.keys():
            raise UsageError(f"entity row {number} has no {min(missing)}", hint="Give every row the same keys")
    return rows


def request_columns(texts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each name given by --request."""
    columns: dict[str, list[str]] = {}
    for name, value in (_pair(text, "--request") for text in texts):
        columns.setdefault(name, []).append(value)
    return columns


def broadcast(name: str, values: list[Any], rows: int) -> list[Any]:
    """One value for all rows, or one a row."""
    if len(values) not in (1, rows):
        raise UsageError(f"--request {name} has {len(values)} values for {rows} rows", hint="Give one, or one a row")
    return values * rows if len(values) == 1 else values


def check_names(given: Iterable[str], known: Collection[str]) -> None:
    """`UsageError` for a request value that no on-demand view takes."""
    for name in given:
        if name not in known:
            hint = nearest(name, known) or f"The on-demand views take {', '.join(known) or 'none'}"
            raise UsageError(f'--request {name}: no on-demand view has a request value "{name}"', hint=hint)


def key_types(catalog: Catalog) -> dict[str, Type]:
    """The type of each join key."""
    return {entity.join_key: entity.type for entity in catalog.entities.values()}


def request_types(catalog: Catalog) -> dict[str, Type]:
    """The type of each request value."""
    return {column.name: column.type for view in catalog.on_demand.values() for column in view.request}


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f'{option} "{text}" is not NAME=VALUE', hint=f"For example {option} user_id=1")
    return name.strip(), value
