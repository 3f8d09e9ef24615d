"""Rows as bytes: what every online store keeps for a key.

Format, all integers big-endian:

    0      version, 1
    1-16   event time, created: microseconds, 8 bytes each with the sign bit flipped, so that they compare as bytes
    17-18  the number of fields
    19-    a bit a field, set where it is null, field 0 in the lowest bit of the first byte
    then   a field each of fixed width, zeros where null: numbers as they are, DECIMAL the unscaled value in 16 bytes,
           STRING, BYTES and ARRAY 4 bytes saying where the value ends, counted from the end of this part
    then   the bytes of STRING, BYTES and ARRAY fields, one after the other

An ARRAY: 4 bytes with the number of items, a byte that is 1 if a bitmap of nulls follows, the bitmap, then the items as
the fields above: of fixed width, or where each ends and then their bytes. Fields may be added at the end of a schema:
those that a row was written without read as null.
"""

from __future__ import annotations

import decimal
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, reduce
from operator import or_
from typing import Any

import numpy as np
import pyarrow as pa

from feature_store.errors import InvalidInputError, StoreUnavailableError
from feature_store.storage.keys import slices
from feature_store.storage.online import CREATED, EVENT_TIME, ITEM, Row, Table
from feature_store.types import BYTES, INT64, Column, Schema, Type

VERSION = 1
STAMP = slice(1, 17)
"""Where a row's event time and created are: of two rows of a key the one whose stamp is greater as bytes wins."""

_SIGN = 2**63
_HEADER = struct.Struct(">BQQH")
_CHUNK = 65_536
_FEW = 6
"""So many rows are decoded faster one by one than as columns."""
_FORMATS = {"INT32": "i", "INT64": "q", "FLOAT32": "f", "FLOAT64": "d", "BOOL": "?", "TIMESTAMP": "q", "DATE": "i"}
_DTYPES = {"i": ">i4", "q": ">i8", "f": ">f4", "d": ">f8", "?": "?", "16s": "V16", "I": ">u4"}
_DIGITS = decimal.Context(prec=80)

Values = tuple[Any, ...]
Array = np.ndarray[Any, Any]


