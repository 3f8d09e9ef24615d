"""The difference of two catalogs as data: a plan, which `apply` carries out and `fs plan` explains."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from feature_store.definitions.base import Definition
from feature_store.definitions.catalog import Catalog
from feature_store.definitions.tables import snapshots_path, tables_of
from feature_store.errors import DestructiveChangeError
from feature_store.expressions.instants import to_iso
from feature_store.expressions.relations import ScheduledQuery
from feature_store.registry.records import Action, Change, Version
from feature_store.types import Schema

KINDS = ("entity", "source", "feature_view", "on_demand_feature_view", "feature_service")
"""Every kind, each after those it may refer to."""

_NAMED = 5  # how many destructive changes an error names

Node = tuple[str, str]
"""(kind, name) of a definition."""


@dataclass(frozen=True, slots=True)
class Stored:
    """That something is stored for a view, or in the push log of a source.

    `through` is the instant (microseconds) up to which it is materialized, None where no run was. `holds` is what was
    settled about the version that is stored, where that is not the applied one (as `bound_of` gives it).
    """

    through: int | None = None
    holds: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return "stored rows" if self.through is None else f"stored rows up to {to_iso(self.through)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the time is ISO 8601."""
        return {"through": None if self.through is None else to_iso(self.through)}


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One value that differs, by its path: `ttl`, `features.user_age.type`. None where there is, or was, none."""

    path: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """What becomes of one definition.

    `data_changed`: its stored values no longer hold and have to be computed again. `destructive`: stored data would be
    removed or change type. `affects` are the views and services downstream, `because` the changed definitions upstream
    that alone make this one change. `bound` is what the registry keeps beside the definition.
    """

    action: Action
    kind: str
    name: str
    before: Definition | None
    after: Definition | None
    fields_changed: tuple[FieldChange, ...] = ()
    data_changed: bool = False
    destructive: bool = False
    affects: tuple[Node, ...] = ()
    because: tuple[Node, ...] = ()
    stored: Stored | None = None
    bound: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "action": self.action,
            "kind": self.kind,
            "name": self.name,
            "fields_changed": [
                {"path": change.path, "before": change.before, "after": change.after} for change in self.fields_changed
            ],
            "data_changed": self.data_changed,
            "destructive": self.destructive,
            "affects": [{"kind": kind, "name": name} for kind, name in self.affects],
            "because": [{"kind": kind, "name": name} for kind, name in self.because],
            "stored": self.stored.to_dict() if self.stored else None,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes in an order in which they can be done: first what is created or updated, referred-to things before those
    that refer to them, then deletions the other way round. `serial` is the registry's it was made against."""

    project: str
    changes: tuple[PlannedChange, ...] = ()
    serial: int = 0
    warnings: tuple[str, ...] = ()
    versions: Mapping[tuple[str, str], Version | None] = field(default_factory=dict)
    serving: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not self.changes

    @property
    def destructive(self) -> tuple[PlannedChange, ...]:
        return tuple(change for change in self.changes if change.destructive)

    def refuse_destructive(self) -> None:
        """`DestructiveChangeError` if stored data would be removed or retyped."""
        if self.destructive:
            what = ", ".join(_sentence(change) for change in self.destructive[:_NAMED])
            more = len(self.destructive) - _NAMED
            what += f" and {more} more" if more > 0 else ""
            raise DestructiveChangeError(f"this would {what}", hint="Pass --allow-destructive to do it")

    def registry_changes(self) -> tuple[Change, ...]:
        """The plan as the registry's commit takes it."""
        return tuple(
            Change(
                change.action, change.kind, change.name, change.after.to_dict() if change.after else {}, change.bound
            )
            for change in self.changes
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "project": self.project,
            "serial": self.serial,
            "changes": [change.to_dict() for change in self.changes],
            "serving": dict(self.serving),
            "warnings": list(self.warnings),
        }


