"""Historical retrieval: for each row of an entity table, the values that could be seen at its time.

1. the entity table in Arrow, `event_timestamp` as an instant, join keys in their types
2. per view: the row found (`Engine.as_of`, or the stored snapshots of a scheduled query)
3. statuses, then defaults
4. on-demand features, over the features (defaults filled in) and the request columns
5. every input row in its order, with all its columns, and the features behind them
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.definitions.catalog import BoundOnDemand, BoundView, Catalog, FeatureRef, output_names
from feature_store.engines.engine import Engine
from feature_store.errors import InvalidInputError, nearest
from feature_store.expressions.relations import LatestRow, ScheduledQuery, Windows
from feature_store.expressions.visibility import MISSING, Status, statuses
from feature_store.frames import conform_column, read_table, require, to_instants, write_file
from feature_store.retrieval.computations import evaluator, failure
from feature_store.retrieval.snapshots import Snapshots
from feature_store.storage.online import EVENT_TIME
from feature_store.storage.rows import raw_type
from feature_store.types import DATE, TIMESTAMP, Column, Type

if TYPE_CHECKING:
    from feature_store.storage.offline import OfflineStore

EngineOf = Callable[[BoundView | None], Engine]
"""The engine that computes a view; for None the one that computes over columns already read."""

KeptOf = Callable[[BoundView], Collection[int]]
"""The boundaries of the snapshots that materialization kept of a view."""

TIME_COLUMN = "event_timestamp"
STATUS_SUFFIX = "__status"


@dataclass(frozen=True)
class HistoricalQuery:
    """What is asked: features as of the time of each entity row."""

    features: tuple[FeatureRef, ...]
    full_feature_names: bool = False
    as_known: bool = False
    statuses: bool = False


class HistoricalJob:
    """A historical retrieval, computed when its answer is first asked for."""

    def __init__(self, compute: Callable[[], tuple[pa.Table, dict[str, Any]]]) -> None:
        self._compute = compute

    @cached_property
    def _result(self) -> tuple[pa.Table, dict[str, Any]]:
        return self._compute()

    def to_arrow(self) -> pa.Table:
        """The entity rows, all of them in their order, followed by a column a feature."""
        return self._result[0]

    def to_df(self) -> Any:
        """The same as a pandas DataFrame."""
        require("pandas", "to_df()")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> Any:
        """The same as a polars DataFrame."""
        return require("polars", "to_polars()").from_arrow(self.to_arrow())

    def to_file(self, path: str | Path) -> None:
        """Write Parquet or CSV, by the file's ending; a Parquet file carries the metadata."""
        metadata = {b"feature_store": json.dumps(self.metadata).encode()}
        write_file(self.to_arrow().replace_schema_metadata(metadata), Path(path))

    @property
    def metadata(self) -> dict[str, Any]:
        """`features`, `rows`, `as_known`; `hidden`: rows of each view that as_known left out (of a scheduled query,
        out of each snapshot that was computed: stored ones stay as served); `computed_snapshots`: per view the
        boundaries that were not stored and were computed for this answer."""
        return self._result[1]


def retrieve(
    catalog: Catalog,
    query: HistoricalQuery,
    entities: Any,
    engine_of: EngineOf,
    offline: OfflineStore,
    kept_of: KeptOf = lambda bound: (),
) -> HistoricalJob:
    """The job that answers a query; names are checked now, values are computed when asked for."""
    return HistoricalJob(lambda: _Retrieval(catalog, query, engine_of, offline, kept_of).run(read_table(entities)))