class RowCodec:
    """Rows of one schema of values to bytes and back, exactly."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._formats = [_format(column.type) for column in schema]
        self._nulls = (len(schema) + 7) // 8
        self._dtype = _dtype(self._formats, self._nulls)
        self._names = [f"f{i}" for i in range(len(schema))]
        self._size = self._dtype.itemsize
        self._pieces, self._decimals = _pieces(schema), _decimals(schema)
        self._heads = [(0, VERSION), *zip((17, 18), len(schema).to_bytes(2, "big"), strict=True)]
        self.decode = _decoder(schema)
        """The row of some bytes; `StoreUnavailableError` if they are of a later version or no row."""

    def encode(self, rows: pa.Table) -> list[bytes]:
        """The bytes of each row of a table: the columns of the schema, `EVENT_TIME` and `CREATED`."""
        names = [EVENT_TIME, CREATED, *self._schema.names]
        missing = [name for name in names if name not in rows.column_names]
        if missing:
            raise InvalidInputError(f'the rows lack the column "{missing[0]}"')
        encoded: list[bytes] = []
        for batch in rows.select(names).to_batches(max_chunksize=_CHUNK):
            encoded += self._encode_batch(batch)
        return encoded

    def decode_all(self, rows: Sequence[bytes]) -> tuple[int, Sequence[Sequence[Any]]]:
        """The latest event time and the columns of values of rows, one or more, as `decode` gives them row by row."""
        count, size = len(rows), self._size
        whole = b"".join([row[:size] for row in rows] if self._pieces else rows) if count > _FEW else b""
        # The head of the first row that has other fields or a later version is where it should be, so it is found.
        if len(whole) != count * size or any(whole[at::size].count(byte) != count for at, byte in self._heads):
            times, _, values = zip(*map(self.decode, rows), strict=True)
            return max(times), tuple(zip(*values, strict=True))
        fixed = np.frombuffer(whole, self._dtype)
        columns: list[list[Any]] = [fixed[name].tolist() for name in self._names]
        starts = [0] * count
        for i, decode_piece in self._pieces:
            ends = columns[i]
            cut = zip(rows, starts, ends, strict=True)
            columns[i], starts = [decode_piece(row[size + a : size + b]) for row, a, b in cut], ends
        for i, scale in self._decimals:
            columns[i] = [_decode_decimal(value, scale) for value in columns[i]]
        for i in range(self._nulls):
            _blank_columns(columns, 8 * i, whole[_HEADER.size + i :: size])
        return int(fixed["event_time"].max()) - _SIGN, columns

    def _encode_batch(self, batch: pa.RecordBatch) -> list[bytes]:
        fixed = np.zeros(batch.num_rows, self._dtype)
        fixed["version"] = VERSION
        fixed["fields"] = len(self._schema)
        fixed["event_time"], fixed["created"] = _stamp(batch.column(0)), _stamp(batch.column(1))
        nulls = np.zeros((batch.num_rows, self._nulls * 8), np.bool_)
        variable: list[list[bytes]] = []
        ends = np.zeros(batch.num_rows, np.int64)
        for i, column in enumerate(self._schema):
            values = _raw(batch.column(i + 2), column)
            if values.null_count:
                nulls[:, i] = values.is_null().to_numpy(zero_copy_only=False)
            if self._formats[i] == "I":
                pieces = _encode_variable(values, column.type)
                ends += np.fromiter(map(len, pieces), np.int64, len(pieces))
                fixed[f"f{i}"] = ends
                variable.append(pieces)
            else:
                fixed[f"f{i}"] = _fixed(values, column.type)
        if self._nulls:
            fixed["nulls"] = np.packbits(nulls, axis=1, bitorder="little")
        if variable and ends.max(initial=0) >= 2**32:
            raise InvalidInputError("a row of 4 GiB or more cannot be stored")
        heads: list[bytes] = fixed.view(f"V{fixed.itemsize}").tolist()
        return list(map(b"".join, zip(heads, *variable, strict=True))) if variable else heads


@cache
def row_codec(schema: Schema) -> RowCodec:
    """The codec of a schema of values, made once."""
    return RowCodec(schema)


class Items(Mapping[bytes, Row]):
    """The rows of one key by item, kept as bytes: a row is decoded when it is asked for."""

    __slots__ = ("_codec", "_rows")

    def __init__(self, codec: RowCodec, rows: dict[bytes, bytes]) -> None:
        self._codec = codec
        self._rows = rows

    def __getitem__(self, item: bytes) -> Row:
        return self._codec.decode(self._rows[item])

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, item: object) -> bool:
        return item in self._rows

    def __repr__(self) -> str:
        return repr(dict(self))

    def columns(self, items: Sequence[bytes]) -> tuple[int, Sequence[Sequence[Any]]]:
        """The latest event time of some items, one or more, and the columns of their values: far faster than row by
        row."""
        return self._codec.decode_all([*map(self._rows.__getitem__, items)])


def raw_type(type_: Type) -> pa.DataType:
    """The Arrow type whose `to_pylist` gives row values: integers for TIMESTAMP and DATE, in arrays too."""
    if type_.item:
        return pa.list_(raw_type(type_.item))
    return {"TIMESTAMP": pa.int64(), "DATE": pa.int32()}.get(type_.kind, type_.arrow)


def to_arrow(values: Sequence[Any], type_: Type) -> pa.Array:
    """Row values as an Arrow array of a type."""
    return cast(pa.array(values, raw_type(type_)), type_.arrow)


def cast(values: Any, type_: pa.DataType) -> Any:
    """An array as another type. Where it is of that type already, Arrow's own takes long to find out, which matters to
    small batches."""
    return values if values.type == type_ else values.cast(type_)


def columns_of(table: Table) -> tuple[Column, ...]:
    """The columns that a store takes and gives for a table: keys, values, `EVENT_TIME`, `CREATED`, perhaps `ITEM`."""
    items = (Column(ITEM, BYTES),) if table.items else ()
    return (*table.keys, *table.values, Column(EVENT_TIME, INT64), Column(CREATED, INT64), *items)


def items_of(rows: pa.Table) -> list[bytes]:
    """The items of rows of a table with items."""
    if ITEM not in rows.column_names:
        raise InvalidInputError(f'the rows lack the column "{ITEM}"')
    items: list[bytes] = rows.column(ITEM).to_pylist()
    if not all(items):
        raise InvalidInputError("an item is null or empty")
    return items


def to_batch(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    """Rows of row values as Arrow."""
    by_column = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    arrays = [to_arrow(values, column.type) for column, values in zip(columns, by_column, strict=True)]
    return pa.record_batch(arrays, schema=Schema(tuple(columns)).arrow)


def _format(type_: Type) -> str:
    """The `struct` format of a field in the fixed part: `I`, where it ends, for those of variable width."""
    return "16s" if type_.kind == "DECIMAL" else _FORMATS.get(type_.kind, "I")


def _dtype(formats: Sequence[str], nulls: int) -> np.dtype[Any]:
    fields: list[Any] = [("version", "u1"), ("event_time", ">u8"), ("created", ">u8"), ("fields", ">u2")]
    fields += [("nulls", "u1", (nulls,))] if nulls else []
    return np.dtype(fields + [(f"f{i}", _DTYPES[format_]) for i, format_ in enumerate(formats)])


def _stamp(times: pa.Array) -> Array:
    if times.null_count:
        raise InvalidInputError("a row has no event time, or a null created time")
    micros: Array = cast(times, pa.int64()).to_numpy()
    return micros.view(np.uint64) ^ np.uint64(_SIGN)


def _raw(values: pa.Array, column: Column) -> pa.Array:
    """The values as their type's raw Arrow type, without dictionaries and large offsets."""
    wanted = raw_type(column.type)
    if values.type == wanted:
        return values
    try:
        return values.cast(column.type.arrow).cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InvalidInputError(f'the column "{column.name}" is not {column.type}: {error}') from None