def difference(
    before: Catalog | None,
    after: Catalog,
    *,
    stored: Mapping[Node, Stored] | None = None,
    serial: int = 0,
    warnings: Sequence[str] = (),
) -> Plan:
    """The plan that turns one catalog into another.

    `stored` says what holds data, views and push logs of sources, by (kind, name). Without it nothing is known, and
    every view and every source with push counts as holding some.
    """
    old = _Side(before or empty(after.project))
    new = _Side(after)
    upstream = _upstream_changes(old, new)
    changes = [
        change
        for node in sorted(
            old.definitions.keys() | new.definitions.keys(), key=lambda node: (KINDS.index(node[0]), node)
        )
        if (change := _change(node, old, new, upstream, stored))
    ]
    kept = [change for change in changes if change.action != "delete"]
    gone = [change for change in reversed(changes) if change.action == "delete"]
    return Plan(after.project, (*kept, *gone), serial, tuple(warnings))


def empty(project: str) -> Catalog:
    """The catalog of a project without definitions."""
    return Catalog(project, entities={}, sources={}, views={}, on_demand={}, services={})


def bound_of(catalog: Catalog, kind: str, name: str) -> dict[str, Any]:
    """What was settled about a definition, as the registry keeps it: a source's columns, a view's keys and types."""
    if kind == "source" and name in catalog.rows:
        return {"columns": _pairs(catalog.rows[name].schema)}
    if kind == "feature_view":
        view = catalog.views[name]
        return {
            "keys": _pairs(view.keys),
            "features": _pairs(view.features),
            "version": view.version,
            "tables": [[table.name, table.items] for table in tables_of(view)],
            "snapshots": snapshots_path(view) if isinstance(view.relation, ScheduledQuery) else None,
        }
    if kind == "on_demand_feature_view":
        on_demand = catalog.on_demand[name]
        features = [[feature.name, str(feature.type)] for feature in on_demand.features]
        return {"request": _pairs(on_demand.request), "features": features}
    return {}


class _Side:
    """A catalog as a graph: definitions, what was settled about them, and who refers to whom."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.definitions: dict[Node, Definition] = {}
        for kind, definitions in (
            ("entity", catalog.entities.values()),
            ("source", catalog.sources.values()),
            ("feature_view", [bound.view for bound in catalog.views.values()]),
            ("on_demand_feature_view", [bound.view for bound in catalog.on_demand.values()]),
            ("feature_service", catalog.services.values()),
        ):
            self.definitions.update({(kind, definition.name): definition for definition in definitions})
        self.bound = {node: bound_of(catalog, *node) for node in self.definitions}
        self.needs = {node: frozenset(self._needs(node)) for node in self.definitions}
        self._users: dict[Node, list[Node]] = {}
        for user, needs in self.needs.items():
            for need in needs:
                self._users.setdefault(need, []).append(user)

    def downstream(self, node: Node) -> set[Node]:
        found: set[Node] = set()
        waiting = [node]
        while waiting:
            fresh = [user for user in self._users.get(waiting.pop(), ()) if user not in found]
            found.update(fresh)
            waiting.extend(fresh)
        return found

    def _needs(self, node: Node) -> Iterator[Node]:
        kind, name = node
        if kind == "feature_view":
            bound = self.catalog.views[name]
            yield from (("entity", self._entity(name)) for name in bound.view.entities)
            yield from (("source", rows.name) for rows in bound.inputs)
        elif kind == "on_demand_feature_view":
            yield from (self._view(ref.view) for ref in self.catalog.on_demand[name].needs)
        elif kind == "feature_service":
            yield from (self._view(ref.view) for ref in self.catalog.resolve(self.catalog.services[name]))

    def _entity(self, name: str) -> str:
        """The entity of a name, or of a join key: views may say either."""
        entities = self.catalog.entities
        return name if name in entities else next((e.name for e in entities.values() if e.join_key == name), name)

    def _view(self, name: str) -> Node:
        return ("feature_view" if name in self.catalog.views else "on_demand_feature_view", name)


def _change(
    node: Node, old: _Side, new: _Side, upstream: Collection[Node], stored: Mapping[Node, Stored] | None
) -> PlannedChange | None:
    kind, name = node
    before, after = old.definitions.get(node), new.definitions.get(node)
    fields = _fields(node, old, new) if before and after else ()
    data_changed = _data_changed(node, old, new)
    if before and after and not fields and not data_changed:
        return None
    own = before != after
    because = () if own or not after else sorted(need for need in new.needs[node] if need in upstream)
    data = _stored(node, before, stored)
    return PlannedChange(
        action="update" if before and after else "create" if after else "delete",
        kind=kind,
        name=name,
        before=before,
        after=after,
        fields_changed=fields,
        data_changed=data_changed,
        destructive=data is not None and _destroys(node, data.holds or old.bound.get(node, {}), new),
        affects=tuple(sorted(old.downstream(node) | new.downstream(node), key=lambda at: (KINDS.index(at[0]), at))),
        because=tuple(because),
        stored=data,
        bound=new.bound.get(node, {}),
    )


def _upstream_changes(old: _Side, new: _Side) -> set[Node]:
    """The nodes that are not as they were, in their definition or in what was settled about it."""
    return {
        node
        for node, definition in new.definitions.items()
        if old.definitions.get(node) != definition or old.bound[node] != new.bound[node]
    }


def _data_changed(node: Node, old: _Side, new: _Side) -> bool:
    """Whether the stored values of a view have to be computed (again)."""
    if node[0] != "feature_view" or node not in new.bound:
        return False
    return node not in old.bound or bool(old.bound[node]["version"] != new.bound[node]["version"])


def _stored(node: Node, before: Definition | None, stored: Mapping[Node, Stored] | None) -> Stored | None:
    if before is None:
        return None
    if stored is not None:
        return stored.get(node)
    stream = getattr(before, "stream", None)
    return Stored() if node[0] == "feature_view" or (stream and stream.push) else None


def _destroys(node: Node, before: Mapping[str, Any], new: _Side) -> bool:
    """Whether what is stored for a definition loses a column, a column's type or its key."""
    if node not in new.definitions:
        return True
    after = new.bound[node]
    if node[0] == "feature_view" and before["version"] != after["version"]:
        return bool(before["keys"] != after["keys"]) or _loses(before["features"], after["features"])
    return node[0] == "source" and _loses(before.get("columns", []), after.get("columns", []))


