"""The embedded engine over real files, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_store.engines.local import LocalEngine
from feature_store.errors import SourceError
from feature_store.expressions.aggregates import WindowReader, item_time, result_type, tile_schema
from feature_store.expressions.instants import DAY, HOUR, instant
from feature_store.expressions.relations import Computed, LatestRow, Rows, Schedule, ScheduledQuery, Window, Windows
from feature_store.expressions.scalars import bind
from feature_store.storage.offline import OfflineStore
from feature_store.storage.online import CREATED, EVENT_TIME, ITEM, NO_CREATED
from feature_store.types import BOOL, DATE, FLOAT64, INT32, INT64, STRING, TIMESTAMP, Schema
from tests import oracle

UTC_MICROS = pa.timestamp("us", "UTC")
SCHEMA = Schema.of(user_id=INT64, at=TIMESTAMP, created=TIMESTAMP, price=FLOAT64, note=STRING)
KEYS = Schema.of(user_id=INT64)
Row = tuple[Any, ...]
"""user_id, at, created, price, note"""


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(memory_limit="500MB", threads=2)
    yield engine
    engine.close()


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.table(list(map(list, zip(*rows, strict=True))) or [[]] * 5, schema=SCHEMA.arrow)


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows), path)
    return path


def source(path: Path | None, schema: Schema = SCHEMA, **changes: Any) -> Rows:
    options: dict[str, Any] = {"timestamp": "at", "created": "created", **changes}
    return Rows("events", schema, path=None if path is None else str(path), **options)


def latest(rows: Rows, *names: str) -> LatestRow:
    return LatestRow(rows, KEYS, tuple(Computed(name, bind(name, rows.schema)) for name in names or ("price", "note")))


def spine(*rows: tuple[int | None, int]) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array([key for key, _ in rows], pa.int64()),
            EVENT_TIME: pa.array([time for _, time in rows], pa.int64()),
        }
    )


def window(name: str, function: str, column: str | None, length: int, hop: int, **options: Any) -> Window:
    value = None if column is None else bind(column, SCHEMA)
    where = options.pop("where", None)
    return Window(
        name, function, result_type(function, value.type if value else None), length, hop, value,
        None if where is None else bind(where, SCHEMA), **options,
    )  # fmt: skip


WINDOWS = (
    window("rows", "count", None, 20, 5),
    window("dear", "count", None, 20, 5, where="price > 0"),
    window("sum", "sum", "price", 20, 5),
    window("mean", "mean", "price", 10, 5, where="price > 0"),
    window("first", "first", "price", 40, 10),
    window("last", "last", "price", 40, 10),
    window("last2", "last_n", "price", 20, 5, n=2),
    window("max", "max", "note", 40, 10),
    window("kinds", "count_distinct", "note", 20, 5),
)

times = st.integers(0, 60)
prices = st.none() | st.sampled_from([-1.0, 0.0, 1.5, 2.0, float("nan"), float("inf")])
histories = st.lists(
    st.tuples(st.integers(1, 3), times, st.none() | st.integers(0, 70), prices, st.sampled_from([None, "a", "b"])),
    max_size=14,
)
spines = st.lists(st.tuples(st.none() | st.integers(1, 4), st.integers(0, 80)), max_size=8)
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return (isinstance(found, float) and found != found and expected != expected) or oracle.agrees(found, expected)


def fresh(tmp_path: Path) -> Path:
    """A folder of its own for each example."""
    return tmp_path / uuid4().hex


def seen(rows: Sequence[Row], key: int | None) -> list[oracle.Seen]:
    """NaN, the greatest number, is told to the oracle as such: Python's own order has no place for it."""
    return [
        oracle.Seen(at, (None if price is None else (price != price, 0 if price != price else price), note),
                    NO_CREATED if created is None else created)
        for user, at, created, price, note in rows
        if user == key
    ]  # fmt: skip


def shown(price: Any) -> float | None:
    return None if price is None else float("nan") if price[0] else price[1]


