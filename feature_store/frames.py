"""Tables as people hand them over (DataFrames, Arrow, lists, files) and as the inside wants them: Arrow, typed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_store.errors import InvalidInputError, MissingExtraError, SourceError, nearest
from feature_store.types import TIMESTAMP, Column, Schema, Type

_SUFFIXES = (".parquet", ".csv")


def read_table(data: Any, texts: Collection[str] = ()) -> pa.Table:
    """An Arrow table from a pandas or polars DataFrame, an Arrow table or reader, a list of dicts, a mapping of
    columns, or the path of a Parquet or CSV file. `texts`: the columns of a CSV file that are text, whatever it looks
    like: a key such as 00501 is no number.

    Raises:
        InvalidInputError: it is none of these, or its columns are of unequal length.
        SourceError: the file cannot be read.
    """
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, (str, Path)):
        return read_file(Path(data), texts)
    if isinstance(data, pa.RecordBatchReader):
        return data.read_all()
    if isinstance(data, Mapping):
        return _from_columns(data)
    if isinstance(data, (list, tuple)) and all(isinstance(row, Mapping) for row in data):
        names = list(dict.fromkeys(name for row in data for name in row))
        return _from_columns({name: [row.get(name) for row in data] for name in names})
    if type(data).__module__.startswith("pyspark."):
        raise InvalidInputError(
            "a Spark DataFrame stays on Spark", hint='Ask with engine="spark", or give its rows: data.toPandas()'
        )
    if hasattr(data, "to_arrow"):
        return pa.table(data.to_arrow())
    if type(data).__module__.split(".")[0] == "pandas":
        return pa.Table.from_pandas(data, preserve_index=False).replace_schema_metadata(None)
    raise InvalidInputError(
        f"{type(data).__name__} is not a table",
        hint="Give a DataFrame, an Arrow table, a list of dicts, a dict of columns, or a .parquet or .csv file",
    )


def _from_columns(columns: Mapping[str, Any]) -> pa.Table:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise InvalidInputError(f"columns are of unequal length ({shown})")
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pa.array(_without_nat(values))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
            raise InvalidInputError(f'column "{name}" holds values of different types: {error}') from None
    return pa.table(arrays)


def _without_nat(values: Any) -> Any:
    """A list in which pandas' NaT, which Arrow does not know among datetimes, is null."""
    if isinstance(values, list) and any(type(value).__name__ == "NaTType" for value in values):
        return [None if type(value).__name__ == "NaTType" else value for value in values]
    return values


def read_file(path: Path, texts: Collection[str] = ()) -> pa.Table:
    """A Parquet or CSV file, by its ending, or a directory of Parquet files; `texts` as for `read_table`."""
    import pyarrow.csv
    import pyarrow.parquet

    if not path.exists():
        raise SourceError(f"there is no file {path}")
    try:
        if path.suffix == ".csv":
            return _read_csv(path, texts)
        if path.is_dir() or path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    raise InvalidInputError(f"{path} is neither Parquet nor CSV", hint=f"It should end in {' or '.join(_SUFFIXES)}")


