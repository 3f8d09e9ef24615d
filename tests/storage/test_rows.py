from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.errors import InvalidInputError, StoreUnavailableError
from feature_store.storage.online import CREATED, EVENT_TIME, NO_CREATED, Row
from feature_store.storage.rows import STAMP, Items, RowCodec, row_codec, to_arrow, to_batch
from feature_store.types import (
    BOOL,
    BYTES,
    DATE,
    FLOAT32,
    FLOAT64,
    INT32,
    INT64,
    STRING,
    TIMESTAMP,
    Column,
    Schema,
    Type,
    array,
    decimal,
)

MONEY = decimal(38, 10)
LONGS = st.integers(-(2**63), 2**63 - 1)
SCALARS: dict[Type, st.SearchStrategy[Any]] = {
    INT32: st.integers(-(2**31), 2**31 - 1),
    INT64: LONGS,
    FLOAT32: st.floats(width=32),
    FLOAT64: st.floats(),
    STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    BYTES: st.binary(max_size=5),
    BOOL: st.booleans(),
    TIMESTAMP: st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999),
    DATE: st.integers(-700_000, 2_900_000),
    MONEY: st.integers(-(10**38) + 1, 10**38 - 1).map(lambda n: Decimal(f"{n}E-10")),
}


def values_of(type_: Type) -> st.SearchStrategy[Any]:
    inner = st.lists(values_of(type_.item), max_size=3) if type_.item else SCALARS[type_]
    return st.none() | inner


TYPES = st.recursive(st.sampled_from(list(SCALARS)), lambda inner: inner.map(array), max_leaves=3)


@st.composite
def schemas_and_rows(draw: st.DrawFn) -> tuple[Schema, list[tuple[Any, ...]]]:
    types = draw(st.lists(TYPES, max_size=10))
    schema = Schema(tuple(Column(f"c{i}", type_) for i, type_ in enumerate(types)))
    return schema, draw(st.lists(st.tuples(LONGS, LONGS, *map(values_of, types)), max_size=5))


