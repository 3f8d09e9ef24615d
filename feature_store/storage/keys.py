"""Entity keys as bytes: typed, self-delimiting, and sorting as the values do.

Format, one version byte and then each value with a tag (after FoundationDB's tuple layer, but no key is the beginning
of another one of its schema, so a store may append an item):

    BYTES      01, the bytes with 00 written as 00 01, 00 00
    STRING     02, the UTF-8 bytes with 00 written as 00 01, 00 00
    INT32/64   15, 8 bytes big-endian with the sign bit flipped
    BOOL       26 for false, 27 for true
    TIMESTAMP  32, microseconds as an INT64
    DATE       33, days since the epoch, 4 bytes big-endian with the sign bit flipped
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.errors import DefinitionError, InvalidInputError
from feature_store.storage.online import Key
from feature_store.types import Column, Schema

VERSION = 1
_VERSION = bytes([VERSION])
_BYTES, _STRING, _INT, _FALSE, _TRUE, _TIMESTAMP, _DATE = 0x01, 0x02, 0x15, 0x26, 0x27, 0x32, 0x33
_TAGS = {"BYTES": _BYTES, "STRING": _STRING, "INT32": _INT, "INT64": _INT, "TIMESTAMP": _TIMESTAMP, "DATE": _DATE}
_SIGN = {4: 2**31, 8: 2**63}
_WIDTHS = {_INT: 8, _TIMESTAMP: 8, _DATE: 4}
_LONG, _SHORT = struct.Struct(">BQ"), struct.Struct(">BI")
_WHOLE_LONG = struct.Struct(">BBQ")

KEY_KINDS = (*_TAGS, "BOOL")
"""The kinds of type that a key column may have."""

MOST_BYTES = 16_000
"""So many bytes of text in a key every store takes. HBase has room for 32,767, and a zero is encoded as two."""

Encode = Callable[[Any], bytes]


class KeyCodec:
    """Keys of one schema to bytes and back: `decode(encode(key)) == key`, and keys sort as their bytes do.

    `InvalidInputError` for a null, a value of another type or out of range; it names the column.
    """

    def __init__(self, schema: Schema) -> None:
        self._columns = schema.columns
        self._encoders = [_encoder(column) for column in schema]
        self._single = _single_encoder(schema)

    def encode(self, key: Key) -> bytes:
        """The bytes of one key: its values in the order of the schema, TIMESTAMP and DATE as integers."""
        return self.encode_all((key,))[0]

    def encode_all(self, keys: Sequence[Key]) -> list[bytes]:
        """The bytes of each key."""
        if self._single is not None:
            try:
                return self._single(keys)
            except (TypeError, ValueError, AttributeError, struct.error):
                pass  # the general path says what is wrong, or takes what is merely unusual
        return [_VERSION + b"".join(self._parts(key)) for key in keys]

    def encode_table(self, rows: pa.Table) -> list[bytes]:
        """The bytes of each row's key columns."""
        if not self._columns:
            return [_VERSION] * rows.num_rows
        names = [column.name for column in self._columns]
        missing = [name for name in names if name not in rows.column_names]
        if missing:
            raise InvalidInputError(f'the rows lack the key column "{missing[0]}"')
        keys: list[bytes] = []
        for batch in rows.select(names).to_batches(max_chunksize=65_536):
            parts = [_encode_array(batch.column(i), column) for i, column in enumerate(self._columns)]
            parts[0] = _prefixed(parts[0])
            keys += _as_list(parts[0]) if len(parts) == 1 else map(b"".join, zip(*map(_as_list, parts), strict=True))
        return keys

    def decode(self, data: bytes) -> Key:
        """The key of some bytes; `InvalidInputError` if they are not a key of this schema."""
        if not data or data[0] != VERSION:
            raise InvalidInputError(f"{data!r} is not a key of version {VERSION}")
        values, position = [], 1
        try:
            for column in self._columns:
                value, position = _decode(data, position, column)
                values.append(value)
        except (IndexError, ValueError, struct.error):
            raise InvalidInputError(f"{data!r} is not a key of {', '.join(c.name for c in self._columns)}") from None
        if position != len(data):
            raise InvalidInputError(f"{data!r} has more values than {len(self._columns)}")
        return tuple(values)

    def _parts(self, key: Key) -> list[bytes]:
        if len(key) != len(self._encoders):
            names = ", ".join(column.name for column in self._columns)
            raise InvalidInputError(f"the key {key!r} has {len(key)} values, not {len(self._encoders)} ({names})")
        return [encode(value) for encode, value in zip(self._encoders, key, strict=True)]


