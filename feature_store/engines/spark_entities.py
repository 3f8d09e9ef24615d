"""Entity rows as Spark frames: given as a DataFrame, a file, or a table of this process.

Every column that was given rides along in one struct, `GIVEN`; `ORDER` are the columns that rows are sorted by to stand
as they were given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.engines.spark_joins import AT
from feature_store.engines.spark_rows import Reader, quoted, spark_path
from feature_store.engines.spark_session import Batches, carried, failing, mapped
from feature_store.errors import DefinitionError, InvalidInputError, SourceError
from feature_store.frames import read_table
from feature_store.storage.remote import is_uri, list_files, open_file
from feature_store.types import INT64, TIMESTAMP, Schema, Type

GIVEN = "__given"
ORDER = ("__order_file", "__order_block", "__order_row")

_HERE = ("''", "0L", "monotonically_increasing_id()")
_IN_FILES = ("_metadata.file_path", "_metadata.file_block_start", "monotonically_increasing_id()")
_INSTANTS = {
    "timestamp": "unix_micros({})",
    "timestamp_ntz": "unix_micros(CAST({} AS TIMESTAMP))",
    "date": "unix_micros(CAST({} AS TIMESTAMP))",
}
_WHOLE = {"tinyint": 1, "smallint": 2, "int": 4, "bigint": 8}


def entity_frame(reader: Reader, data: Any, texts: Collection[str] = ()) -> Any:
    """`GIVEN` and `ORDER` of a Spark DataFrame, the path of Parquet or CSV, or what `frames.read_table` takes; `texts`
    as there."""
    if is_frame(data):
        return _framed(_adopted(reader, data), _HERE)
    with mapped("the entity rows"):
        return _file(reader, str(data), texts) if isinstance(data, (str, Path)) else _table(reader, read_table(data))


def is_frame(data: Any) -> bool:
    """Whether it is a Spark DataFrame."""
    return type(data).__module__.startswith("pyspark.") and hasattr(data, "mapInArrow")


def asking_frame(
    frame: Any, time: str, keys: Mapping[str, tuple[str, Type]], prepare: Callable[[pa.Table], pa.Table]
) -> Any:
    """An entity frame with `AT`, the column `time` in microseconds, and columns of keys: by their names there, the
    given column and the type. What needs no check is said in SQL; otherwise the executors call `prepare` with the
    given columns, which returns `AT` and the keys in Arrow."""
    given = {field.name: field.dataType.simpleString() for field in frame.schema[GIVEN].dataType}
    read = {name: _plain(f"{GIVEN}.{quoted(column)}", given[column], type_) for name, (column, type_) in keys.items()}
    instant = _INSTANTS.get(given[time])
    if instant is not None and all(read.values()):
        said = failing(
            "InvalidInputError", f"'a row of the entity rows has no {time}'", "Every row asks as of its own time"
        )
        at = f"coalesce({instant.format(f'{GIVEN}.{quoted(time)}')}, CAST({said} AS BIGINT)) AS {AT}"
        return frame.selectExpr("*", at, *(f"{text} AS {quoted(name)}" for name, text in read.items()))

    def prepared(batches: Batches) -> Batches:
        for batch in batches:
            found = prepare(columns_of(batch, GIVEN)).combine_chunks()
            fields = [*batch.schema, *found.schema]
            arrays = [*batch.columns, *(_one(found[name]) for name in found.column_names)]
            yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    types = Schema.of(**{AT: INT64}, **{name: type_ for name, (_, type_) in keys.items()})
    return frame.mapInArrow(carried(prepared), with_columns(frame.schema, types))


def with_columns(schema: Any, more: Schema) -> Any:
    """A frame's schema with nullable columns behind."""
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import StructType

    return StructType([*schema.fields, *from_arrow_schema(more.arrow, prefer_timestamp_ntz=False).fields])


def columns_of(batch: pa.RecordBatch, name: str) -> pa.Table:
    """The fields of a column of structs, null where the struct is."""
    struct = batch.column(batch.schema.get_field_index(name))
    fields = list(struct.type)
    return pa.Table.from_arrays(struct.flatten(), schema=pa.schema(fields))


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _plain(text: str, given: str, type_: Type) -> str:
    """SQL of a key column where every value of it is one of the type; "" otherwise."""
    wanted = type_.spark.lower()
    if given == wanted:
        return text
    wider = given in _WHOLE and wanted in _WHOLE and _WHOLE[given] < _WHOLE[wanted]
    return f"CAST({text} AS {type_.spark})" if wider else ""


