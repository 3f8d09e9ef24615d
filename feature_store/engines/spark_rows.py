"""The rows of a source as Spark frames, with the columns and types that they had at `apply`, or refused.

What lies under a path, and whether it fits, is found as the embedded engine finds it; Parquet and Delta are read by
Spark, CSV by DuckDB in the executors, so that a line of it means the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from itertools import groupby
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.engines import scans
from feature_store.engines.files import Files, base_of, find_files
from feature_store.engines.local import mapped as duckdb_errors
from feature_store.engines.scans import (
    EVENT_ID,
    KNOWN,
    OF_STREAM,
    TIME,
    WITHDRAWN,
    Scan,
    check_column,
    check_times,
    counted_by_stream,
    listed,
    may_withdraw,
    schema_of,
    stamps_of,
)
from feature_store.engines.spark_s3 import connect
from feature_store.engines.spark_session import ROWS_A_BATCH, Batches, carried
from feature_store.errors import DefinitionError, SourceError
from feature_store.expressions.instants import DAY
from feature_store.expressions.relations import Rows
from feature_store.expressions.scalars import Ref, Scalar, to_sql
from feature_store.storage.online import NO_CREATED
from feature_store.storage.remote import is_uri, open_file
from feature_store.types import BOOL, BYTES, STRING, Schema, Type

_FOOTERS_AT_ONCE = 16
_LOCAL = re.compile("^file:/+")
_FILE = "regexp_replace(_metadata.file_path, '^file:/+', 'file:/')"
_GLOB = re.compile(r"([\\{}\[\]*?])")


def quoted(name: str) -> str:
    """An identifier, quoted."""
    return "`" + name.replace("`", "``") + "`"


def text(value: str) -> str:
    """A string literal."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def ddl(schema: pa.Schema) -> str:
    """Arrow columns as Spark spells them."""
    return ", ".join(f"{quoted(field.name)} {Type.from_arrow(field.type).spark}" for field in schema)


@dataclass(frozen=True)
class Part:
    """Rows that have the same columns: a frame, and its columns as Arrow types. `path`: where they are; `others`: what
    other rows of that place have."""

    rows: Rows
    frame: Any
    arrow: pa.Schema
    path: str
    others: pa.Schema

    def expression(self, name: str, opaque: bool = False) -> str:
        """A column of the schema, in its type. `opaque` floats are hidden from the optimiser, as in `scans.Part`."""
        expected, there = check_column(self.rows, name, self.others, self.path)
        if not there or name not in self.arrow.names:
            return f"CAST(NULL AS {expected.spark})"
        check_column(self.rows, name, self.arrow, self.path)
        read = _as_type(quoted(name), self.arrow.field(name).type, expected)
        if opaque and expected.is_float:
            return f"CASE WHEN isnan({read}) THEN CAST('NaN' AS {expected.spark}) ELSE {read} END"
        return read

    def micros(self, name: str) -> str:
        """A column of times as microseconds."""
        arrow = self.arrow.field(name).type if name in self.arrow.names else pa.null()
        read = self.expression(name)
        if pa.types.is_null(arrow):
            return "CAST(NULL AS BIGINT)"
        return _whole_micros(quoted(name)) if _is_nanoseconds(arrow) else f"unix_micros(CAST({read} AS TIMESTAMP))"

    def within(self, since: int | None, until: int | None) -> str:
        """A condition on the raw event time, since <= time < until, so that files and row groups can be skipped."""
        name = self.rows.timestamp
        assert name is not None
        if name not in self.arrow.names:
            return "false"
        terms = [f"{quoted(name)} IS NOT NULL"]
        for sign, bound in ((">=", since), ("<", until)):
            if bound is not None:
                terms.append(f"{quoted(name)} {sign} {_bound(self.arrow.field(name).type, bound)}")
        return " AND ".join(terms)