@SLOW
@given(rows=histories, asked=spines, as_known=st.booleans(), files=st.integers(1, 2), corrected=st.booleans())
def test_the_latest_row_is_the_oracles(
    engine: LocalEngine,
    tmp_path: Path,
    rows: list[Row],
    asked: list[tuple[int | None, int]],
    as_known: bool,
    files: int,
    corrected: bool,
) -> None:
    folder = fresh(tmp_path)
    for number in range(files):
        write(folder / f"{number}.parquet", rows[number::files])
    facts = source(folder, created="created" if corrected else None)
    rows = rows if corrected else [(*row[:2], None, *row[3:]) for row in rows]
    found = engine.as_of(latest(facts), spine(*asked), ["note", "price"], as_known)
    assert found.column_names == ["note", "price", EVENT_TIME]
    for (key, at), answer in zip(asked, found.to_pylist(), strict=True):
        _, row = oracle.latest(seen(rows, key), at, as_known=as_known)
        expected: dict[str, Any] = {"note": None, "price": None, EVENT_TIME: None}
        if row is not None:
            expected = {"note": row.values[1], "price": shown(row.values[0]), EVENT_TIME: row.time}
        assert all(same(answer[name], expected[name]) for name in expected), (key, at, answer, expected)
    if as_known:
        hidden = [r for r in rows if r[2] is not None and any(k == r[0] and r[1] <= t < r[2] for k, t in asked)]
        assert found.schema.metadata == {b"hidden": str(len(hidden)).encode()}


@pytest.mark.parametrize("created", [None, "created"])
@pytest.mark.parametrize("backwards", [False, True])
def test_of_rows_of_one_time_the_greatest_values_are_found(
    engine: LocalEngine, tmp_path: Path, created: str | None, backwards: bool
) -> None:
    tied = [(1, 5, None, None, "z"), (1, 5, None, 1.5, "a"), (1, 5, None, 2.0, None), (1, 5, None, 2.0, "a")]
    rows = [(2, 5, None, 1.0, "b"), *(reversed(tied) if backwards else tied)]
    facts = source(write(tmp_path / "rows.parquet", rows), created=created)
    found = engine.as_of(latest(facts), spine((1, 9), (2, 9), (1, 5)), ["price", "note"])
    assert found["price"].to_pylist() == [2.0, 1.0, 2.0]
    assert found["note"].to_pylist() == ["a", "b", "a"]


def test_found_values_of_any_type_keep_their_nulls(engine: LocalEngine, tmp_path: Path) -> None:
    values = {
        "whole": pa.array([7, None, -1], pa.int32()),
        "full": pa.array([2**62, 5, 0], pa.int64()),
        "real": pa.array([0.5, -1.5, None], pa.float32()),
        "yes": pa.array([True, None, False]),
        "day": pa.array([None, date(1969, 7, 20), date(2024, 2, 29)]),
        "instant": pa.array([None, 1, -1], UTC_MICROS),
        "cost": pa.array([Decimal("12.34"), None, Decimal("-0.01")], pa.decimal128(10, 2)),
        "note": pa.array(["", None, "ß"]),
        "tags": pa.array([["a", None], [], None], pa.list_(pa.string())),
    }
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"user_id": [1, 2, 3], "at": pa.array([5, 5, 5], UTC_MICROS), **values}), path)
    rows = source(path, engine.schema(source(path, created=None)), created=None)
    found = engine.as_of(latest(rows, *values), spine((3, 9), (2, 9), (1, 4), (3, 5), (1, 5), (4, 9)), list(values))
    for name, column in values.items():
        assert found[name].combine_chunks().equals(column.take(pa.array([2, 1, None, 2, 0, None]))), name
        assert found[name].combine_chunks().validate(full=True) is None


@SLOW
@given(rows=histories, start=st.none() | times, until=times)
def test_latest_is_the_oracles(
    engine: LocalEngine, tmp_path: Path, rows: list[Row], start: int | None, until: int
) -> None:
    reader = engine.latest(latest(source(write(fresh(tmp_path) / "rows.parquet", rows))), start, until).read()
    assert reader.schema.names == ["user_id", "price", "note", EVENT_TIME, CREATED]
    found = {row["user_id"]: row for row in reader.read_all().to_pylist()}
    for key in (1, 2, 3):
        kept = [row for row in seen(rows, key) if start is None or row.time >= start]
        _, row = oracle.latest(kept, until)
        answer = found.pop(key, None)
        assert (answer is None) == (row is None)
        if answer is not None and row is not None:
            assert (answer[EVENT_TIME], answer[CREATED], answer["note"]) == (row.time, row.created, row.values[1])
            assert same(answer["price"], shown(row.values[0]))
    assert not found


