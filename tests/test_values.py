from __future__ import annotations

import base64
import math
import struct
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import InvalidInputError
from feature_store.types import BOOL, BYTES, DATE, FLOAT32, FLOAT64, INT32, INT64, STRING, TIMESTAMP, Type
from feature_store.values import json_writer, read_column

NEW_YEAR = 1_767_225_600
PRICE = Type.parse("DECIMAL(5,2)")


@pytest.mark.parametrize(
    ("type_", "given_", "read"),
    [
        (INT64, [1, 2**63 - 1, -(2**63), None], [1, 2**63 - 1, -(2**63), None]),
        (INT32, [-(2**31)], [-(2**31)]),
        (INT64, [np.int64(3)], [3]),
        (FLOAT64, [1, 1.5, "NaN", "-Infinity"], [1.0, 1.5, math.nan, -math.inf]),
        (FLOAT32, [0.1], [struct.unpack("<f", struct.pack("<f", 0.1))[0]]),
        (STRING, ["a", "é", "]", None], ["a", "é", "]", None]),
        (BOOL, [True, None, np.True_], [True, None, True]),
        (BYTES, ["AAE=", b"\x02"], [b"\x00\x01", b"\x02"]),
        (TIMESTAMP, [1, 1.5, "1970-01-01T00:00:02"], [1_000_000, 1_500_000, 2_000_000]),
        (TIMESTAMP, [datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC), "1970-01-01T01:00:00+01:00"], [3_000_000, 0]),
        (
            TIMESTAMP,
            [pd.Timestamp("2026-01-01"), np.datetime64("2026-01-01", "ns"), pd.NaT],
            [NEW_YEAR * 10**6] * 2 + [None],
        ),
        (DATE, ["1970-01-03", date(1970, 1, 1)], [2, 0]),
        (Type.parse("DECIMAL(5,2)"), ["1.5", 2, 2.25], [Decimal("1.50"), Decimal("2.00"), Decimal("2.25")]),
        (PRICE, [np.float64(2.25), np.int64(2), "-0.00"], [Decimal("2.25"), Decimal("2.00"), Decimal("0.00")]),
        (
            Type.parse("DECIMAL(38,2)"),
            ["123456789012345678901234567890123456.78", -(10**35)],
            [Decimal("123456789012345678901234567890123456.78"), Decimal(f"-1{'0' * 35}.00")],
        ),
        (Type.parse("ARRAY<INT64>"), [[1, None], [], None], [[1, None], [], None]),
    ],
)
def test_reads(type_: Type, given_: list[Any], read: list[Any]) -> None:
    found = list(read_column("c", type_, given_))
    assert repr(found) == repr(read)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (INT64, "1"), (INT64, True), (INT64, 1.0), (INT64, 2**63), (INT64, -(2**63) - 1), (INT64, [1]), (INT64, {}),
        (INT32, 2**31), (FLOAT64, "1.5"), (FLOAT64, True), (FLOAT64, 10**400), (FLOAT64, "nan"), (FLOAT32, 1e300),
        (STRING, 1), (STRING, b"a"), (STRING, "\ud800"), (BOOL, 1), (BOOL, "true"), (BYTES, "A"), (BYTES, "é"),
        (BYTES, 1),
        (TIMESTAMP, 1.7e15), (TIMESTAMP, math.nan), (TIMESTAMP, math.inf), (TIMESTAMP, "yesterday"), (TIMESTAMP, True),
        (TIMESTAMP, "0001-01-01T00:00:00+14:00"), (DATE, "2026-13-01"), (DATE, 3),
        (PRICE, "1.555"), (PRICE, "12345"), (PRICE, "NaN"), (PRICE, True), (PRICE, []), (PRICE, "x"),
        (PRICE, "1e999999999"), (PRICE, "1e-999999999"), (Type.parse("DECIMAL(38,0)"), "1" * 39),
        (Type.parse("ARRAY<INT64>"), 1), (Type.parse("ARRAY<INT64>"), "12"), (Type.parse("ARRAY<INT64>"), ["1"]),
    ],
)  # fmt: skip
def test_refuses_and_names_column_row_and_value(type_: Type, value: Any) -> None:
    good = next(iter(read_column("c", type_, [None])))
    with pytest.raises(InvalidInputError) as caught:
        read_column("price", type_, [good, value])
    assert caught.value.message.startswith('column "price", row 1: ')
    assert str(type_) in caught.value.message
    caught.value.message.encode()


def test_what_is_right_is_not_copied() -> None:
    values = list(range(1000))
    assert read_column("c", INT64, values) is values


@pytest.mark.parametrize(
    ("type_", "values", "written"),
    [
        (FLOAT64, [1.5, None, math.nan, math.inf, -math.inf], [1.5, None, "NaN", "Infinity", "-Infinity"]),
        (TIMESTAMP, [1_999_999, -1, None], [1, -1, None]),
        (DATE, [0, None, -1], ["1970-01-01", None, "1969-12-31"]),
        (DATE, [-719_162, 2_932_896, -719_163, 2**31 - 1], ["0001-01-01", "9999-12-31", None, None]),
        (BYTES, [b"\x00\xff"], [base64.b64encode(b"\x00\xff").decode()]),
        (Type.parse("DECIMAL(20,2)"), [Decimal("1E+3"), Decimal("0.10")], ["1000", "0.10"]),
        (Type.parse("ARRAY<TIMESTAMP>"), [[1_000_000, None], None], [[1, None], None]),
        (Type.parse("ARRAY<FLOAT64>"), [[math.nan]], [["NaN"]]),
    ],
)
def test_writes_json(type_: Type, values: list[Any], written: list[Any]) -> None:
    writer = json_writer(type_)
    assert writer is not None
    assert list(writer(values)) == written


def test_iso_has_microseconds() -> None:
    writer = json_writer(TIMESTAMP, iso=True)
    assert writer is not None
    assert list(writer([1, None, 2**62])) == ["1970-01-01T00:00:00.000001Z", None, None]


@pytest.mark.parametrize("type_", [INT32, INT64, STRING, BOOL, Type.parse("ARRAY<STRING>")])
def test_json_already(type_: Type) -> None:
    assert json_writer(type_) is None


@given(st.lists(st.none() | st.floats()))
def test_floats_survive(values: list[float | None]) -> None:
    writer = json_writer(FLOAT64)
    assert writer is not None
    assert repr(list(read_column("c", FLOAT64, list(writer(values))))) == repr(values)
