"""The Spark engine: the port `Engine` on a Spark master.

spark_session  Spark for this process
spark_rows     sources as frames, with the types they had at `apply`
spark_joins    what was found at T
spark_snapshots  keys of very many events, out of tiles

Spark brings rows together, by key or by key and tile, in order of time; the aggregates are those of `engines.windows`,
which run in the executors over Arrow batches. What is computed goes from the executors to a sink or a Delta table: no
rows pass through this process unless they are read here, and but for the tiles of heavy keys of a snapshot.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from threading import Lock
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from feature_store.engines import windows as events
from feature_store.engines.engine import Sink
from feature_store.engines.facts import EVENTS_AT_ONCE, conform, snapshot_rows, snapshot_schema
from feature_store.engines.files import find_files
from feature_store.engines.scans import KNOWN, TIME
from feature_store.engines.spark_joins import Spread, as_of
from feature_store.engines.spark_rows import (
    Reader,
    arrow_of,
    ddl,
    packed,
    quoted,
    remove,
    schema_of_files,
    spark_path,
    text,
)
from feature_store.engines.spark_session import Batches, acquire, carried, failing, mapped, release, writing
from feature_store.engines.spark_snapshots import among, heavy_keys, merged_tiles
from feature_store.engines.windows import Columns
from feature_store.errors import ExpressionError, FeatureStoreError, InvalidInputError, SourceError
from feature_store.expressions.queries import bind_query, render
from feature_store.expressions.relations import LatestRow, Rows, ScheduledQuery, Windows, reach
from feature_store.expressions.scalars import Ref, Scalar, cast, to_sql
from feature_store.expressions.schedules import date_valid_at
from feature_store.storage.online import CREATED, EVENT_TIME
from feature_store.types import STRING, Schema, Type

if TYPE_CHECKING:
    from feature_store.storage.offline import OfflineStore

Stage = Callable[[Batches], Batches]
"""What executors do with the rows of a partition, in Arrow."""

Made = tuple[Any, Stage | None]
"""A frame, and the stage that each of its partitions goes through."""

_TILE, _ROW = "__tile", "__row"


class SparkRows:
    """The port `Computed` on a frame that is made when it is needed; `schema` is what comes out of its stage. `name` is
    of the source, and `error` the kind, for messages. `hidden` computes what the reader's metadata says of `as_known`.
    """

    def __init__(
        self, name: str, made: Callable[[], Made], schema: pa.Schema,
        hidden: Callable[[], int] | None = None, error: type[FeatureStoreError] = SourceError,
    ) -> None:  # fmt: skip
        self.name, self.schema = name, schema
        self._made, self._hidden, self._error = made, hidden, error

    def frame(self) -> Any:
        """The rows as a frame of Spark's."""
        with self._mapped():
            frame, stage = self._made()
            return frame if stage is None else frame.mapInArrow(carried(_Shaped(stage, self.schema)), ddl(self.schema))

    def read(self) -> pa.RecordBatchReader:
        running = self._batches(self._ran(_packed, "part BINARY"))
        first = next(running, None)
        described = self.schema
        if self._hidden is not None:
            with self._mapped():
                described = self.schema.with_metadata({"hidden": str(self._hidden())})
        return pa.RecordBatchReader.from_batches(described, itertools.chain([] if first is None else [first], running))

    def write(self, sink: Sink) -> int:
        if not sink.anywhere:
            return sink(self.read())

        def into(batches: Batches) -> Batches:
            yield pa.RecordBatch.from_arrays([pa.array([sink(batches)], pa.int64())], ["written"])

        with self._mapped():
            return int(self._ran(into, "written BIGINT").selectExpr("coalesce(sum(written), 0)").collect()[0][0])

    def save(self, store: OfflineStore, table: str, where: Mapping[str, str]) -> SparkRows:
        """Executors write files, which one commit of the offline store's makes part of the table: that is atomic in S3,
        too, where a commit of Spark's is not."""
        store.exists(table)  # what is wrong with the place is said before anything is computed
        frame, path, folder = self.frame(), store.path(table), f"spark-{uuid4().hex}"
        session = frame.sparkSession
        with self._mapped():
            written = spark_path(session, f"{path}/{folder}")
        try:
            with self._mapped(), writing(path):
                # Whatever the user's defaults are, the files have the columns' own names.
                frame.write.format("delta").option("delta.columnMapping.mode", "none").save(written)
            store.adopt(table, folder, self.schema, where)
        except BaseException:
            remove(session, written)
            raise
        remove(session, f"{written}/_delta_log")

        def kept() -> Made:
            found = session.read.format("delta").load(spark_path(session, path))
            return found.where(_condition(where)).select(*map(quoted, self.schema.names)), None

        return SparkRows(self.name, kept, self.schema)

    def count(self) -> int:
        with self._mapped():
            return int(self.frame().count())

    def hidden(self) -> int:
        """How many rows as_known hid."""
        with self._mapped():
            return 0 if self._hidden is None else self._hidden()

    def _mapped(self) -> Any:
        return mapped(self.name, self._error)

    def _ran(self, last: Stage, columns: str) -> Any:
        """A frame of what `last` makes of the rows, in one pass through Python."""
        with self._mapped():
            frame, stage = self._made()
            shaped = _Shaped(stage, self.schema)
            return frame.mapInArrow(carried(lambda batches: last(shaped(batches))), columns)

    def _batches(self, packed: Any) -> Batches:
        with self._mapped():
            for row in packed.toLocalIterator():
                yield from pa.ipc.open_stream(row[0])


