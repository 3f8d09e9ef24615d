"""Where values come from, by column: source column to view feature to on-demand feature to service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from feature_store.definitions.catalog import BoundOnDemand, BoundView, Catalog, FeatureRef
from feature_store.errors import NotFoundError, nearest
from feature_store.expressions.queries import bind_query
from feature_store.expressions.relations import LatestRow, ScheduledQuery, Windows
from feature_store.expressions.scalars import Scalar


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """A column of a definition: of a source, a feature of a view, a request value of an on-demand view (kind
    `request`), or a service as a whole, which has no column."""

    kind: str
    name: str
    column: str | None = None

    def __str__(self) -> str:
        return self.name if self.column is None else f"{self.name}:{self.column}"


@dataclass(frozen=True, slots=True)
class Edge:
    """One column's way into another. `role` is what it does there: value, where (it decides which rows count), key,
    timestamp, created, deleted, expression, or served."""

    source: Point
    target: Point
    role: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"from": _plain(self.source), "to": _plain(self.target), "role": self.role}


def lineage(catalog: Catalog, name: str | None = None) -> tuple[Edge, ...]:
    """Every edge, or those up- and downstream of a definition or of one column (`name:column`).

    `NotFoundError` if nothing in the catalog is called so.
    """
    edges = tuple(dict.fromkeys(_edges(catalog)))
    if name is None:
        return edges
    starts = _points(catalog, edges, name)
    up = _reach(edges, starts, lambda edge: (edge.target, edge.source))
    down = _reach(edges, starts, lambda edge: (edge.source, edge.target))
    return tuple(edge for edge in edges if edge.target in up or edge.source in down)


def _edges(catalog: Catalog) -> Iterator[Edge]:
    for view in catalog.views.values():
        yield from _of_view(view)
    for on_demand in catalog.on_demand.values():
        yield from _of_on_demand(catalog, on_demand)
    for service in catalog.services.values():
        for ref in catalog.resolve(service):
            yield Edge(_feature(catalog, ref), Point("feature_service", service.name), "served")


def _of_view(view: BoundView) -> Iterator[Edge]:
    relation = view.relation
    if isinstance(relation, ScheduledQuery):
        yield from _of_query(view, relation)
        return
    for feature, scalars in _scalars(relation):
        target = Point("feature_view", view.name, feature)
        uses: list[tuple[Iterable[str], str]] = [(scalar.columns, role) for role, scalar in scalars if scalar]
        uses.append((relation.keys.names, "key"))
        uses += [((column,), role) for role, column in _times(relation) if column]
        if isinstance(relation, LatestRow) and relation.deletes:
            uses.append((relation.values[0].scalar.columns, "deleted"))
        for columns, role in uses:
            for column in sorted(columns):
                yield Edge(Point("source", relation.rows.name, column), target, role)


def _scalars(relation: LatestRow | Windows) -> Iterator[tuple[str, list[tuple[str, Scalar | None]]]]:
    """Each feature with the expressions that make it, by role."""
    if isinstance(relation, LatestRow):
        for value in relation.features:
            yield value.name, [("value", value.scalar)]
    else:
        for window in relation.windows:
            yield window.name, [("value", window.value), ("where", window.where)]


def _times(relation: LatestRow | Windows) -> tuple[tuple[str, str | None], ...]:
    return (("timestamp", relation.rows.timestamp), ("created", relation.rows.created))


def _of_query(view: BoundView, relation: ScheduledQuery) -> Iterator[Edge]:
    query = bind_query(relation.sql, {rows.name: rows.schema for rows in relation.sources})
    shared = dict.fromkeys(query.filters, "where")
    shared |= {origin: "key" for key in relation.keys.names for origin in query.lineage.get(key, ())}
    for feature, output, _ in relation.values:
        origins = [*((origin, "value") for origin in query.lineage.get(output, ())), *shared.items()]
        for (table, column), role in origins:
            yield Edge(Point("source", table, column), Point("feature_view", view.name, feature), role)


def _of_on_demand(catalog: Catalog, on_demand: BoundOnDemand) -> Iterator[Edge]:
    sources = {name: Point("request", on_demand.name, name) for name in on_demand.request.names}
    sources |= {ref.feature: _feature(catalog, ref) for ref in on_demand.needs}
    for feature in on_demand.features:
        target = Point("on_demand_feature_view", on_demand.name, feature.name)
        for column in sorted(feature.scalar.columns):
            if column in sources:
                yield Edge(sources[column], target, "expression")


def _feature(catalog: Catalog, ref: FeatureRef) -> Point:
    kind = "feature_view" if ref.view in catalog.views else "on_demand_feature_view"
    return Point(kind, ref.view, ref.feature)


def _points(catalog: Catalog, edges: Iterable[Edge], name: str) -> set[Point]:
    """The points that a definition's or a column's name means."""
    points = {point for edge in edges for point in (edge.source, edge.target)}
    owner, colon, column = name.partition(":")
    found = {point for point in points if point.name == owner and (not colon or point.column == column)}
    if entity := catalog.entities.get(name):
        found |= {edge.source for edge in edges if edge.role == "key" and edge.source.column == entity.join_key}
        return found
    known = {*catalog.sources, *catalog.views, *catalog.on_demand, *catalog.services}
    if not found and name not in known:
        found = {point for point in points if point.column == name}
    if not found and name not in known:
        names = [*known, *catalog.entities, *map(str, points)]
        raise NotFoundError(f'nothing is called "{name}"', hint=nearest(name, names) or "See: fs list")
    return found


def _reach(edges: Iterable[Edge], starts: set[Point], step: Callable[[Edge], tuple[Point, Point]]) -> set[Point]:
    """The points reached from some, themselves included."""
    onward: dict[Point, list[Point]] = {}
    for edge in edges:
        here, there = step(edge)
        onward.setdefault(here, []).append(there)
    found, waiting = set(starts), list(starts)
    while waiting:
        fresh = [point for point in onward.get(waiting.pop(), ()) if point not in found]
        found.update(fresh)
        waiting.extend(fresh)
    return found


def _plain(point: Point) -> dict[str, str | None]:
    return {"kind": point.kind, "name": point.name, "column": point.column}
