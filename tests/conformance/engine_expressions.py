"""Scalar expressions mean on an engine what they mean in Python."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store.engines.engine import Engine
from feature_store.errors import FeatureStoreError, InvalidInputError, SourceError
from feature_store.expressions import row_functions
from feature_store.expressions.instants import MINUTE
from feature_store.expressions.relations import Computed, LatestRow, Rows, Windows
from feature_store.expressions.scalars import Scalar, bind
from feature_store.storage.online import EVENT_TIME
from feature_store.types import BOOL, FLOAT64, INT64, Schema
from tests.conformance.histories import KEYS, event, source, spine, window, write
from tests.scalars import (
    EDGE_ROW,
    EDGES,
    OVERFLOWS,
    ROW,
    SCHEMA,
    TABLE,
    expressions,
    from_arrow,
    rows,
    same,
    to_arrow,
)


def arrow(columns: Mapping[str, Sequence[Any]], schema: Schema = SCHEMA) -> pa.Table:
    return pa.table({name: to_arrow([*columns[name]], schema.get(name) or INT64) for name in columns})


def computed(engine: Engine, scalars: Sequence[Scalar], columns: Mapping[str, Sequence[Any]]) -> list[list[Any]]:
    """The answers of each scalar, raw row values, all in one call of the engine."""
    given = arrow(columns)
    found = engine.compute(given, {f"v{n}": scalar for n, scalar in enumerate(scalars)})
    assert found.column_names == [*columns, *(f"v{n}" for n in range(len(scalars)))]
    for n, scalar in enumerate(scalars):
        assert found[f"v{n}"].type == scalar.type.arrow
    return [from_arrow(found[f"v{n}"], scalar.type) for n, scalar in enumerate(scalars)]


def read(
    engine: Engine, scalars: Sequence[Scalar], columns: Mapping[str, Sequence[Any]], path: Path
) -> list[list[Any]]:
    """As `computed`, over rows in a file."""
    count = len(next(iter(columns.values())))
    numbered = Schema((*Schema.of(row=INT64, at=SCHEMA.get("t") or INT64), *SCHEMA))
    pq.write_table(arrow({"row": range(count), "at": [0] * count, **columns}, numbered), path)
    facts = Rows("numbers", numbered, str(path), timestamp="at")
    values = tuple(Computed(f"v{n}", scalar) for n, scalar in enumerate(scalars))
    found = engine.latest(LatestRow(facts, Schema.of(row=INT64), values), None, 0).read().read_all().sort_by("row")
    assert found["row"].to_pylist() == [*range(count)]
    return [from_arrow(found[value.name], value.type) for value in values]


def check(
    cases: Sequence[tuple[str, Scalar, list[Any]]], found: Sequence[list[Any]], columns: Mapping[str, Sequence[Any]]
) -> None:
    """Everything that differs, the shortest expression first."""
    wrong = [
        (text, {name: columns[name][row] for name in scalar.columns}, f"should be {one!r}", f"is {other!r}")
        for (text, scalar, expected), answers in zip(cases, found, strict=True)
        for row, (one, other) in enumerate(zip(expected, answers, strict=True))
        if not same(one, other)
    ]
    assert not wrong, sorted(wrong, key=lambda case: len(case[0]))[:5]


class ExpressionConformance:
    """An engine's expressions. Subclasses give the fixture `engine`."""

    def test_expressions_mean_what_the_contract_says(self, engine: Engine) -> None:
        cases = [(text, bind(text, SCHEMA), [expected]) for text, expected in TABLE]
        check(cases, computed(engine, [scalar for _, scalar, _ in cases], ROW), ROW)

    def test_expressions_mean_the_same_at_the_edges(self, engine: Engine) -> None:
        longest = max(len(values) for _, _, values, _ in EDGES)
        columns: dict[str, list[Any]] = {name: [EDGE_ROW.get(name)] * longest for name in SCHEMA.names}
        cases = []
        renamed = {column.name: column.type for column in SCHEMA}
        for number, (text, name, values, expected) in enumerate(EDGES):
            fill = [values[-1]] * (longest - len(values))
            renamed[f"{name}_{number}"] = renamed[name]
            columns[f"{name}_{number}"] = [*values, *fill]
            schema = Schema.of(**{**renamed, name: renamed[name]})
            scalar = bind(_in_place(text, name, f"{name}_{number}"), schema)
            cases.append((text, scalar, [*expected, *[expected[-1]] * len(fill)]))
        given = pa.table({name: to_arrow(values, renamed[name]) for name, values in columns.items()})
        found = engine.compute(given, {f"v{n}": scalar for n, (_, scalar, _) in enumerate(cases)})
        check(cases, [from_arrow(found[f"v{n}"], case[1].type) for n, case in enumerate(cases)], columns)

    @pytest.mark.parametrize("seed", range(2))
    def test_generated_expressions_equal_the_evaluator(self, engine: Engine, tmp_path: Path, seed: int) -> None:
        rng = random.Random(seed)
        columns = rows(rng, 40)
        cases = [*islice(expressions(rng, columns), 120)]
        scalars = [scalar for _, scalar, _ in cases]
        by_file = seed % 2 == 1
        found = (
            read(engine, scalars, columns, tmp_path / "a.parquet") if by_file else computed(engine, scalars, columns)
        )
        check(cases, found, columns)

    @pytest.mark.parametrize("text", OVERFLOWS)
    def test_integer_overflow_is_an_error(self, engine: Engine, text: str) -> None:
        with pytest.raises(InvalidInputError, match=r"(?i)overflow|out of range"):
            computed(engine, [bind(text, SCHEMA)], ROW)

    def test_casing_agrees_on_every_code_point(self, engine: Engine) -> None:
        chars = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
        texts = ["".join(chars[start : start + 1000]) for start in range(0, len(chars), 1000)]
        words = [*texts, "ΑΣ", "ΑΣ Σ", "Iİıi", "ß", "ŉǰ", "\ufb01"]
        upper, lower = computed(engine, [bind("upper(s)", SCHEMA), bind("lower(s)", SCHEMA)], {"s": words})
        for word, up, low in zip(words, upper, lower, strict=True):
            assert up == row_functions.upper(word)
            assert low == row_functions.lower(word)

    def test_names_are_quoted(self, engine: Engine) -> None:
        schema = Schema.of(**{'we"ird`': INT64, "select": INT64, "a b": INT64})
        given = arrow({name: [1] for name in schema.names}, schema)
        found = engine.compute(given, {'v"`': bind('`we"ird``` + `select` + `a b`', schema)})
        assert found['v"`'].to_pylist() == [3]

    def test_computed_columns_keep_the_order_of_rows(self, engine: Engine) -> None:
        schema, count = Schema.of(price=FLOAT64, n=INT64), 200_000
        given = pa.table({"n": range(count), "price": [float(n) for n in range(count)], "other": [None] * count})
        found = engine.compute(given, {"twice": bind("price * 2", schema), "big": bind("n > 10", schema)})
        assert found.column_names == ["n", "price", "other", "twice", "big"]
        assert found["twice"].to_pylist() == [2.0 * n for n in range(count)]
        assert found.schema.field("big").type == BOOL.arrow
        constant = engine.compute(given.slice(0, 3), {"one": bind("1", schema)})
        assert constant["one"].to_pylist() == [1, 1, 1]
        assert constant.select(["n", "price", "other"]) == given.slice(0, 3)

    def test_nothing_is_computed_of_nothing(self, engine: Engine) -> None:
        schema = Schema.of(n=INT64)
        given = arrow({"n": []}, schema)
        assert engine.compute(given, {}) == given
        found = engine.compute(given, {"twice": bind("n * 2", schema)})
        assert (found.num_rows, found.schema.field("twice").type) == (0, pa.int64())

    def test_aggregates_take_expressions(self, engine: Engine, tmp_path: Path) -> None:
        """What the table of the contract says, of values in aggregates."""
        made = [event(1, at, x=x, n=n, small=at) for at, (x, n) in enumerate([(1e9 + 1, 7), (1e9 - 1, 2), (0.0, None)])]
        reach = (20 * MINUTE, 5 * MINUTE)
        expected: dict[str, tuple[str, str | None, str | None, Any]] = {
            "mean of integers": ("mean", "n", None, 4.5),
            "halves": ("sum", "7 / 2", None, 10.5),
            "whole halves": ("sum", "n div 2", None, 4),
            "over zero": ("count", "x / (n - n)", None, 0),
            "logarithms": ("sum", "ln(x)", "x <= 0", None),
            "truncated": ("sum", "cast(2.7 * n as bigint)", None, 23),
            "failed casts": ("count", "cast('x' || cast(n as string) as bigint)", None, 0),
            "NaN": ("count", "cast('nan' as double) * n", None, 0),
            "NaN passes": ("count", None, "cast('nan' as double) * n > 1", 2),
            "least": ("sum", "least(n, 3)", None, 8),
            "concat": ("last", "concat(cast(n as string), 'x')", None, "2x"),
            "ISO days": ("last", "dayofweek(at)", None, 4),
            "variance": ("variance", "x", "n > 0", 1.0),
            "stddev": ("stddev", "x", "n > 0", 1.0),
            "32 bits": ("sum", "small + 2147483647", None, 3 * 2147483647 + 3),
        }
        windows = tuple(window(name, *of[:2], *reach, where=of[2]) for name, of in expected.items())
        relation = Windows(source(write(tmp_path / "rows", made)), KEYS, windows)
        found = engine.as_of(relation, spine((1, 10)), list(expected)).to_pylist()[0]
        assert found == {**{name: of[3] for name, of in expected.items()}, EVENT_TIME: 2}
        assert engine.snapshot(relation, 10).read().read_all().to_pylist() == [
            {"user_id": 1, **{name: of[3] for name, of in expected.items()}}
        ]

    @pytest.mark.parametrize("type_", ["small", "n", "q"])
    def test_a_sum_of_integers_has_64_bits_and_overflow_is_an_error(
        self, engine: Engine, tmp_path: Path, type_: str
    ) -> None:
        most: Any = {"small": 2**31 - 1, "n": 2**62, "q": Decimal(10**38 - 1)}[type_]
        made = [event(1, at, **{type_: most}) for at in range(3)]
        relation = Windows(
            source(write(tmp_path / "rows", made)), KEYS, (window("sum", "sum", type_, 20 * MINUTE, 5 * MINUTE),)
        )
        if type_ == "small":
            assert engine.as_of(relation, spine((1, 10)), ["sum"])["sum"].to_pylist() == [3 * most]
            return
        assert engine.as_of(relation, spine((1, 1)), ["sum"])["sum"].to_pylist() == [most]
        for call in (
            lambda: engine.as_of(relation, spine((1, 10)), ["sum"]),
            lambda: engine.snapshot(relation, 10).read().read_all(),
        ):
            with pytest.raises(FeatureStoreError, match=r"(?i)overflow|digits|fit"):
                call()

    def test_an_overflow_in_a_source_is_an_error(self, engine: Engine, tmp_path: Path) -> None:
        scalar = bind("i * 9223372036854775807", SCHEMA)
        with pytest.raises(SourceError, match=r"(?i)overflow|out of range"):
            read(engine, [scalar], ROW, tmp_path / "a.parquet")


def _in_place(text: str, name: str, other: str) -> str:
    """An expression with another column in the place of one."""
    return re.sub(rf"(?<![\w']){name}(?![\w'(])", other, text)