@cache
def key_codec(schema: Schema) -> KeyCodec:
    """The codec of a key schema, made once."""
    return KeyCodec(schema)


def _encoder(column: Column) -> Encode:
    kind = column.type.kind
    if kind == "BOOL":
        return lambda value: _encode_bool(value, column)
    if kind in ("STRING", "BYTES"):
        return lambda value: _encode_text(value, column)
    if kind in _TAGS:
        return lambda value: _encode_integer(value, column)
    raise DefinitionError(
        f'the key column "{column.name}" is {column.type}', hint=f"Keys may be {', '.join(KEY_KINDS)}"
    )


def _encode_bool(value: Any, column: Column) -> bytes:
    if value is True or value is False or isinstance(value, np.bool_):
        return bytes([_TRUE if value else _FALSE])
    raise _wrong(value, column)


def _encode_text(value: Any, column: Column) -> bytes:
    if column.type.kind == "STRING" and isinstance(value, str):
        try:
            return _delimited(_STRING, value.encode())
        except UnicodeEncodeError:
            raise _wrong(value, column) from None
    if column.type.kind == "BYTES" and isinstance(value, (bytes, bytearray, memoryview)):
        return _delimited(_BYTES, bytes(value))
    raise _wrong(value, column)


def _encode_integer(value: Any, column: Column) -> bytes:
    if isinstance(value, (bool, np.bool_)):
        raise _wrong(value, column)
    tag = _TAGS[column.type.kind]
    pack = _SHORT if _WIDTHS[tag] == 4 else _LONG
    try:
        return pack.pack(tag, operator.index(value) + _SIGN[_WIDTHS[tag]])
    except (TypeError, struct.error):
        raise _wrong(value, column) from None


def _delimited(tag: int, data: bytes) -> bytes:
    return b"%c%b\x00\x00" % (tag, data.replace(b"\x00", b"\x00\x01"))


def _wrong(value: Any, column: Column) -> InvalidInputError:
    if value is None:
        return InvalidInputError(f'the key column "{column.name}" is null', hint="A key has no nulls")
    return InvalidInputError(f'{value!r} is not a value of the key column "{column.name}" {column.type}')


def _single_encoder(schema: Schema) -> Callable[[Sequence[Key]], list[bytes]] | None:
    """The fast path of keys of one integer or one string. It raises where a value is not plainly of its type."""
    if len(schema) != 1:
        return None
    if schema.columns[0].type.is_integer:
        return _single_integers
    return _single_strings if schema.columns[0].type.kind == "STRING" else None


def _single_integers(keys: Sequence[Key]) -> list[bytes]:
    pack, sign = _WHOLE_LONG.pack, 2**63
    values = [value for (value,) in keys]
    for value in values:
        if value.__class__ is not int:
            raise TypeError
    return [pack(VERSION, _INT, value + sign) for value in values]


def _single_strings(keys: Sequence[Key]) -> list[bytes]:
    texts = [value.encode() for (value,) in keys]
    for text in texts:
        if b"\x00" in text:
            raise ValueError
    return [b"\x01\x02%b\x00\x00" % text for text in texts]


