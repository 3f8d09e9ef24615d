"""Historical retrieval on Spark: entity rows of any length, which stay in the cluster.

The same steps as `historical`, over frames: each lookup puts a column behind the rows, and `assembly` answers batch by
batch in the executors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_store.definitions.catalog import BoundView, Catalog
from feature_store.definitions.tables import VALID_FROM
from feature_store.engines.local import LocalEngine
from feature_store.engines.spark import SparkEngine
from feature_store.engines.spark_entities import (
    GIVEN,
    ORDER,
    asking_frame,
    columns_of,
    entity_frame,
    located,
    with_columns,
)
from feature_store.engines.spark_joins import AT, VALID, Joins, Spine, collected
from feature_store.engines.spark_rows import ddl, quoted, spark_path
from feature_store.engines.spark_session import Batches, carried, mapped
from feature_store.errors import InvalidInputError
from feature_store.expressions.relations import ScheduledQuery
from feature_store.frames import conform_column, is_file
from feature_store.retrieval.assembly import TIME_COLUMN, Assembly, HistoricalQuery, Lookup, times_of
from feature_store.retrieval.job import HistoricalJob, Selection
from feature_store.retrieval.snapshots import Snapshots
from feature_store.storage.remote import is_uri
from feature_store.types import INT64, Column, Schema

if TYPE_CHECKING:
    from feature_store.storage.hbase_snapshots import HBaseSnapshots
    from feature_store.storage.offline import OfflineStore

_A_PART = "a part of the entity rows"
_MEMORY = "256MB"  # for expressions, in each executor's Python process


class SparkJob(HistoricalJob):
    """Computed by Spark's executors."""

    writes_folders = True

    def __init__(
        self,
        catalog: Catalog,
        query: HistoricalQuery,
        entities: Any,
        engine: SparkEngine,
        offline: OfflineStore,
        kept_of: Callable[[BoundView], Collection[int]],
    ) -> None:
        self._catalog = catalog
        self._query = query
        self._given = entities
        self._engine = engine
        self._offline = offline
        self._kept_of = kept_of
        self._assembly = Assembly.of(catalog, query)
        self._computed: dict[str, list[int]] = {}

    def to_spark_df(self) -> Any:
        return self._frame.drop(*ORDER)

    def to_arrow(self) -> pa.Table:
        return self._answer

    def to_file(self, path: str | Path) -> None:
        if is_file(path):
            super().to_file(path)
            return
        if not is_uri(str(path)) and Path(path).exists():
            raise InvalidInputError(f"there is already something at {path}", hint="Name a folder that does not exist")
        with mapped(f"the answer for {path}"):
            self.to_spark_df().write.parquet(located(self._engine.session, str(path)))

    @cached_property
    def metadata(self) -> dict[str, Any]:
        hidden = {each.view: self._hidden(each) for each in self._assembly.lookups} if self._query.as_known else {}
        with mapped("the entity rows"):
            rows = int(self._spine.given.count())
        computed = {view: list(found) for view, found in self._missing.items() if found}
        return {
            "as_known": self._query.as_known,
            "hidden": hidden,
            "computed_snapshots": computed,
            "features": [str(ref) for ref in self._query.features],
            "rows": rows,
        }

    @property
    def _keys(self) -> dict[Column, str]:
        """The columns of the spine that hold keys."""
        keys = dict.fromkeys(key for lookup in self._assembly.lookups for key in lookup.keys)
        return {key: f"__key{number}" for number, key in enumerate(keys)}

    def _keys_of(self, lookup: Lookup) -> list[str]:
        return [self._keys[key] for key in lookup.keys]

    @cached_property
    def _spine(self) -> Spine:
        given = self._given
        if isinstance(given, Selection):
            given = self._engine.selected(given.sql, given.sources)
        frame = entity_frame(self._engine.reader, given, self._assembly.texts)
        self._assembly.check([field.name for field in frame.schema[GIVEN].dataType])
        keys = {name: (key.name, key.type) for key, name in self._keys.items()}
        with mapped("the entity rows"):
            frame = asking_frame(frame, TIME_COLUMN, keys, _Preparing(self._keys))
            return Spine(frame, frame.select(AT, *keys))

    @cached_property
    def _joins(self) -> Joins:
        return Joins(self._engine.reader, self._engine.spread)

    @cached_property
    def _found(self) -> Spine:
        """The spine with a column for each lookup."""
        spine = self._spine
        for number, lookup in enumerate(self._assembly.lookups):
            bound = self._catalog.views[lookup.view]
            relation, names, keys = bound.relation, lookup.features.names, self._keys_of(lookup)
            with mapped(bound.name):
                if isinstance(relation, ScheduledQuery):
                    boundaries = self._joins.boundaries(spine, relation)
                    rows = self._rows_of(lookup, bound, boundaries)
                    spine = self._joins.look_up_snapshots(
                        spine, keys, relation, boundaries, rows, names, _column(number)
                    )
                else:
                    known = self._query.as_known
                    spine = self._joins.look_up(spine, keys, relation, names, known, _column(number))
        return spine

    def _rows_of(self, lookup: Lookup, bound: BoundView, boundaries: list[int]) -> Any:
        """The rows of snapshots, those that were kept and those computed, with `VALID` behind."""
        query = bound.relation
        assert isinstance(query, ScheduledQuery)
        known = self._query.as_known
        snapshots = Snapshots(bound, self._engine, self._offline, self._kept_of(bound), as_known=known)
        missing = snapshots.missing(boundaries)
        self._computed[bound.name] = missing
        wanted = Schema((*lookup.keys, *lookup.features))
        columns = [*map(quoted, wanted.names)]
        frames = [self._engine.session.createDataFrame([], ddl(Schema((*wanted, Column(VALID, INT64))).arrow))]
        kept = [at for at in boundaries if at not in missing]
        if kept and snapshots.elsewhere:
            for at in kept:
                frames.append(self._shared(snapshots.elsewhere, at).selectExpr(*columns, f"{at}L AS {VALID}"))
        elif kept:
            session = self._engine.session
            stored = session.read.format("delta").load(spark_path(session, self._offline.path(snapshots.path)))
            among = ", ".join(f"'{at}'" for at in kept)
            stored = stored.where(f"CAST({VALID_FROM} AS STRING) IN ({among})")
            frames.append(stored.selectExpr(*columns, f"CAST({VALID_FROM} AS BIGINT) AS {VALID}"))
        for at in missing:
            found = self._engine.snapshot(query, at, as_known=known).frame()
            frames.append(found.selectExpr(*columns, f"{at}L AS {VALID}"))
        return reduce(lambda one, other: one.unionAll(other), frames)

    def _shared(self, snapshots: HBaseSnapshots, at: int) -> Any:
        """A snapshot as a frame: the executors read it, each its share, and all the same run of it."""
        run = snapshots.run(at)

        def read(batches: Batches) -> Batches:
            for batch in batches:
                yield from snapshots.batches(at, batch.column(0).to_pylist(), run)

        session = self._engine.session
        shares = session.range(0, snapshots.shares, 1, session.sparkContext.defaultParallelism)
        return shares.mapInArrow(carried(read), ddl(snapshots.schema))

    @cached_property
    def _frame(self) -> Any:
        """`ORDER`, the entity rows' columns, and the features."""
        from pyspark.sql.types import StructType

        assembly, frame = self._assembly, self._found.frame
        if assembly.is_plain:
            return frame.selectExpr(*ORDER, f"{GIVEN}.*", *self._plain())
        found = {lookup.view: _column(number) for number, lookup in enumerate(assembly.lookups)}
        given = StructType([*(frame.schema[name] for name in ORDER), *frame.schema[GIVEN].dataType])
        stage = _Answering(assembly, found)
        narrow = frame.select(*ORDER, GIVEN, AT, *found.values())
        return narrow.mapInArrow(carried(stage), with_columns(given, assembly.schema))

    def _plain(self) -> list[str]:
        """What was found, as it is, under its names."""
        assembly = self._assembly
        of_view = {lookup.view: _column(number) for number, lookup in enumerate(assembly.lookups)}
        return [
            f"CAST({of_view[ref.view]}.{quoted(ref.feature)} AS {assembly.types[ref].spark}) AS {quoted(name)}"
            for name, ref in zip(assembly.names, assembly.features, strict=True)
        ]

    @cached_property
    def _answer(self) -> pa.Table:
        with mapped("the features"):
            table = collected(self._frame)
        return table.sort_by([(name, "ascending") for name in ORDER]).drop_columns(list(ORDER))

    def _hidden(self, lookup: Lookup) -> int:
        relation = self._catalog.views[lookup.view].relation
        if not isinstance(relation, ScheduledQuery):
            return self._joins.hidden(self._spine, self._keys_of(lookup), relation, lookup.features.names)
        missing = self._missing[lookup.view]
        return sum(self._engine.snapshot(relation, at, as_known=True).hidden() for at in missing)

    @property
    def _missing(self) -> Mapping[str, list[int]]:
        """By view, the boundaries of snapshots that were not kept."""
        _ = self._found  # by then they are known
        return self._computed