@dataclass(frozen=True)
class _Shaped:
    """A stage whose batches have a schema, none of them empty."""

    stage: Stage | None
    schema: pa.Schema

    def __call__(self, batches: Batches) -> Batches:
        for batch in self.stage(batches) if self.stage else batches:
            if batch.num_rows:
                columns = [conform(batch.column(field.name), field.type) for field in self.schema]
                yield pa.RecordBatch.from_arrays(columns, schema=self.schema)


class SparkEngine:
    """The port `Engine` on Spark at a master: local[2], spark://host:7077, yarn, k8s://...; `conf` is Spark's own,
    `spread` says which keys have too many rows for one task, `connect_timeout` how many seconds a master has to answer.
    Spark is started when something is asked for. Safe to share between threads."""

    gaps: frozenset[str] = frozenset()
    distributed = True

    def __init__(
        self,
        master: str,
        conf: Mapping[str, str] | None = None,
        spread: Spread | None = None,
        connect_timeout: float = 5,
    ) -> None:
        self.master, self.conf, self.spread = master, dict(conf or {}), spread or Spread()
        self._connect_timeout = connect_timeout
        self._lock = Lock()
        self._reader: Reader | None = None

    @property
    def reader(self) -> Reader:
        """Reads sources with the engine's session."""
        with self._lock:
            if self._reader is None:
                self._reader = Reader(acquire(self.master, self.conf, self._connect_timeout))
            return self._reader

    @property
    def session(self) -> Any:
        """The SparkSession: in UTC, in ANSI mode, case-sensitive, with Delta."""
        return self.reader.session

    def close(self) -> None:
        with self._lock:
            if self._reader is not None:
                self._reader = None
                release()

    def schema(self, rows: Rows) -> Schema:
        with mapped(rows.name):
            return self.reader.schema(rows) if rows.table else schema_of_files(rows)

    def inputs(self, rows: Rows) -> Mapping[str, str]:
        with mapped(rows.name):
            found = find_files(rows if rows.table is None else replace(rows, table=None))
            marks = {name: mark for files in found for name, mark in files.fingerprints.items()}
            return marks if rows.table is None else marks | self.reader.table_files(rows.table)

    def frame_of(self, rows: Rows, columns: Sequence[str] | None = None, **options: Any) -> Any:
        """Rows of a source as a frame; as `Reader.frame_of`."""
        return self.reader.frame_of(rows, columns, **options)

    def earliest(self, rows: Rows) -> int | None:
        with mapped(rows.name):
            found = self.frame_of(rows, [], stamped=True).selectExpr(f"min({TIME})").collect()[0][0]
            return None if found is None else int(found)

    def latest(
        self, relation: LatestRow, start: int | None, until: int, touched: Collection[str] | None = None
    ) -> SparkRows:
        stamps = [pa.field(EVENT_TIME, pa.int64()), pa.field(CREATED, pa.int64())]
        values = [pa.field(each.name, each.type.arrow) for each in relation.values]

        def made() -> Made:
            scalars = {f"__v{n}": each.scalar for n, each in enumerate(relation.values)}
            facts = self.reader.facts(
                relation.rows, relation.keys, scalars, since=start, until=until + 1, touched=touched
            )
            return _greatest(facts, relation, list(scalars)), None

        return SparkRows(relation.rows.name, made, pa.schema([*relation.keys.arrow, *values, *stamps]))

    def tiles(
        self, relation: Windows, level: int, start: int | None, until: int, touched: Collection[str] | None = None
    ) -> SparkRows:
        since = None if start is None else start // level * level
        relation = events.of_batch(relation)
        return self._tiles(
            relation, level, lambda columns: self._facts(relation, columns, since, until, touched), until
        )

    def snapshot(self, relation: Windows | ScheduledQuery, at: int, *, as_known: bool = False) -> SparkRows:
        if isinstance(relation, ScheduledQuery):
            return self._query(relation, at, as_known)
        return SparkRows(
            relation.rows.name,
            lambda: self._snapshot(relation, at, at if as_known else None),
            snapshot_schema(relation),
        )

    def as_of(
        self, relation: LatestRow | Windows, spine: pa.Table, names: Collection[str], as_known: bool = False
    ) -> pa.Table:
        return as_of(self.reader, relation, spine, names, as_known, self.spread)

    def compute(self, table: pa.Table, columns: Mapping[str, Scalar]) -> pa.Table:
        if not columns:
            return table
        needed = sorted(frozenset[str]().union(*(scalar.columns for scalar in columns.values())))
        given = table.select(needed).append_column(_ROW, pa.array(np.arange(table.num_rows)))
        computed = {f"__c{n}": scalar for n, scalar in enumerate(columns.values())}
        selected = [f"CAST({to_sql(each, 'spark')} AS {each.type.spark}) AS {name}" for name, each in computed.items()]
        schema = pa.schema([(_ROW, pa.int64()), *((name, each.type.arrow) for name, each in computed.items())])

        def made() -> Made:
            return self.reader.frame_from(given).selectExpr(_ROW, *selected), None

        found = SparkRows("computed columns", made, schema, error=InvalidInputError).read().read_all().sort_by(_ROW)
        for name, column in zip(columns, computed, strict=True):
            table = table.append_column(name, found[column])
        return table

    def select(self, sql: str, sources: Collection[Rows]) -> pa.Table:
        frame = self.selected(sql, sources)
        return SparkRows("the SELECT", lambda: (frame, None), arrow_of(frame)).read().read_all()

    def selected(self, sql: str, sources: Collection[Rows]) -> Any:
        """The same rows as `select`, as a frame."""
        used = bind_query(sql, {source.name: source.schema for source in sources}, sample=True).tables
        with mapped(" and ".join(used) or "the SELECT"):
            among = [source for source in sources if source.name in used]
            return self._rendered(sql, among, datetime.now(UTC).date(), sample=True)

    def _facts(
        self, relation: Windows, columns: Columns, since: int | None, until: int,
        touched: Collection[str] | None = None, known_by: int | None = None,
    ) -> Any:  # fmt: skip
        """Events with what windows compute with."""
        values = {name: scalar for each in (columns.values, columns.conditions) for scalar, name in each.items()}
        return self.reader.facts(
            relation.rows, relation.keys, values,
            since=since, until=until, once=True, known_by=known_by, touched=touched,
        )  # fmt: skip

    def _tiles(self, relation: Windows, level: int, facts: Callable[[Columns], Any], until: int) -> SparkRows:
        """A key's tiles are spread, so that one key of very many events keeps no executor busy for long."""
        columns, names = Columns.of(relation.at_level(level)), list(relation.keys.names)
        apart = [*map(quoted, names), _TILE]

        def stage(batches: Batches) -> Batches:
            for table, group in events.whole_groups(batches, [*names, _TILE], EVENTS_AT_ONCE):
                yield from events.tiles(relation, level, table, group, columns, until).to_batches()

        def made() -> Made:
            found = facts(columns).selectExpr("*", f"{TIME} - pmod({TIME}, {level}L) AS {_TILE}")
            return found.repartition(*apart).sortWithinPartitions(*apart, TIME, KNOWN), stage

        schema = events.tiles_schema(relation.keys, relation.at_level(level))
        return SparkRows(relation.rows.name, made, schema)

    def _snapshot(self, relation: Windows, at: int, known_by: int | None) -> Made:
        """Events of a key are brought together; of heavy keys only the tiles that executors made of them."""
        columns, names = Columns.of(relation.windows), list(relation.keys.names)
        since = reach(relation.windows, at)
        facts = self._facts(relation, columns, since, at, known_by=known_by)
        heavy = heavy_keys(facts, relation.keys, self.spread)

        def stage(batches: Batches) -> Batches:
            for table, group in events.whole_groups(batches, names, EVENTS_AT_ONCE):
                yield from snapshot_rows(relation, table, group, columns, at).to_batches()

        def arranged(some: Any) -> Any:
            return some.repartition(*map(quoted, names)).sortWithinPartitions(*map(quoted, [*names, TIME, KNOWN]))

        if heavy is None:
            return arranged(facts), stage
        light = arranged(among(facts, heavy, names, "left_anti"))
        schema = snapshot_schema(relation)
        tiles = {
            level: self._tiles(
                relation, level,
                lambda own: among(self._facts(relation, own, since, at, known_by=known_by), heavy, names, "left_semi"),
                at,
            ).read().read_all()
            for level in relation.levels
        }  # fmt: skip
        others = self.reader.frame_from(merged_tiles(relation, tiles, at))
        return light.mapInArrow(carried(_Shaped(stage, schema)), ddl(schema)).unionAll(others), None

    def _query(self, query: ScheduledQuery, at: int, as_known: bool) -> SparkRows:
        """The result of a scheduled query."""
        columns = [(key.name, key.name, key.type) for key in query.keys] + list(query.values)
        schema = pa.schema([pa.field(name, type_.arrow) for name, _, type_ in columns])
        where = " and ".join(source.name for source in query.sources) or "a query"
        known_by = at if as_known else None

        def made() -> Made:
            result = self._rendered(query.sql, query.sources, date_valid_at(query, at), known_by)
            present = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in query.keys.names)
            selected = [f"{_as_type(result, column, type_)} AS {quoted(name)}" for name, column, type_ in columns]
            counted = result.where(present).selectExpr("*", f"{_alone(query.keys)} AS __alone").where("__alone")
            return counted.selectExpr(*selected), None

        def hidden() -> int:
            return sum(self._hidden(source, at) for source in query.sources)

        return SparkRows(where, made, schema, hidden=hidden if as_known else None)

    def _rendered(
        self, sql: str, sources: Collection[Rows], day: date, known_by: int | None = None, sample: bool = False
    ) -> Any:
        """The frame of a query over sources; `known_by`: of the rows created by then."""
        names = {source.name: f"source_{uuid4().hex}" for source in sources}
        try:
            for source in sources:
                frame = self.reader.frame_of(source, once=True, opaque=source.schema.names)
                if known_by is not None and source.created:
                    created = f"unix_micros(CAST({quoted(source.created)} AS TIMESTAMP))"
                    frame = frame.where(f"coalesce({created} <= {known_by}L, true)")
                frame.createOrReplaceTempView(names[source.name])
            schemas = {source.name: source.schema for source in sources}
            return self.session.sql(render(sql, "spark", schemas, day, names, sample))
        finally:
            for name in names.values():
                self.session.catalog.dropTempView(name)

    def _hidden(self, source: Rows, at: int) -> int:
        """How many rows of a source had happened before an instant, and were created after it."""
        if not source.created:
            return 0
        names = [name for name in (source.timestamp, source.created) if name]
        frame = self.reader.frame_of(source, names, once=True)
        frame = frame.where(f"unix_micros(CAST({quoted(source.created)} AS TIMESTAMP)) > {at}L")
        if source.timestamp:
            frame = frame.where(f"unix_micros(CAST({quoted(source.timestamp)} AS TIMESTAMP)) < {at}L")
        return int(frame.count())


