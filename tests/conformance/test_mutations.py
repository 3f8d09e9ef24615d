"""Engines are held to their meaning: each lowering that is broken on purpose makes a check of the suite fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_store.engines import spark, spark_joins
from feature_store.engines.engine import Engine
from feature_store.engines.local import LocalEngine
from feature_store.engines.scans import TIME
from feature_store.engines.spark import SparkEngine
from feature_store.errors import FeatureStoreError
from feature_store.expressions import aggregates, algebra
from feature_store.expressions.operators import AGGREGATES, CONVERSIONS, OPERATORS, Conversion, Operator
from feature_store.expressions.relations import LatestRow, Rows, Windows
from feature_store.expressions.scalars import bind
from tests.conformance.engine_expressions import ExpressionConformance, check, computed
from tests.conformance.engine_history import HistoryConformance
from tests.conformance.engine_queries import select, write_tables
from tests.golden.queries import VALUES
from tests.scalars import EDGE_ROW, EDGES, ROW, SCHEMA, TABLE, same

pytestmark = pytest.mark.timeout(600)
ENGINES = ["duckdb", "spark"]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalEngine]:
    engine = LocalEngine(memory_limit="500MB", threads=2)
    yield engine
    engine.close()


@pytest.fixture(params=ENGINES)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(dialect: str, request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue({"duckdb": "local", "spark": "spark_engine"}[dialect])
    return found


@dataclass(frozen=True)
class Mutation:
    """An entry of a table of operators (the first of the name that gives the type, if one is told), written wrongly,
    and the expression of the suite that shows it: by a wrong answer, or where it is written as in `fails` by an error.
    """

    name: str
    duckdb: str
    spark: str
    shown_by: str
    of: str = ""
    table: str = "operators"
    fails: tuple[str, ...] = ()

    @contextmanager
    def made(self, dialect: str) -> Iterator[None]:
        template = {"duckdb": self.duckdb, "spark": self.spark}[dialect]
        entries: Any
        if self.table == "conversions":
            source, target = self.name.split(" to ")
            entries, key = CONVERSIONS, (source, target)
        else:
            entries = (AGGREGATES if self.table == "aggregates" else OPERATORS)[self.name]
            key = next(n for n, each in enumerate(entries) if self.of in each.signature)  # type: ignore[assignment]
        right: Operator | Conversion = entries[key]
        assert getattr(right, dialect) != template
        entries[key] = replace(right, **{dialect: template})
        try:
            yield
        finally:
            entries[key] = right


_NULLS = "CASE WHEN {0} IS NULL OR {1} IS NULL THEN NULL ELSE least({0}, {1}) END"
MUTATIONS = [
    Mutation("/", "({0} / {1})", "({0} / {1})", "x / 0", fails=("spark",)),
    Mutation("div", "CAST(floor({0} / {1}) AS BIGINT)", "CAST(floor({0} / {1}) AS BIGINT)", "-7 div 2"),
    Mutation("%", "({0} % {1})", "pmod({0}, {1})", "7 % 0", of="INT64", fails=("duckdb", "spark")),
    Mutation("ln", "ln({0})", "ln(abs({0}))", "ln(-1)"),
    Mutation("least", _NULLS, _NULLS, "least(1, NULL)", of="any"),
    Mutation("concat", "concat({*})", "concat_ws('', {*})", "concat(NULL, 'x')"),
    Mutation("dayofweek", "dayofweek({0})", "CAST(dayofweek({0}) AS BIGINT)", "dayofweek(date '2024-01-07')"),
    Mutation("round", "round_even({0}, 0)", "rint({0})", "round(2.5)", of="round(FLOAT64)"),
    Mutation("upper", "lower({0})", "upper({0})", "upper('straße')"),
    Mutation("is_nan", "coalesce(isnan({0}), false)", "isnan({0})", "is_nan(x)"),
    Mutation("element_at", "list_extract({0}, {1} + 1)", "{0}[CAST({1} AS INT)]", "element_at(a, 1)"),
    Mutation("substring", "substring({0}, {1}, {2})", "substring({0}, CAST({1} AS INT) + 2, 2)",
             "substring('hello', 0, 2)"),
    Mutation("FLOAT64 to INT64", "TRY_CAST({0} AS {type})", "CAST(round({0}) AS {type})", "cast(x as bigint)",
             table="conversions", fails=("spark",)),
    Mutation("STRING to INT64", "TRY_CAST({0} AS {type})", "TRY_CAST({0} AS {type})", "cast(s as bigint)",
             table="conversions"),
    Mutation("STRING to TIMESTAMP", "TRY_CAST(left({0}, 10) AS {type})", "TRY_CAST({0} AS {type})",
             "unix_micros(cast(s as timestamp))", table="conversions"),
    Mutation("avg", "avg(CAST({0} AS BIGINT)){over}", "avg(CAST({0} AS BIGINT)){over}", "avg(cost)",
             table="aggregates"),
    Mutation("var_pop", "var_samp({0}){over}", "var_samp({0}){over}", "round(var_pop(n), 4)", table="aggregates"),
    Mutation("max_by", "arg_min_null({0}, {1}){over}", "min_by({0}, {1}){over}", "max_by(n, ts)", table="aggregates"),
    Mutation("percentile", "quantile_disc({0}, {1}){over}", "percentile_approx({0}, {1}){over}", "percentile(n, 0.5)",
             table="aggregates"),
]  # fmt: skip


def evaluated(engine: Engine, text: str, tables: list[Rows]) -> None:
    """One check of the suite: of an expression of `TABLE`, of `EDGES`, or of a query."""
    for each, name, values, expected in EDGES:
        if each == text:
            columns = {column: [EDGE_ROW.get(column)] * len(values) for column in SCHEMA.names} | {name: values}
            scalar = bind(text, SCHEMA)
            check([(text, scalar, expected)], computed(engine, [scalar], columns), columns)
            return
    answers = dict(TABLE)
    if text in answers:
        scalar = bind(text, SCHEMA)
        check([(text, scalar, [answers[text]])], computed(engine, [scalar], ROW), ROW)
        return
    ((answer,),) = select(engine, f"SELECT {text} AS v FROM dwd_ad_click", tables)
    assert same(answer, dict(VALUES)[text])


@pytest.fixture
def tables(tmp_path: Path) -> list[Rows]:
    return write_tables(tmp_path)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_lowering_is_found(engine: Engine, dialect: str, tables: list[Rows], mutation: Mutation) -> None:
    with mutation.made(dialect), pytest.raises(FeatureStoreError if dialect in mutation.fails else AssertionError):
        evaluated(engine, mutation.shown_by, tables)


@pytest.mark.parametrize("text", sorted({mutation.shown_by for mutation in MUTATIONS}))
def test_what_shows_them_passes_unbroken(engine: Engine, tables: list[Rows], text: str) -> None:
    evaluated(engine, text, tables)


class SumOfSquares(algebra.Variance):
    """Loses all digits of numbers that are large and close together."""

    def answers(self, events: algebra.Events, lo: Any, hi: Any) -> Any:
        sums = [np.concatenate(([0.0], np.cumsum(events.floats**power))) for power in (1, 2)]
        mean, squares = ((each[hi] - each[lo]) / np.maximum(hi - lo, 1) for each in sums)
        return pa.array(self._root(np.maximum(squares - mean**2, 0)), mask=lo == hi)


class FirstCome(algebra.Last):
    """Takes ties as they come."""

    def answers(self, events: algebra.Events, lo: Any, hi: Any) -> Any:
        places = np.minimum(np.maximum(hi - 1, 0), max(len(events.values) - 1, 0))
        if not len(events.values):
            return pa.nulls(len(lo), events.values.type)
        return events.values.take(pa.array(places, mask=lo == hi))


class FloatingSum(algebra.IntegerSum):
    """Sums integers as doubles."""

    def answers(self, events: algebra.Events, lo: Any, hi: Any) -> Any:
        sums = np.concatenate(([0.0], np.cumsum(events.floats)))
        return pa.array((sums[hi] - sums[lo]).astype(np.int64), mask=lo == hi)


@pytest.mark.parametrize(
    ("function", "broken"), [("variance", SumOfSquares), ("last", FirstCome), ("sum", FloatingSum)]
)
def test_a_broken_kernel_is_found(
    local: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, broken: Any
) -> None:
    """The kernels are one code for all engines."""
    for kind, right in algebra.TABLE[function].items():
        monkeypatch.setitem(algebra.TABLE[function], kind, broken if right is broken.__base__ else right)
    aggregates.aggregate_of.cache_clear()
    try:
        with pytest.raises(AssertionError):
            HistoryConformance().test_windows_as_of_a_time_are_the_oracles(local, tmp_path, False)
    finally:
        aggregates.aggregate_of.cache_clear()


def test_values_that_are_not_numbers_in_aggregates_are_found(
    local: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN counted as a number, where windows look for valid values."""
    monkeypatch.setattr("feature_store.engines.windows.valid", lambda values, passes: _not_null(values, passes))
    with pytest.raises(AssertionError):
        ExpressionConformance().test_aggregates_take_expressions(local, tmp_path)