def _column(number: int) -> str:
    return f"__found{number}"


@dataclass(frozen=True)
class _Preparing:
    """What an executor does with entity rows whose columns need a check: T, and the keys in their types."""

    keys: Mapping[Column, str]

    def __call__(self, entities: pa.Table) -> pa.Table:
        columns = {name: conform_column(entities[key.name], key, _A_PART) for key, name in self.keys.items()}
        return pa.table({AT: times_of(entities, _A_PART), **columns})


@dataclass(frozen=True)
class _Answering:
    """What an executor does with entity rows and what was found for them; `found`: the column of each view."""

    assembly: Assembly
    found: Mapping[str, str]

    def __call__(self, batches: Batches) -> Batches:
        with closing(LocalEngine(memory_limit=_MEMORY, threads=1)) as engine:
            for batch in batches:
                if batch.num_rows:
                    yield self._answered(batch, engine)

    def _answered(self, batch: pa.RecordBatch, engine: LocalEngine) -> pa.RecordBatch:
        at = batch.column(batch.schema.get_field_index(AT))
        found = {view: columns_of(batch, column) for view, column in self.found.items()}
        answer = self.assembly.answer(columns_of(batch, GIVEN), at, found, engine.compute, _A_PART).combine_chunks()
        fields = [*(batch.schema.field(name) for name in ORDER), *answer.schema]
        columns = [*(batch.column(batch.schema.get_field_index(name)) for name in ORDER)]
        columns += [column.chunk(0) for column in answer.columns]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