def _fixed(values: pa.Array, type_: Type) -> Array:
    """The values of fixed width as numpy, zero where null; DECIMAL as 16 bytes."""
    if type_.kind == "DECIMAL":
        data = np.frombuffer(values.buffers()[1], np.uint8)[values.offset * 16 : (values.offset + len(values)) * 16]
        digits = np.ascontiguousarray(data.reshape(-1, 16)[:, ::-1])
        if values.null_count:
            digits[values.is_null().to_numpy(zero_copy_only=False)] = 0
        return digits.view("V16").ravel()
    if values.null_count:
        values = values.fill_null(False if type_.kind == "BOOL" else 0)
    array: Array = values.to_numpy(zero_copy_only=False)
    return array


def _encode_variable(values: pa.Array, type_: Type) -> list[bytes]:
    """The bytes of each value, empty where null."""
    if type_.item:
        return _encode_arrays(values, type_.item)
    return slices(values.cast(pa.binary()).fill_null(b"") if values.null_count else values.cast(pa.binary()))


def _encode_arrays(values: pa.Array, item: Type) -> list[bytes]:
    format_ = _format(item)
    items = values.flatten()
    if format_ in ("I", "16s", "?") or items.null_count:
        return [b"" if value is None else _encode_array(value, item) for value in values.to_pylist()]
    data = items.to_numpy(zero_copy_only=False).astype(_DTYPES[format_]).tobytes()
    width = struct.calcsize(">" + format_)
    lengths = values.value_lengths().fill_null(0).to_numpy()
    ends = np.cumsum(lengths, dtype=np.int64) * width
    present = values.is_valid().to_pylist()
    parts = zip(lengths.tolist(), ends.tolist(), present, strict=True)
    pack = struct.Struct(">I?").pack
    return [pack(n, False) + data[end - n * width : end] if valid else b"" for n, end, valid in parts]


def _encode_array(items: list[Any], type_: Type) -> bytes:
    """One array of row values."""
    format_ = _format(type_)
    has_nulls = None in items
    bitmap = np.packbits([value is None for value in items], bitorder="little").tobytes() if has_nulls else b""
    head = struct.pack(">I?", len(items), has_nulls) + bitmap
    if format_ == "I":
        pieces = [b"" if value is None else _encode_piece(value, type_) for value in items]
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.uint32)
        return head + ends.astype(">u4").tobytes() + b"".join(pieces)
    if format_ == "16s":
        return head + b"".join(_encode_decimal(value or decimal.Decimal(0), type_.scale) for value in items)
    return head + struct.pack(f">{len(items)}{format_}", *(0 if value is None else value for value in items))


def _encode_piece(value: Any, type_: Type) -> bytes:
    if type_.item:
        return _encode_array(value, type_.item)
    return value.encode() if type_.kind == "STRING" else bytes(value)


def _encode_decimal(value: decimal.Decimal, scale: int) -> bytes:
    return int(_DIGITS.scaleb(value, scale)).to_bytes(16, "big", signed=True)


def _decode_decimal(data: bytes, scale: int) -> decimal.Decimal:
    return _DIGITS.scaleb(decimal.Decimal(int.from_bytes(data, "big", signed=True)), -scale)


