"""From entity rows, and what each view had for them, to the answer: statuses, defaults, on-demand features, names.

It is said once, of a table in Arrow: the embedded engine gives all rows at once, a cluster's workers a batch each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_store.definitions.catalog import BoundOnDemand, BoundView, Catalog, FeatureRef, output_names
from feature_store.errors import InvalidInputError, nearest
from feature_store.expressions.relations import LatestRow, Windows
from feature_store.expressions.scalars import Scalar
from feature_store.expressions.visibility import MISSING, Status, statuses
from feature_store.frames import conform_column, to_instants
from feature_store.retrieval.computations import evaluator, failure
from feature_store.storage.online import EVENT_TIME
from feature_store.storage.rows import raw_type
from feature_store.types import DATE, STRING, TIMESTAMP, Column, Schema, Type

TIME_COLUMN = "event_timestamp"
STATUS_SUFFIX = "__status"

Compute = Callable[[pa.Table, Mapping[str, Scalar]], pa.Table]
"""A table with computed columns appended, as `Engine.compute`."""


@dataclass(frozen=True)
class HistoricalQuery:
    """What is asked: features as of the time of each entity row."""

    features: tuple[FeatureRef, ...]
    full_feature_names: bool = False
    as_known: bool = False
    statuses: bool = False


@dataclass(frozen=True)
class Lookup:
    """What is asked of one view, and how what was found is seen. `is_row`: a row may be missing, or older than `ttl`
    (microseconds); windows always have a value."""

    view: str
    keys: Schema
    features: Schema
    defaults: Mapping[str, Any]
    ttl: int | None
    is_row: bool

    @classmethod
    def of(cls, bound: BoundView, names: Collection[str]) -> Lookup:
        relation = bound.relation
        return cls(
            bound.name,
            bound.keys,
            Schema(tuple(column for column in bound.features if column.name in names)),
            {name: value for name, value in bound.defaults.items() if name in names},
            relation.ttl if isinstance(relation, LatestRow) else None,
            not isinstance(relation, Windows),
        )

    def spine(self, entities: pa.Table, at: pa.Array, what: str = "the entity rows") -> pa.Table:
        """The view's keys in their types, and EVENT_TIME as T."""
        columns: dict[str, Any] = {key.name: conform_column(entities[key.name], key, what) for key in self.keys}
        return pa.table({**columns, EVENT_TIME: at})


@dataclass(frozen=True)
class Assembly:
    """What makes an answer of entity rows and of what was found for them. Nothing in it but data: it goes to the
    workers of a cluster as it is. `types` are those of every feature that is read or asked for."""

    features: tuple[FeatureRef, ...]
    names: tuple[str, ...]
    types: Mapping[FeatureRef, Type]
    lookups: tuple[Lookup, ...]
    on_demand: tuple[BoundOnDemand, ...]
    statuses: bool

    @classmethod
    def of(cls, catalog: Catalog, query: HistoricalQuery) -> Assembly:
        """`InvalidInputError` where two features would have the same name in the answer."""
        views, on_demand = catalog.needed(query.features)
        read = {*query.features, *(ref for bound in on_demand for ref in bound.needs)}
        return cls(
            query.features,
            output_names(query.features, query.full_feature_names),
            {ref: catalog.feature_type(ref) for ref in sorted(read)},
            tuple(Lookup.of(catalog.views[view], names) for view, names in views.items()),
            tuple(on_demand),
            query.statuses,
        )

    @property
    def schema(self) -> Schema:
        """The columns behind those of the entity rows."""
        columns = []
        for name, ref in zip(self.names, self.features, strict=True):
            columns.append(Column(name, self.types[ref]))
            columns += [Column(name + STATUS_SUFFIX, STRING)] if self.statuses else []
        return Schema(tuple(columns))

    @property
    def texts(self) -> frozenset[str]:
        """The columns of the entity rows that are asked for as text."""
        needed = [*(lookup.keys for lookup in self.lookups), *(bound.request for bound in self.on_demand)]
        return frozenset[str]().union(*(schema.texts for schema in needed))

    @property
    def is_plain(self) -> bool:
        """Whether what was found is the answer as it is."""
        rows = not self.on_demand and not self.statuses
        return rows and all(each.ttl is None and not each.defaults for each in self.lookups)

    def check(self, names: Collection[str]) -> None:
        """`InvalidInputError` unless entity rows with these columns can be answered."""
        if TIME_COLUMN not in names:
            raise _no_column(TIME_COLUMN, names, "Each row asks as of its own time")
        for lookup in self.lookups:
            for key in lookup.keys.names:
                if key not in names:
                    raise _no_column(key, names, f'feature view "{lookup.view}" is keyed by it')
        for bound in self.on_demand:
            for name in bound.request.names:
                if name not in names and name not in bound.request_defaults:
                    raise _no_column(name, names, f'on-demand view "{bound.name}" computes with it')
        for column in self.schema:
            if column.name in names:
                raise InvalidInputError(
                    f'the entity rows already have a column "{column.name}"',
                    hint="Rename it, or use full_feature_names",
                )

    def answer(
        self,
        entities: pa.Table,
        at: pa.Array,
        found: Mapping[str, pa.Table],
        compute: Compute,
        what: str = "the entity rows",
    ) -> pa.Table:
        """The entity rows with their features behind them: `found` are, by view, the values and EVENT_TIME (of the row
        found, null: none) of each entity row, as `Engine.as_of` gives them; `at` is T in microseconds."""
        cells = _Cells(self, entities, what)
        times = at.to_numpy(zero_copy_only=False)
        for lookup in self.lookups:
            cells.see(lookup, found[lookup.view], times)
        for bound in self.on_demand:
            cells.compute(bound, compute)
        return cells.assembled()


