"""What was found at T, for spines that are Spark frames of any length: nothing of them comes to the driver.

A spine and the rows of a source are put into one frame and shuffled by key, once, with no column that is not needed.

latest row  in order of time, a running maximum of structs (event time, created, values): the row that counts
windows     sorted by key and time, answered batch by batch by `engines.windows` in the executors
snapshots   joined on key and boundary

A key of very many rows ("hot": a bot) would keep one task busy for long. Hot keys are found in a sample, and their
rows spread over slices of time. A slice needs what came before it: one row, the greatest of earlier slices, or for
windows the events that they reach back to, which go to two slices. Rows of the spine without a key match nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
import pyarrow as pa

from feature_store.engines import windows as events
from feature_store.engines.scans import KNOWN, TIME
from feature_store.engines.spark_rows import Reader, arrow_type, ddl, packed, quoted
from feature_store.engines.spark_session import Batches, carried, failing, mapped
from feature_store.engines.windows import Columns, Events
from feature_store.expressions.relations import LatestRow, Schedule, ScheduledQuery, Window, Windows
from feature_store.expressions.schedules import boundary_array
from feature_store.storage.online import EVENT_TIME
from feature_store.types import INT64, Column, Schema, Type

AT = "__at"
"""T of each row of a spine, in microseconds."""

VALID = "__valid"
"""From when a row of a snapshot is valid, in microseconds."""

_WHEN, _SLICE, _FACT, _SPINE, _FOUND, _CUTS = (
    "__when", "__slice", "__fact", "__spine", "__found", "__cuts",
)  # fmt: skip
_ROW = "__row"
_MOST_HOT_KEYS = 1000
_NULL_SLICES = 4096
_EVENTS_AT_ONCE = 200_000
_FILLED = {
    "STRING": "''",
    "BYTES": "X''",
    "BOOL": "false",
    "DATE": "date_from_unix_date(0)",
    "TIMESTAMP": "timestamp_micros(0)",
}
"""What stands for a key that is null, in a slice of its own; 0 for other kinds."""


_CHANGED = failing(
    "InvalidInputError",
    "'the entity rows changed while they were read'",
    "Write them to a file first, or persist the DataFrame",
)


@dataclass(frozen=True, slots=True)
class Spread:
    """When a key is hot: with more than `rows` rows, by a sample of one row in `one_in`; it gets `slices` at most."""

    rows: int = 500_000
    one_in: int = 256
    slices: int = 64


@dataclass(frozen=True)
class Spine:
    """Rows that ask, as a frame: `AT`, key columns, and whatever else they carry along. `given` are the same rows
    before anything was looked up, from which bounds and samples are taken: that must be cheap to compute twice."""

    frame: Any
    given: Any

    @cached_property
    def bounds(self) -> tuple[int, int] | None:
        """The least and the greatest T; None of no rows."""
        with mapped("the entity rows"):
            least, greatest = self.given.selectExpr(f"min({AT})", f"max({AT})").collect()[0]
        return None if least is None else (int(least), int(greatest))

    def then(self, frame: Any) -> Spine:
        """The same rows with more that they carry."""
        found = replace(self, frame=frame)
        found.__dict__.update({name: value for name, value in self.__dict__.items() if name == "bounds"})
        return found

    def checked(self, column: str) -> str:
        """A column of times, checked against the bounds: rows that are not the same when they are read again would
        ask for events that were not read."""
        bounds = self.bounds or (0, 0)
        return f"CASE WHEN {AT} BETWEEN {bounds[0]}L AND {bounds[1]}L THEN {column} ELSE CAST({_CHANGED} AS BIGINT) END"


class Joins:
    """Looks up what relations held at the times of a spine; `reader` reads their sources."""

    def __init__(self, reader: Reader, spread: Spread = Spread()) -> None:
        self._reader = reader
        self._spread = spread

    def look_up(
        self, spine: Spine, keys: Sequence[str], relation: LatestRow | Windows, names: Collection[str], as_known: bool,
        into: str,
    ) -> Spine:  # fmt: skip
        """The spine with a column `into`: a struct of EVENT_TIME and the values `names`, as `Engine.as_of` finds them.
        `keys` are the columns of the spine that hold the relation's keys, in their types."""
        known = as_known and relation.rows.created is not None
        if isinstance(relation, LatestRow):
            return spine.then(self._latest(spine, keys, relation, names, known, into))
        return spine.then(self._windows(spine, keys, relation, names, known, into))

    def hidden(self, spine: Spine, keys: Sequence[str], relation: LatestRow | Windows, names: Collection[str]) -> int:
        """How many rows as_known hid: those created after the first row of the spine that they precede (and, of
        windows, that reaches back to them). That row is found as any other: with time running backwards."""
        rows = relation.rows
        if rows.created is None:
            return 0
        with mapped(rows.name):
            facts = self._reader.facts(rows, relation.keys, {}, once=isinstance(relation, Windows))
            late = facts.where(f"{KNOWN} > {TIME}")
            strictly = 1 if isinstance(relation, Windows) else 0
            asking = late.selectExpr(
                *(f"{quoted(key)} AS __k{n}" for n, key in enumerate(relation.keys.names)),
                f"-({TIME} + {strictly}) AS {_WHEN}",
                f"0 AS {_SLICE}",
                f"struct({TIME}, {KNOWN}) AS {_SPINE}",
            )
            given = replace(spine, frame=spine.given)
            asked = self._asked(given, keys, relation.keys, self._moment(relation)).selectExpr(
                *_keys(keys), f"-{_WHEN} AS {_WHEN}", _SLICE, f"struct(-{_WHEN} AS w, -{_SPINE}.{AT} AS t) AS {_FACT}"
            )
            found = _running(_together(asked.where(f"{_SLICE} = 0"), asking, len(keys), self._spread), len(keys))
            seen = f"-{_FOUND}.t < {_SPINE}.{KNOWN}"
            reached = _reach(relation, names, f"{_SPINE}.{TIME}", f"-{_FOUND}.w")
            return int(found.where(f"{seen} AND ({reached})").count())

    def boundaries(self, spine: Spine, query: ScheduledQuery) -> list[int]:
        """The boundaries from which the snapshots are valid that the spine asks for, ascending."""
        with mapped("the entity rows"):
            valid = spine.given.select(_valid(spine.given, query).alias(VALID)).distinct().collect()
        return sorted(int(row[0]) for row in valid)

    def look_up_snapshots(
        self, spine: Spine, keys: Sequence[str], query: ScheduledQuery, boundaries: Sequence[int], snapshots: Any,
        names: Collection[str], into: str,
    ) -> Spine:  # fmt: skip
        """The spine with a column `into`, as for `look_up`. `snapshots`, valid from `boundaries`, are keys, values and
        `VALID`, the boundary from which a row is valid; one row at most a key and boundary."""
        from pyspark.sql.functions import col, expr, when

        fields = ", ".join([f"{VALID} AS {EVENT_TIME}", *map(quoted, names)])
        given = [f"{quoted(key.name)} AS __k{n}" for n, key in enumerate(query.keys)]
        found = snapshots.selectExpr(*given, VALID, f"struct({fields}) AS {quoted(into)}")
        asking = spine.frame.withColumn(VALID, _valid(spine.frame, query))
        changed = expr(f"CAST({_CHANGED} AS BIGINT)")
        asking = asking.withColumn(VALID, when(col(VALID).isin(list(boundaries)), col(VALID)).otherwise(changed))
        on = [asking[quoted(key)] == found[f"__k{n}"] for n, key in enumerate(keys)]
        joined = asking.join(found, [*on, asking[VALID] == found[VALID]], "left")
        return spine.then(joined.select(*(asking[quoted(name)] for name in spine.frame.columns), found[quoted(into)]))

    def _latest(
        self, spine: Spine, keys: Sequence[str], relation: LatestRow, names: Collection[str], known: bool, into: str
    ) -> Any:
        # Of rows that tie, values are compared in declared order: those behind the last one asked for decide nothing.
        last = max(n for n, each in enumerate(relation.values) if each.name in names)
        values = {f"__v{n}": each.scalar for n, each in enumerate(relation.values[: last + 1])}
        facts = self._reader.facts(relation.rows, relation.keys, values)
        order = [TIME, *([KNOWN] if relation.rows.created else []), *values]
        fact = facts.selectExpr(
            *(f"{quoted(key)} AS __k{n}" for n, key in enumerate(relation.keys.names)),
            f"{f'greatest({TIME}, {KNOWN})' if known else TIME} AS {_WHEN}",
            f"0 AS {_SLICE}",
            f"struct({', '.join(order)}) AS {_FACT}",
        )
        asked = self._asked(spine, keys, relation.keys, AT)
        asking = asked.selectExpr(*_keys(keys), _WHEN, _SLICE, _SPINE)
        sampled = self._asked(replace(spine, frame=spine.given), keys, relation.keys, AT)
        found = _running(_together(fact, asking, len(keys), self._spread, sampled), len(keys))
        named = {each.name: n for n, each in enumerate(relation.values)}
        fields = [f"{_FOUND}.{TIME} AS {EVENT_TIME}", *(f"{_FOUND}.__v{named[n]} AS {quoted(n)}" for n in names)]
        there = f"{_FOUND} IS NOT NULL{f' AND NOT {_FOUND}.__v0' if relation.deletes else ''}"
        struct = f"CASE WHEN {there} THEN struct({', '.join(fields)}) END AS {quoted(into)}"
        return found.selectExpr(f"{_SPINE}.*", struct)

    def _windows(
        self, spine: Spine, keys: Sequence[str], relation: Windows, names: Collection[str], known: bool, into: str
    ) -> Any:
        windows = tuple(window for window in relation.windows if window.name in names)
        columns = Columns.of(windows)
        values = {name: scalar for each in (columns.values, columns.conditions) for scalar, name in each.items()}
        since, until = self._between(spine, relation, windows)
        facts = self._reader.facts(relation.rows, relation.keys, values, since=since, until=until, once=True)
        fact = facts.selectExpr(
            *(f"{quoted(key)} AS __k{n}" for n, key in enumerate(relation.keys.names)),
            f"{TIME} AS {_WHEN}", f"0 AS {_SLICE}", KNOWN, *values,
        )  # fmt: skip
        moment = self._moment(relation)
        asked = self._asked(spine, keys, relation.keys, moment)
        sampled = self._asked(replace(spine, frame=spine.given), keys, relation.keys, moment)
        reach = max(window.length + window.hop for window in windows)
        hot = _hot([fact, sampled], len(keys), self._spread, reach)
        asking = _sliced(asked, len(keys), hot)
        none = [f"CAST(NULL AS {scalar.type.spark}) AS {name}" for name, scalar in values.items()]
        asking = asking.selectExpr(*_keys(keys), _WHEN, _SLICE, f"{_SPINE}.{AT} AS {KNOWN}", *none, _SPINE)
        fact = _sliced(fact, len(keys), hot, reach).withColumn(_SPINE, _null(asking.schema[_SPINE].dataType))
        group = [*_keys(keys), _SLICE]
        both = fact.unionAll(asking).repartition(*group)
        both = both.sortWithinPartitions(*group, both[_SPINE].isNotNull(), _WHEN, KNOWN)
        stage = _Answering(windows, columns, tuple(group), known, into)
        return both.mapInArrow(carried(stage), self._schema(both, windows, into)).selectExpr(
            f"{_SPINE}.*", quoted(into)
        )

    def _schema(self, both: Any, windows: Sequence[Window], into: str) -> Any:
        from pyspark.sql.types import StructField, StructType

        found = self._reader.session.createDataFrame([], ddl(_found_type(windows))).schema
        return StructType([both.schema[_SPINE], StructField(into, found)])

    def _between(self, spine: Spine, relation: Windows, windows: Sequence[Window]) -> tuple[int, int]:
        """Events with since <= event time < until are all that the spine reaches."""
        if spine.bounds is None:
            return 0, 0
        at = np.array(spine.bounds, np.int64)
        least, greatest = (at if relation.schedule is None else boundary_array(relation.schedule, at)).tolist()
        return min((least - w.length) // w.hop * w.hop for w in windows), greatest

    def _moment(self, relation: LatestRow | Windows) -> Any:
        """The time as of which the rows of a spine ask: T, or the boundary before it."""
        if isinstance(relation, Windows) and relation.schedule is not None:
            return _floored(relation.schedule)
        return AT

    def _asked(self, spine: Spine, keys: Sequence[str], types: Schema, moment: Any) -> Any:
        """__k0, ..., `_WHEN`, `_SLICE` (< 0: a key is null) and `_SPINE`, the whole row."""
        from pyspark.sql.functions import col, expr, struct

        frame = spine.frame
        null = " OR ".join(f"{quoted(key)} IS NULL" for key in keys)
        filled = [
            expr(f"coalesce({quoted(key)}, CAST({_FILLED.get(column.type.kind, '0')} AS {column.type.spark}))")
            for key, column in zip(keys, types, strict=True)
        ]
        apart = f"CASE WHEN {null} THEN -1 - CAST(pmod({AT} div 1000000, {_NULL_SLICES}) AS INT) ELSE 0 END"
        when = col(moment) if isinstance(moment, str) else moment(col(AT))
        if "bounds" in spine.__dict__:
            frame = frame.withColumn(AT, expr(spine.checked(AT)))
        return frame.select(
            *(column.alias(f"__k{n}") for n, column in enumerate(filled)),
            when.alias(_WHEN),
            expr(apart).alias(_SLICE),
            struct(*(col(quoted(name)) for name in frame.columns)).alias(_SPINE),
        )


def as_of(
    reader: Reader, relation: LatestRow | Windows, spine: pa.Table, names: Collection[str], as_known: bool = False,
    spread: Spread = Spread(),
) -> pa.Table:  # fmt: skip
    """As `Engine.as_of`: of a spine in Arrow, in Arrow."""
    joins = Joins(reader, spread)
    types = [*relation.keys, Column(AT, INT64)]
    columns = {f"__k{n}": spine[each.name].cast(each.type.arrow) for n, each in enumerate(relation.keys)}
    given = pa.table({**columns, AT: spine[EVENT_TIME], _ROW: pa.array(np.arange(spine.num_rows))})
    keys = [f"__k{n}" for n in range(len(types) - 1)]
    with mapped(relation.rows.name):
        frame = reader.frame_from(given).withColumnsRenamed({key: f"{key}_" for key in keys})
        keys = [f"{key}_" for key in keys]
        asking = Spine(frame, frame)
        found = joins.look_up(asking, keys, relation, names, as_known, _FOUND).frame
        fields = [f"{_FOUND}.{quoted(name)}" for name in (*names, EVENT_TIME)]
        table = collected(found.selectExpr(_ROW, *fields), _arrow_types(relation, names)).sort_by(_ROW).drop([_ROW])
        hidden = joins.hidden(asking, keys, relation, names) if as_known else None
    return table if hidden is None else table.replace_schema_metadata({"hidden": str(hidden)})


def collected(frame: Any, schema: pa.Schema | None = None) -> pa.Table:
    """All rows of a frame, here, in no order; in the types of the schema, or the frame's own."""

    def pack(batches: Batches) -> Batches:
        for batch in batches:
            if batch.num_rows:
                yield pa.RecordBatch.from_arrays([pa.array([packed(batch)], pa.binary())], ["part"])

    if schema is None:
        schema = pa.schema([pa.field(field.name, arrow_type(field.dataType)) for field in frame.schema])
    parts = frame.mapInArrow(carried(pack), "part BINARY").collect()
    tables = [pa.ipc.open_stream(row[0]).read_all().rename_columns(schema.names).cast(schema) for row in parts]
    return pa.concat_tables(tables) if tables else schema.empty_table()


@dataclass(frozen=True)
class _Answering:
    """What an executor does with events and rows that ask, sorted by `group`, events first: the rows that ask, each
    with its windows."""

    windows: tuple[Window, ...]
    columns: Columns
    group: tuple[str, ...]
    known: bool
    into: str

    def __call__(self, batches: Batches) -> Iterator[pa.RecordBatch]:
        for table, group in events.whole_groups(batches, self.group, _EVENTS_AT_ONCE):
            asks = np.asarray(table[_SPINE].is_valid().to_numpy(zero_copy_only=False), np.bool_)
            if asks.any():
                yield from self._answered(table, group, asks).to_batches()

    def _answered(self, table: pa.Table, group: Any, asks: Any) -> pa.Table:
        happened = table.filter(pa.array(~asks)).rename_columns(
            [TIME if name == _WHEN else name for name in table.column_names]
        )
        found = Events.of(happened, group[~asks], self.columns)
        asking = table.filter(pa.array(asks))
        at = asking[_WHEN].to_numpy()
        if self.known:
            out, _ = events.answers_as_known(self.windows, found, group[asks], at, asking[KNOWN].to_numpy())
        else:
            out = events.answers(self.windows, found, group[asks], at)
        fields = list(_found_type(self.windows))
        answer = pa.StructArray.from_arrays([out[field.name].cast(field.type) for field in fields], fields=fields)
        return pa.table({_SPINE: asking[_SPINE], self.into: answer})


def _found_type(windows: Sequence[Window]) -> pa.Schema:
    stamp = pa.field(EVENT_TIME, pa.int64())
    return pa.schema([stamp, *(pa.field(window.name, window.type.arrow) for window in windows)])


def _arrow_types(relation: LatestRow | Windows, names: Collection[str]) -> pa.Schema:
    each: Sequence[Any] = relation.values if isinstance(relation, LatestRow) else relation.windows
    types: Mapping[str, Type] = {one.name: one.type for one in each}
    stamps = pa.field(_ROW, pa.int64()), pa.field(EVENT_TIME, pa.int64())
    return pa.schema([stamps[0], *(pa.field(name, types[name].arrow) for name in names), stamps[1]])


def _keys(keys: Sequence[str]) -> list[str]:
    return [f"__k{n}" for n in range(len(keys))]


def _null(type_: Any) -> Any:
    from pyspark.sql.functions import lit

    return lit(None).cast(type_)


def _together(fact: Any, asking: Any, keys: int, spread: Spread, sampled: Any = None) -> Any:
    """Facts (keys, `_WHEN`, `_SLICE`, `_FACT`) and rows that ask (`_SPINE` instead of `_FACT`), in one frame."""
    hot = _hot([fact, asking if sampled is None else sampled], keys, spread)
    asking = asking.withColumn(_FACT, _null(fact.schema[_FACT].dataType))
    none = _null(asking.schema[_SPINE].dataType)
    columns = [*(f"__k{n}" for n in range(keys)), _WHEN, _SLICE, _FACT, _SPINE]
    both = fact.withColumn(_SPINE, none).select(*columns).unionAll(asking.select(*columns))
    if hot is None:
        return both
    before = _before(fact, keys, hot).withColumn(_SPINE, none)
    return _sliced(both, keys, hot).select(*columns).unionAll(before.select(*columns))


def _running(both: Any, keys: int) -> Any:
    """The rows that ask, with `_FOUND`: the greatest of the facts up to their time."""
    from pyspark.sql import Window as Over
    from pyspark.sql.functions import col
    from pyspark.sql.functions import max as greatest

    over = Over.partitionBy(*(f"__k{n}" for n in range(keys)), _SLICE).orderBy(col(_WHEN), col(_SPINE).isNotNull())
    over = over.rowsBetween(Over.unboundedPreceding, Over.currentRow)
    return both.withColumn(_FOUND, greatest(_FACT).over(over)).where(col(_SPINE).isNotNull())


def _hot(frames: Sequence[Any], keys: int, spread: Spread, apart: int = 1) -> Any:
    """The keys of more rows than a task should have, each with its `_CUTS`: instants, at least `apart` from each
    other, between which it has about as many rows; None if there are none."""
    from pyspark.sql.functions import broadcast, expr

    names = [f"__k{n}" for n in range(keys)]

    def sampled(*columns: str) -> Any:
        parts = [each.where(f"{_SLICE} >= 0").select(*columns).sample(1 / spread.one_in, seed=1) for each in frames]
        return reduce(lambda one, other: one.unionAll(other), parts)

    counted = sampled(*names).groupBy(*names).agg(expr("count(1) AS many"))
    counted = counted.where(f"many * {spread.one_in} > {spread.rows}")
    many = counted.orderBy(counted["many"].desc()).limit(_MOST_HOT_KEYS).collect()
    if not many:
        return None
    rows = sampled(*names, _WHEN)
    session, schema = frames[0].sparkSession, rows.select(*names).schema
    busy = session.createDataFrame([tuple(row[name] for name in names) for row in many], schema)
    shares = ", ".join(str(n / spread.slices) for n in range(1, spread.slices))
    quantiles = expr(f"percentile_approx({_WHEN}, array({shares})) AS quantiles")
    timed = rows.join(broadcast(busy), names).groupBy(*names).agg(expr("count(1) AS many"), quantiles).collect()
    found = [(*(row[name] for name in names), _cuts(row, spread, apart)) for row in timed]
    found = [row for row in found if row[-1]]
    return session.createDataFrame(found, _with_cuts(schema)) if found else None


def _with_cuts(schema: Any) -> Any:
    from pyspark.sql.types import ArrayType, LongType, StructField, StructType

    return StructType([*schema.fields, StructField(_CUTS, ArrayType(LongType()))])


def _cuts(row: Any, spread: Spread, apart: int) -> list[int]:
    slices = min(spread.slices, -(-row["many"] * spread.one_in // spread.rows))
    cuts: list[int] = []
    for n in range(1, slices):
        at = row["quantiles"][n * spread.slices // slices - 1]
        if not cuts or at - cuts[-1] >= apart:
            cuts.append(at)
    return cuts


_PLACE = f"CASE WHEN {_CUTS} IS NULL OR {_SLICE} < 0 THEN {_SLICE} ELSE size(filter({_CUTS}, c -> c <= {_WHEN})) END"


def _sliced(frame: Any, keys: int, hot: Any, reach: int = 0) -> Any:
    """The frame with the slice of each row of a hot key. With a `reach` (microseconds), rows that the next slice
    reaches back to are in that, too."""
    from pyspark.sql.functions import broadcast

    if hot is None:
        return frame
    others = [quoted(name) for name in frame.columns if name != _SLICE]
    placed = frame.join(broadcast(hot), [f"__k{n}" for n in range(keys)], "left")
    order = [quoted(name) for name in frame.columns]
    placed = placed.selectExpr(*others, f"{_PLACE} AS {_SLICE}", _CUTS)
    if not reach:
        return placed.select(*order)
    both = f"{_CUTS} IS NOT NULL AND {_SLICE} < size({_CUTS}) AND {_WHEN} >= {_CUTS}[{_SLICE}] - {reach}L"
    slices = f"explode(CASE WHEN {both} THEN array({_SLICE}, {_SLICE} + 1) ELSE array({_SLICE}) END) AS {_SLICE}"
    return placed.selectExpr(*others, slices).select(*order)


def _before(fact: Any, keys: int, hot: Any) -> Any:
    """Of each slice of a hot key the greatest fact, for every later slice, at its beginning; few, since the greatest
    are taken before anything is sent."""
    from pyspark.sql.functions import broadcast, expr

    names = [f"__k{n}" for n in range(keys)]
    placed = fact.join(broadcast(hot), names).selectExpr(*names, f"{_PLACE} AS {_SLICE}", _FACT, _CUTS)
    best = placed.groupBy(*names, _SLICE).agg(expr(f"max({_FACT}) AS {_FACT}"), expr(f"first({_CUTS}) AS {_CUTS}"))
    later = f"explode(sequence({_SLICE} + 1, size({_CUTS}))) AS {_SLICE}"
    spread = best.where(f"{_SLICE} < size({_CUTS})").selectExpr(*names, later, _FACT, _CUTS)
    return spread.selectExpr(*names, f"{_CUTS}[{_SLICE} - 1] AS {_WHEN}", _SLICE, _FACT)


def _reach(relation: LatestRow | Windows, names: Collection[str], event: str, at: str) -> str:
    """Whether a time is in reach of a window at an instant."""
    if isinstance(relation, LatestRow):
        return "true"
    lengths = dict.fromkeys((each.length, each.hop) for each in relation.windows if each.name in names)
    return " OR ".join(f"{event} >= {at} - {length}L - pmod({at} - {length}L, {hop}L)" for length, hop in lengths)


def _floored(schedule: Schedule) -> Any:
    """The last boundary at or before an instant, as a function of a column."""
    import pandas
    from pyspark.sql.pandas import functions

    def floored(at: Any) -> Any:
        return pandas.Series(boundary_array(schedule, at.to_numpy()))

    floored.__annotations__ = {"at": pandas.Series, "return": pandas.Series}  # from which Spark tells the kind
    udf: Any = functions.pandas_udf
    return udf(floored, "bigint")


def _valid(frame: Any, query: ScheduledQuery) -> Any:
    """From when the snapshot is valid that the rows of a spine ask for."""
    return _floored(query.schedule)(frame[AT] - query.delay) + query.delay