def expected_of(window: Window, rows: Sequence[Row], key: int | None, at: int, now: int | None = None) -> Any:
    column = {"note": 4, "price": 3}.get(getattr(window.value, "name", ""))
    history = [
        oracle.Event(
            row[1],
            None if column is None else row[column],
            NO_CREATED if row[2] is None else row[2],
            window.where is None or (row[3] is not None and (row[3] > 0 or row[3] != row[3])),
        )
        for row in rows
        if row[0] == key and (now is None or row[2] is None or row[2] <= now)
    ]
    return oracle.windowed(window.function, history, at, window.length, window.hop, window.n, column is None)


@SLOW
@given(rows=histories, asked=spines, as_known=st.booleans())
def test_windows_are_the_oracles(
    engine: LocalEngine, tmp_path: Path, rows: list[Row], asked: list[tuple[int | None, int]], as_known: bool
) -> None:
    relation = Windows(source(write(fresh(tmp_path) / "rows.parquet", rows)), KEYS, WINDOWS)
    names = [window.name for window in WINDOWS]
    found = engine.as_of(relation, spine(*asked), names, as_known)
    assert found.column_names == [*names, EVENT_TIME]
    for (key, at), answer in zip(asked, found.to_pylist(), strict=True):
        for each in WINDOWS:
            expected = expected_of(each, rows, key, at, at if as_known else None)
            assert same(answer[each.name], expected), (each.name, key, at, answer, expected)


@SLOW
@given(rows=histories, until=st.integers(0, 80), start=st.none() | times)
def test_merged_tiles_are_the_windows(
    engine: LocalEngine, tmp_path: Path, rows: list[Row], until: int, start: int | None
) -> None:
    relation = Windows(source(write(fresh(tmp_path) / "rows.parquet", rows)), KEYS, WINDOWS)
    stored: dict[int, list[Mapping[bytes, Any]]] = {key: [] for key in (1, 2, 3)}
    for level in relation.levels:
        names = tile_schema(relation.at_level(level)).names
        items: dict[int, dict[bytes, Any]] = {key: {} for key in stored}
        for row in engine.tiles(relation, level, None, until).read().read_all().to_pylist():
            values = tuple(row[name] for name in names)
            items[row["user_id"]][row[ITEM]] = (row[EVENT_TIME], row[CREATED], values)
        for key in stored:
            stored[key].append(items[key])
        later = engine.tiles(relation, level, start, until).read().read_all()
        assert all(start is None or item_time(item) + level > start for item in later[ITEM].to_pylist())
        count = sum(start is None or item_time(item) + level > start for each in items.values() for item in each)
        assert later.num_rows == count
    reader = WindowReader(WINDOWS)
    for key, per_level in stored.items():
        _, _, answer = reader.read(per_level, until)
        for each, value in zip(WINDOWS, answer, strict=True):
            assert same(value, expected_of(each, rows, key, until)), (each.name, key, answer)


