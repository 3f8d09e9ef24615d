from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from feature_store.cli.command import chosen_features, typed
from feature_store.cli.online import broadcast, check_names, entity_rows, request_columns
from feature_store.errors import UsageError
from feature_store.types import Type


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        (["user_id=1"], [{"user_id": "1"}]),
        (["user_id=1", "user_id=2", "user_id=1"], [{"user_id": "1"}, {"user_id": "2"}, {"user_id": "1"}]),
        (["a=1", "b=2", "a=3", "b=4"], [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
        (["a=1,b=2", "a=3,b=4"], [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
        (["city=Paris, France"], [{"city": "Paris, France"}]),
        (["token=a=b"], [{"token": "a=b"}]),
        (["name="], [{"name": ""}]),
    ],
)
def test_entity_rows(texts: list[str], rows: list[dict[str, str]]) -> None:
    assert entity_rows(texts) == rows


def test_every_row_has_the_same_keys() -> None:
    with pytest.raises(UsageError, match="entity row 2 has no b"):
        entity_rows(["a=1,b=2", "a=3"])


def test_request_values_are_one_or_one_a_row() -> None:
    assert request_columns(["t=now", "bid=1", "bid=2"]) == {"t": ["now"], "bid": ["1", "2"]}
    assert broadcast("t", [1], 3) == [1, 1, 1]
    with pytest.raises(UsageError, match="--request bid has 2 values for 3 rows"):
        broadcast("bid", [1, 2], 3)


def test_a_request_value_that_no_view_takes_is_refused() -> None:
    check_names(["bid"], ["bid", "hour"])
    with pytest.raises(UsageError, match='request value "bidd"') as raised:
        check_names(["bid", "bidd"], ["bid", "hour"])
    assert raised.value.hint == 'Did you mean "bid"?'
    with pytest.raises(UsageError) as raised:
        check_names(["x"], [])
    assert raised.value.hint == "The on-demand views take none"


@pytest.mark.parametrize(
    ("text", "type_", "value"),
    [
        ("7", "INT64", 7),
        ("007", "STRING", "007"),
        ("1.5", "FLOAT64", 1.5),
        ("true", "BOOL", True),
        ("0", "BOOL", False),
        ("1.10", "DECIMAL(5,2)", Decimal("1.10")),
        ("2026-11-23", "DATE", date(2026, 11, 23)),
        ("2026-11-23T12:00:00+08:00", "TIMESTAMP", datetime(2026, 11, 23, 4, tzinfo=UTC)),
        ("AP8=", "BYTES", b"\x00\xff"),
        ("[1, 2]", "ARRAY<INT64>", [1, 2]),
    ],
)
def test_values_take_their_type(text: str, type_: str, value: Any) -> None:
    answer = typed(text, Type.parse(type_), "x")
    assert answer == value
    assert type(answer) is type(value)


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("x", "INT64"),
        ("1.5", "INT64"),
        ("maybe", "BOOL"),
        ("?", "BYTES"),
        ("x", "DECIMAL(5,2)"),
        ("x", "TIMESTAMP"),
        ("x", "DATE"),
        ("[", "ARRAY<INT64>"),
    ],
)
def test_values_that_do_not_fit_are_wrong_usage(text: str, type_: str) -> None:
    with pytest.raises(UsageError, match="is not of type"):
        typed(text, Type.parse(type_), "x")


def test_features_or_a_service() -> None:
    assert chosen_features(("a,b:c", " d "), None) == ["a", "b:c", "d"]
    assert chosen_features((), "s") == "s"
    for wrong in (((), None), (("a",), "s"), ((",",), None)):
        with pytest.raises(UsageError, match="either --features or --service"):
            chosen_features(*wrong)