def table_of(schema: Schema, rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = (Column(EVENT_TIME, INT64), Column(CREATED, INT64), *schema)
    return pa.Table.from_batches([to_batch(columns, rows)])


def same(a: Any, b: Any) -> bool:
    """Equal, NaN to NaN, 0.0 not to -0.0, and of the same Python type."""
    return repr(a) == repr(b)


def encode_one(schema: Schema, *values: Any, event_time: int = 0, created: int = 0) -> bytes:
    return row_codec(schema).encode(table_of(schema, [(event_time, created, *values)]))[0]


@settings(deadline=None)
@given(schemas_and_rows())
def test_any_row_comes_back(case: tuple[Schema, list[tuple[Any, ...]]]) -> None:
    schema, rows = case
    codec = RowCodec(schema)
    table = table_of(schema, rows)
    encoded = codec.encode(table)
    for data, (event_time, created, *values) in zip(encoded, rows, strict=True):
        row = codec.decode(data)
        assert (row.event_time, row.created) == (event_time, created)
        assert same(row.values, tuple(values))
    assert codec.encode(table.slice(1)) == encoded[1:]
    for some in (rows, rows * 9) if rows else ():
        newest, columns = codec.decode_all(codec.encode(table_of(schema, some)))
        assert newest == max(row[0] for row in rows)
        assert same([list(column) for column in columns], [list(column) for column in zip(*some, strict=True)][2:])


@given(st.tuples(LONGS, LONGS), st.tuples(LONGS, LONGS))
def test_stamps_sort_as_times(a: tuple[int, int], b: tuple[int, int]) -> None:
    schema = Schema.of(x=INT64)
    one = encode_one(schema, 1, event_time=a[0], created=a[1])[STAMP]
    other = encode_one(schema, 2, event_time=b[0], created=b[1])[STAMP]
    assert (one < other) == (a < b)
    assert (one == other) == (a == b)


HEAD = "01 8000000000000001 0000000000000000"
GOLDEN = [
    ([], [], "0000"),
    ([INT64], [5], "0001 00 0000000000000005"),
    ([INT32, BOOL], [-1, True], "0002 00 ffffffff 01"),
    ([FLOAT64, FLOAT32], [1.5, -2.0], "0002 00 3ff8000000000000 c0000000"),
    ([INT32, INT32], [None, 7], "0002 01 00000000 00000007"),
    ([TIMESTAMP, DATE], [3, 2], "0002 00 0000000000000003 00000002"),
    ([STRING, BYTES, STRING], ["ab", None, "用"], "0003 02 00000002 00000002 00000005 6162 e794a8"),
    ([decimal(9, 2)], [Decimal("-0.01")], "0001 00" + "ff" * 16),
    ([array(INT32)], [[1, 2]], "0001 00 0000000d 00000002 00 00000001 00000002"),
    ([array(INT32)], [[None, 2]], "0001 00 0000000e 00000002 01 01 00000000 00000002"),
    ([array(STRING)], [["a", ""]], "0001 00 0000000e 00000002 00 00000001 00000001 61"),
    ([array(INT64)], [[]], "0001 00 00000005 00000000 00"),
    ([INT32] * 9, [0] * 8 + [None], "0009 0001" + "00000000" * 9),
]


@pytest.mark.parametrize(("types", "values", "expected"), GOLDEN)
def test_golden(types: list[Type], values: list[Any], expected: str) -> None:
    schema = Schema(tuple(Column(f"c{i}", type_) for i, type_ in enumerate(types)))
    data = encode_one(schema, *values, event_time=1, created=NO_CREATED)
    assert data.hex() == (HEAD + expected).replace(" ", "")
    assert row_codec(schema).decode(bytes.fromhex(HEAD + expected)) == (1, NO_CREATED, tuple(values))


def test_fields_added_later_are_null() -> None:
    before, after = Schema.of(a=INT64, b=STRING), Schema.of(a=INT64, b=STRING, c=FLOAT64, d=array(INT32))
    data = encode_one(before, 1, "x", event_time=5)
    assert row_codec(after).decode(data) == (5, 0, (1, "x", None, None))


def test_rows_with_fewer_fields_decode_among_others() -> None:
    short, whole = Schema.of(a=INT64), Schema.of(a=INT64, b=INT64)
    rows = [encode_one(whole, 1, 2, event_time=5), encode_one(short, 3), encode_one(whole, None, 4, event_time=-1)]
    for times in (1, 5):
        newest, columns = row_codec(whole).decode_all(rows * times)
        assert (newest, [list(column) for column in columns]) == (5, [[1, 3, None] * times, [2, None, 4] * times])
        with pytest.raises(StoreUnavailableError, match="has 2 fields, not 1"):
            row_codec(short).decode_all(rows * times)
        with pytest.raises(StoreUnavailableError, match="cannot read"):
            row_codec(whole).decode_all([*rows[:1] * 2 * times, b"\x02" + rows[0][1:]])


def test_items_are_a_mapping_and_columns() -> None:
    schema = Schema.of(a=INT64, b=STRING)
    packed = {bytes((n,)): encode_one(schema, n, "x" * n, event_time=10 * n) for n in range(3)}
    items = Items(row_codec(schema), packed)
    rows = {b"\0": Row(0, 0, (0, "")), b"\1": Row(10, 0, (1, "x")), b"\2": Row(20, 0, (2, "xx"))}
    assert items == rows
    assert repr(items) == repr(rows)
    assert (b"\1" in items, b"\3" in items, items.get(b"\3"), len(items)) == (True, False, None, 3)
    newest, columns = items.columns([b"\2", b"\0"])
    assert (newest, [*map(list, columns)]) == (20, [[2, 0], ["xx", ""]])
    assert Items(row_codec(schema), {}) == {}


def test_rows_of_another_version_or_with_more_fields_are_refused() -> None:
    data = encode_one(Schema.of(a=INT64, b=INT64), 1, 2)
    with pytest.raises(StoreUnavailableError, match="has 2 fields, not 1"):
        row_codec(Schema.of(a=INT64)).decode(data)
    with pytest.raises(StoreUnavailableError, match="cannot read"):
        row_codec(Schema.of(a=INT64, b=INT64)).decode(b"\x02" + data[1:])
    for garbage in (b"", b"\x01", data[:-1]):
        with pytest.raises(StoreUnavailableError):
            row_codec(Schema.of(a=INT64, b=INT64)).decode(garbage)


def test_columns_of_other_arrow_types_are_cast() -> None:
    schema = Schema.of(a=INT64, b=STRING, c=array(FLOAT32), t=TIMESTAMP)
    table = pa.table(
        {
            EVENT_TIME: pa.array([1], pa.timestamp("us", "UTC")),
            CREATED: [2],
            "a": pa.array([3], pa.int8()),
            "b": pa.array(["x"]).dictionary_encode(),
            "c": pa.array([[1.5]], pa.large_list(pa.float32())),
            "t": pa.array([1], pa.timestamp("s")),
            "ignored": [0],
        }
    )
    codec = row_codec(schema)
    assert codec.decode(codec.encode(table)[0]) == (1, 2, (3, "x", [1.5], 1_000_000))


def test_wrong_tables_are_refused() -> None:
    codec = row_codec(Schema.of(a=INT64))
    with pytest.raises(InvalidInputError, match='lack the column "a"'):
        codec.encode(pa.table({EVENT_TIME: [1], CREATED: [1]}))
    with pytest.raises(InvalidInputError, match='"a" is not INT64'):
        codec.encode(pa.table({EVENT_TIME: [1], CREATED: [1], "a": ["x"]}))
    with pytest.raises(InvalidInputError, match="no event time"):
        codec.encode(pa.table({EVENT_TIME: pa.array([None], pa.int64()), CREATED: [1], "a": [1]}))


def test_garbage_under_nulls_is_not_stored() -> None:
    hidden = pa.Array.from_buffers(pa.int64(), 1, [pa.py_buffer(b"\x00"), pa.py_buffer(b"\xff" * 8)])
    data = row_codec(Schema.of(a=INT64)).encode(pa.table({EVENT_TIME: [0], CREATED: [0], "a": hidden}))[0]
    assert data == encode_one(Schema.of(a=INT64), None)


def test_to_arrow_gives_the_types_of_the_contract() -> None:
    assert to_arrow([[0], None], array(TIMESTAMP)).type == array(TIMESTAMP).arrow
    assert math.isnan(to_arrow([math.nan], FLOAT64)[0].as_py())