def _loses(before: Sequence[Sequence[str]], after: Sequence[Sequence[str]]) -> bool:
    kept = {tuple(column) for column in after}
    return any(tuple(column) not in kept for column in before)


def _fields(node: Node, old: _Side, new: _Side) -> tuple[FieldChange, ...]:
    """What differs in the definition, then in the types settled about it where the definition does not say."""
    changes = {
        change.path: change for change in _differ("", old.definitions[node].to_dict(), new.definitions[node].to_dict())
    }
    for change in _settled(old.bound[node], new.bound[node]):
        part, _, name = change.path.partition(".")
        declared = {change.path, f"aggregations.{name}"} if part == "features" else {change.path}
        if not (declared | {f"{change.path}.type"}) & changes.keys():
            changes[change.path] = change
    return tuple(changes.values())


def _settled(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[FieldChange]:
    """The columns whose settled types differ."""
    for part in ("columns", "keys", "features", "request"):
        types, now = dict(before.get(part, ())), dict(after.get(part, ()))
        for name in types | now:
            if types.get(name) != now.get(name):
                yield FieldChange(f"{part}.{name}", types.get(name), now.get(name))


def _differ(path: str, before: Any, after: Any) -> Iterator[FieldChange]:
    """Walk two plain values side by side; lists of named things are matched by name."""
    if before == after:
        return
    before_items, after_items = _items(before), _items(after)
    if before_items is None or after_items is None:
        yield FieldChange(path, before, after)
        return
    changed = False
    for key in before_items | after_items:
        for change in _differ(f"{path}.{key}" if path else str(key), before_items.get(key), after_items.get(key)):
            changed = True
            yield change
    if not changed:
        yield FieldChange(path, list(before_items), list(after_items))  # the same things in another order


def _items(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return {item["name"]: item for item in value}
    return None


def _pairs(schema: Schema) -> list[list[str]]:
    return [[column.name, str(column.type)] for column in schema]


def _sentence(change: PlannedChange) -> str:
    verb = "remove" if change.action == "delete" else "change"
    return f'{verb} {change.kind.replace("_", " ")} "{change.name}" with {change.stored}'