def _framed(frame: Any, order: tuple[str, ...], columns: Mapping[str, str] | None = None) -> Any:
    read = columns or {name: quoted(name) for name in frame.columns}
    struct = ", ".join(f"{text} AS {quoted(name)}" for name, text in read.items())
    named = [f"{text} AS {name}" for text, name in zip(order, ORDER, strict=True)]
    return frame.selectExpr(*named, f"struct({struct}) AS {GIVEN}")


def _adopted(reader: Reader, frame: Any) -> Any:
    """A DataFrame of whatever session, under the conf of ours: the zone and the mode that casts go by."""
    if frame.sparkSession.sparkContext is not reader.session.sparkContext:
        raise InvalidInputError(
            "the DataFrame belongs to another Spark", hint="Make it with this process's SparkSession"
        )
    return reader.session.createDataFrame([], frame.schema).unionAll(frame)


def _file(reader: Reader, path: str, texts: Collection[str]) -> Any:
    if not is_uri(path) and not Path(path).exists():
        raise SourceError(f"there is no file {path}")
    place, read = located(reader.session, path), reader.session.read
    if path.endswith(".csv"):
        frame = _csv(reader, place, texts)
        # Whole numbers are INT64 in a table read from CSV, however small they are.
        types = {field.name: field.dataType.simpleString() for field in frame.schema}
        wide = {name: f"CAST({quoted(name)} AS BIGINT)" for name, type_ in types.items() if type_ == "int"}
        return _framed(frame, _IN_FILES, {name: wide.get(name, quoted(name)) for name in frame.columns})
    frame = read.parquet(place)
    return _framed(frame, _IN_FILES, {name: _in_micros(name, _nanoseconds(path)) for name in frame.columns})


def _csv(reader: Reader, place: str, texts: Collection[str]) -> Any:
    """A key such as 00501 is no number, whatever Spark infers."""
    from pyspark.sql.types import StringType, StructField, StructType

    read = reader.session.read.options(header=True, escape='"')
    frame = read.csv(place, inferSchema=True)
    if not texts:
        return frame
    fields = [StructField(each.name, StringType()) if each.name in texts else each for each in frame.schema]
    return read.schema(StructType(fields)).csv(place)


def located(session: Any, path: str) -> str:
    """A path of this process, or a URI, as Spark takes it."""
    return spark_path(session, path if is_uri(path) else str(Path(path).resolve()))


def _nanoseconds(path: str) -> Mapping[str, bool]:
    """Columns of nanoseconds, which Spark reads as numbers; whether each has a zone."""
    if is_uri(path):
        uris = sorted(each for each in list_files(path) if each == path or each.endswith(".parquet"))
        fields = pq.read_schema(open_file(uris[0])) if uris else ()
    else:
        files = sorted(Path(path).rglob("*.parquet")) if Path(path).is_dir() else [Path(path)]
        fields = pq.read_schema(files[0]) if files else ()
    return {f.name: f.type.tz is not None for f in fields if pa.types.is_timestamp(f.type) and f.type.unit == "ns"}


def _in_micros(name: str, nanoseconds: Mapping[str, bool]) -> str:
    if name not in nanoseconds:
        return quoted(name)
    instant = f"timestamp_micros(({quoted(name)} - pmod({quoted(name)}, 1000L)) div 1000L)"
    return instant if nanoseconds[name] else f"CAST({instant} AS TIMESTAMP_NTZ)"


def _table(reader: Reader, table: pa.Table) -> Any:
    columns, read = {}, {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            type_ = Type.from_arrow(column.type)
        except DefinitionError as error:
            raise InvalidInputError(f'the entity rows\' column "{name}": {error}') from None
        naive = pa.types.is_timestamp(column.type) and column.type.tz is None
        if type_ == TIMESTAMP:
            column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        columns[name] = column.cast(type_.arrow)
        read[name] = f"CAST({quoted(name)} AS TIMESTAMP_NTZ)" if naive else quoted(name)
    return _framed(reader.frame_from(pa.table(columns)), _HERE, read)
