"""Scalar expressions in Python, and those that are refused. Engines are compared with this in `conformance`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import ExpressionError, InvalidInputError
from feature_store.expressions.row_functions import like
from feature_store.expressions.scalars import bind, cast, compile_all, compile_rows, to_sql
from feature_store.types import INT64, Schema
from tests.scalars import EDGE_ROW, EDGES, OVERFLOWS, ROW, SCHEMA, TABLE, same


def answers(text: str, columns: dict[str, list[Any]], schema: Schema = SCHEMA) -> list[Any]:
    return compile_rows(bind(text, schema), list(columns))(list(columns.values()))


@pytest.mark.parametrize(("text", "expected"), TABLE, ids=[text for text, _ in TABLE])
def test_means_what_the_contract_says(text: str, expected: Any) -> None:
    answer = answers(text, ROW)[0]
    assert same(answer, expected), answer


@given(st.text("ab%_", max_size=8), st.text("ab\n", max_size=8))
def test_like_finds_what_trying_every_place_does(pattern: str, text: str) -> None:
    assert bool(like(pattern)(text)) == _is_like(pattern, text)


def _is_like(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(_is_like(pattern[1:], text[at:]) for at in range(len(text) + 1))
    return bool(text) and pattern[0] in ("_", text[0]) and _is_like(pattern[1:], text[1:])


def test_like_tries_no_place_of_a_long_text_again() -> None:
    """Or this would not end."""
    assert not like("%a%a%a%a%b")("a" * 100_000)
    assert like("%a%a%a%a%b")("a" * 100_000 + "b")


@pytest.mark.parametrize(("text", "name", "values", "expected"), EDGES, ids=[text for text, *_ in EDGES])
def test_means_the_same_at_the_edges(text: str, name: str, values: list[Any], expected: list[Any]) -> None:
    columns = {column: [EDGE_ROW.get(column)] * len(values) for column in SCHEMA.names}
    found = answers(text, {**columns, name: values})
    assert same(found, expected), found


@pytest.mark.parametrize("text", OVERFLOWS)
def test_integer_overflow_is_an_error(text: str) -> None:
    with pytest.raises(InvalidInputError, match="overflow"):
        answers(text, ROW)


REFUSALS = [
    ("ii + 1", 'Did you mean "i"'),
    ("hours(t)", 'Did you mean "hour"'),
    ("cast(x as string)", "differently"),
    ("cast(x as decimal(10,2))", "differently"),
    ("cast(t as bigint)", "unix_seconds"),
    ("cast(i as timestamp)", "timestamp_seconds"),
    ("sum(i)", "aggregate"),
    ("count(*)", r"\*|aggregate"),
    ("sum(i) over ()", "window"),
    ("(select 1)", "subqueries"),
    ("i in (select 1)", "subqueries"),
    ("now()", "clock"),
    ("current_date", "clock"),
    ("rand()", "run to run"),
    ("s rlike 'a'", "regular expressions"),
    ("regexp_replace(s, 'a', 'b')", "regular expressions"),
    ("i + s", "Cast the operands"),
    ("i = s", "Cast the operands"),
    ("NULL", "bare NULL"),
    ("i as n", "already has a name"),
    ("i + ", r"^expression 'i \+ ' cannot be read: something is missing after \"\+\" \(line 1, column 3\)$"),
    ("abs(i", r"cannot be read: \) is missing near \"i\""),
    ("cast(i as foo)", 'a type is missing near "foo"'),
    ("i )", r'makes no sense near "\)"'),
    ("s = 'x", "a quote or a comment is not closed"),
    ("1e", "1e is not a number"),
    ("'a' + 1", r"^expression \"'a' \+ 1\": \+ does not take STRING and INT64\. There is "),
    ("d > 'a'", "'a' is no DATE"),
    ("q.i", "Write i"),
    ("a[0]", "element_at"),
    ("t + interval 1 month", "no fixed length"),
    ("t >= 'yesterday'", "is no TIMESTAMP"),
    ("case when i then 1 end", "must be BOOL"),
    ("if(b, 1, 'x')", "in common"),
    ("round(x, i)", "not defined"),
    ("s like u", "not defined"),
    (r"s like 'a\\b'", "backslash"),
    ("s ilike 'a'", "lower"),
    ("99999999999999999999", "64 bits"),
    ("abs()", "not defined"),
    ("abs(i, j)", "not defined"),
    ("x div 2.0", "not defined"),
    ("date_trunc('fortnight', t)", "unit"),
    ("i; j", "not supported"),
    ("i in ()", "no values"),
    ("", "it is empty"),
    ("x ->> 'a'", "not supported"),
    ("weekday(t)", "dayofweek"),
    ("d + interval 1 hour", "whole days"),
    ("hash(s)", "md5"),
    ("least(a, a)", "not defined"),
    ("i = true", "Cast"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSALS, ids=[text for text, _ in REFUSALS])
def test_refuses_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ExpressionError, match=reason) as caught:
        bind(text, SCHEMA)
    assert "\n" not in str(caught.value)


def test_depth_is_limited_before_the_stack_is() -> None:
    deep = bind("+".join(["i"] * 149), SCHEMA)
    assert compile_rows(deep, ["i"])([[1]]) == [149]
    assert to_sql(deep).count("+") == 148
    with pytest.raises(ExpressionError, match="too deeply"):
        bind("+".join(["i"] * 200), SCHEMA)


def test_several_scalars_in_one_pass() -> None:
    scalars = [bind("i + 1", SCHEMA), bind("i / 2", SCHEMA), bind("'c'", SCHEMA)]
    assert compile_all(scalars, ["s", "i"])([["", ""], [1, None]]) == [[2, None], [0.5, None], ["c", "c"]]


def test_scalars_are_equal_by_content() -> None:
    one, other = bind("i + 1", SCHEMA), bind("i  +  1", SCHEMA)
    assert one == other
    assert hash(one) == hash(other)
    assert (one.columns, one.type) == ({"i"}, INT64)
    assert bind("0.0", SCHEMA) != bind("-0.0", SCHEMA)
    assert cast(one, INT64) is one


def test_later_branches_are_not_evaluated() -> None:
    scalar = bind("if(i > 5, 0, i * 4611686018427387904)", SCHEMA)
    assert compile_rows(scalar, ["i"])([[6, 1]]) == [0, 4611686018427387904]