def _greatest(facts: Any, relation: LatestRow, values: Sequence[str]) -> Any:
    """Of each key the row with the greatest (event time, created, values...), nulls lowest, as structs compare; taken
    before anything is sent, so that a key of very many rows is no burden."""
    from pyspark.sql.functions import expr

    keys = [*map(quoted, relation.keys.names)]
    greatest = f"max(struct({', '.join([TIME, KNOWN, *values])})) AS greatest"
    named = [f"greatest.{value} AS {quoted(each.name)}" for value, each in zip(values, relation.values, strict=True)]
    stamps = [f"greatest.{TIME} AS {EVENT_TIME}", f"greatest.{KNOWN} AS {CREATED}"]
    return facts.groupBy(*keys).agg(expr(greatest)).selectExpr(*keys, *named, *stamps)


def _alone(keys: Schema) -> str:
    """True, or the job fails: whether a row is the only one of its key."""
    shown = [
        f"'{key.name}=', "
        + (f'"\'", {quoted(key.name)}, "\'"' if key.type == STRING else f"CAST({quoted(key.name)} AS STRING)")
        for key in keys
    ]
    what = "concat('the query has more than one row for ', " + ", ', ', ".join(shown) + ")"
    said = failing("SourceError", what, "Group by the entity's key, or aggregate")
    among = ", ".join(map(quoted, keys.names))
    return f"CASE WHEN count(*) OVER (PARTITION BY {among}) > 1 THEN {said} ELSE true END"


def _quote(type_: Type) -> str:
    return '"\'"' if type_ == STRING else "''"


def _as_type(found: Any, name: str, type_: Type) -> str:
    """A column of a query's result as a type, by the rules of casts: towards zero, NULL where it fails."""
    arrow = arrow_of(found)
    if name not in arrow.names:
        raise SourceError(f'the query has no column "{name}"', hint=f"Its columns are {', '.join(found.columns)}")
    try:
        return to_sql(cast(Ref(Type.from_arrow(arrow.field(name).type), name), type_), "spark")
    except ExpressionError:
        return f"try_cast({quoted(name)} AS {type_.spark})"


def _condition(where: Mapping[str, str]) -> str:
    return " AND ".join(f"{quoted(name)} = {text(value)}" for name, value in where.items())


def _packed(batches: Batches) -> Batches:
    """Each batch as one value, for a stream to the driver."""
    for batch in batches:
        yield pa.RecordBatch.from_arrays([pa.array([packed(batch)], pa.binary())], ["part"])