def _bound(arrow: pa.DataType, at: int) -> str:
    """An instant as a constant of the type that a column of times is read as: the first that is not before it."""
    if pa.types.is_date(arrow):
        return f"date_from_unix_date({-(-at // DAY)})"
    if _is_nanoseconds(arrow):
        return f"{max(-(2**63) + 1, min(at * 1000, 2**63 - 1))}L"
    instant = f"timestamp_micros({at}L)"
    return instant if not pa.types.is_timestamp(arrow) or arrow.tz else f"CAST({instant} AS TIMESTAMP_NTZ)"


def _is_nanoseconds(arrow: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(arrow)) and arrow.unit == "ns"


def _whole_micros(read: str) -> str:
    return f"(({read} - pmod({read}, 1000L)) div 1000L)"


def _as_type(read: str, arrow: pa.DataType, expected: Type) -> str:
    if pa.types.is_null(arrow):
        return f"CAST(NULL AS {expected.spark})"
    if expected.item:
        return f"transform({read}, v -> {_as_type('v', arrow.value_type, expected.item)})"
    if _is_nanoseconds(arrow):
        return f"timestamp_micros({_whole_micros(read)})"
    return f"CAST({read} AS {expected.spark})"


class Reader:
    """Reads rows with a session. Footers of Parquet files are looked at once."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self._footers: dict[tuple[str, str], tuple[tuple[str, str, pa.DataType], ...]] = {}

    def frame_of(
        self,
        rows: Rows,
        columns: Sequence[str] | None = None,
        *,
        since: int | None = None,
        until: int | None = None,
        once: bool = False,
        stamped: bool = False,
        inputs: Collection[str] | None = None,
        opaque: Collection[str] = (),
    ) -> Any:
        """These columns (None: all of the schema) of the rows with since <= event time < until (no bounds: of all).

        `once` keeps one of the rows that are the same event: the one with the least (event time, created, ...).
        `stamped` adds `TIME` and `KNOWN`, and drops rows without an event time. `inputs`: only rows of these of the
        files. `opaque`: columns that are computed with, which statistics of files say too little of.
        """
        names = list(dict.fromkeys(rows.schema.names if columns is None else columns))
        if stamped:
            check_times(rows)
        parts = self.parts(rows, inputs)
        if not parts:
            return self._nothing(rows, names, stamped)
        if once and rows.unique:
            every = list(rows.schema.names)
            typed = _union([_typed(part, every, opaque=opaque, marked=True) for part in parts])
            return _of_typed(_first_of_each(typed, rows, rows.unique), rows, names, since, until, stamped)
        frames = []
        for part in parts:
            if once and part.path == rows.pushed:
                log = _typed(part, [*rows.schema.names], opaque=rows.schema.names, kept=[EVENT_ID])
                frames.append(_of_typed(_first_of_each(log, rows, [EVENT_ID]), rows, names, since, until, stamped))
            else:
                frames.append(_typed(part, names, since, until, stamped, opaque))
        return _union(frames)

    def facts(
        self,
        rows: Rows,
        keys: Schema,
        values: Mapping[str, Scalar],
        *,
        since: int | None = None,
        until: int | None = None,
        once: bool = False,
        known_by: int | None = None,
        touched: Collection[str] | None = None,
    ) -> Any:
        """Rows as a view needs them: the keys under their own names, `TIME`, `KNOWN` (`NO_CREATED` where unknown), and
        computed values by name; none without a key or an event time. `known_by`: rows created by then; `touched`:
        rows of keys that have a row in these inputs."""
        needed = frozenset[str]().union(*(scalar.columns for scalar in values.values()))
        opaque = frozenset[str]().union(*(each.columns for each in values.values() if not isinstance(each, Ref)))
        columns = [*keys.names, *sorted(needed)]
        frame = self.frame_of(rows, columns, since=since, until=until, once=once, stamped=True, opaque=opaque)
        named = [f"CAST({quoted(key.name)} AS {key.type.spark}) AS {quoted(key.name)}" for key in keys]
        computed = [f"CAST({to_sql(each, 'spark')} AS {each.type.spark}) AS {name}" for name, each in values.items()]
        stamps = [TIME, f"coalesce({KNOWN}, CAST('{NO_CREATED}' AS BIGINT)) AS {KNOWN}"]
        frame = frame.where(" AND ".join(f"{quoted(name)} IS NOT NULL" for name in keys.names))
        if known_by is not None:
            frame = frame.where(f"coalesce({KNOWN} <= {known_by}L, true)")
        found = frame.selectExpr(*named, *stamps, *computed)
        if touched is None:
            return found
        among = self._touched(rows, keys.names, touched).selectExpr(*named).distinct()
        return found.join(among, list(keys.names), "left_semi")

    def _touched(self, rows: Rows, names: Sequence[str], inputs: Collection[str]) -> Any:
        """These columns of rows of some of the inputs, the withdrawn ones too."""
        from pyspark.sql.functions import expr

        parts = self.parts(rows, inputs)
        if not (may_withdraw(rows) and parts):
            return self.frame_of(rows, list(names), inputs=inputs)
        columns = list(dict.fromkeys([*names, *rows.unique]))
        given = _union([_typed(part, columns, marked=True) for part in parts])
        own = self.frame_of(rows, rows.unique).distinct()
        same = " AND ".join(f"given.{name} <=> own.{name}" for name in map(quoted, rows.unique))
        withdrawn = given.where(OF_STREAM).alias("given").join(own.alias("own"), expr(same), "left_semi")
        return _union([each.select(*map(quoted, names)) for each in (given.where(f"NOT {OF_STREAM}"), withdrawn)])

    def parts(self, rows: Rows, inputs: Collection[str] | None = None) -> list[Part]:
        """What the rows are read from now."""
        if rows.table is not None:
            log = find_files(replace(rows, table=None, path=None))
            return [self._table(rows, inputs), *(self._delta(rows, files) for files in _among(log, inputs))]
        found: list[Part] = []
        for files in _among(find_files(rows), inputs):
            match files.format:
                case "parquet":
                    found += self._parquet(rows, files)
                case "delta":
                    found.append(self._delta(rows, files))
                case "csv":
                    found.append(self._csv(rows, files))
        return found

    def schema(self, rows: Rows) -> Schema:
        """The columns of a metastore table as they are now; those of types that no feature has are left out."""
        fields = arrow_of(self.session.table(rows.table))
        return Schema.of(**{field.name: Type.from_arrow(field.type) for field in fields})

    def table_files(self, table: str) -> dict[str, str]:
        """The files of a metastore table, each with a fingerprint."""
        context = self.session.sparkContext
        conf = self.session._jsparkSession.sessionState().newHadoopConf()
        marks = {}
        for name in self.session.table(table).inputFiles():
            path = context._jvm.org.apache.hadoop.fs.Path(context._jvm.java.net.URI(name))
            status = path.getFileSystem(conf).getFileStatus(path)
            marks[_LOCAL.sub("file:/", name)] = f"{status.getLen()}:{status.getModificationTime()}"
        return marks

    # Formats

    def _parquet(self, rows: Rows, files: Files) -> Iterator[Part]:
        """Spark wants one schema for all files it reads together, so files of different types are read apart."""
        paths = sorted(files.fingerprints)
        footers = dict(zip(paths, self._footers_of(files, paths), strict=True))
        partitions = {name: rows.schema.get(name) or STRING for name in files.partitions}
        fields = {name: (arrow, spark) for footer in footers.values() for name, spark, arrow in footer}
        others = pa.schema([(name, arrow) for name, (arrow, _) in fields.items() if name not in partitions])
        for name, type_ in partitions.items():
            others = others.append(pa.field(name, type_.arrow))
        for footer, some in groupby(sorted(paths, key=lambda path: repr(footers[path])), key=footers.__getitem__):
            own = [(name, spark, arrow) for name, spark, arrow in footer if name not in partitions]
            read = [f"{quoted(name)} {spark}" for name, spark, _ in own if name in rows.schema and spark]
            read += [f"{quoted(name)} {type_.spark}" for name, type_ in partitions.items()]
            arrow = pa.schema([(n, a) for n, _, a in own] + [(n, type_.arrow) for n, type_ in partitions.items()])
            reader = self.session.read.schema(", ".join(read)) if read else self.session.read
            if partitions:
                reader = reader.option("basePath", spark_path(self.session, base_of(files.path)))
            frame = reader.parquet(*(_GLOB.sub(r"\\\1", spark_path(self.session, path)) for path in some))
            yield Part(rows, frame, arrow, files.path, others)

    def _footers_of(self, files: Files, paths: Sequence[str]) -> list[tuple[tuple[str, str, pa.DataType], ...]]:
        missing = [path for path in paths if (path, files.fingerprints[path]) not in self._footers]
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            for path, footer in zip(missing, pool.map(_footer, missing), strict=True):
                self._footers[path, files.fingerprints[path]] = footer
        return [self._footers[path, files.fingerprints[path]] for path in paths]

    def _delta(self, rows: Rows, files: Files) -> Part:
        frame = self.session.read.format("delta").load(spark_path(self.session, files.path))
        if files.partial:
            names = [path.rpartition("/")[2] for path in files.fingerprints]
            frame = frame.where(frame["_metadata.file_name"].isin(names))  # no two files have the same
        arrow = arrow_of(frame)
        return Part(rows, frame, arrow, files.path, arrow)

    def _csv(self, rows: Rows, files: Files) -> Part:
        """A task a file."""
        fields = _csv_columns(rows, files)

        def read(batches: Batches) -> Batches:
            for batch in batches:
                for path in batch.column(0).to_pylist():
                    yield from _csv_batches(rows, files, path, fields)

        paths = [(path,) for path in files.fingerprints]
        listed = self.session.createDataFrame(paths, "path STRING").repartition(len(paths), "path")
        frame = listed.mapInArrow(carried(read), ddl(fields))
        return Part(rows, frame, fields, files.path, fields)

    def _table(self, rows: Rows, inputs: Collection[str] | None) -> Part:
        from pyspark.sql.functions import expr

        assert rows.table is not None
        frame = self.session.table(rows.table)
        if inputs is not None:
            frame = frame.where(expr(f"{_FILE} IN ({', '.join(map(text, inputs)) or 'NULL'})"))
        arrow = arrow_of(frame)
        return Part(rows, frame, arrow, rows.table, arrow)

    def _nothing(self, rows: Rows, names: Sequence[str], stamped: bool) -> Any:
        columns = []
        for name in names:
            type_ = BOOL if name == WITHDRAWN else rows.schema.get(name)
            if type_ is None:
                raise SourceError(f'source "{rows.name}" has no column "{name}"')
            columns.append(f"{quoted(name)} {type_.spark}")
        columns += [f"{short} BIGINT" for short in ((TIME, KNOWN) if stamped else ())]
        return self.session.createDataFrame([], ", ".join(columns))

    # Tables of this process

    def frame_from(self, table: pa.Table) -> Any:
        """An Arrow table as a frame, its rows in parts of `ROWS_A_BATCH`."""
        parts = [(packed(batch),) for batch in table.to_batches(max_chunksize=ROWS_A_BATCH) if batch.num_rows]

        def unpacked(batches: Batches) -> Batches:
            for batch in batches:
                for part in batch.column(0):
                    yield from pa.ipc.open_stream(part.as_buffer())

        given = self.session.createDataFrame(parts, "part BINARY")
        return given.mapInArrow(carried(unpacked), ddl(table.schema))


def schema_of_files(rows: Rows) -> Schema:
    """The columns under a path as they are now, as the embedded engine tells them."""
    with duckdb_errors(rows.name), duckdb.connect() as connection:
        return schema_of(Scan(connection, replace(rows, schema=Schema(()), unique=())))


def arrow_of(frame: Any) -> pa.Schema:
    """A frame's columns in Arrow, but those of types that no feature has."""
    from pyspark.errors import PySparkException

    fields = []
    for field in frame.schema:
        try:
            arrow = arrow_type(field.dataType)
            Type.from_arrow(arrow)
        except (PySparkException, DefinitionError):
            continue
        fields.append(pa.field(field.name, arrow))
    return pa.schema(fields)


