"""Commands that look into the registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from feature_store.cli.command import Invocation, command, group, json_option
from feature_store.errors import UsageError, nearest

if TYPE_CHECKING:
    from feature_store.cli.output import Output

KINDS = {
    "entity": ("entities",),
    "source": ("sources",),
    "feature_view": ("feature_views", "view", "views", "feature", "features"),
    "on_demand_feature_view": ("on_demand_feature_views", "on_demand"),
    "feature_service": ("feature_services", "service", "services"),
}
"""Each kind, and what else people call it."""

_COLUMNS = ("kind", "name", "version", "entities", "features", "served")
"""What a line of `fs list` shows; `fs describe` and --json have the rest."""

_WIDEST_FEATURES = 24


@command("list")
@click.argument("kind", metavar="[KIND]", required=False)
@json_option
def list(invocation: Invocation, output: Output, kind: str | None) -> None:  # noqa: A001 - the command's name
    """List what is applied, all of it or one kind."""
    asked = _kind(kind) if kind else None
    found = invocation.store.list(asked)
    shown = [
        {**item, "entities": ", ".join(item.get("entities", ())), "features": _shortened(_feature_names(item))}
        | ({} if item.get("complete", True) else {"served": "the version before"})
        for item in found
    ]
    used = [column for column in _COLUMNS if column == "name" or any(row.get(column) for row in shown)]
    output.rows(found, used, shown, empty=f"Nothing{f' of kind {kind}' if kind else ''} is applied. Run: fs apply")


@command("describe")
@click.argument("name")
@json_option
def describe(invocation: Invocation, output: Output, name: str) -> None:
    """Show one definition.

    With what was settled about it at apply, and how far it is materialized.
    """
    output.record(invocation.store.describe(name))


@command("lineage")
@click.argument("name", required=False)
@json_option
def lineage(invocation: Invocation, output: Output, name: str | None) -> None:
    """Show where columns come from and go to.

    NAME is a definition, or one column of it: clicks:price. Without it, everything is shown.
    """
    edges = [edge.to_dict() for edge in invocation.store.lineage(name)]
    output.rows(edges, ("from", "as", "to"), _joined(edges), empty="No column leads from or to it.")


@command("upgrade")
def upgrade(invocation: Invocation) -> None:
    """Bring the registry's tables to this release.

    Older releases cannot open it then. fs apply does the same first; a registry in SQLite needs neither.
    """
    before = invocation.store.upgrade_registry()
    click.echo(
        "The registry is of this release." if before is None else f"Upgraded the registry from version {before}."
    )


@group("registry", upgrade)
def registry() -> None:
    """Look after the registry's database."""


def _kind(text: str) -> str:
    asked = text.lower().replace("-", "_")
    spellings = {spelling: kind for kind, others in KINDS.items() for spelling in (kind, *others)}
    if asked not in spellings:
        raise UsageError(f'there is no kind "{text}"', hint=nearest(asked, spellings) or f"Kinds: {', '.join(KINDS)}")
    return spellings[asked]


def _feature_names(item: Mapping[str, Any]) -> Any:
    features = item.get("features") or item.get("aggregations") or ()
    return [feature if isinstance(feature, str) else _name(feature) for feature in features]


def _shortened(names: Any) -> str:
    text = ", ".join(names)
    return text if len(text) <= _WIDEST_FEATURES else f"{text[: _WIDEST_FEATURES - 1]}…"


def _name(feature: Any) -> str:
    return str(feature["name"] if isinstance(feature, Mapping) else feature[0])


def _joined(edges: Iterable[Mapping[str, Any]]) -> Any:
    """One row for each pair of columns, with all its roles."""
    roles: dict[tuple[str, str], dict[str, None]] = {}
    for edge in edges:
        roles.setdefault((_point(edge["from"]), _point(edge["to"])), {})[edge["role"]] = None
    return [{"from": source, "as": ", ".join(found), "to": target} for (source, target), found in roles.items()]


def _point(point: Mapping[str, Any]) -> str:
    kind = {"request": " (request)", "feature_service": " (service)"}.get(point["kind"], "")
    return f"{point['name']}{':' + point['column'] if point['column'] else ''}{kind}"