@SLOW
@given(rows=histories, at=st.integers(0, 80))
def test_a_snapshot_has_every_key_in_the_longest_window(
    engine: LocalEngine, tmp_path: Path, rows: list[Row], at: int
) -> None:
    relation = Windows(source(write(fresh(tmp_path) / "rows.parquet", rows)), KEYS, WINDOWS, Schedule("daily"))
    found = engine.snapshot(relation, at).read().read_all().to_pylist()
    since = min((at - each.length) // each.hop * each.hop for each in WINDOWS)
    assert sorted(row["user_id"] for row in found) == sorted({row[0] for row in rows if since <= row[1] < at})
    for row in found:
        for each in WINDOWS:
            assert same(row[each.name], expected_of(each, rows, row["user_id"], at)), (each.name, row)


def moment(text: str) -> int:
    return instant(datetime.fromisoformat(text).replace(tzinfo=UTC))


def clicks(*times: str) -> list[Row]:
    return [(1, moment(text), None, 1.0, None) for text in times]


def counts(rows: Rows, schedule: Schedule | None = None) -> Windows:
    return Windows(rows, KEYS, (window("n", "count", None, 2 * DAY, HOUR),), schedule)


def test_scheduled_windows_stand_still_until_midnight_of_their_zone(engine: LocalEngine, tmp_path: Path) -> None:
    rows = write(tmp_path / "a.parquet", clicks("2026-03-01T15:59:59", "2026-03-01T16:00:00", "2026-03-02T03:00:00"))
    relation = counts(source(rows), Schedule("daily", "Asia/Shanghai"))  # midnight is at 16:00 UTC
    asked = ["2026-03-01T15:59:59.999999", "2026-03-01T16:00:00", "2026-03-02T15:59:59", "2026-03-02T16:00:00"]
    found = engine.as_of(relation, spine(*((1, moment(text)) for text in asked)), ["n"])
    assert found["n"].to_pylist() == [0, 1, 1, 3]


def test_many_batches_of_events(engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_store.engines.facts.EVENTS_AT_ONCE", 7)
    monkeypatch.setattr("feature_store.engines.facts.BATCH", 5)
    rows = [(key, time, None, float(time), None) for key in range(20) for time in range(key * 3)]
    relation = Windows(source(write(tmp_path / "a.parquet", rows)), KEYS, WINDOWS)
    asked = [(key, time) for time in (70, 3, 33) for key in range(-1, 21)]
    found = engine.as_of(relation, spine(*asked), ["rows", "sum"]).to_pylist()
    for (key, at), answer in zip(asked, found, strict=True):
        for each in (WINDOWS[0], WINDOWS[2]):
            assert same(answer[each.name], expected_of(each, rows, key, at))
    tiles = engine.tiles(relation, 5, None, 100).read().read_all()
    assert tiles.num_rows == len({(key, time // 5) for key, time, *_ in rows})


# Where rows come from


def prices_of(engine: LocalEngine, rows: Rows) -> list[tuple[int, Any, int]]:
    found = engine.latest(latest(rows, "price"), None, 2**55).read().read_all().to_pylist()
    return sorted((row["user_id"], row["price"], row[EVENT_TIME]) for row in found)


def test_csv_takes_its_types_from_the_schema(engine: LocalEngine, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,at,created,price,note\n1,2026-01-01T00:00:00Z,,1,007\n2,2026-01-01 08:00:00+08:00,,2.5,\n")
    day = moment("2026-01-01")
    assert prices_of(engine, source(path)) == [(1, 1.0, day), (2, 2.5, day)]
    found = engine.as_of(latest(source(path), "note"), spine((1, day), (2, day)), ["note"])
    assert found["note"].to_pylist() == ["007", None]


def test_a_bad_csv_row_is_named(engine: LocalEngine, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,at,created,price,note\n1,2026-01-01,,1,\n2,2026-01-01,,cheap,\n")
    with pytest.raises(SourceError, match="cheap") as raised:
        prices_of(engine, source(path))
    assert raised.value.location is not None
    assert (raised.value.location.file, raised.value.location.line) == (str(path), 3)


def test_a_csv_time_that_is_no_iso_time_is_refused(engine: LocalEngine, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,at,created,price,note\n1,yesterday,,1,\n")
    with pytest.raises(SourceError, match="yesterday"):
        prices_of(engine, source(path))


def test_the_schema_of_a_csv_file(engine: LocalEngine, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user_id,at,price,note,day\n1,2026-01-01 10:00:00,1.5,x,2026-01-01\n")
    assert engine.schema(source(path)) == Schema.of(user_id=INT64, at=TIMESTAMP, price=FLOAT64, note=STRING, day=DATE)


def test_hive_partitions_are_columns(engine: LocalEngine, tmp_path: Path) -> None:
    for day in ("2026-01-01", "2026-01-02"):
        at = moment(day)
        pq.write_table(
            pa.table({"user_id": [1], "at": pa.array([at], UTC_MICROS), "price": [float(at)]}),
            write(tmp_path / "s" / f"dt={day}" / "part-0.parquet", []),
        )
    (tmp_path / "s" / "_SUCCESS").touch()
    bare = source(tmp_path / "s", Schema(()), created=None)
    assert engine.schema(bare) == Schema.of(user_id=INT64, at=TIMESTAMP, price=FLOAT64, dt=DATE)
    for type_, expected in ((DATE, date(2026, 1, 2)), (STRING, "2026-01-02")):
        rows = source(tmp_path / "s", Schema.of(user_id=INT64, at=TIMESTAMP, price=FLOAT64, dt=type_), created=None)
        assert engine.latest(latest(rows, "dt"), None, 2**55).read().read_all()["dt"].to_pylist() == [expected]


def test_delta_is_read_at_its_current_version(engine: LocalEngine, tmp_path: Path) -> None:
    store = OfflineStore("lake", tmp_path)
    store.replace("t", table([(1, 5, None, 1.0, "x")]), {"note": "x"})
    store.replace("t", table([(2, 5, None, 1.0, "y")]), {"note": "y"})
    store.replace("t", table([(1, 6, None, 2.0, "x")]), {"note": "x"})
    rows = source(Path(store.path("t")))
    assert engine.schema(rows) == SCHEMA
    assert prices_of(engine, rows) == [(1, 2.0, 6), (2, 1.0, 5)]
    assert len(engine.inputs(rows)) == 2


def test_a_delta_column_that_no_file_has_is_null(engine: LocalEngine, tmp_path: Path) -> None:
    store = OfflineStore("lake", tmp_path)
    store.append("t", table([]))
    store.append("t", table([(1, 5, None, 1.0, "x")]).drop_columns(["note"]))
    found = engine.as_of(latest(source(Path(store.path("t")))), spine((1, 10)), ["price", "note"]).to_pylist()
    assert found == [{"price": 1.0, "note": None, EVENT_TIME: 5}]


def test_only_keys_touched_by_these_inputs(engine: LocalEngine, tmp_path: Path) -> None:
    store = OfflineStore("lake", tmp_path)
    for way in ("parquet", "delta"):
        first = [(1, 5, None, 1.0, None), (2, 5, None, 1.0, None)]
        if way == "delta":
            store.append("t", table(first))
            rows = source(Path(store.path("t")))
        else:
            rows = source(write(tmp_path / "s" / "a.parquet", first).parent)
        before = engine.inputs(rows)
        late: list[Row] = [(2, 1, None, 9.0, None)]
        if way == "delta":
            store.append("t", table(late))
        else:
            write(tmp_path / "s" / "b.parquet", late)
        after = engine.inputs(rows)
        changed = {name for name in after if before.get(name) != after[name]}
        assert len(changed) == 1
        found = engine.latest(latest(rows, "price"), None, 100, changed).read().read_all()
        assert found.select(["user_id", "price"]).to_pylist() == [{"user_id": 2, "price": 1.0}]
        tiles = engine.tiles(Windows(rows, KEYS, WINDOWS), 5, None, 100, changed).read().read_all()
        assert sorted(tiles["rows.count"].to_pylist()) == [1, 1]
        assert set(tiles["user_id"].to_pylist()) == {2}


def test_rewriting_a_file_changes_its_fingerprint(engine: LocalEngine, tmp_path: Path) -> None:
    rows = source(write(tmp_path / "a.parquet", [(1, 5, None, 1.0, None)]))
    before = engine.inputs(rows)
    write(tmp_path / "a.parquet", [(1, 5, None, 2.0, None)])
    assert before.keys() == engine.inputs(rows).keys()
    assert before != engine.inputs(rows)


def pushed(store: OfflineStore, rows: Sequence[Row], ids: Sequence[str]) -> None:
    store.append("log", table(rows).append_column("__event_id", pa.array(list(ids))))


def test_the_log_of_pushed_rows_counts_each_event_once(engine: LocalEngine, tmp_path: Path) -> None:
    store = OfflineStore("lake", tmp_path)
    files = write(tmp_path / "a.parquet", [(1, 1, None, 1.0, None)])
    rows = source(files, pushed=store.path("log"))
    total = Windows(rows, KEYS, WINDOWS)
    assert engine.as_of(total, spine((1, 10)), ["rows"])["rows"].to_pylist() == [1]
    for _ in range(2):
        pushed(store, [(1, 2, None, 2.0, None), (1, 2, None, 2.0, None)], ["a", "b"])
    found = engine.as_of(total, spine((1, 10)), ["rows", "sum"]).to_pylist()
    assert found == [{"rows": 3, "sum": 5.0, EVENT_TIME: 2}]
    assert prices_of(engine, source(None, pushed=store.path("log"))) == [(1, 2.0, 2)]
    assert len(engine.inputs(rows)) == 3


def test_rows_equal_in_unique_columns_count_once(engine: LocalEngine, tmp_path: Path) -> None:
    store = OfflineStore("lake", tmp_path)
    files = write(tmp_path / "a.parquet", [(1, 1, 3, 7.0, "id1"), (1, 1, 2, 5.0, "id1"), (1, 3, None, 1.0, "id2")])
    pushed(store, [(1, 1, 9, 100.0, "id1")], ["x"])
    rows = source(files, pushed=store.path("log"), unique=("note",))
    found = engine.as_of(Windows(rows, KEYS, WINDOWS), spine((1, 10)), ["rows", "sum"])
    assert found.select(["rows", "sum"]).to_pylist() == [{"rows": 2, "sum": 6.0}]


def test_rows_without_key_or_time_are_left_out(engine: LocalEngine, tmp_path: Path) -> None:
    rows = source(write(tmp_path / "a.parquet", [(None, 1, None, 1.0, None), (2, None, None, 1.0, None)]))
    assert prices_of(engine, rows) == []
    assert engine.tiles(Windows(rows, KEYS, WINDOWS), 5, None, 100).read().read_all().num_rows == 0
    found = engine.as_of(latest(rows, "price"), spine((None, 10), (2, 10)), ["price"])
    assert found.to_pylist() == [{"price": None, EVENT_TIME: None}] * 2


# What may be wrong with them


def test_no_rows_at_all(engine: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    rows = source(tmp_path / "s")
    for _ in range(2):
        assert prices_of(engine, rows) == []
        found = engine.as_of(Windows(rows, KEYS, WINDOWS), spine((1, 10), (None, 3)), ["rows", "sum"])
        assert found.to_pylist() == [{"rows": 0, "sum": None, EVENT_TIME: None}] * 2
        (tmp_path / "s" / "empty.parquet").touch()
    write(tmp_path / "s" / "none.parquet", [])
    assert prices_of(engine, rows) == []
    assert engine.as_of(latest(rows), spine(), ["price"]).num_rows == 0


def test_a_source_that_vanished(engine: LocalEngine, tmp_path: Path) -> None:
    rows = source(tmp_path / "gone")
    for call in (lambda: engine.inputs(rows), lambda: engine.schema(rows), lambda: prices_of(engine, rows)):
        with pytest.raises(SourceError, match="there is nothing at"):
            call()


def test_a_file_that_is_no_parquet(engine: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("hello, I am a text")
    with pytest.raises(SourceError, match="cannot be read"):
        prices_of(engine, source(tmp_path / "a.parquet"))


def test_a_column_that_vanished(engine: LocalEngine, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", clicks("2026-01-01"))
    pq.write_table(pq.read_table(path).rename_columns(["user_id", "at", "created", "prize", "note"]), path)
    with pytest.raises(SourceError, match=r'"price" was FLOAT64 at apply and is gone .* Did you mean "prize"'):
        prices_of(engine, source(path))
    assert engine.latest(latest(source(path), "note"), None, 2**55).read().read_all().num_rows == 1


def test_a_column_that_changed_type(engine: LocalEngine, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", clicks("2026-01-01"))
    changed = pq.read_table(path)
    for values, kind in ((["1.0"], "STRING"), ([True], "BOOL")):
        pq.write_table(changed.set_column(3, "price", pa.array(values)), path)
        with pytest.raises(SourceError, match=f'"price" was FLOAT64 at apply and is {kind}'):
            prices_of(engine, source(path))
    pq.write_table(changed.set_column(3, "price", pa.array([7], pa.int32())), path)
    assert [price for _, price, _ in prices_of(engine, source(path))] == [7.0]


def test_an_event_time_that_is_no_time(engine: LocalEngine, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"user_id": [1], "at": [1767225600], "price": [1.0]}), path)
    rows = source(path, Schema.of(user_id=INT64, at=INT64, price=FLOAT64), created=None)
    with pytest.raises(SourceError, match='"at" is INT64, not a timestamp or date'):
        prices_of(engine, rows)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (pa.timestamp("ns"), datetime(2026, 1, 1)),
        (pa.timestamp("ns", "UTC"), datetime(2026, 1, 1, tzinfo=UTC)),
        (pa.timestamp("ns", "Asia/Tokyo"), datetime(2026, 1, 1, tzinfo=UTC)),
        (pa.timestamp("ms"), datetime(2026, 1, 1)),
        (pa.timestamp("us", "Asia/Tokyo"), datetime(2026, 1, 1, tzinfo=UTC)),
        (pa.date32(), date(2026, 1, 1)),
    ],
)
def test_any_time_type_is_an_instant(engine: LocalEngine, tmp_path: Path, type_: pa.DataType, value: Any) -> None:
    path = tmp_path / "a.parquet"
    stamps = pa.array([value], type_)
    pq.write_table(pa.table({"user_id": [1], "at": stamps, "created": stamps, "price": [1.0], "note": ["a"]}), path)
    at = moment("2026-01-01")
    assert prices_of(engine, source(path, created=None)) == [(1, 1.0, at)]
    for rows in (source(path), source(path, unique=("user_id",))):
        assert list(engine.latest(latest(rows, "price"), at, at + 1).read().read_all()["price"].to_pylist()) == [1.0]
        found = engine.as_of(counts(rows), spine((1, at + 1)), ["n"], as_known=True)
        assert found["n"].to_pylist() == [1]


# Queries and computed columns


def query(sql: str, *sources: Rows, **values: Any) -> ScheduledQuery:
    named = tuple((name, column, type_) for name, (column, type_) in values.items())
    return ScheduledQuery(sql, sources, KEYS, named, Schedule("daily", "UTC"), 0)


def test_a_scheduled_query_runs_for_the_day_before(engine: LocalEngine, tmp_path: Path) -> None:
    rows = source(write(tmp_path / "a.parquet", clicks("2026-01-01T05:00:00", "2026-01-02T05:00:00")))
    sql = "SELECT user_id, COUNT(*) AS value FROM events WHERE at < date_add('${date}', 1) GROUP BY user_id"
    relation = query(sql, rows, n=("value", INT32))
    for day, count in (("2026-01-02", 1), ("2026-01-03", 2)):
        found = engine.snapshot(relation, moment(day)).read().read_all()
        assert found.schema.field("n").type == pa.int32()
        assert found.to_pylist() == [{"user_id": 1, "n": count}]
    assert engine.snapshot(relation, moment("2026-01-01")).read().read_all().num_rows == 0


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_nan_is_greater_than_any_number_whatever_statistics_say(engine: LocalEngine, tmp_path: Path, kind: str) -> None:
    rows: list[Row] = [(1, 1, None, -1.0, None), (1, 2, None, float("nan"), None)]
    store = OfflineStore("lake", tmp_path)
    if kind == "delta":
        store.append("t", table(rows))
    path = Path(store.path("t")) if kind == "delta" else write(tmp_path / "a.parquet", rows)
    found = engine.as_of(Windows(source(path), KEYS, WINDOWS), spine((1, 10)), ["dear"])
    assert found["dear"].to_pylist() == [1]
    sql = "SELECT user_id, COUNT(*) AS value FROM events WHERE price > 0 GROUP BY user_id"
    answer = engine.snapshot(query(sql, source(path), n=("value", INT64)), moment("2026-01-01")).read().read_all()
    assert answer["n"].to_pylist() == [1]


def test_two_rows_for_one_key_are_refused(engine: LocalEngine, tmp_path: Path) -> None:
    rows = source(write(tmp_path / "a.parquet", clicks("2026-01-01T05:00:00", "2026-01-02T05:00:00")))
    with pytest.raises(SourceError, match="more than one row for user_id=1"):
        engine.snapshot(
            query("SELECT user_id, price FROM events", rows, p=("price", FLOAT64)), moment("2026-01-03")
        ).read()


def test_compute_appends_columns_in_row_order(engine: LocalEngine) -> None:
    schema = Schema.of(price=FLOAT64, n=INT64)
    given = pa.table({"n": range(300_000), "price": [float(n) for n in range(300_000)], "other": [None] * 300_000})
    found = engine.compute(given, {"twice": bind("price * 2", schema), "big": bind("n > 10", schema)})
    assert found.column_names == ["n", "price", "other", "twice", "big"]
    assert found["twice"].to_pylist() == [2.0 * n for n in range(300_000)]
    assert found.schema.field("big").type == BOOL.arrow
    constant = engine.compute(given.slice(0, 3), {"one": bind("1", schema)})
    assert constant["one"].to_pylist() == [1, 1, 1]


def test_threads_share_an_engine(engine: LocalEngine, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.parquet", [(1, 5, None, float(n), None)]) for n in range(8)]

    def ask(n: int) -> Any:
        return engine.as_of(latest(source(files[n])), spine((1, 10), (2, 10)), ["price"])["price"].to_pylist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(8))) == [[float(n), None] for n in range(8)]


def test_a_reader_may_be_dropped_half_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_store.engines.facts.BATCH", 10)
    engine = LocalEngine()
    rows = source(write(tmp_path / "a.parquet", [(key, 5, None, 1.0, None) for key in range(1000)]))
    reader = engine.latest(latest(rows), None, 10).read()
    reader.read_next_batch()
    del reader
    assert len(prices_of(engine, rows)) == 1000
    engine.close()