def arrow_type(spark: Any) -> pa.DataType:
    """A type of Spark's in Arrow, as its frames hand it over. PySpark 4 wants to hear the zone of instants."""
    from pyspark.sql.pandas.types import to_arrow_type

    zone = {"timezone": "UTC"} if "timezone" in signature(to_arrow_type).parameters else {}
    return to_arrow_type(spark, **zone)


def spark_path(session: Any, path: str) -> str:
    """A path as Spark takes it, whatever its default file system is; one in S3 can be reached from then on."""
    scheme, _, rest = path.partition("://")
    if not rest:
        return f"file://{path}"
    if scheme not in ("s3", "s3a"):
        return path
    connect(session.sparkContext)
    return f"s3a://{rest}"


def remove(session: Any, path: str) -> None:
    """Remove a folder, named as `spark_path` names it, as far as that can be done."""
    from py4j.protocol import Py4JError

    place = session.sparkContext._jvm.org.apache.hadoop.fs.Path(path)
    with suppress(Py4JError):
        place.getFileSystem(session._jsparkSession.sessionState().newHadoopConf()).delete(place, True)


def _among(found: Collection[Files], inputs: Collection[str] | None) -> list[Files]:
    chosen = [files if inputs is None else files.only(frozenset(inputs)) for files in found]
    return [files for files in chosen if files.fingerprints]


