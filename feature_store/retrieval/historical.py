"""Historical retrieval: for each row of an entity table, the values that could be seen at its time.

1. the entity table, `event_timestamp` as an instant, join keys in their types
2. per view: the row found (`Engine.as_of`, or the stored snapshots of a scheduled query)
3. what `assembly` makes of it: statuses, defaults, on-demand features
4. every input row in its order, with all its columns, and the features behind them
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_store.definitions.catalog import BoundView, Catalog
from feature_store.engines.engine import Engine
from feature_store.expressions.relations import ScheduledQuery
from feature_store.frames import read_table
from feature_store.retrieval.assembly import Assembly, HistoricalQuery, Lookup, times_of
from feature_store.retrieval.job import HistoricalJob, Selection
from feature_store.retrieval.snapshots import Snapshots

if TYPE_CHECKING:
    from feature_store.storage.offline import OfflineStore

EngineOf = Callable[[BoundView | None], Engine]
"""The engine that computes a view; for None the one that computes over columns already read."""

KeptOf = Callable[[BoundView], Collection[int]]
"""The boundaries of the snapshots that materialization kept of a view."""


def retrieve(
    catalog: Catalog,
    query: HistoricalQuery,
    entities: Any,
    engine_of: EngineOf,
    offline: OfflineStore,
    kept_of: KeptOf = lambda bound: (),
) -> HistoricalJob:
    """The job that answers a query; names are checked now, values are computed when asked for. The engine of no view
    decides where: on Spark, or in this process."""
    engine = engine_of(None)
    if engine.distributed:
        # Everything that Spark needs, which few processes do.
        from feature_store.engines.spark import SparkEngine
        from feature_store.retrieval.spark import SparkJob

        assert isinstance(engine, SparkEngine)
        return SparkJob(catalog, query, entities, engine, offline, kept_of)
    if isinstance(entities, Selection):
        entities = engine.select(entities.sql, entities.sources)
    return _EmbeddedJob(catalog, query, entities, engine_of, offline, kept_of)


class _EmbeddedJob(HistoricalJob):
    """Computed in this process, in Arrow."""

    def __init__(
        self,
        catalog: Catalog,
        query: HistoricalQuery,
        entities: Any,
        engine_of: EngineOf,
        offline: OfflineStore,
        kept_of: KeptOf,
    ) -> None:
        self._catalog = catalog
        self._query = query
        self._given = entities
        self._engine_of = engine_of
        self._offline = offline
        self._kept_of = kept_of
        self._assembly = Assembly.of(catalog, query)
        self._metadata: dict[str, Any] = {"as_known": query.as_known, "hidden": {}, "computed_snapshots": {}}

    def to_arrow(self) -> pa.Table:
        return self._answer

    @property
    def metadata(self) -> dict[str, Any]:
        self._metadata |= {"features": [str(ref) for ref in self._query.features], "rows": self._answer.num_rows}
        return self._metadata

    @cached_property
    def _answer(self) -> pa.Table:
        entities = read_table(self._given, self._assembly.texts)
        self._assembly.check(entities.column_names)
        at = times_of(entities)
        found = {lookup.view: self._found(lookup, entities, at) for lookup in self._assembly.lookups}
        return self._assembly.answer(entities, at, found, lambda *given: self._engine_of(None).compute(*given))

    def _found(self, lookup: Lookup, entities: pa.Table, at: pa.Array) -> pa.Table:
        bound = self._catalog.views[lookup.view]
        relation, engine, as_known = bound.relation, self._engine_of(bound), self._query.as_known
        spine, names = lookup.spine(entities, at), lookup.features.names
        if isinstance(relation, ScheduledQuery):
            snapshots = Snapshots(bound, engine, self._offline, self._kept_of(bound), as_known=as_known)
            found = snapshots.as_of(spine, names)
            hidden = snapshots.hidden
            if snapshots.computed:
                self._metadata["computed_snapshots"][bound.name] = list(snapshots.computed)
        else:
            found = engine.as_of(relation, spine, names, as_known)
            hidden = int((found.schema.metadata or {}).get(b"hidden", 0))
        if as_known:
            self._metadata["hidden"][bound.name] = hidden
        return found
