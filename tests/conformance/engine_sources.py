"""Where an engine's rows come from, and what it says where something is wrong with them; where computed rows go."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store.engines.engine import METASTORE_TABLES, Engine
from feature_store.errors import SourceError
from feature_store.expressions.instants import DAY, HOUR
from feature_store.expressions.relations import Rows, Schedule, Window, Windows
from feature_store.storage.offline import OfflineStore
from feature_store.storage.online import CREATED, EVENT_TIME
from feature_store.types import BOOL, DATE, FLOAT64, INT64, STRING, TIMESTAMP, Column, Schema, Type, decimal
from tests.conformance.histories import (
    KEYS,
    SCHEMA,
    Event,
    days,
    event,
    latest,
    moment,
    source,
    spine,
    table,
    window,
    write,
)
from tests.scalars import from_arrow

UTC_MICROS = pa.timestamp("us", "UTC")
PLAIN = Schema.of(user_id=INT64, at=TIMESTAMP, created=TIMESTAMP, x=FLOAT64, s=STRING)
EVER = 2**54


def reals_of(engine: Engine, rows: Rows, since: int | None = None) -> list[tuple[int, Any, int]]:
    """(user_id, x, event time) of the latest rows."""
    found = engine.latest(latest(rows, "x"), since, EVER).read().read_all().to_pylist()
    return sorted((row["user_id"], row["x"], row[EVENT_TIME]) for row in found)


def damage(path: Path) -> None:
    """Make the rows of a Parquet file unreadable, and leave what describes them."""
    data = path.read_bytes()
    described = 8 + int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:4] + b"\xff" * (len(data) - 4 - described) + data[-described:])


def one_file(path: Path, made: list[Event]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(made), path)
    return path


def clicks(*times: str) -> list[Event]:
    return [event(1, moment(text), x=1.0) for text in times]


def fails_where(gap: bool, request: pytest.FixtureRequest) -> None:
    """What an engine declares that it cannot do it must refuse: a check that passes nevertheless is a failure."""
    if gap:
        request.applymarker(pytest.mark.xfail(strict=True, raises=SourceError))


def total(name: str, value: str | None, schema: Schema = SCHEMA, length: int = 20, hop: int = 5) -> Window:
    return window(name, "count" if value is None else "sum", value, length, hop, schema=schema)


TOTALS = (total("rows", None), total("sum", "x"))


class SourceConformance:
    """An engine's sources. Subclasses give the fixture `engine`."""

    # Formats

    def test_parquet_keeps_every_type(self, engine: Engine, tmp_path: Path) -> None:
        extremes: dict[str, list[Any]] = {
            "small": [-(2**31), 2**31 - 1], "n": [-(2**63), 2**63 - 1], "f": [1.401298464324817e-45, float("-inf")],
            "x": [-0.0, 5e-324], "y": [1.7976931348623157e308, float("nan")],
            "p": [Decimal("-99999999.99"), Decimal("0.01")], "q": [Decimal(10**38 - 1), Decimal(-(10**38) + 1)],
            "s": ["a\0b", "用户 'x' \\ \"y\" 🙂"], "raw": [b"\x00\xff", b""], "ok": [True, False],
            "moment": [moment("0001-01-01T00:00:00"), moment("9999-12-31T23:59:59.999999")],
            "day": [days("0001-01-01"), days("9999-12-31")], "tags": [[], [None, "", "b"]],
        }  # fmt: skip
        made = [event(n, 5, **{name: pair[n] for name, pair in extremes.items()}) for n in (0, 1)] + [event(2, 5)]
        facts = source(write(tmp_path / "rows", made, 2))
        assert engine.schema(Rows("events", Schema(()), facts.path)) == SCHEMA
        names = list(extremes)
        for found in (
            engine.as_of(latest(facts), spine((1, 9), (0, 9), (2, 9)), names),
            engine.latest(latest(facts), None, 9).read().read_all().sort_by("user_id").take([1, 0, 2]),
        ):
            for name, (first, second) in extremes.items():
                type_ = SCHEMA.select([name]).columns[0].type
                assert found.schema.field(name).type == type_.arrow
                answers = [repr(value) for value in from_arrow(found[name], type_)]
                assert answers == [repr(second), repr(first), "None"], name

    def test_csv_takes_its_types_from_the_schema(self, engine: Engine, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text(
            "user_id,at,created,x,s\n1,2026-01-01T00:00:00Z,,1,007\n2,2026-01-01 08:00:00+08:00,,2.5,\n"
            '3,2026-01-01,,nan,"a ""b"", c"\n'
        )
        day = moment("2026-01-01")
        facts = source(path, PLAIN)
        assert [row[::2] for row in reals_of(engine, facts)] == [(1, day), (2, day), (3, day)]
        assert [row[1] for row in reals_of(engine, facts)][:2] == [1.0, 2.5]
        found = engine.as_of(latest(facts, "s"), spine((1, day), (2, day), (3, day)), ["s"])
        assert found["s"].to_pylist() == ["007", None, 'a "b", c']

    def test_the_schema_of_a_csv_file(self, engine: Engine, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("user_id,at,x,s,day\n1,2026-01-01 10:00:00,1.5,x,2026-01-01\n")
        assert engine.schema(source(path, Schema(()))) == Schema.of(
            user_id=INT64, at=TIMESTAMP, x=FLOAT64, s=STRING, day=DATE
        )

    @pytest.mark.parametrize("row", ["2,2026-01-01,,cheap,", "2,yesterday,,1,"])
    def test_a_bad_csv_row_is_named(self, engine: Engine, tmp_path: Path, row: str) -> None:
        path = tmp_path / "a.csv"
        path.write_text(f"user_id,at,created,x,s\n1,2026-01-01,,1,\n{row}\n")
        with pytest.raises(SourceError, match=r"cheap|yesterday") as raised:
            reals_of(engine, source(path, PLAIN))
        assert raised.value.location is not None
        assert (raised.value.location.file, raised.value.location.line) == (str(path), 3)

    def test_hive_partitions_are_columns(self, engine: Engine, tmp_path: Path) -> None:
        for day in ("2026-01-01", "2026-01-02"):
            folder = tmp_path / "s" / f"dt={day}" / "kind=a%2Fb"
            folder.mkdir(parents=True)
            at = moment(day)
            pq.write_table(
                pa.table({"user_id": [1], "at": pa.array([at], UTC_MICROS), "x": [1.0]}), folder / "part-0.parquet"
            )
        (tmp_path / "s" / "_SUCCESS").touch()
        bare = Schema.of(user_id=INT64, at=TIMESTAMP, x=FLOAT64)
        found = engine.schema(source(tmp_path / "s", Schema(()), created=None))
        assert found == Schema((*bare, *Schema.of(dt=DATE, kind=STRING)))
        for type_, expected in ((DATE, date(2026, 1, 2)), (STRING, "2026-01-02")):
            facts = source(tmp_path / "s", Schema((*bare, *Schema.of(dt=type_, kind=STRING))), created=None)
            rows = engine.latest(latest(facts, "dt", "kind"), None, EVER).read().read_all()
            assert (rows["dt"].to_pylist(), rows["kind"].to_pylist()) == ([expected], ["a/b"])
            where = Windows(
                facts, KEYS, (window("n", "count", None, 30 * DAY, DAY, "dt < '2026-01-02'", None, facts.schema),)
            )
            if type_ == DATE:
                assert engine.as_of(where, spine((1, moment("2026-01-05"))), ["n"])["n"].to_pylist() == [1]

    def test_delta_is_read_at_its_current_version(self, engine: Engine, tmp_path: Path) -> None:
        store = OfflineStore("lake", tmp_path)
        store.replace("t", table([event(1, 5, x=1.0, s="a")]), {"s": "a"})
        store.replace("t", table([event(2, 5, x=1.0, s="b")]), {"s": "b"})
        store.replace("t", table([event(1, 6, x=2.0, s="a")]), {"s": "a"})
        facts = source(store.path("t"))
        assert set(engine.schema(facts)) == set(SCHEMA)
        assert reals_of(engine, facts) == [(1, 2.0, 6), (2, 1.0, 5)]
        assert len(engine.inputs(facts)) == 2

    def test_a_delta_column_that_no_file_has_is_null(self, engine: Engine, tmp_path: Path) -> None:
        store = OfflineStore("lake", tmp_path)
        store.append("t", table([]))
        store.append("t", table([event(1, 5, x=1.0, s="x")]).drop_columns(["s"]))
        found = engine.as_of(latest(source(store.path("t")), "x", "s"), spine((1, 10)), ["x", "s"]).to_pylist()
        assert found == [{"x": 1.0, "s": None, EVENT_TIME: 5}]

    def test_files_of_other_columns_and_types_are_read_together(self, engine: Engine, tmp_path: Path) -> None:
        first, second = table([event(1, 5, x=1.0, n=3)]), table([event(2, 5, x=2.0, n=4, s="b")])
        (tmp_path / "s").mkdir()
        pq.write_table(first.drop_columns(["s"]), tmp_path / "s" / "a.parquet")
        narrow = second.set_column(second.column_names.index("n"), "n", pa.array([4], pa.int16()))
        pq.write_table(narrow.select([*reversed(narrow.column_names)]), tmp_path / "s" / "b.parquet")
        found = engine.as_of(latest(source(tmp_path / "s"), "n", "s"), spine((1, 9), (2, 9)), ["n", "s"])
        assert (found["n"].to_pylist(), found["s"].to_pylist()) == ([3, 4], [None, "b"])

    @pytest.mark.parametrize(
        ("type_", "value"),
        [
            (pa.timestamp("ns"), datetime(2026, 1, 1)),
            (pa.timestamp("ns", "UTC"), datetime(2026, 1, 1, tzinfo=UTC)),
            (pa.timestamp("ns", "Asia/Tokyo"), datetime(2026, 1, 1, tzinfo=UTC)),
            (pa.timestamp("ms"), datetime(2026, 1, 1)),
            (pa.timestamp("us"), datetime(2026, 1, 1)),
            (pa.timestamp("us", "Asia/Tokyo"), datetime(2026, 1, 1, tzinfo=UTC)),
            (pa.date32(), date(2026, 1, 1)),
        ],
    )
    def test_any_time_type_is_an_instant(self, engine: Engine, tmp_path: Path, type_: pa.DataType, value: Any) -> None:
        path, stamps = tmp_path / "a.parquet", pa.array([value], type_)
        pq.write_table(pa.table({"user_id": [1], "at": stamps, "created": stamps, "x": [1.0], "s": ["a"]}), path)
        at = moment("2026-01-01")
        plain, unique = source(path, PLAIN), source(path, PLAIN, unique=("user_id",))
        found = engine.latest(latest(plain, "x", "at"), at, at + 1).read().read_all()
        assert found.select(["x", EVENT_TIME, CREATED]).to_pylist() == [{"x": 1.0, EVENT_TIME: at, CREATED: at}]
        assert found["at"].cast(pa.int64()).to_pylist() == [at]
        hours = (window("n", "count", "hour(at) + hour(created)", 2 * DAY, HOUR, schema=PLAIN),)
        counted = engine.as_of(Windows(unique, KEYS, hours), spine((1, at + 1), (1, at)), ["n"], as_known=True)
        assert counted["n"].to_pylist() == [1, 0]

    @pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/St_Johns"])
    def test_the_zone_of_the_machine_does_not_matter(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
    ) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            at = moment("2026-03-08T01:30:00")
            naive = pa.array([datetime(2026, 3, 8, 1, 30)], pa.timestamp("us"))
            pq.write_table(
                pa.table({"user_id": [1], "at": naive, "created": naive, "x": [1.0], "s": ["2026-03-08 01:30"]}),
                tmp_path / "a.parquet",
            )
            (tmp_path / "a.csv").write_text("user_id,at,created,x,s\n1,2026-03-08 01:30:00,,1,2026-03-08 01:30\n")
            for name in ("a.parquet", "a.csv"):
                facts = source(tmp_path / name, PLAIN)
                assert reals_of(engine, facts) == [(1, 1.0, at)]
                asked = ["hour(at)", "unix_micros(cast(s as timestamp))", "unix_micros(at)"]
                found = engine.latest(latest(facts, *asked), None, EVER).read().read_all()
                assert [found[text].to_pylist() for text in asked] == [[1], [at], [at]]
                rows = engine.select("SELECT hour(at) AS h, cast(at AS date) AS d FROM events", [facts])
                assert rows.to_pylist() == [{"h": 1, "d": date(2026, 3, 8)}]
        finally:
            monkeypatch.undo()
            time.tzset()

    @pytest.fixture
    def metastore_table(self) -> str:
        """A metastore table of three rows; this one is in no metastore."""
        return "nowhere.rows"

    def test_metastore_tables(self, engine: Engine, metastore_table: str, request: pytest.FixtureRequest) -> None:
        fails_where(METASTORE_TABLES in engine.gaps, request)
        facts = source(None, table=metastore_table)
        assert set(engine.schema(facts)) == set(SCHEMA)
        assert reals_of(engine, facts) == [(1, 2.0, 6), (2, 1.0, 5)]
        assert len(engine.inputs(facts)) == 1

    # What they are made of

    def test_only_keys_touched_by_these_inputs(self, engine: Engine, tmp_path: Path) -> None:
        store = OfflineStore("lake", tmp_path)
        made, late = [event(1, 5, x=1.0), event(2, 5, x=1.0)], [event(2, 1, x=9.0)]
        for way in ("parquet", "delta"):
            if way == "delta":
                store.append("t", table(made))
                facts = source(store.path("t"))
            else:
                facts = source(one_file(tmp_path / "s" / "a.parquet", made).parent)
            before = engine.inputs(facts)
            if way == "delta":
                store.append("t", table(late))
            else:
                one_file(tmp_path / "s" / "b.parquet", late)
            after = engine.inputs(facts)
            changed = {name for name in after if before.get(name) != after[name]}
            assert len(changed) == 1
            found = engine.latest(latest(facts, "x"), None, 100, changed).read().read_all()
            assert found.select(["user_id", "x"]).to_pylist() == [{"user_id": 2, "x": 1.0}]
            tiles = engine.tiles(Windows(facts, KEYS, TOTALS), 5, None, 100, changed).read().read_all()
            assert sorted(tiles["rows.count"].to_pylist()) == [1, 1]
            assert set(tiles["user_id"].to_pylist()) == {2}

    def test_rewriting_a_file_changes_its_fingerprint(self, engine: Engine, tmp_path: Path) -> None:
        facts = source(one_file(tmp_path / "a.parquet", [event(1, 5, x=1.0)]))
        before = engine.inputs(facts)
        assert reals_of(engine, facts) == [(1, 1.0, 5)]
        one_file(tmp_path / "a.parquet", [event(1, 5, x=2.0)])
        os.utime(tmp_path / "a.parquet", ns=(1, 1))
        assert before.keys() == engine.inputs(facts).keys()
        assert before != engine.inputs(facts)
        assert reals_of(engine, facts) == [(1, 2.0, 5)]

    def test_the_log_of_pushed_rows_counts_each_event_once(self, engine: Engine, tmp_path: Path) -> None:
        store = OfflineStore("lake", tmp_path)
        facts = source(one_file(tmp_path / "a.parquet", [event(1, 1, x=1.0)]), pushed=store.path("log"))
        relation = Windows(facts, KEYS, TOTALS)
        assert engine.as_of(relation, spine((1, 10)), ["rows"])["rows"].to_pylist() == [1]
        for _ in range(2):
            rows = table([event(1, 2, x=2.0), event(1, 2, x=2.0)])
            store.append("log", rows.append_column("__event_id", pa.array(["a", "b"])))
        found = engine.as_of(relation, spine((1, 10)), ["rows", "sum"]).to_pylist()
        assert found == [{"rows": 3, "sum": 5.0, EVENT_TIME: 2}]
        assert reals_of(engine, source(None, pushed=store.path("log"))) == [(1, 2.0, 2)]
        assert len(engine.inputs(facts)) == 3

    @pytest.mark.parametrize("unique", [(), ("s",)])
    def test_what_a_stream_counts_is_history_and_not_batch(
        self, engine: Engine, tmp_path: Path, unique: tuple[str, ...]
    ) -> None:
        """Of two partitions the stream counts from offset 1, and from 0, on; "b" is in a file and its event, too."""
        store = OfflineStore("lake", tmp_path)
        path = one_file(tmp_path / "a.parquet", [event(1, 1, x=1.0, s="a"), event(1, 2, x=2.0, s="b")])
        streamed = table([event(1, 2, x=2.0, s="b"), event(1, 3, x=4.0, s="c"), event(1, 4, x=8.0, s="d")])
        for name, places in (("__partition", [0, 0, 1]), ("__offset", [1, 0, 0])):
            streamed = streamed.append_column(name, pa.array(places, pa.int64()))
        store.append("log", streamed)
        facts = source(path, streamed=store.path("log"), unique=unique)

        def total_of(rows: Rows) -> float:
            found = engine.tiles(Windows(rows, KEYS, TOTALS), 5, None, 5, None).read().read_all()
            return sum(found["sum.sum"].to_pylist())

        assert total_of(facts) == (15.0 if unique else 17.0)
        assert total_of(replace(facts, before=((0, 1), (1, 0)))) == (5.0 if unique else 7.0)
        assert total_of(replace(facts, before=())) == (1.0 if unique else 3.0)

    @pytest.mark.parametrize("touched", [False, True])
    def test_a_tile_is_written_anew_when_its_events_turn_out_to_be_a_streams(
        self, engine: Engine, tmp_path: Path, touched: bool
    ) -> None:
        """With the same stamp as before, so that it counts, though it has fewer events, or none."""
        store = OfflineStore("lake", tmp_path)
        kept = [event(1, 1, 9, x=1.0, s="a"), event(1, 2, 9, x=2.0, s="b"), event(2, 6, 9, x=4.0, s="c")]
        facts = source(one_file(tmp_path / "a.parquet", kept), streamed=store.path("log"), unique=("s", "y"), before=())

        def tiles(inputs: Collection[str] | None = None) -> list[tuple[Any, ...]]:
            found = engine.tiles(Windows(facts, KEYS, TOTALS), 5, None, 10, inputs).read().read_all()
            names = ("user_id", EVENT_TIME, CREATED, "sum.sum")
            return sorted(zip(*(found[name].to_pylist() for name in names), strict=True))

        assert tiles() == [(1, 2, 9, 3.0), (2, 6, 9, 4.0)]
        before = engine.inputs(facts)
        came = table([event(1, 2, 3, x=2.0, s="b"), event(2, 6, 3, x=4.0, s="c"), event(3, 7, x=8.0, s="d")])
        for name in ("__partition", "__offset"):
            came = came.append_column(name, pa.array([0, 1, 2], pa.int64()))
        store.append("log", came)
        found = tiles(engine.inputs(facts).keys() - before.keys() if touched else None)
        assert found == [(1, 2, 9, 1.0), (2, 6, 9, None)]

    @pytest.mark.parametrize("layout", ["folders", "statistics"])
    def test_files_of_other_times_are_not_read(self, engine: Engine, tmp_path: Path, layout: str) -> None:
        """A file whose rows cannot be read, though its columns and statistics can, is no matter of other days."""
        first, second = (tmp_path / "facts" / f"dt=2024-04-0{day}" / "a.parquet" for day in (1, 2))
        one_file(first, [event(1, moment("2024-04-01"), x=1.0, s="a")])
        one_file(second, [event(1, moment("2024-04-02"), x=2.0, s="a")])
        damage(first)
        facts = source(tmp_path / "facts", Schema((*SCHEMA.columns, Column("dt", STRING))))

        def asked(day: int) -> list[Any]:
            if layout == "statistics":
                return reals_of(engine, facts, moment(f"2024-04-0{day}"))
            query = f"SELECT x FROM events WHERE dt >= '2024-04-0{day}'"
            return engine.select(query, [facts])["x"].to_pylist()

        assert asked(2) == ([2.0] if layout == "folders" else [(1, 2.0, moment("2024-04-02"))])
        with pytest.raises(SourceError):
            asked(1)

    def test_rows_equal_in_unique_columns_count_once(self, engine: Engine, tmp_path: Path) -> None:
        store = OfflineStore("lake", tmp_path)
        made = [event(1, 1, 3, x=7.0, s="id1"), event(1, 1, 2, x=5.0, s="id1"), event(1, 3, x=1.0, s="id2")]
        store.append("log", table([event(1, 1, 9, x=100.0, s="id1")]).append_column("__event_id", pa.array(["x"])))
        facts = source(one_file(tmp_path / "a.parquet", made), pushed=store.path("log"), unique=("s",))
        found = engine.as_of(Windows(facts, KEYS, TOTALS), spine((1, 10)), ["rows", "sum"])
        assert found.select(["rows", "sum"]).to_pylist() == [{"rows": 2, "sum": 6.0}]

    def test_of_copies_of_an_event_the_least_counts(self, engine: Engine, tmp_path: Path) -> None:
        copies = [{"y": float("nan")}, {"y": 1.5, "tags": ["b", None]}, {"y": 1.5, "tags": ["b", "a"], "x": 9.0}]
        copies += [{"y": 1.5, "tags": ["b", None, "a"], "x": 3.0}, {"y": 1.5, "tags": ["c"], "x": 7.0}]
        for number, made in enumerate((copies, copies[::-1])):
            path = one_file(
                tmp_path / f"{number}.parquet", [event(1, 1, s="id", **{"x": 5.0, **each}) for each in made]
            )
            schema = SCHEMA.select(["user_id", "at", "s", "y", "tags", "x"])
            relation = Windows(source(path, schema, created=None, unique=("s",)), KEYS, (total("sum", "x", schema),))
            assert engine.as_of(relation, spine((1, 10)), ["sum"])["sum"].to_pylist() == [5.0]

    @pytest.mark.parametrize("kind", ["parquet", "delta"])
    def test_nan_is_greater_than_any_number_whatever_statistics_say(
        self, engine: Engine, tmp_path: Path, kind: str
    ) -> None:
        made = [event(1, 1, y=-1.0), event(1, 2, y=float("nan"))]
        store = OfflineStore("lake", tmp_path)
        if kind == "delta":
            store.append("t", table(made))
        path = store.path("t") if kind == "delta" else str(one_file(tmp_path / "a.parquet", made))
        dear = window("dear", "count", None, 20, 5, where="y > 0")
        assert engine.as_of(Windows(source(path), KEYS, (dear,)), spine((1, 10)), ["dear"])["dear"].to_pylist() == [1]
        found = engine.select("SELECT count(*) AS n FROM events WHERE y > 0", [source(path)])
        assert found["n"].to_pylist() == [1]

    # What may be wrong with them

    def test_no_rows_at_all(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / "s").mkdir()
        facts = source(tmp_path / "s")
        relation = Windows(facts, KEYS, TOTALS, Schedule("daily"))
        for _ in range(2):
            assert reals_of(engine, facts) == []
            found = engine.as_of(relation, spine((1, 10), (None, 3)), ["rows", "sum"])
            assert found.to_pylist() == [{"rows": 0, "sum": None, EVENT_TIME: None}] * 2
            assert engine.snapshot(relation, 10).read().read_all().num_rows == 0
            (tmp_path / "s" / "empty.parquet").touch()
        one_file(tmp_path / "s" / "none.parquet", [])
        assert reals_of(engine, facts) == []
        assert engine.tiles(relation, 5, None, 10).count() == 0
        for nothing in (engine.as_of(latest(facts), spine(), ["x"]), engine.as_of(relation, spine(), ["sum"])):
            assert (nothing.num_rows, nothing.schema.field(EVENT_TIME).type) == (0, pa.int64())

    def test_a_source_that_vanished(self, engine: Engine, tmp_path: Path) -> None:
        facts = source(one_file(tmp_path / "a.parquet", [event(1, 5, x=1.0)]))
        assert reals_of(engine, facts) == [(1, 1.0, 5)]
        (tmp_path / "a.parquet").unlink()
        for call in (engine.inputs, engine.schema, lambda rows: reals_of(engine, rows)):
            with pytest.raises(SourceError, match="there is nothing at"):
                call(facts)

    @pytest.mark.parametrize("text", ["hello, I am a text", "PAR1 and then something that is not Parquet PAR1"])
    def test_a_file_that_is_no_parquet(self, engine: Engine, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.parquet").write_text(text)
        with pytest.raises(SourceError, match="cannot be read"):
            reals_of(engine, source(tmp_path / "a.parquet"))

    def test_a_delta_file_that_is_gone(self, engine: Engine, tmp_path: Path) -> None:
        store = OfflineStore("lake", tmp_path)
        store.append("t", table([event(1, 5, x=1.0)]))
        for file in Path(store.path("t")).glob("*.parquet"):
            file.unlink()
        with pytest.raises(SourceError, match="events cannot be read"):
            reals_of(engine, source(store.path("t")))

    def test_a_column_that_vanished(self, engine: Engine, tmp_path: Path) -> None:
        path = one_file(tmp_path / "a.parquet", clicks("2026-01-01"))
        pq.write_table(pq.read_table(path).rename_columns(["price" if n == "x" else n for n in SCHEMA.names]), path)
        changed = Schema.of(**{("prize" if c.name == "x" else c.name): c.type for c in SCHEMA})
        with pytest.raises(SourceError, match=r'"prize" was FLOAT64 at apply and is gone .* Did you mean "price"'):
            engine.latest(latest(source(path, changed), "prize"), None, EVER).read()
        assert engine.latest(latest(source(path, changed), "s"), None, EVER).read().read_all().num_rows == 1

    def test_a_column_that_changed_type(self, engine: Engine, tmp_path: Path) -> None:
        path = one_file(tmp_path / "a.parquet", clicks("2026-01-01"))
        changed, place = pq.read_table(path), SCHEMA.names.index("x")
        for values, kind in ((["1.0"], "STRING"), ([True], "BOOL")):
            pq.write_table(changed.set_column(place, "x", pa.array(values)), path)
            with pytest.raises(SourceError, match=f'"x" was FLOAT64 at apply and is {kind}'):
                reals_of(engine, source(path))
        pq.write_table(changed.set_column(place, "x", pa.array([7], pa.int32())), path)
        assert [x for _, x, _ in reals_of(engine, source(path))] == [7.0]

    @pytest.mark.parametrize(
        ("found", "type_", "expected"),
        [
            (pa.array([2**31 - 1], pa.int32()), INT64, 2**31 - 1),
            (pa.array([7], pa.uint8()), INT64, 7),
            (pa.array([0.5], pa.float32()), FLOAT64, 0.5),
            (pa.array([Decimal("1.5")], pa.decimal128(5, 1)), decimal(12, 3), Decimal("1.500")),
            (pa.array([Decimal("1.5")], pa.decimal128(5, 1)), FLOAT64, 1.5),
            (pa.array([date(2026, 1, 1)]), TIMESTAMP, moment("2026-01-01")),
            (pa.array(["a"]).dictionary_encode(), STRING, "a"),
            (pa.array([["a"]], pa.large_list(pa.large_string())), Type.parse("ARRAY<STRING>"), ["a"]),
            (pa.nulls(1), BOOL, None),
        ],
    )
    def test_a_column_of_a_narrower_type_is_read_as_the_declared_one(
        self, engine: Engine, tmp_path: Path, found: pa.Array, type_: Type, expected: Any
    ) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"user_id": [1], "at": pa.array([5], UTC_MICROS), "v": found}), path)
        facts = source(path, Schema.of(user_id=INT64, at=TIMESTAMP, v=type_), created=None)
        rows = engine.latest(latest(facts, "v"), None, 9).read().read_all()
        assert from_arrow(rows["v"], type_) == [expected]

    def test_an_integer_that_does_not_fit_its_type_is_an_error(self, engine: Engine, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"user_id": [1], "at": pa.array([5], UTC_MICROS), "v": [2**40]}), path)
        facts = source(path, Schema.of(user_id=INT64, at=TIMESTAMP, v=Type.parse("INT32")), created=None)
        with pytest.raises(SourceError, match="events cannot be read"):
            engine.latest(latest(facts, "v"), None, 9).read().read_all()

    def test_an_event_time_that_is_no_time(self, engine: Engine, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"user_id": [1], "at": [1767225600], "x": [1.0]}), path)
        facts = source(path, Schema.of(user_id=INT64, at=INT64, x=FLOAT64), created=None)
        with pytest.raises(SourceError, match='"at" is INT64, not a timestamp or date'):
            reals_of(engine, facts)

    def test_a_folder_of_two_formats_is_refused(self, engine: Engine, tmp_path: Path) -> None:
        one_file(tmp_path / "s" / "a.parquet", [event(1, 5)])
        (tmp_path / "s" / "a.csv").write_text("user_id,at\n1,2026-01-01\n")
        with pytest.raises(SourceError, match="mixes Parquet and CSV"):
            reals_of(engine, source(tmp_path / "s"))

    # Where computed rows go

    def test_computed_rows_are_read_counted_written_and_saved_alike(self, engine: Engine, tmp_path: Path) -> None:
        made = [event(key, 5 + key, x=key / 3, s=str(key)) for key in range(300)]
        facts = source(write(tmp_path / "rows", made, 3))
        store = OfflineStore("lake", tmp_path)
        for number, computed in enumerate(
            [
                engine.latest(latest(facts), None, EVER),
                engine.tiles(Windows(facts, KEYS, TOTALS), 5, None, EVER),
                engine.snapshot(Windows(facts, KEYS, (total("sum", "x", length=9000),), Schedule("daily")), 1000),
            ]
        ):
            rows = computed.read().read_all().sort_by("user_id")
            assert computed.read().read_all().sort_by("user_id") == rows
            assert (rows.num_rows, computed.count()) == (300, 300)
            sink = Kept()
            assert computed.write(sink) == 300
            assert pa.Table.from_batches(sink.batches).sort_by("user_id") == rows
            for _ in range(2 if number != 1 else 0):  # tiles are not kept offline
                saved = computed.save(store, f"t{number}", {"of": "2026-01-01"})
                assert saved.read().read_all().select(rows.column_names).sort_by("user_id") == rows
            if number == 1:
                continue
            kept = store.read(f"t{number}").sort_by("user_id")
            assert kept.column_names == [*rows.column_names, "of"]
            assert kept.select(rows.column_names).cast(rows.schema) == rows
            assert store.partitions(f"t{number}") == [{"of": "2026-01-01"}]

    def test_a_sink_that_may_run_anywhere(self, engine: Engine, tmp_path: Path) -> None:
        made = [event(key, 5, x=1.0) for key in range(300)]
        facts = source(write(tmp_path / "rows", made, 3))
        folder = tmp_path / "written"
        folder.mkdir()
        assert engine.latest(latest(facts, "x"), None, EVER).write(FolderSink(str(folder))) == 300
        assert sorted(pq.read_table(folder)["user_id"].to_pylist()) == [*range(300)]

    def test_what_is_wrong_is_said_when_rows_are_computed(self, engine: Engine, tmp_path: Path) -> None:
        facts = source(one_file(tmp_path / "s" / "a.parquet", [event(1, 5, x=1.0)]).parent)
        computed = engine.latest(latest(facts, "x"), None, EVER)
        shutil.rmtree(tmp_path / "s")
        uses: list[Callable[[], Any]] = [computed.read, computed.count, partial(computed.write, Kept())]
        for use in uses:
            with pytest.raises(SourceError, match="there is nothing at"):
                use()

    def test_a_reader_may_be_dropped_half_read(self, engine: Engine, tmp_path: Path) -> None:
        facts = source(write(tmp_path / "rows", [event(key, 5, x=1.0) for key in range(5000)], 4))
        reader = engine.latest(latest(facts), None, 10).read()
        reader.read_next_batch()
        del reader
        assert len(reals_of(engine, facts)) == 5000

    def test_threads_share_an_engine(self, engine: Engine, tmp_path: Path) -> None:
        files = [one_file(tmp_path / f"{n}.parquet", [event(1, 5, x=float(n))]) for n in range(8)]

        def ask(n: int) -> Any:
            return engine.as_of(latest(source(files[n]), "x"), spine((1, 10), (2, 10)), ["x"])["x"].to_pylist()

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(8))) == [[float(n), None] for n in range(8)]


class Kept:
    """A sink in this process."""

    anywhere = False

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> int:
        before = len(self.batches)
        self.batches.extend(batches)
        return sum(batch.num_rows for batch in self.batches[before:])


class FolderSink:
    """A sink that writes files into a folder, named by what is in them."""

    anywhere = True

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> int:
        written = 0
        for batch in batches:
            if batch.num_rows:
                name = min(batch.column(0).to_pylist())
                pq.write_table(pa.Table.from_batches([batch]), f"{self.folder}/{name}.parquet")
                written += batch.num_rows
        return written