def _typed(
    part: Part,
    names: Sequence[str],
    since: int | None = None,
    until: int | None = None,
    stamped: bool = False,
    opaque: Collection[str] = (),
    kept: Sequence[str] = (),
    marked: bool = False,
) -> Any:
    """Columns of a part. Rows that a stream counts are left out, or `marked` where that can be."""
    selected = [f"{part.expression(name, name in opaque)} AS {quoted(name)}" for name in names]
    selected += [quoted(name) for name in kept]
    if stamped:
        stamps = stamps_of(part.rows)
        for short in (TIME, KNOWN):
            micros = part.micros(stamps[short]) if short in stamps else "CAST(NULL AS BIGINT)"
            selected.append(f"{micros} AS {short}")
    bounded = stamped or since is not None or until is not None
    frame = part.frame.where(part.within(since, until)) if bounded else part.frame
    of_stream = counted_by_stream(part.rows, part.path)
    if marked and part.rows.before is not None:
        selected.append(f"{of_stream or 'false'} AS {OF_STREAM}")
    elif of_stream:
        frame = frame.where(f"NOT {of_stream}")
    return frame.selectExpr(*selected)


def _of_typed(frame: Any, rows: Rows, names: Sequence[str], since: int | None, until: int | None, stamped: bool) -> Any:
    selected = [quoted(name) for name in names]
    time = quoted(rows.timestamp or "")
    if stamped:
        stamps = stamps_of(rows)
        for short in (TIME, KNOWN):
            name = stamps.get(short)
            micros = f"unix_micros(CAST({quoted(name)} AS TIMESTAMP))" if name else "CAST(NULL AS BIGINT)"
            selected.append(f"{micros} AS {short}")
        frame = frame.where(f"{time} IS NOT NULL")
    if since is not None:
        frame = frame.where(f"{time} >= timestamp_micros({since}L)")
    if until is not None:
        frame = frame.where(f"{time} < timestamp_micros({until}L)")
    return frame.selectExpr(*selected)