def _not_null(values: Any, passes: Any) -> Any:
    if values is None or not values.null_count:
        return passes
    good = values.is_valid().to_numpy(zero_copy_only=False)
    return good if passes is None else good & passes


def _first_of_a_time(facts: Any, relation: LatestRow, values: Any) -> Any:
    """Takes ties as they come, where what is materialized is computed."""
    return _GREATEST(facts.dropDuplicates([*relation.keys.names, TIME]), relation, values)


def _before_its_time(both: Any, keys: int) -> Any:
    """Rows that ask find what lies before T, not what happens at T."""
    from pyspark.sql.functions import expr

    return _RUNNING(both.withColumn("__when", expr("__when - int(__spine IS NOT NULL)")), keys)


def _from_where_it_starts(
    self: SparkEngine, relation: Windows, level: int, start: int | None, until: int, touched: Any = None
) -> Any:
    """Makes the first tile of what is read of it, not of the whole."""
    return self._tiles(relation, level, lambda columns: self._facts(relation, columns, start, until, touched), until)


def test_broken_tiles_on_spark_are_found(
    spark_engine: SparkEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SparkEngine, "tiles", _from_where_it_starts)
    with pytest.raises(AssertionError):
        HistoryConformance().test_merged_tiles_are_the_windows(spark_engine, tmp_path)


_GREATEST, _RUNNING = spark._greatest, spark_joins._running


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [(spark, "_greatest", _first_of_a_time), (spark_joins, "_running", _before_its_time)],
    ids=["ties", "bounds"],
)
def test_a_broken_join_on_spark_is_found(
    spark_engine: SparkEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, broken: Any
) -> None:
    monkeypatch.setattr(module, name, broken)
    with pytest.raises(AssertionError):
        HistoryConformance().test_of_rows_of_one_time_the_greatest_values_are_found(
            spark_engine, tmp_path, None, backwards=False
        )
