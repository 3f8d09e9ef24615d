"""Scheduled SQL, and SELECTs of people, answer the same on every engine."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from feature_store.engines.engine import Engine
from feature_store.errors import SourceError
from feature_store.expressions.instants import DAY as A_DAY
from feature_store.expressions.instants import HOUR
from feature_store.expressions.queries import bind_query
from feature_store.expressions.relations import Rows, Schedule, ScheduledQuery
from feature_store.types import BYTES, DATE, FLOAT64, INT32, INT64, STRING, TIMESTAMP, Schema, Type, decimal
from tests.conformance.histories import KEYS, event, moment, source, write
from tests.golden.queries import DAY, FEATURE, OVERFLOW, ROWS, SCHEMAS, TABLES, VALUES
from tests.scalars import from_arrow, same, to_arrow


def write_tables(folder: Path) -> list[Rows]:
    """The tables of the golden queries, as files."""
    for name, rows in TABLES.items():
        columns = zip(SCHEMAS[name], zip(*rows, strict=True), strict=True)
        typed = {column.name: to_arrow([*values], column.type) for column, values in columns}
        pq.write_table(pa.table(typed), folder / f"{name}.parquet")
    return [Rows(name, SCHEMAS[name], str(folder / f"{name}.parquet")) for name in TABLES]


def select(engine: Engine, sql: str, tables: list[Rows]) -> list[tuple[Any, ...]]:
    """The rows, raw row values, of the types that the query was bound with."""
    sql = sql.replace("${date}", DAY.isoformat())
    bound = bind_query(sql, SCHEMAS, sample=True)
    found = engine.select(sql, tables)
    assert found.column_names == [*bound.columns.names]
    assert [field.type for field in found.schema] == [column.type.arrow for column in bound.columns], sql
    columns = [from_arrow(found[column.name], column.type) for column in bound.columns]
    return [*zip(*columns, strict=True)]


def _spoil(file: Path) -> None:
    """Overwrite the rows of a Parquet file, and leave what it says of its columns."""
    whole = bytearray(file.read_bytes())
    end = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    whole[4:end] = b"\xff" * (end - 4)
    file.write_bytes(whole)


def query(sql: str, *sources: Rows, delay: int = 0, keys: Schema = KEYS, **values: Any) -> ScheduledQuery:
    named = tuple((name, column, type_) for name, (column, type_) in values.items())
    return ScheduledQuery(sql, sources, keys, named, Schedule("daily", "UTC"), delay)


class QueryConformance:
    """An engine's SQL. Subclasses give the fixture `engine`."""

    @pytest.fixture
    def tables(self, tmp_path: Path) -> list[Rows]:
        return write_tables(tmp_path)

    def test_values_of_queries(self, engine: Engine, tables: list[Rows]) -> None:
        items = ", ".join(f"{text} AS v{number}" for number, (text, _) in enumerate(VALUES))
        (row,) = select(engine, f"SELECT {items} FROM dwd_ad_click", tables)
        wrong = [
            (text, expected, answer)
            for (text, expected), answer in zip(VALUES, row, strict=True)
            if not same(answer, expected)
        ]
        assert not wrong

    @pytest.mark.parametrize(("sql", "expected"), ROWS, ids=[sql[:60] for sql, _ in ROWS])
    def test_rows_of_queries(
        self, engine: Engine, tables: list[Rows], sql: str, expected: list[tuple[Any, ...]]
    ) -> None:
        found = sorted(select(engine, sql, tables), key=repr)
        assert same([[*row] for row in found], [[*row] for row in sorted(expected, key=repr)]), found

    def test_a_sum_that_overflows_is_an_error(self, engine: Engine, tables: list[Rows]) -> None:
        with pytest.raises(SourceError, match=r"(?i)out of range|overflow"):
            select(engine, OVERFLOW, tables)

    def test_selected_rows_keep_their_order(self, engine: Engine, tmp_path: Path) -> None:
        facts = source(write(tmp_path / "rows", [event(key % 7, key, n=key) for key in range(1000)], 3))
        found = engine.select("SELECT n, user_id FROM events ORDER BY user_id DESC, n", [facts])
        assert found["n"].to_pylist() == sorted(range(1000), key=lambda key: (-(key % 7), key))

    def test_the_feature_of_the_contract(self, engine: Engine, tables: list[Rows]) -> None:
        for sql in (FEATURE, FEATURE.replace("dt >=", "day >=")):
            relation = query(sql, *tables, clicks=("value", INT64))
            for day, expected in ((11, {1: 2, 2: 1}), (10, {1: 3, 2: 1})):
                found = engine.snapshot(relation, moment(f"2024-01-{day}")).read().read_all()
                assert found.column_names == ["user_id", "clicks"]
                assert {row["user_id"]: row["clicks"] for row in found.to_pylist()} == expected

    def test_a_scheduled_query_runs_for_the_day_before(self, engine: Engine, tmp_path: Path) -> None:
        made = [event(1, moment("2026-01-01T05:00:00")), event(1, moment("2026-01-02T05:00:00"))]
        sql = "SELECT user_id, COUNT(*) AS value FROM events WHERE at < date_add('${date}', 1) GROUP BY user_id"
        facts = source(write(tmp_path / "rows", made))
        for delay in (0, 3 * HOUR):
            relation = query(sql, facts, delay=delay, n=("value", INT32))
            for day, count in (("2026-01-02", 1), ("2026-01-03", 2)):
                found = engine.snapshot(relation, moment(day) + delay).read().read_all()
                assert found.schema.field("n").type == pa.int32()
                assert found.to_pylist() == [{"user_id": 1, "n": count}]
            assert engine.snapshot(relation, moment("2026-01-01") + delay).read().read_all().num_rows == 0

    @pytest.mark.parametrize("type_", [DATE, STRING], ids=str)
    @pytest.mark.parametrize("kind", ["hive", "delta"])
    def test_partitions_that_a_query_excludes_are_not_read(
        self, engine: Engine, tmp_path: Path, kind: str, type_: Type
    ) -> None:
        days = [f"2026-01-{day:02}" for day in range(1, 6)]
        rows = pa.table({"user_id": [1] * 5, "x": [1.0, 2.0, 4.0, 8.0, 16.0], "dt": days})
        rows = rows.set_column(2, "dt", rows["dt"].cast(type_.arrow))
        if kind == "delta":
            write_deltalake(str(tmp_path / "s"), rows, partition_by=["dt"])
        else:
            pq.write_to_dataset(rows, tmp_path / "s", partition_cols=["dt"])
        for day in days[:2]:
            for file in (tmp_path / f"s/dt={day}").glob("*.parquet"):
                _spoil(file)
        facts = Rows("s", Schema.of(user_id=INT64, x=FLOAT64, dt=type_), str(tmp_path / "s"))
        relation = query(
            "SELECT user_id, SUM(x) AS value FROM s WHERE dt >= date_sub('${date}', 2) AND dt <= '${date}' "
            "GROUP BY user_id",
            facts, total=("value", FLOAT64),
        )  # fmt: skip
        found = engine.snapshot(relation, moment("2026-01-06")).read().read_all()
        assert found.to_pylist() == [{"user_id": 1, "total": 28.0}]
        with pytest.raises(SourceError):  # the file is as bad as it is meant to be
            engine.snapshot(relation, moment("2026-01-05")).read().read_all()

    def test_a_query_as_it_was_known_then(self, engine: Engine, tmp_path: Path) -> None:
        at = moment("2026-01-02")
        made = [event(1, at - 9, at - 8), event(1, at - 9, at + 1), event(1, at - 7, None), event(2, at - 5, at + 5)]
        made.append(event(1, at + 1, at + 2))
        relation = query(
            "SELECT user_id, COUNT(*) AS value FROM events GROUP BY user_id",
            source(write(tmp_path / "rows", made)), n=("value", INT64),
        )  # fmt: skip
        found = engine.snapshot(relation, at, as_known=True).read().read_all()
        assert found.to_pylist() == [{"user_id": 1, "n": 2}]
        assert found.schema.metadata == {b"hidden": b"2"}
        everything = engine.snapshot(relation, at).read().read_all()
        assert {row["user_id"]: row["n"] for row in everything.to_pylist()} == {1: 4, 2: 1}

    def test_columns_of_a_query_become_the_declared_types(self, engine: Engine, tmp_path: Path) -> None:
        made = [event(1, 5, x=-2.7, n=2**40, s=" 12 ", raw=b"a", p=None, day=3, small=7), event(2, 5, x=float("nan"))]
        columns: dict[str, tuple[str, Type, Any, Any]] = {
            "truncated": ("x", INT64, -2, None),
            "narrow": ("n", INT32, None, None),
            "read": ("s", INT64, 12, None),
            "wide": ("small", FLOAT64, 7.0, None),
            "money": ("small", decimal(6, 2), Decimal("7.00"), None),
            "when": ("day", TIMESTAMP, 3 * A_DAY, None),
            "text": ("n", STRING, str(2**40), None),
            "same": ("day", DATE, 3, None),
            "raw": ("raw", BYTES, b"a", None),
        }
        facts = source(write(tmp_path / "rows", made))
        sql = "SELECT user_id, x, n, s, small, day, raw FROM events"
        relation = query(sql, facts, **{name: each[:2] for name, each in columns.items()})
        found = engine.snapshot(relation, moment("2026-01-02")).read().read_all().sort_by("user_id")
        for name, (_, type_, *expected) in columns.items():
            assert found.schema.field(name).type == type_.arrow
            assert from_arrow(found[name], type_) == expected, name

    def test_rows_without_a_key_are_left_out(self, engine: Engine, tmp_path: Path) -> None:
        facts = source(write(tmp_path / "rows", [event(None, 5, n=1), event(1, 5, n=2), event(None, 6, n=1)]))
        relation = query("SELECT user_id, n FROM events", facts, n=("n", INT64))
        assert engine.snapshot(relation, A_DAY).read().read_all().to_pylist() == [{"user_id": 1, "n": 2}]

    @pytest.mark.parametrize(("name", "value", "shown"), [("user_id", 1, "user_id=1"), ("s", "a", "s='a'")])
    def test_two_rows_for_one_key_are_refused(
        self, engine: Engine, tmp_path: Path, name: str, value: Any, shown: str
    ) -> None:
        facts = source(write(tmp_path / "rows", [event(key=1, at=n, s="a", x=1.0) for n in range(2)]))
        keys = facts.schema.select([name])
        relation = query(f"SELECT {name}, x FROM events", facts, keys=keys, x=("x", FLOAT64))
        with pytest.raises(SourceError, match=f"more than one row for {shown}"):
            engine.snapshot(relation, moment("2026-01-03")).read().read_all()

    def test_a_query_over_a_source_that_changed(self, engine: Engine, tmp_path: Path) -> None:
        path = write(tmp_path / "rows", [event(1, 5, x=1.0)]) / "0.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["x"]), path)
        relation = query("SELECT user_id, x FROM events", source(path), x=("x", FLOAT64))
        with pytest.raises(SourceError, match='"x" was FLOAT64 at apply and is gone'):
            engine.snapshot(relation, moment("2026-01-03")).read()

    def test_a_source_counts_an_event_once_in_queries(self, engine: Engine, tmp_path: Path) -> None:
        made = [event(1, 5, x=1.0, s="a"), event(1, 5, x=2.0, s="a"), event(1, 6, x=4.0, s="b")]
        facts = source(write(tmp_path / "rows", made), unique=("s",))
        assert engine.select("SELECT sum(x) AS v FROM events", [facts])["v"].to_pylist() == [5.0]

    def test_a_date_in_a_csv_source(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("k,d,t\n1,2024-01-10,2024-01-10 23:30:00\n2,,\n")
        facts = Rows("events", Schema.of(k=INT64, d=DATE, t=TIMESTAMP), str(tmp_path / "a.csv"))
        found = engine.select("SELECT k, cast(t AS date) AS day FROM events WHERE d = '2024-01-10'", [facts])
        assert found.to_pylist() == [{"k": 1, "day": date(2024, 1, 10)}]
