"""Online retrieval: features as they are now, by a plan compiled once per catalog and list of features.

1. `OnlinePlan.compile`   which tables, which keys, what to compute; names are checked here and not again
2. `prepare`              entity columns become keys, each distinct key once; request values get their types
3. `OnlineStore.read`     one round trip, however many views
4. `finish`               rows become columns; statuses, defaults; then on-demand features, in topological order
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feature_store.definitions.base import Definition
from feature_store.definitions.catalog import BoundOnDemand, BoundView, Catalog, FeatureRef, output_names
from feature_store.definitions.service import FeatureService
from feature_store.definitions.tables import is_snapshot, marker_key, marker_table
from feature_store.errors import InvalidInputError, TooLargeError, nearest
from feature_store.expressions.visibility import Status
from feature_store.retrieval.computations import Evaluate, evaluator, failure
from feature_store.retrieval.lookups import Columns, Feature, Lookup, lookup
from feature_store.retrieval.response import Cells, OnlineResponse
from feature_store.storage.online import Answers, Key, OnlineStore, Row, Table
from feature_store.types import Schema, Type
from feature_store.values import read_column

Features = str | FeatureService | Sequence[str | FeatureRef | Definition]
"""A service by name, a service, or references."""

EntityColumns = Mapping[str, Sequence[Any]]
StoreRequests = list[tuple[Table, Sequence[Key]]]

MOST_PLANS = 1024
_AS_GIVEN = frozenset({"INT32", "INT64", "STRING", "BOOL"})


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with its keys built. `places` gives, per group of keys, each row's position among the keys read
    (-1: a null key, never found), or None where row and key positions agree."""

    entities: EntityColumns
    rows: int
    requests: StoreRequests
    places: list[list[int] | None]
    request_values: dict[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class _ViewRead:
    """One view of a plan: its lookup, the features taken, the group of keys it is read by, and its place among the
    markers (or None)."""

    name: str
    lookup: Lookup
    columns: Columns
    features: tuple[FeatureRef, ...]
    group: int
    marker: int | None


@dataclass(frozen=True, slots=True)
class _Computation:
    """One on-demand view of a plan: the expressions that are needed, over columns of request values and of features
    (`needs`: their places among the plan's columns), each with its feature and default."""

    request: tuple[str, ...]
    needs: tuple[int, ...]
    outputs: tuple[tuple[FeatureRef, Evaluate, Any], ...]


class OnlinePlan:
    """What one list of features takes to answer: compiled once, then names, types and tables are settled."""

    def __init__(self, catalog: Catalog, features: Features, full_feature_names: bool = False) -> None:
        self.refs = catalog.resolve(features)
        self.names = output_names(self.refs, full_feature_names)
        self.types = tuple(catalog.feature_type(ref) for ref in self.refs)
        self.places = {
            view: tuple(place for place, ref in enumerate(self.refs) if ref.view == view)
            for view in dict.fromkeys(ref.view for ref in self.refs)
        }
        """The positions of each view's features among those asked for."""
        needed, on_demand = catalog.needed(self.refs)
        self._groups: list[Schema] = []
        self._markers: StoreRequests = []
        self._reads = tuple(self._view_read(catalog, name, refs) for name, refs in needed.items())
        places = {ref: place for place, ref in enumerate(ref for read in self._reads for ref in read.features)}
        self._computations = tuple(_computation(bound, places) for bound in on_demand)
        self._outputs = tuple(places[ref] for ref in self.refs)
        self._request = _request_columns(on_demand)
        self._keys = {column.name: column.type for group in self._groups for column in group}
        self._name_set = frozenset(self.names)
        self._echoed = {name: type_ for name, type_ in self._keys.items() if type_.kind in _AS_GIVEN}

    @property
    def join_keys(self) -> Mapping[str, Type]:
        """The entity columns that a request must have."""
        return self._keys

    @property
    def request_columns(self) -> Mapping[str, Type]:
        """The request values that the on-demand views take."""
        return {name: type_ for name, (type_, _) in self._request.items()}

    def get(
        self,
        store: OnlineStore,
        entities: EntityColumns,
        request_data: Mapping[str, Any] | None = None,
        now: int | None = None,
    ) -> OnlineResponse:
        """The features of entities as of `now` (microseconds; default: the clock), in one read of the store."""
        prepared = self.prepare(entities, request_data)
        at = time.time_ns() // 1000 if now is None else now
        answers = store.read(prepared.requests) if prepared.requests else []
        return self.finish(prepared, answers, at)

    def prepare(self, entities: EntityColumns, request_data: Mapping[str, Any] | None = None) -> Prepared:
        """Check a request and build what to read; `InvalidInputError` names the column, row and value at fault."""
        rows = self._count(entities, request_data)
        keys: list[Sequence[Key]] = []
        places: list[list[int] | None] = []
        for group in self._groups:
            found, place = _distinct(self._key_columns(group, entities))
            keys.append(found)
            places.append(place)
        requests: StoreRequests = [(table, keys[read.group]) for read in self._reads for table in read.lookup.reads]
        requests += self._markers
        values = self._request_values(entities, request_data, rows) if self._request else {}
        return Prepared(entities, rows, requests, places, values)

    def finish(self, prepared: Prepared, answers: Sequence[Sequence[Any]], now: int) -> OnlineResponse:
        """The response, from what the store answered to `prepared.requests`."""
        cells: list[Cells] = []
        markers = answers[len(answers) - len(self._markers) :]
        position = 0
        for read in self._reads:
            until = position + len(read.lookup.reads)
            marker: Row | None = None if read.marker is None else markers[read.marker][0]
            found = read.lookup.rows(answers[position:until], marker, now)
            place = prepared.places[read.group]
            if place is not None:
                padded = [*found, read.lookup.absent]
                found = [padded[key] for key in place]
            cells += read.columns.of(found, now)
            position = until
        for computation in self._computations:
            _compute(computation, cells, prepared)
        return self._response(prepared, [cells[place] for place in self._outputs])

    def tiers(self, prepared: Prepared, answers: Sequence[Sequence[Any]]) -> dict[str, dict[str, int]]:
        """How many of the keys read each tier answered, by view; views in a store without tiers are left out."""
        found: dict[str, dict[str, int]] = {}
        if not isinstance(answers, Answers):
            return found
        markers, position = len(answers) - len(self._markers), 0
        for read in self._reads:
            until = position + len(read.lookup.reads)
            for place in (*range(position, until), *([] if read.marker is None else [markers + read.marker])):
                others = answers.behind[place] if answers.behind else {}
                if others is not None:
                    fast = len(answers[place]) - sum(others.values())
                    counts = found.setdefault(read.name, {})
                    for tier, count in (("fast", fast), *others.items()):
                        if count:
                            counts[tier] = counts.get(tier, 0) + count
            position = until
        return found

    def _response(self, prepared: Prepared, features: list[Cells]) -> OnlineResponse:
        entities = prepared.entities
        given: list[Cells] = [(values, Status.PRESENT, None) for values in entities.values()]
        types = tuple(map(self._echoed.get, entities))
        return OnlineResponse((*entities, *self.names), (*types, *self.types), given + features, prepared.rows)

    def _count(self, entities: EntityColumns, request_data: Mapping[str, Any] | None) -> int:
        """The number of rows, the same in every column."""
        if not self._name_set.isdisjoint(entities):
            name = next(name for name in entities if name in self._name_set)
            raise InvalidInputError(f'"{name}" is an entity column and a feature', hint="Use full_feature_names")
        if len(entities) == 1 and not request_data:
            return len(next(iter(entities.values())))
        lengths = {name: len(values) for name, values in entities.items()}
        lengths |= {name: len(values) for name, values in (request_data or {}).items() if isinstance(values, list)}
        rows = next(iter(lengths.values()), 1 if request_data else 0)
        for name, length in lengths.items():
            if length != rows:
                first = next(iter(lengths))
                raise InvalidInputError(
                    f'column "{name}" has {length} values and column "{first}" {rows}',
                    hint="Every column needs one value an entity row",
                )
        return rows

    def _key_columns(self, group: Schema, entities: EntityColumns) -> list[Sequence[Any]]:
        columns = []
        for column in group:
            if column.name not in entities:
                views = sorted(read.name for read in self._reads if column.name in self._groups[read.group])
                raise InvalidInputError(
                    f'the entities lack the join key "{column.name}" of feature view "{views[0]}"',
                    hint=nearest(column.name, entities) or f"Send {', '.join(self._keys)}",
                )
            columns.append(read_column(column.name, column.type, entities[column.name]))
        return columns

    def _request_values(
        self, entities: EntityColumns, request_data: Mapping[str, Any] | None, rows: int
    ) -> dict[str, Sequence[Any]]:
        """Request values by name, from the request data, the entities, or their defaults."""
        out: dict[str, Sequence[Any]] = {}
        for name, (type_, default) in self._request.items():
            if request_data and name in request_data:
                given = request_data[name]
                values = given if isinstance(given, (list, tuple)) else [given] * rows
                out[name] = read_column(name, type_, values)
            elif name in entities:
                out[name] = read_column(name, type_, entities[name])
            elif default is not _ABSENT:
                out[name] = [default] * rows
            else:
                raise InvalidInputError(
                    f'the request value "{name}" ({type_}) is missing',
                    hint=nearest(name, [*(request_data or {}), *entities])
                    or "Send it in request_data, or among the entities",
                )
        return out

    def _view_read(self, catalog: Catalog, name: str, features: Sequence[str]) -> _ViewRead:
        bound = catalog.views[name]
        if not bound.view.online:
            raise InvalidInputError(
                f'feature view "{name}" is not kept online', hint="Set online: true and materialize it"
            )
        look = lookup(bound)
        picked = [
            Feature(look.names.index(feature), _type(bound, feature), bound.defaults.get(feature))
            for feature in features
        ]
        marker = None
        if is_snapshot(bound):
            marker = len(self._markers)
            self._markers.append((marker_table(bound), [marker_key(bound)]))
        if bound.keys not in self._groups:
            self._groups.append(bound.keys)
        refs = tuple(FeatureRef(name, feature) for feature in features)
        return _ViewRead(name, look, Columns(look, picked), refs, self._groups.index(bound.keys), marker)


class OnlineFeatures:
    """The plans of one catalog over one store. Plans are compiled when first asked for and kept."""

    def __init__(self, catalog: Catalog, store: OnlineStore, max_entities: int | None = None) -> None:
        self.catalog = catalog
        self.store = store
        self._max_entities = max_entities
        self._plans: dict[Any, OnlinePlan] = {}

    def plan(self, features: Features, full_feature_names: bool = False) -> OnlinePlan:
        """The compiled plan of a service or a list of references."""
        key = (tuple(features) if type(features) is list else features, full_feature_names)
        try:
            plan = self._plans.get(key)
        except TypeError:
            plan = None
        if plan is None:
            _check_features(features)
            plan = OnlinePlan(self.catalog, features, full_feature_names)
            if len(self._plans) >= MOST_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def get(
        self,
        features: Features,
        entity_rows: Sequence[Mapping[str, Any]] | EntityColumns,
        full_feature_names: bool = False,
        request_data: Mapping[str, Any] | None = None,
        now: int | None = None,
    ) -> OnlineResponse:
        """Features of entity rows (a list of rows, or a mapping of columns) as of `now`."""
        plan = self.plan(features, full_feature_names)
        entities = entity_columns(entity_rows)
        check_size(entities, self._max_entities)
        return plan.get(self.store, entities, request_data, now)


def check_size(entities: EntityColumns, most: int | None) -> None:
    """`TooLargeError` where there are more entity rows than a request may have."""
    if most is not None:
        for values in entities.values():
            if len(values) > most:
                raise TooLargeError(
                    f"the request has {len(values)} entity rows, and at most {most} are allowed",
                    hint="Send several requests, or raise limits: max_entities in feature_store.yaml",
                )


def entity_columns(rows: Any) -> EntityColumns:
    """Entity rows as columns: from a list of rows, a mapping of columns, an Arrow table or a DataFrame."""
    if isinstance(rows, Mapping):
        return {
            str(name): values if isinstance(values, (list, tuple)) else list(values) for name, values in rows.items()
        }
    if hasattr(rows, "to_pydict"):
        columns: EntityColumns = rows.to_pydict()
        return columns
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        return {str(name): rows[name].tolist() for name in rows.columns}
    if (
        not isinstance(rows, Sequence)
        or isinstance(rows, (str, bytes))
        or not all(isinstance(r, Mapping) for r in rows)
    ):
        raise InvalidInputError(
            f"entity rows are a list of rows or a mapping of columns, not {type(rows).__name__}",
            hint='Write for example [{"user_id": 1}]',
        )
    names = dict.fromkeys(rows[0]) if rows else {}
    for index, row in enumerate(rows):
        if row.keys() != names.keys():
            odd = next(iter(row.keys() ^ names.keys()))
            raise InvalidInputError(f'entity row {index} and row 0 do not both have "{odd}"')
    return {name: [row[name] for row in rows] for name in names}


_ABSENT: Any = object()


def _check_features(features: Features) -> None:
    """`InvalidInputError` where they are neither a service nor a list of references."""
    if isinstance(features, (str, FeatureService)):
        return
    if not isinstance(features, (list, tuple)):
        raise InvalidInputError(f"features are a service's name or a list of references, not {features!r}")
    for item in features:
        if not isinstance(item, (str, FeatureRef, Definition)):
            raise InvalidInputError(
                f"{item!r} is not a feature reference", hint='Write for example "user_stats:clicks"'
            )


def _type(bound: BoundView, feature: str) -> Type:
    found = bound.features.get(feature)
    assert found is not None
    return found


def _computation(bound: BoundOnDemand, places: dict[FeatureRef, int]) -> _Computation:
    """Compile an on-demand view, and give its features the next places."""
    outputs = tuple(
        (FeatureRef(bound.name, feature.name), evaluator(bound, feature), bound.defaults.get(feature.name))
        for feature in bound.features
    )
    needs = tuple(places[ref] for ref in bound.needs)
    places |= {ref: len(places) + offset for offset, (ref, _, _) in enumerate(outputs)}
    return _Computation(bound.request.names, needs, outputs)


def _request_columns(views: Sequence[BoundOnDemand]) -> dict[str, tuple[Type, Any]]:
    """The type of each request value and its default, `_ABSENT` where it has none."""
    columns: dict[str, tuple[Type, Any]] = {}
    for bound in views:
        for column in bound.request:
            known = columns.setdefault(column.name, (column.type, bound.request_defaults.get(column.name, _ABSENT)))
            if known[0] != column.type:
                raise InvalidInputError(
                    f'the request value "{column.name}" is {known[0]} for one view, {column.type} for "{bound.name}"',
                    hint="Ask for them in two requests",
                )
    return columns


def _distinct(columns: Sequence[Sequence[Any]]) -> tuple[list[Key], list[int] | None]:
    """The keys to read, each once and none with a null, and where each row's key is among them (-1: nowhere)."""
    keys: list[Key] = list(zip(*columns, strict=True))
    if len(keys) == 1:
        return (keys, None) if None not in keys[0] else ([], [-1])
    known = dict.fromkeys(keys)
    if len(known) == len(keys) and not any(None in column for column in columns):
        return keys, None
    read = [key for key in known if None not in key]
    position = {key: index for index, key in enumerate(read)}
    return read, [position.get(key, -1) for key in keys]


def _compute(computation: _Computation, cells: list[Cells], prepared: Prepared) -> None:
    """Add the columns of an on-demand view: NULL_VALUE where an expression is null, then the default."""
    inputs = [prepared.request_values[name] for name in computation.request]
    inputs += [cells[place][0] for place in computation.needs]
    columns = inputs or [[None] * prepared.rows]
    for ref, evaluate, default in computation.outputs:
        try:
            values = evaluate(columns)
        except InvalidInputError as error:
            raise failure(ref, evaluate, columns) or error from None
        if None in values:
            statuses = [Status.NULL_VALUE if value is None else Status.PRESENT for value in values]
            filled = values if default is None else [default if value is None else value for value in values]
            cells.append((filled, statuses, None))
        else:
            cells.append((values, Status.PRESENT, None))