@dataclass
class _Cells:
    """Values and statuses, as they come to be known."""

    plan: Assembly
    entities: pa.Table
    what: str
    values: dict[FeatureRef, pa.ChunkedArray] = field(default_factory=dict)
    statuses: dict[FeatureRef, NDArray[np.int8]] = field(default_factory=dict)

    def see(self, lookup: Lookup, found: pa.Table, times: NDArray[np.int64]) -> None:
        """Statuses and defaults of the features of one view."""
        seen = pc.fill_null(found[EVENT_TIME], MISSING).to_numpy() if lookup.is_row else times
        of_rows = statuses(seen, times, lookup.ttl, np.zeros(len(times), np.bool_))
        visible = pa.array(of_rows == Status.PRESENT)
        # A row that is not there has no values to hide: only one that is too old has.
        hides = bool(((of_rows != Status.PRESENT) & (seen != MISSING)).any())
        for name in lookup.features.names:
            ref, values = FeatureRef(lookup.view, name), found[name]
            if self.plan.statuses:
                self.statuses[ref] = statuses(seen, times, lookup.ttl, pc.is_null(values).to_numpy())
            if hides:
                values = pc.if_else(visible, values, pa.scalar(None, values.type))
            if (default := lookup.defaults.get(name)) is not None:
                values = pc.if_else(pc.is_valid(values), values, _scalar(default, lookup.features.get(name)))
            self.values[ref] = values

    def compute(self, bound: BoundOnDemand, compute: Compute) -> None:
        """The features of an on-demand view, after those it needs."""
        columns = {column.name: self._request(bound, column) for column in bound.request}
        columns |= {ref.feature: self.values[ref] for ref in bound.needs}
        outputs = {f"__out_{feature.name}": feature.scalar for feature in bound.features}
        given = pa.table(columns or {"__rows": pa.nulls(self.entities.num_rows)})
        try:
            computed = compute(given, outputs)
        except InvalidInputError as error:
            raise self._failure(bound, columns) or error from None
        for feature in bound.features:
            ref, values = FeatureRef(bound.name, feature.name), computed[f"__out_{feature.name}"]
            missing = pc.is_null(values)
            self.statuses[ref] = np.where(missing.to_numpy(), Status.NULL_VALUE, Status.PRESENT).astype(np.int8)
            default = bound.defaults.get(feature.name)
            self.values[ref] = (
                values if default is None else pc.if_else(missing, _scalar(default, feature.type), values)
            )

    def _request(self, bound: BoundOnDemand, column: Column) -> Any:
        if column.name in self.entities.column_names:
            return conform_column(self.entities[column.name], column, self.what)
        return pa.repeat(_scalar(bound.request_defaults[column.name], column.type), self.entities.num_rows)

    def _failure(self, bound: BoundOnDemand, columns: Mapping[str, pa.ChunkedArray]) -> InvalidInputError | None:
        """Why an engine could not compute a view: the rows are gone through again in Python, which says where."""
        types = [column.type for column in bound.request] + [self.plan.types[ref] for ref in bound.needs]
        raw = [
            values.cast(type_.arrow).cast(raw_type(type_)).to_pylist()
            for values, type_ in zip(columns.values(), types, strict=True)
        ]
        found = (failure(FeatureRef(bound.name, f.name), evaluator(bound, f), raw) for f in bound.features)
        return next(filter(None, found), None)

    def assembled(self) -> pa.Table:
        table = self.entities
        for name, ref in zip(self.plan.names, self.plan.features, strict=True):
            table = table.append_column(name, self.values[ref].cast(self.plan.types[ref].arrow))
            if self.plan.statuses:
                labels = pa.array([status.name for status in Status])
                indices = pa.array(self.statuses[ref].astype(np.int8))
                table = table.append_column(
                    name + STATUS_SUFFIX, pa.DictionaryArray.from_arrays(indices, labels).cast(pa.string())
                )
        return table


def times_of(entities: pa.Table, what: str = "the entity rows") -> pa.Array:
    """The time of each entity row, int64 microseconds; `InvalidInputError` where one has none."""
    column = entities[TIME_COLUMN]
    try:
        instants = to_instants(column) if not pa.types.is_null(column.type) else column.cast(pa.timestamp("us", "UTC"))
    except (InvalidInputError, pa.ArrowInvalid) as error:
        raise InvalidInputError(f'the entity rows\' column "{TIME_COLUMN}" does not hold times: {error}') from None
    if instants.null_count:
        row = pc.index(pc.is_null(instants), True).as_py()
        raise InvalidInputError(f"row {row} of {what} has no {TIME_COLUMN}")
    return instants.cast(pa.int64()).combine_chunks()


def _no_column(name: str, names: Collection[str], why: str) -> InvalidInputError:
    return InvalidInputError(
        f'the entity rows have no column "{name}"', hint=nearest(name, [str(each) for each in names]) or why
    )


def _scalar(value: Any, type_: Type | None) -> pa.Scalar:
    """A raw row value as an Arrow scalar."""
    assert type_ is not None
    if value is not None and type_ in (TIMESTAMP, DATE):
        return pa.scalar(value, pa.int64() if type_ == TIMESTAMP else pa.int32()).cast(type_.arrow)
    return pa.scalar(value, type_.arrow)