def _decode_array(data: bytes, type_: Type) -> list[Any]:
    count, has_nulls = struct.unpack_from(">I?", data)
    start = 5 + ((count + 7) // 8 if has_nulls else 0)
    format_ = _format(type_)
    layout = format_ * count if format_ == "16s" else f"{count}{format_}"
    items: list[Any] = list(struct.unpack_from(">" + layout, data, start))
    if format_ == "16s":
        items = [_decode_decimal(value, type_.scale) for value in items]
    if format_ == "I":
        first, decode = start + 4 * count, _decode_piece(type_)
        items = [decode(data[first + a : first + b]) for a, b in zip([0, *items], items, strict=False)]
    if has_nulls:
        bits = int.from_bytes(data[5:start], "little")
        items = [None if bits >> i & 1 else value for i, value in enumerate(items)]
    return items


def _pieces(schema: Schema) -> list[tuple[int, Callable[[bytes], Any]]]:
    """The places of the fields of variable width, and what decodes each."""
    return [(i, _decode_piece(column.type)) for i, column in enumerate(schema) if _format(column.type) == "I"]


def _decimals(schema: Schema) -> list[tuple[int, int]]:
    """The places of the DECIMAL fields, and the scale of each."""
    return [(i, column.type.scale) for i, column in enumerate(schema) if _format(column.type) == "16s"]


def _decode_piece(type_: Type) -> Callable[[bytes], Any]:
    item = type_.item
    if item:
        return lambda data: _decode_array(data, item) if data else []
    return bytes.decode if type_.kind == "STRING" else bytes


def _decoder(schema: Schema) -> Callable[[bytes], Row]:
    """What decodes one row at a time. A row of plain numbers takes one `unpack`: this is the hot path of serving."""
    formats = [_format(column.type) for column in schema]
    count, no_nulls = len(schema), bytes((len(schema) + 7) // 8)
    layout = struct.Struct(f">BQQH{len(no_nulls)}s{''.join(formats)}")
    size = layout.size
    variable, decimals = _pieces(schema), _decimals(schema)
    plain, unpack, new = not variable and not decimals, layout.unpack_from, tuple.__new__

    def convert(values: list[Any], data: bytes) -> None:
        start = size
        for i, decode_piece in variable:
            end = size + values[i]
            values[i] = decode_piece(data[start:end])
            start = end
        for i, scale in decimals:
            values[i] = _decode_decimal(values[i], scale)

    def decode(data: bytes) -> Row:
        try:
            all_fields = unpack(data)
        except struct.error:
            return _decode_other(data, schema)
        version, event_time, created, fields, nulls = all_fields[:5]
        if version != VERSION or fields != count:
            return _decode_other(data, schema)
        if plain and nulls == no_nulls:
            return new(Row, (event_time - _SIGN, created - _SIGN, all_fields[5:]))
        values = list(all_fields[5:])
        convert(values, data)
        _blank(values, nulls)
        return Row(event_time - _SIGN, created - _SIGN, tuple(values))

    return decode


def _decode_other(data: bytes, schema: Schema) -> Row:
    """A row written with fewer fields, or an error."""
    if len(data) < _HEADER.size or data[0] != VERSION:
        raise StoreUnavailableError(
            f"a stored row begins with {data[:1]!r}, which this version cannot read",
            hint="Upgrade, or materialize the view again",
        )
    fields = _HEADER.unpack_from(data)[3]
    if fields >= len(schema):
        raise StoreUnavailableError(f"a stored row is damaged or has {fields} fields, not {len(schema)}")
    row = row_codec(Schema(schema.columns[:fields])).decode(data)
    return row._replace(values=row.values + (None,) * (len(schema) - fields))


def _blank(values: list[Any], nulls: bytes) -> None:
    bits = int.from_bytes(nulls, "little")
    while bits:
        lowest = bits & -bits
        values[lowest.bit_length() - 1] = None
        bits ^= lowest


def _blank_columns(columns: list[list[Any]], first: int, marks: bytes) -> None:
    """Put the nulls into eight columns: of each row the byte of its bitmap that is about them."""
    bits = reduce(or_, set(marks))
    for i in range(bits.bit_length()):
        if bits >> i & 1:
            columns[first + i] = [None if m >> i & 1 else v for m, v in zip(marks, columns[first + i], strict=True)]
