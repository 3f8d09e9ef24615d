"""Spark's as-of joins against the embedded engine, which is held to the oracle: hot keys, every type, any spine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store.engines.local import LocalEngine
from feature_store.engines.spark import SparkEngine
from feature_store.engines.spark_joins import AT, Joins, Spine, Spread, _hot, as_of
from feature_store.errors import InvalidInputError
from feature_store.expressions.aggregates import result_type
from feature_store.expressions.relations import Computed, LatestRow, Rows, Schedule, Window, Windows
from feature_store.expressions.scalars import bind
from feature_store.storage.online import EVENT_TIME
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
    Schema,
    array,
    decimal,
)
from tests import oracle

pytestmark = pytest.mark.timeout(600)

MINUTE = 60_000_000
KEYS = Schema.of(user_id=INT64)
SCHEMA = Schema.of(user_id=INT64, at=TIMESTAMP, created=TIMESTAMP, price=FLOAT64, note=STRING)
TIGHT = Spread(rows=12, one_in=1, slices=8)
"""Every key with more than 12 rows is hot."""


@pytest.fixture(scope="module")
def local() -> Iterator[LocalEngine]:
    engine = LocalEngine(memory_limit="300MB", threads=1)
    yield engine
    engine.close()


def source(path: Path, schema: Schema = SCHEMA, created: str | None = "created") -> Rows:
    return Rows("events", schema, path=str(path), timestamp="at", created=created)


def window(name: str, function: str, column: str | None, length: int, hop: int, **options: Any) -> Window:
    schema = options.pop("schema", SCHEMA)
    value = None if column is None else bind(column, schema)
    where = options.pop("where", None)
    type_ = result_type(function, value.type if value else None)
    condition = None if where is None else bind(where, schema)
    return Window(name, function, type_, length, hop, value, condition, **options)


WINDOWS = (
    window("rows", "count", None, 20, 5),
    window("dear", "count", None, 20, 5, where="price > 0"),
    window("sum", "sum", "price", 10, 5),
    window("last2", "last_n", "price", 20, 5, n=2),
    window("kinds", "count_distinct", "note", 20, 5),
)


def relation(kind: str, path: Path) -> LatestRow | Windows:
    rows = source(path)
    if kind == "latest":
        return LatestRow(rows, KEYS, tuple(Computed(name, bind(name, SCHEMA)) for name in ("price", "note")))
    return Windows(rows, KEYS, WINDOWS, Schedule("* * * * *") if kind == "scheduled" else None)


def same(found: pa.Table, expected: pa.Table) -> None:
    assert found.schema.equals(expected.schema) and found.num_rows == expected.num_rows
    assert found.schema.metadata == expected.schema.metadata
    for name in expected.column_names:
        pairs = zip(found[name].to_pylist(), expected[name].to_pylist(), strict=True)
        assert all(oracle.agrees(one, other) or (one != one and other != other) for one, other in pairs), name


def history(path: Path, rng: random.Random, scale: int) -> None:
    """A bot, user 1, among users 2 to 5; times tie, created and values, too."""
    rows = [
        (
            rng.choice([1] * 6 + [2, 3, 4, 5]),
            (at := rng.randint(0, 100)) * scale,
            rng.choice([None, at, at + rng.randint(-5, 40)]),
            rng.choice([None, -1.0, 0.5, 2.0, float("nan")]),
            rng.choice([None, "a", "b"]),
        )
        for _ in range(150)
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns[2] = [None if known is None else known * scale for known in columns[2]]
    path.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns, schema=SCHEMA.arrow), path / "rows.parquet")


def spine(rng: random.Random, scale: int) -> pa.Table:
    """Duplicates, unknown users and no user among them."""
    asked = [(rng.choice([1] * 5 + [2, 3, 9, None]), rng.randint(-5, 140) * scale) for _ in range(80)]
    asked += asked[:5]
    users, times = zip(*asked, strict=True)
    return pa.table({"user_id": pa.array(users, pa.int64()), EVENT_TIME: pa.array(times, pa.int64())})


@pytest.mark.parametrize(
    ("kind", "as_known"), [("latest", False), ("latest", True), ("moving", True), ("scheduled", True)]
)
def test_a_hot_key_is_answered_as_any_other(
    spark_engine: SparkEngine, local: LocalEngine, tmp_path: Path, kind: str, as_known: bool
) -> None:
    rng = random.Random(f"{kind} {as_known}")
    scale = 10_000_000 if kind == "scheduled" else 1
    history(tmp_path / "events", rng, scale)
    asked, asks = spine(rng, scale), relation(kind, tmp_path / "events")
    names = ["note", "price"] if isinstance(asks, LatestRow) else [each.name for each in WINDOWS]
    expected = local.as_of(asks, asked, names, as_known)
    assert expected[names[0]].null_count < expected.num_rows
    same(as_of(spark_engine.reader, asks, asked, names, as_known, TIGHT), expected)


def test_the_slices_of_a_hot_key_are_even_and_far_enough_apart(spark_engine: SparkEngine) -> None:
    rows = pa.table({"__k0": [7] * 90 + list(range(8, 40)), "__when": [*range(90), *range(32)], "__slice": [0] * 122})
    frame = spark_engine.reader.frame_from(rows)
    (found,) = _hot([frame], 1, TIGHT).collect()
    assert found["__k0"] == 7 and len(found["__cuts"]) == 7
    assert all(8 <= later - earlier <= 15 for earlier, later in zip(found["__cuts"], found["__cuts"][1:], strict=False))
    (wide,) = _hot([frame], 1, TIGHT, apart=40).collect()
    assert len(wide["__cuts"]) == 2 and wide["__cuts"][1] - wide["__cuts"][0] >= 40
    assert _hot([frame], 1, Spread(rows=90, one_in=1)) is None


EVERY = {
    "n": (INT32, [1, None, -5]),
    "f": (FLOAT32, [1.5, None, float("nan")]),
    "s": (STRING, ["用户", "", None]),
    "raw": (BYTES, [b"\x00\xff", b"", None]),
    "flag": (BOOL, [True, False, None]),
    "moment": (TIMESTAMP, [datetime(2026, 1, 1, 1, 2, 3, 4, UTC), datetime(1969, 12, 31, 23, 59, tzinfo=UTC), None]),
    "day": (DATE, [date(2026, 2, 28), date(1969, 12, 31), None]),
    "amount": (decimal(38, 9), [Decimal("12345678901234567890123456789.123456789"), Decimal("-0.000000001"), None]),
    "tags": (array(STRING), [["a", None], [], None]),
    "costs": (array(decimal(10, 2)), [[Decimal("1.10"), None], [], None]),
}  # fmt: skip


def test_every_type_goes_through_unchanged(spark_engine: SparkEngine, local: LocalEngine, tmp_path: Path) -> None:
    keys = Schema.of(user=STRING, item=INT32)
    schema = Schema.of(user=STRING, item=INT32, at=TIMESTAMP, **{name: type_ for name, (type_, _) in EVERY.items()})
    rng = random.Random(4)
    rows = [
        [rng.choice("ab"), rng.choice([1, 2, None]), MINUTE * n, *(rng.choice(values) for _, values in EVERY.values())]
        for n in range(60)
    ]
    columns = [pa.array(list(column)) if n == 2 else list(column) for n, column in enumerate(zip(*rows, strict=True))]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema.arrow, strict=True)], schema=schema.arrow)
    pq.write_table(table, tmp_path / "rows.parquet")
    facts = source(tmp_path / "rows.parquet", schema, created=None)
    asked = pa.table({
        "user": pa.array([rng.choice(["a", "b", "c", None]) for _ in range(60)]),
        "item": pa.array([rng.choice([1, 2, 1, 2, None]) for _ in range(60)], pa.int32()),
        EVENT_TIME: pa.array([rng.randint(-1, 70) * MINUTE for _ in range(60)], pa.int64()),
    })  # fmt: skip
    latest = LatestRow(facts, keys, tuple(Computed(name, bind(name, schema)) for name in EVERY))
    same(spark_engine.as_of(latest, asked, list(EVERY)), local.as_of(latest, asked, list(EVERY)))
    scalar = [name for name, (type_, _) in EVERY.items() if not type_.item]
    windows = [
        window(f"{f}_{c}", f, c, 20 * MINUTE, 5 * MINUTE, schema=schema) for c in scalar for f in ("max", "last")
    ]
    windows += [window(f"some_{c}", "last_n", c, 20 * MINUTE, 5 * MINUTE, schema=schema, n=3) for c in scalar]
    moving = Windows(facts, keys, tuple(windows))
    names = [each.name for each in windows]
    same(spark_engine.as_of(moving, asked, names), local.as_of(moving, asked, names))


def test_no_rows_ask_and_none_answer(spark_engine: SparkEngine, local: LocalEngine, tmp_path: Path) -> None:
    history(tmp_path / "events", random.Random(1), 1)
    nothing = spine(random.Random(2), 1).slice(0, 0)
    for kind, names in (("latest", ["price"]), ("scheduled", ["rows", "last2"])):
        asks = relation(kind, tmp_path / "events")
        same(spark_engine.as_of(asks, nothing, names, True), local.as_of(asks, nothing, names, True))


def test_a_spine_that_changes_while_it_is_read_is_refused(spark_engine: SparkEngine, tmp_path: Path) -> None:
    history(tmp_path / "events", random.Random(1), 1)
    asked = spark_engine.reader.frame_from(pa.table({"user": [1, 1], AT: [50, 90]}))
    earlier = asked.where(f"{AT} < 60")
    found = Joins(spark_engine.reader).look_up(
        Spine(asked, earlier), ["user"], relation("moving", tmp_path / "events"), ["rows"], False, "found"
    )
    with pytest.raises(InvalidInputError, match="the entity rows changed while they were read"):
        _read(found.frame)


def _read(frame: Any) -> None:
    from feature_store.engines.spark_session import mapped

    with mapped("the test"):
        frame.collect()