def _first_of_each(frame: Any, rows: Rows, identity: Sequence[str]) -> Any:
    """A struct is least in order of its fields, nulls first; a minimum is taken before anything is sent."""
    from pyspark.sql.functions import expr

    order = [name for name in (rows.timestamp, rows.created) if name]
    order += [name for name in rows.schema.names if name not in order]
    groups = frame.groupBy(*map(quoted, identity))
    if not may_withdraw(rows):
        return groups.agg(expr(f"min(struct({listed(map(quoted, order))})) AS least")).selectExpr("least.*")
    least = expr(f"min(struct({listed([OF_STREAM, *map(quoted, order)])})) AS least")
    found = groups.agg(least, expr(f"bool_or({OF_STREAM}) AS {WITHDRAWN}")).where(f"NOT least.{OF_STREAM}")
    return found.selectExpr("least.*", WITHDRAWN)


def _union(frames: Sequence[Any]) -> Any:
    first, *rest = frames
    for frame in rest:
        first = first.unionAll(frame)
    return first


def _footer(path: str) -> tuple[tuple[str, str, pa.DataType], ...]:
    """Each column of a Parquet file: its name, the type to read it as ("" where Spark cannot), its Arrow type."""
    with pq.ParquetFile(open_file(path) if is_uri(path) else path) as file:
        arrow, physical = file.schema_arrow, file.schema
    of_leaf = {physical.column(n).path: physical.column(n).physical_type for n in range(len(physical))}
    columns = []
    for field in arrow:
        type_ = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if of_leaf.get(field.name) == "INT96":  # Spark's and Hive's instants
            type_ = pa.timestamp("us", "UTC")
        columns.append((field.name, _read_as(type_), type_))
    return tuple(columns)


