from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import DefinitionError, InvalidInputError
from feature_store.storage.keys import KeyCodec, key_codec
from feature_store.types import BOOL, BYTES, DATE, FLOAT64, INT32, INT64, STRING, TIMESTAMP, Schema, Type

GOLDEN = [
    (INT64, 0, "01 15 8000000000000000"),
    (INT32, 0, "01 15 8000000000000000"),
    (INT64, 1, "01 15 8000000000000001"),
    (INT64, -1, "01 15 7fffffffffffffff"),
    (INT64, 2**63 - 1, "01 15 ffffffffffffffff"),
    (INT64, -(2**63), "01 15 0000000000000000"),
    (STRING, "", "01 02 0000"),
    (STRING, "1", "01 02 31 0000"),
    (STRING, "a\0b", "01 02 61 0001 62 0000"),
    (STRING, "用", "01 02 e794a8 0000"),
    (BYTES, b"\x00\xff", "01 01 0001 ff 0000"),
    (BOOL, False, "01 26"),
    (BOOL, True, "01 27"),
    (TIMESTAMP, 1, "01 32 8000000000000001"),
    (DATE, -1, "01 33 7fffffff"),
]

VALUES: dict[Type, st.SearchStrategy[Any]] = {
    INT64: st.integers(-(2**63), 2**63 - 1),
    INT32: st.integers(-(2**31), 2**31 - 1),
    STRING: st.text(st.characters(exclude_categories=["Cs"]) | st.just("\0"), max_size=6),
    BYTES: st.binary(max_size=6) | st.lists(st.sampled_from([0, 1, 2, 255]), max_size=5).map(bytes),
    BOOL: st.booleans(),
    TIMESTAMP: st.integers(-(2**63), 2**63 - 1),
    DATE: st.integers(-(2**31), 2**31 - 1),
}


def schema_of(types: list[Type]) -> Schema:
    return Schema.of(**{f"k{i}": type_ for i, type_ in enumerate(types)})


@st.composite
def schemas_and_keys(draw: st.DrawFn) -> tuple[Schema, list[tuple[Any, ...]]]:
    types = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=4))
    keys = draw(st.lists(st.tuples(*(VALUES[type_] for type_ in types)), min_size=1, max_size=12))
    return schema_of(types), keys


def table_of(schema: Schema, keys: list[tuple[Any, ...]]) -> pa.Table:
    return pa.table({c.name: pa.array([key[i] for key in keys], c.type.arrow) for i, c in enumerate(schema)})


@pytest.mark.parametrize(("type_", "value", "expected"), GOLDEN)
def test_golden(type_: Type, value: Any, expected: str) -> None:
    codec = key_codec(schema_of([type_]))
    assert codec.encode((value,)) == bytes.fromhex(expected)
    assert codec.encode_table(table_of(schema_of([type_]), [(value,)])) == [bytes.fromhex(expected)]
    assert codec.decode(bytes.fromhex(expected)) == (value,)


def test_golden_composite() -> None:
    codec = key_codec(schema_of([STRING, INT64, BOOL]))
    assert codec.encode(("a", 2, True)) == bytes.fromhex("01 02 61 0000 15 8000000000000002 27")


@given(schemas_and_keys())
def test_order_is_kept_and_nothing_collides(case: tuple[Schema, list[tuple[Any, ...]]]) -> None:
    schema, keys = case
    codec = KeyCodec(schema)
    encoded = codec.encode_all(keys)
    assert [codec.decode(data) for data in encoded] == keys
    assert sorted(range(len(keys)), key=lambda i: keys[i]) == sorted(range(len(keys)), key=lambda i: encoded[i])
    assert len(set(encoded)) == len(set(keys))


@given(schemas_and_keys())
def test_tables_encode_as_tuples_do(case: tuple[Schema, list[tuple[Any, ...]]]) -> None:
    schema, keys = case
    codec = KeyCodec(schema)
    expected = [codec.encode(key) for key in keys]
    table = table_of(schema, keys)
    assert codec.encode_table(table) == expected
    assert codec.encode_table(table.slice(1)) == expected[1:]
    assert codec.encode_table(pa.concat_tables([table, table.slice(1)])) == expected + expected[1:]


@given(schemas_and_keys())
def test_no_key_is_the_beginning_of_another(case: tuple[Schema, list[tuple[Any, ...]]]) -> None:
    encoded = KeyCodec(case[0]).encode_all(case[1])
    assert not any(a != b and b.startswith(a) for a in encoded for b in encoded)


def test_types_and_composites_never_collide() -> None:
    two, one_int, one_text = schema_of([STRING, STRING]), schema_of([INT64]), schema_of([STRING])
    assert key_codec(two).encode(("1", "23")) != key_codec(two).encode(("12", "3"))
    assert key_codec(one_int).encode((1,)) != key_codec(one_text).encode(("1",))


def test_32_and_64_bit_integers_are_the_same_key() -> None:
    assert key_codec(schema_of([INT32])).encode((7,)) == key_codec(schema_of([INT64])).encode((7,))
    rows = pa.table({"k0": pa.array([7], pa.int16())})
    assert key_codec(schema_of([INT64])).encode_table(rows) == [key_codec(schema_of([INT64])).encode((7,))]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (INT64, None),
        (INT64, "1"),
        (INT64, 1.0),
        (INT64, True),
        (INT64, 2**63),
        (STRING, None),
        (STRING, 1),
        (STRING, b"a"),
        (STRING, "\ud800"),
        (BYTES, "a"),
        (BOOL, 1),
        (TIMESTAMP, datetime.datetime(2026, 1, 1)),
        (DATE, 2**31),
    ],
)
def test_other_values_are_refused(type_: Type, value: Any) -> None:
    with pytest.raises(InvalidInputError, match="k0"):
        key_codec(schema_of([type_])).encode((value,))


def test_numpy_integers_are_integers() -> None:
    codec = key_codec(schema_of([INT64]))
    assert codec.encode((np.int32(-5),)) == codec.encode((-5,))


def test_nulls_and_missing_columns_in_tables_are_refused() -> None:
    codec = key_codec(schema_of([INT64]))
    with pytest.raises(InvalidInputError, match='"k0" is null'):
        codec.encode_table(pa.table({"k0": pa.array([1, None], pa.int64())}))
    with pytest.raises(InvalidInputError, match='lack the key column "k0"'):
        codec.encode_table(pa.table({"x": [1]}))
    with pytest.raises(InvalidInputError, match="is not INT64"):
        codec.encode_table(pa.table({"k0": ["x"]}))


def test_a_wrong_number_of_values_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="has 1 values, not 2"):
        key_codec(schema_of([INT64, INT64])).encode((1,))
    with pytest.raises(InvalidInputError, match="has 2 values, not 1"):
        key_codec(schema_of([INT64])).encode((1, 2))


def test_a_float_is_no_key() -> None:
    with pytest.raises(DefinitionError, match="FLOAT64"):
        KeyCodec(schema_of([FLOAT64]))


@pytest.mark.parametrize(
    "data", [b"", b"\x02", b"\x01", b"\x01\x15\x00", b"\x01\x02a", b"\x01\x26", b"\x01\x15" + b"\0" * 9]
)
def test_garbage_is_not_a_key(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        key_codec(schema_of([INT64])).decode(data)


def test_no_key_columns_are_one_key() -> None:
    codec = KeyCodec(Schema(()))
    assert codec.encode(()) == b"\x01" == codec.encode_table(pa.table({"x": [1]}))[0]
    assert codec.decode(b"\x01") == ()