def _encode_array(values: pa.Array, column: Column) -> np.ndarray[Any, Any] | list[bytes]:
    """A column of keys: a matrix of bytes, a row each, for fixed widths; else a list."""
    if values.type != column.type.arrow:
        try:
            values = values.cast(column.type.arrow)
        except pa.ArrowInvalid as error:
            raise InvalidInputError(f'the key column "{column.name}" is not {column.type}: {error}') from None
    if values.null_count:
        raise _wrong(None, column)
    kind = column.type.kind
    if kind == "BOOL":
        flags: np.ndarray[Any, Any] = values.to_numpy(zero_copy_only=False)
        return np.where(flags, _TRUE, _FALSE).astype(np.uint8).reshape(-1, 1)
    if kind in ("STRING", "BYTES"):
        return _encode_texts(values, _TAGS[kind])
    tag = _TAGS[kind]
    return _encode_integers(values, tag, _WIDTHS[tag])


def _encode_integers(values: pa.Array, tag: int, width: int) -> np.ndarray[Any, Any]:
    plain = pa.int32() if width == 4 else pa.int64()
    integers = values if values.type == plain else values.cast(plain)
    unsigned = integers.to_numpy().view(f"u{width}") ^ np.array(_SIGN[width], f"u{width}")
    matrix: np.ndarray[Any, Any] = np.empty((len(values), 1 + width), np.uint8)
    matrix[:, 0] = tag
    matrix[:, 1:] = unsigned.astype(f">u{width}").view(np.uint8).reshape(-1, width)
    return matrix


def _encode_texts(values: pa.Array, tag: int) -> list[bytes]:
    binary = values.cast(pa.binary())
    start, end = _offsets(binary)[[0, -1]] if len(binary) else (0, 0)
    data = binary.buffers()[2]
    if data is not None and (np.frombuffer(data, np.uint8)[start:end] == 0).any():
        return [_delimited(tag, value) for value in binary.to_pylist()]
    joined = pc.binary_join_element_wise(bytes([tag]), binary, b"\x00\x00", b"")
    return slices(joined)


def _offsets(binary: pa.Array) -> np.ndarray[Any, Any]:
    offsets: np.ndarray[Any, Any] = np.frombuffer(binary.buffers()[1], np.int32)
    return offsets[binary.offset : binary.offset + len(binary) + 1]


def slices(binary: pa.Array) -> list[bytes]:
    """The values of an Arrow binary array without nulls: faster than `to_pylist`."""
    if not len(binary):
        return []
    offsets = _offsets(binary)
    first = int(offsets[0])
    data = binary.buffers()[2]
    whole = data.slice(first, int(offsets[-1]) - first).to_pybytes() if data is not None else b""
    ends = (offsets - first).tolist()
    return [whole[a:b] for a, b in pairwise(ends)]


def _prefixed(part: np.ndarray[Any, Any] | list[bytes]) -> np.ndarray[Any, Any] | list[bytes]:
    if isinstance(part, list):
        return [_VERSION + value for value in part]
    return np.insert(part, 0, VERSION, axis=1)


def _as_list(part: np.ndarray[Any, Any] | list[bytes]) -> list[bytes]:
    if isinstance(part, list):
        return part
    items: list[bytes] = np.ascontiguousarray(part).view(f"V{part.shape[1]}").reshape(-1).tolist()
    return items


def _decode(data: bytes, position: int, column: Column) -> tuple[Any, int]:
    """The value that begins at a position and where the next one does."""
    tag, kind = data[position], column.type.kind
    if kind == "BOOL" and tag in (_FALSE, _TRUE):
        return tag == _TRUE, position + 1
    if tag != _TAGS.get(kind):
        raise ValueError
    if kind in ("STRING", "BYTES"):
        end = _end_of_text(data, position + 1)
        raw = data[position + 1 : end].replace(b"\x00\x01", b"\x00")
        return (raw.decode() if kind == "STRING" else raw), end + 2
    pack = _SHORT if _WIDTHS[tag] == 4 else _LONG
    return pack.unpack_from(data, position)[1] - _SIGN[_WIDTHS[tag]], position + pack.size


def _end_of_text(data: bytes, start: int) -> int:
    end = data.index(0, start)
    while data[end + 1] != 0:
        end = data.index(0, end + 2)
    return end