_READ_AS = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INT",
    pa.int64(): "BIGINT",
    pa.uint8(): "SMALLINT",
    pa.uint16(): "INT",
    pa.uint32(): "BIGINT",
    pa.uint64(): "DECIMAL(20,0)",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): STRING.spark,
    pa.large_string(): STRING.spark,
    pa.binary(): BYTES.spark,
    pa.large_binary(): BYTES.spark,
    pa.date32(): "DATE",
    pa.date64(): "DATE",
}


def _read_as(arrow: pa.DataType) -> str:
    """The Spark type that a column of an Arrow type is read as."""
    if pa.types.is_timestamp(arrow):
        return "BIGINT" if arrow.unit == "ns" else "TIMESTAMP" if arrow.tz else "TIMESTAMP_NTZ"
    if pa.types.is_decimal(arrow):
        return f"DECIMAL({arrow.precision},{arrow.scale})"
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow) or pa.types.is_fixed_size_list(arrow):
        item = _read_as(arrow.value_type)
        return f"ARRAY<{item}>" if item else ""
    if pa.types.is_fixed_size_binary(arrow):
        return BYTES.spark
    return _READ_AS.get(arrow, "")


def _csv_columns(rows: Rows, files: Files) -> pa.Schema:
    """The columns of the schema that CSV files have between them, in its types; the files are looked at here."""
    with duckdb_errors(rows.name), duckdb.connect() as connection:
        found = scans.Part(connection, rows, files).arrow
    return pa.schema([field for field in rows.schema.arrow if field.name in found.names])


def _csv_batches(rows: Rows, files: Files, path: str, fields: pa.Schema) -> Batches:
    with duckdb_errors(rows.name), duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        part = scans.Part(connection, rows, files.only(frozenset({path})))
        there = set(part.arrow.names)
        selected = scans.listed(
            f"{part.expression(name) if name in there else f'CAST(NULL AS {type_.duckdb})'} AS {scans.quoted(name)}"
            for name, type_ in ((name, rows.schema.get(name)) for name in fields.names)
            if type_ is not None
        )
        for batch in connection.sql(f"SELECT {selected} FROM {part.relation}").to_arrow_reader(ROWS_A_BATCH):
            yield pa.RecordBatch.from_arrays(
                [column.cast(field.type) for column, field in zip(batch.columns, fields, strict=True)], schema=fields
            )


def packed(batch: pa.RecordBatch) -> bytes:
    """A batch as bytes."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    made: bytes = stream.getvalue().to_pybytes()
    return made