def _read_csv(path: Path, texts: Collection[str]) -> pa.Table:
    """In a column of text an empty cell is null, "" in quotes is the empty text, and NA or null is a text."""
    from pyarrow.csv import ConvertOptions, read_csv

    table = read_csv(path, convert_options=ConvertOptions(column_types={name: pa.string() for name in texts}))
    types = {field.name: field.type for field in table.schema if pa.types.is_string(field.type)}
    if not any(pc.any(pc.equal(table[name], "")).as_py() for name in types):
        return table
    # What reads types takes NA for a null too, so text is read by itself.
    again = read_csv(
        path,
        convert_options=ConvertOptions(
            include_columns=list(types),
            column_types=types,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    for name in types:
        table = table.set_column(table.column_names.index(name), name, again[name])
    return table


def is_file(path: str | Path) -> bool:
    """Whether a path is that of one Parquet or CSV file on this machine, by its ending."""
    return "://" not in str(path) and Path(path).suffix in _SUFFIXES


def write_file(table: pa.Table, path: Path) -> None:
    """Write a Parquet or CSV file, by its ending, whole or not at all."""
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix not in _SUFFIXES:
        raise InvalidInputError(f"{path} is neither Parquet nor CSV", hint=f"It should end in {' or '.join(_SUFFIXES)}")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(_flat(table), partial)
        else:
            pyarrow.parquet.write_table(table, partial)
        partial.replace(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _flat(table: pa.Table) -> pa.Table:
    """CSV has no lists, and times of no form: lists are written as JSON text, times as ISO 8601 in UTC."""
    import json

    for index, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = [None if item is None else json.dumps(item, default=str) for item in table[index].to_pylist()]
            table = table.set_column(index, field.name, pa.array(texts, pa.string()))
        elif pa.types.is_timestamp(field.type):
            table = table.set_column(index, field.name, _iso(to_instants(table[index])))
    return table


def _iso(instants: pa.ChunkedArray) -> pa.ChunkedArray:
    """2026-11-23T12:00:00Z, with a fraction only where there is one."""
    texts = pc.strftime(instants, format="%Y-%m-%dT%H:%M:%SZ")
    return pc.replace_substring(texts, ".000000Z", "Z")


def conform(table: pa.Table, schema: Schema, what: str, *, optional: frozenset[str] = frozenset()) -> pa.Table:
    """The columns of `schema`, in its order and types; `optional` ones may be missing and are null then.

    Raises:
        InvalidInputError: a column is missing or unknown, or a value does not fit its type; it names the column,
            the row and the value.
    """
    if not table.num_columns:  # an empty list of rows does not name any
        return schema.arrow.empty_table()
    for name in table.column_names:
        if name not in schema:
            hint = nearest(name, schema.names) or f"Its columns are {', '.join(schema.names)}"
            raise InvalidInputError(f'{what} has no column "{name}"', hint=hint)
    arrays = []
    for column in schema:
        if column.name in table.column_names:
            arrays.append(conform_column(table[column.name], column, what))
        elif column.name in optional:
            arrays.append(pa.nulls(table.num_rows, column.type.arrow))
        else:
            raise InvalidInputError(f'{what}: column "{column.name}" is missing')
    return pa.table(arrays, schema=schema.arrow)


def conform_column(values: pa.ChunkedArray, column: Column, what: str) -> pa.ChunkedArray:
    """One column in its declared type, without loss: text is a number only where the file had no types (never), a
    fraction is no integer, text may be a time."""
    target = column.type.arrow
    if values.type == target:
        return values
    try:
        return _cast(values, column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, InvalidInputError) as error:
        row, value = _first_misfit(values, column.type)
        raise InvalidInputError(
            f'{what}: column "{column.name}" wants {column.type}, row {row} holds {value!r}'
            if row is not None
            else f'{what}: column "{column.name}" wants {column.type}, not {values.type} ({error})'
        ) from None


def _cast(values: pa.ChunkedArray, type_: Type) -> pa.ChunkedArray:
    source, target = values.type, type_.arrow
    if pa.types.is_dictionary(source):
        values, source = values.cast(source.value_type), source.value_type
    if pa.types.is_null(source):
        return values.cast(target)
    if type_ == TIMESTAMP:
        return to_instants(values)
    same_kind = (
        (_is_number(source) and type_.is_numeric)
        or (pa.types.is_large_string(source) and type_.kind == "STRING")
        or (pa.types.is_large_binary(source) and type_.kind == "BYTES")
        or (pa.types.is_nested(source) and type_.kind == "ARRAY")
        or (type_.kind == "DATE" and (pa.types.is_date(source) or pa.types.is_string(source)))
        or (type_.kind == "DECIMAL" and pa.types.is_string(source))
    )
    if not same_kind:
        raise InvalidInputError(f"{source} does not become {type_}")
    if type_.kind == "FLOAT32" and pa.types.is_float64(source):
        return values.cast(target, safe=False)
    return values.cast(target)


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))


def to_instants(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Timestamps, dates or ISO 8601 text as timestamp[us, UTC]; naive times are UTC."""
    target = TIMESTAMP.arrow
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        from feature_store.expressions.instants import instant

        micros = [None if text is None else instant(text) for text in values.to_pylist()]
        return pa.chunked_array([pa.array(micros, pa.int64()).cast(target)])
    if pa.types.is_date(values.type):
        return values.cast(pa.timestamp("us")).cast(target)
    if pa.types.is_timestamp(values.type):
        micros = pc.cast(values, pa.timestamp("us", values.type.tz), safe=False)
        return pc.cast(micros, target) if values.type.tz else pc.assume_timezone(micros, "UTC")
    raise InvalidInputError(f"{values.type} is not a time")


def _first_misfit(values: pa.ChunkedArray, type_: Type) -> tuple[int | None, Any]:
    """Where a column stops fitting, by bisection over prefixes: (row, value), or (None, None)."""
    low, high = 0, len(values)
    if not high:
        return None, None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _cast(values.slice(low, middle - low), type_)
            low = middle
        except Exception:
            high = middle
    return low, values[low].as_py()


def require(extra: str, needed_for: str) -> Any:
    """Import an optional library, or say what to install."""
    import importlib

    try:
        return importlib.import_module(extra)
    except ImportError:
        raise MissingExtraError(extra, needed_for) from None