class _Retrieval:
    def __init__(
        self, catalog: Catalog, query: HistoricalQuery, engine_of: EngineOf, offline: OfflineStore, kept_of: KeptOf
    ) -> None:
        self._catalog = catalog
        self._query = query
        self._engine_of = engine_of
        self._offline = offline
        self._kept_of = kept_of
        self._values: dict[FeatureRef, pa.ChunkedArray] = {}
        self._statuses: dict[FeatureRef, np.ndarray[Any, Any]] = {}
        self._metadata: dict[str, Any] = {"as_known": query.as_known, "hidden": {}, "computed_snapshots": {}}

    def run(self, entities: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        at = _times(entities)
        views, on_demand = self._catalog.needed(self._query.features)
        for view, names in views.items():
            self._look_up(self._catalog.views[view], names, entities, at)
        for bound in on_demand:
            self._compute(bound, entities)
        self._metadata |= {"features": [str(ref) for ref in self._query.features], "rows": entities.num_rows}
        return self._assemble(entities), self._metadata

    def _look_up(self, bound: BoundView, names: list[str], entities: pa.Table, at: pa.Array) -> None:
        spine = _spine(bound, entities, at)
        relation = bound.relation
        engine = self._engine_of(bound)
        if isinstance(relation, ScheduledQuery):
            kept = self._kept_of(bound)
            snapshots = Snapshots(bound, engine, self._offline, kept, as_known=self._query.as_known)
            found = snapshots.as_of(spine, names)
            hidden = snapshots.hidden
            if snapshots.computed:
                self._metadata["computed_snapshots"][bound.name] = list(snapshots.computed)
        else:
            found = engine.as_of(relation, spine, names, self._query.as_known)
            hidden = int((found.schema.metadata or {}).get(b"hidden", 0))
        if self._query.as_known:
            self._metadata["hidden"][bound.name] = hidden
        self._keep(bound, names, found, at)

    def _keep(self, bound: BoundView, names: list[str], found: pa.Table, at: pa.Array) -> None:
        """Statuses and defaults of the features of one view."""
        relation = bound.relation
        times = at.to_numpy(zero_copy_only=False)
        seen = pc.fill_null(found[EVENT_TIME], MISSING).to_numpy() if not isinstance(relation, Windows) else times
        ttl = relation.ttl if isinstance(relation, LatestRow) else None
        of_rows = statuses(seen, times, ttl, np.zeros(len(times), np.bool_))
        visible = pa.array(of_rows == Status.PRESENT)
        # A row that is not there has no values to hide: only one that is too old has.
        hides = bool(((of_rows != Status.PRESENT) & (seen != MISSING)).any())
        for name in names:
            ref, values = FeatureRef(bound.name, name), found[name]
            if self._query.statuses:
                self._statuses[ref] = statuses(seen, times, ttl, pc.is_null(values).to_numpy())
            if hides:
                values = pc.if_else(visible, values, pa.scalar(None, values.type))
            if (default := bound.defaults.get(name)) is not None:
                values = pc.if_else(pc.is_valid(values), values, _scalar(default, bound.features.get(name)))
            self._values[ref] = values

    def _compute(self, bound: BoundOnDemand, entities: pa.Table) -> None:
        """The features of an on-demand view, after those it needs."""
        columns = {column.name: _request(bound, column, entities) for column in bound.request}
        columns |= {ref.feature: self._values[ref] for ref in bound.needs}
        outputs = {f"__out_{feature.name}": feature.scalar for feature in bound.features}
        given = pa.table(columns or {"__rows": pa.nulls(entities.num_rows)})
        try:
            computed = self._engine_of(None).compute(given, outputs)
        except InvalidInputError as error:
            raise self._failure(bound, columns) or error from None
        for feature in bound.features:
            ref, values = FeatureRef(bound.name, feature.name), computed[f"__out_{feature.name}"]
            missing = pc.is_null(values)
            self._statuses[ref] = np.where(missing.to_numpy(), Status.NULL_VALUE, Status.PRESENT).astype(np.int8)
            default = bound.defaults.get(feature.name)
            self._values[ref] = (
                values if default is None else pc.if_else(missing, _scalar(default, feature.type), values)
            )

    def _failure(self, bound: BoundOnDemand, columns: Mapping[str, pa.ChunkedArray]) -> InvalidInputError | None:
        """Why an engine could not compute a view: the rows are gone through again in Python, which says where."""
        types = [column.type for column in bound.request] + [self._catalog.feature_type(ref) for ref in bound.needs]
        raw = [
            values.cast(type_.arrow).cast(raw_type(type_)).to_pylist()
            for values, type_ in zip(columns.values(), types, strict=True)
        ]
        found = (failure(FeatureRef(bound.name, f.name), evaluator(bound, f), raw) for f in bound.features)
        return next(filter(None, found), None)

    def _assemble(self, entities: pa.Table) -> pa.Table:
        table = entities
        names = output_names(self._query.features, self._query.full_feature_names)
        _refuse_clashes(names, entities)
        for name, ref in zip(names, self._query.features, strict=True):
            column = self._values[ref].cast(self._catalog.feature_type(ref).arrow)
            table = table.append_column(name, column)
            if self._query.statuses:
                labels = pa.array([status.name for status in Status])
                indices = pa.array(self._statuses[ref].astype(np.int8))
                table = table.append_column(
                    name + STATUS_SUFFIX, pa.DictionaryArray.from_arrays(indices, labels).cast(pa.string())
                )
        return table


def _times(entities: pa.Table) -> pa.Array:
    """The time of each entity row, int64 microseconds."""
    if TIME_COLUMN not in entities.column_names:
        hint = nearest(TIME_COLUMN, entities.column_names) or "Each row asks as of its own time"
        raise InvalidInputError(f'the entity rows have no column "{TIME_COLUMN}"', hint=hint)
    column = entities[TIME_COLUMN]
    try:
        instants = to_instants(column) if not pa.types.is_null(column.type) else column.cast(pa.timestamp("us", "UTC"))
    except (InvalidInputError, pa.ArrowInvalid) as error:
        raise InvalidInputError(f'the entity rows\' column "{TIME_COLUMN}" does not hold times: {error}') from None
    if instants.null_count:
        row = pc.index(pc.is_null(instants), True).as_py()
        raise InvalidInputError(f"row {row} of the entity rows has no {TIME_COLUMN}")
    return instants.cast(pa.int64()).combine_chunks()


def _spine(bound: BoundView, entities: pa.Table, at: pa.Array) -> pa.Table:
    columns: dict[str, Any] = {}
    for key in bound.keys:
        if key.name not in entities.column_names:
            hint = nearest(key.name, entities.column_names) or f'feature view "{bound.name}" is keyed by it'
            raise InvalidInputError(f'the entity rows have no column "{key.name}"', hint=hint)
        columns[key.name] = conform_column(entities[key.name], key, "the entity rows")
    return pa.table({**columns, EVENT_TIME: at})


def _request(bound: BoundOnDemand, column: Column, entities: pa.Table) -> Any:
    if column.name in entities.column_names:
        return conform_column(entities[column.name], column, "the entity rows")
    if column.name in bound.request_defaults:
        return pa.repeat(_scalar(bound.request_defaults[column.name], column.type), entities.num_rows)
    hint = nearest(column.name, entities.column_names) or f'on-demand view "{bound.name}" computes with it'
    raise InvalidInputError(f'the entity rows have no column "{column.name}"', hint=hint)


def _refuse_clashes(names: Sequence[str], entities: pa.Table) -> None:
    for name in names:
        if name in entities.column_names:
            raise InvalidInputError(
                f'the entity rows already have a column "{name}"', hint="Rename it, or use full_feature_names"
            )


def _scalar(value: Any, type_: Type | None) -> pa.Scalar:
    """A raw row value as an Arrow scalar."""
    assert type_ is not None
    if value is not None and type_ in (TIMESTAMP, DATE):
        return pa.scalar(value, pa.int64() if type_ == TIMESTAMP else pa.int32()).cast(type_.arrow)
    return pa.scalar(value, type_.arrow)
