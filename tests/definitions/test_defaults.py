"""Default values: plain and raw, there and back."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.definitions.defaults import plain_default, raw_default
from feature_store.errors import DefinitionError
from feature_store.types import FLOAT32, Type, array
from tests.strategies import types, values


@settings(max_examples=200, deadline=None)
@given(types.flatmap(lambda type_: st.tuples(st.just(type_), values(type_))))
def test_there_and_back(case: tuple[Type, Any]) -> None:
    type_, value = case
    raw = raw_default(value, type_)
    plain = plain_default(raw, type_)
    again = raw_default(plain, type_)
    assert repr(again) == repr(raw)
    assert repr(plain_default(again, type_)) == repr(plain)


@pytest.mark.parametrize(
    ("type_", "value", "raw"),
    [
        ("INT32", -(2**31), -(2**31)),
        ("FLOAT32", 1, 1.0),
        ("FLOAT64", "-Infinity", -math.inf),
        ("STRING", "x", "x"),
        ("BYTES", "aGk=", b"hi"),
        ("BOOL", False, False),
        ("TIMESTAMP", "1970-01-01T00:00:01+00:00", 1_000_000),
        ("TIMESTAMP", datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), 1_000_000),
        ("DATE", "1970-01-02", 1),
        ("DATE", date(1969, 12, 31), -1),
        (
            "DECIMAL(38,2)",
            "123456789012345678901234567890123456.78",
            Decimal("123456789012345678901234567890123456.78"),
        ),
        ("DECIMAL(4,2)", "1.5", Decimal("1.50")),
        ("ARRAY<INT64>", [1, None], [1, None]),
        ("TIMESTAMP", 1.5, 1_500_000),
        ("FLOAT32", 0.1, 0.10000000149011612),
    ],
)
def testvalues(type_: str, value: Any, raw: Any) -> None:
    found = raw_default(value, Type.parse(type_))
    assert (repr(found), type(found)) == (repr(raw), type(raw))


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("INT32", 2**31),
        ("INT64", -(2**63) - 1),
        ("INT64", True),
        ("INT64", 1.0),
        ("INT64", "1"),
        ("FLOAT64", True),
        ("FLOAT64", "nan"),
        ("STRING", 1),
        ("BYTES", "not base64!"),
        ("BOOL", 0),
        ("TIMESTAMP", "yesterday"),
        ("DATE", "2026-13-01"),
        ("DATE", datetime(2026, 1, 1)),
        ("DECIMAL(4,2)", "100"),
        ("DECIMAL(4,2)", "1.555"),
        ("DECIMAL(4,2)", "NaN"),
        ("ARRAY<INT64>", 1),
    ],
)
def test_what_a_type_does_not_hold(type_: str, value: Any) -> None:
    with pytest.raises(DefinitionError, match=r"^default .* is not an? "):
        raw_default(value, Type.parse(type_))


def test_a_short_float_stays_short() -> None:
    assert plain_default(raw_default(0.1, FLOAT32), FLOAT32) == 0.1
    assert plain_default(raw_default([0.1, None, "NaN"], array(FLOAT32)), array(FLOAT32)) == [0.1, None, "NaN"]


@given(st.floats(width=32, allow_nan=False))
def test_every_float_of_32_bits_comes_back(value: float) -> None:
    assert repr(raw_default(plain_default(value, FLOAT32), FLOAT32)) == repr(value)
