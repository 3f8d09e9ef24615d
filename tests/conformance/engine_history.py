"""What an engine says of generated events is what the oracle says: latest rows, windows, tiles, snapshots."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store.engines.engine import Engine
from feature_store.errors import FeatureStoreError, InvalidInputError
from feature_store.expressions.aggregates import COVERED, WindowReader, item_time, tile_schema
from feature_store.expressions.instants import DAY, HOUR, MINUTE
from feature_store.expressions.relations import DELETED, LatestRow, Schedule, Windows
from feature_store.storage.online import CREATED, EVENT_TIME, ITEM, NO_CREATED
from feature_store.types import INT64, STRING, TIMESTAMP, Schema
from tests import oracle
from tests.conformance.histories import (
    BASES,
    KEYS,
    VALUES,
    Event,
    Found,
    asked,
    event,
    events,
    every_window,
    latest,
    moment,
    orderly,
    seen,
    source,
    spine,
    unknown_created,
    window,
    write,
)
from tests.scalars import from_arrow, to_arrow

WINDOWS = every_window()


def raw(table: pa.Table, types: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of raw row values."""
    table.validate(full=True)
    columns = {
        name: from_arrow(table[name], types[name]) if name in types else table[name].to_pylist()
        for name in table.column_names
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def types_of(schema: Schema) -> dict[str, Any]:
    return {column.name: column.type for column in schema}


def by_key(made: Sequence[Event]) -> dict[int | None, list[Event]]:
    found: dict[int | None, list[Event]] = {}
    for each in made:
        found.setdefault(each.key, []).append(each)
    return found


class HistoryConformance:
    """An engine's answers about the past. Subclasses give the fixture `engine`."""

    @pytest.mark.parametrize("deleted", [None, "ok"])
    @pytest.mark.parametrize("corrected", [True, False])
    @pytest.mark.parametrize("as_known", [True, False])
    def test_the_latest_row_as_of_a_time_is_the_oracles(
        self, engine: Engine, tmp_path: Path, as_known: bool, corrected: bool, deleted: str | None
    ) -> None:
        rng = random.Random(as_known * 2 + corrected)
        made = events(rng, 60)
        questions = asked(rng, made, 60, 200)
        facts = source(write(tmp_path / "rows", made, 2), created="created" if corrected else None)
        made = made if corrected else unknown_created(made)
        names = [*reversed(VALUES.names)]
        found = engine.as_of(latest(facts, deleted=deleted), spine(*questions), names, as_known)
        assert found.column_names == [*names, EVENT_TIME]
        assert [found.schema.field(name).type for name in names] == [
            VALUES.select([n]).columns[0].type.arrow for n in names
        ]
        told = {key: seen(of_key, key, deleted) for key, of_key in by_key(made).items()}
        for (key, at), answer in zip(questions, raw(found, types_of(VALUES)), strict=True):
            _, row = oracle.latest(told.get(key, []), at, as_known=as_known)
            if row is None:
                assert set(answer.values()) == {None}, (key, at, answer)
            else:
                assert answer[EVENT_TIME] == row.time
                assert orderly(answer[name] for name in VALUES.names) == row.values, (key, at, told[key])
        if as_known:
            late = [e for e in made if e.created is not None and e.at is not None]
            hidden = [e for e in late if any(k == e.key and e.at <= t < e.created for k, t in questions)]
            assert found.schema.metadata == {b"hidden": str(len(hidden)).encode()}
            assert bool(hidden) == corrected

    def test_rows_that_delete_are_latest_rows(self, engine: Engine, tmp_path: Path) -> None:
        """Stored, they hide what was before them; of rows of one time they win."""
        made = [
            event(1, 5, n=1), event(1, 7, n=2, ok=True), event(2, 5, n=3, ok=True), event(2, 5, n=4),
            event(3, 5, ok=True), event(3, 6, n=6, ok=False), event(4, 5, n=7),
        ]  # fmt: skip
        relation = latest(source(write(tmp_path / "rows", made), created=None), "n", deleted="ok")
        found = engine.latest(relation, None, 9).read().read_all().sort_by("user_id")
        assert found.column_names == ["user_id", DELETED, "n", EVENT_TIME, CREATED]
        assert found[DELETED].to_pylist() == [True, True, False, False]
        assert found["n"].to_pylist() == [2, 3, 6, 7]
        past = engine.as_of(relation, spine((1, 6), (1, 7), (2, 9), (3, 5), (3, 6), (4, 9), (9, 9)), ["n"])
        assert past["n"].to_pylist() == [1, None, None, None, 6, 7, None]
        assert past[EVENT_TIME].to_pylist() == [5, None, None, None, 6, 5, None]

    def test_the_earliest_event_time(self, engine: Engine, tmp_path: Path) -> None:
        made = events(random.Random(3), 60)
        found = engine.earliest(source(write(tmp_path / "rows", made, 2)))
        assert found == min(each.at for each in made if each.at is not None)
        assert engine.earliest(source(write(tmp_path / "none", []))) is None

    def test_the_latest_rows_are_the_oracles(self, engine: Engine, tmp_path: Path) -> None:
        rng = random.Random(5)
        made = events(rng, 60)
        facts = source(write(tmp_path / "rows", made, 2))
        for start, until in ((None, BASES[2]), (20, 41 * MINUTE), (BASES[1], BASES[1] + 30)):
            reader = engine.latest(latest(facts), start, until).read()
            assert reader.schema.names == ["user_id", *VALUES.names, EVENT_TIME, CREATED]
            rows = raw(reader.read_all(), types_of(VALUES))
            found = {row["user_id"]: row for row in rows}
            assert len(found) == len(rows)
            for key, of_key in by_key(made).items():
                kept = [row for row in seen(of_key, key) if start is None or row.time >= start]
                _, row = oracle.latest(kept, until)
                answer = found.pop(key, None)
                assert (answer is None) == (row is None), (key, start, until)
                if answer is not None and row is not None:
                    assert (answer[EVENT_TIME], answer[CREATED]) == (row.time, row.created)
                    assert orderly(answer[name] for name in VALUES.names) == row.values
            assert not found

    @pytest.mark.parametrize("as_known", [True, False])
    def test_windows_as_of_a_time_are_the_oracles(self, engine: Engine, tmp_path: Path, as_known: bool) -> None:
        rng = random.Random(7 + as_known)
        made = events(rng, 30)
        questions = asked(rng, made, 30, 60)
        relation = Windows(source(write(tmp_path / "rows", made, 2)), KEYS, WINDOWS)
        names = [each.name for each in reversed(WINDOWS)]
        found = engine.as_of(relation, spine(*questions), names, as_known)
        assert found.column_names == [*names, EVENT_TIME]
        answers, of_key, hidden = raw(found, {each.name: each.type for each in WINDOWS}), by_key(made), set()
        for (key, at), answer in zip(questions, answers, strict=True):
            known = of_key.get(key, []) if key is not None else []
            for each in WINDOWS:
                told = Found.of(each, known, at if as_known else None)
                assert told.agrees(answer[each.name], at), (each.name, key, at, answer[each.name], told.events)
            reach = min((at - each.length) // each.hop * each.hop for each in WINDOWS)
            within = [e for e in known if e.at is not None and reach <= e.at < at]
            unseen = [e for e in within if as_known and e.created is not None and e.created > at]
            hidden |= {id(e) for e in unseen}
            times = [e.at for e in within if not any(e is other for other in unseen)]
            assert answer[EVENT_TIME] == max(times, default=None)
        if as_known:
            assert found.schema.metadata == {b"hidden": str(sum(id(e) in hidden for e in made)).encode()}
            assert hidden

    def test_merged_tiles_are_the_windows(self, engine: Engine, tmp_path: Path) -> None:
        rng = random.Random(11)
        made = events(rng, 30)
        relation = Windows(source(write(tmp_path / "rows", made, 2)), KEYS, WINDOWS)
        until, start = BASES[0] + 55 * 6 * HOUR + 1, BASES[0] + 30 * MINUTE
        of_key = by_key([each for each in made if each.at is not None and each.at < until])
        stored: dict[int | None, list[dict[bytes, Any]]] = {key: [] for key in of_key}
        for level in relation.levels:
            windows = relation.at_level(level)
            tiles = engine.tiles(relation, level, None, until).read().read_all()
            assert tiles.column_names == ["user_id", EVENT_TIME, CREATED, ITEM, *tile_schema(windows).names]
            for mine in stored.values():
                mine.append({})
            for row in raw(tiles, types_of(tile_schema(windows))):
                first = item_time(row[ITEM])
                within = [e for e in of_key[row["user_id"]] if e.at is not None and first <= e.at < first + level]
                assert row[EVENT_TIME] == max(e.at for e in within if e.at is not None)
                assert row[COVERED] == min(until, first + level)
                values = tuple(row[name] for name in tile_schema(windows).names)
                stored[row["user_id"]][-1][row[ITEM]] = (row[EVENT_TIME], row[CREATED], values)
            assert tiles.num_rows == sum(len(mine[-1]) for mine in stored.values())
            assert tiles.num_rows == len(
                {(e.key, e.at // level) for every in of_key.values() for e in every if e.at is not None}
            )
            later = raw(engine.tiles(relation, level, start, until).read().read_all(), types_of(tile_schema(windows)))
            kept = {(key, item) for key, mine in stored.items() for item in mine[-1] if item_time(item) + level > start}
            assert len(later) == len(kept) < tiles.num_rows
            assert {(row["user_id"], row[ITEM]) for row in later} == kept
            for row in later:  # whole ones, that in which `start` lies, too: the windows below are read of these
                values = tuple(row[name] for name in tile_schema(windows).names)
                stored[row["user_id"]][-1][row[ITEM]] = (row[EVENT_TIME], row[CREATED], values)
        reader = WindowReader(WINDOWS)
        for key, levels in stored.items():
            _, _, answers = reader.read(levels, until)
            for each, answer in zip(WINDOWS, answers, strict=True):
                told = Found.of(each, of_key[key])
                assert told.agrees(answer, until), (each.name, key, answer, told.events)

    @pytest.mark.parametrize("as_known", [True, False])
    def test_a_snapshot_has_every_key_in_a_window(self, engine: Engine, tmp_path: Path, as_known: bool) -> None:
        rng = random.Random(13)
        made = events(rng, 30)
        relation = Windows(source(write(tmp_path / "rows", made, 2)), KEYS, WINDOWS, Schedule("daily"))
        at = BASES[0] + 31 * MINUTE
        found = engine.snapshot(relation, at, as_known=as_known).read().read_all()
        assert found.column_names == ["user_id", *(each.name for each in WINDOWS)]
        answers, of_key = raw(found, {each.name: each.type for each in WINDOWS}), by_key(made)
        reach = min((at - each.length) // each.hop * each.hop for each in WINDOWS)
        known = [e for e in made if not as_known or e.created is None or e.created <= at]
        expected = {e.key for e in known if e.at is not None and reach <= e.at < at}
        assert sorted(row["user_id"] for row in answers) == sorted(expected)  # type: ignore[type-var]
        for answer in answers:
            for each in WINDOWS:
                told = Found.of(each, of_key[answer["user_id"]], at if as_known else None)
                assert told.agrees(answer[each.name], at), (each.name, answer[each.name], told.events)

    @pytest.mark.parametrize("created", [None, "created"])
    @pytest.mark.parametrize("backwards", [False, True])
    def test_of_rows_of_one_time_the_greatest_values_are_found(
        self, engine: Engine, tmp_path: Path, created: str | None, backwards: bool
    ) -> None:
        tied = [
            event(1, 5, y=None, s="z"),
            event(1, 5, y=1.5, s="a"),
            event(1, 5, y=float("nan"), s=None),
            event(1, 5, y=float("nan"), s="a", tags=["b", None]),
            event(1, 5, y=float("nan"), s="a", tags=["b", "a"]),
            event(1, 5, y=float("nan"), s="a", tags=["b"]),
            event(1, 5, y=float("inf"), s="zz"),
        ]
        made = [event(2, 5, y=1.0, s="b"), *(reversed(tied) if backwards else tied)]
        facts = source(write(tmp_path / "rows", made), created=created)
        found = engine.as_of(latest(facts, "y", "s", "tags"), spine((1, 9), (2, 9), (1, 5)), ["s", "tags"])
        assert found["s"].to_pylist() == ["a", "b", "a"]
        assert found["tags"].to_pylist() == [["b", "a"], None, ["b", "a"]]
        newest = engine.latest(latest(facts, "y", "s", "tags"), None, 9).read().read_all().sort_by("user_id")
        assert newest["tags"].to_pylist() == [["b", "a"], None]

    def test_composite_keys_never_collide(self, engine: Engine, tmp_path: Path) -> None:
        keys = Schema.of(s=STRING, raw_key=STRING, n=INT64)
        pairs = [("1", "23", 1), ("12", "3", 1), ("1", "2", 31), ("", "123", 1), ("1\0", "23", 1)]
        made = [event(9, 5 + number, s=one, n=three) for number, (one, _, three) in enumerate(pairs)]
        path = write(tmp_path / "rows", made) / "0.parquet"
        pq.write_table(pq.read_table(path).append_column("raw_key", pa.array([two for _, two, _ in pairs])), path)
        schema = Schema((*source(None).schema, *Schema.of(raw_key=STRING)))
        asked_for = [*pairs, pairs[0], (None, "23", 1), ("1", "23", 2)]
        given = pa.table(
            {
                EVENT_TIME: [100] * len(asked_for),
                **{name: [pair[place] for pair in asked_for] for place, name in enumerate(keys.names)},
            }
        )
        found = engine.as_of(latest(source(path, schema), "at", keys=keys), given, ["at"])
        assert found[EVENT_TIME].to_pylist() == [5, 6, 7, 8, 9, 5, None, None]
        relation = Windows(source(path, schema), keys, (window("rows", "count", None, 20, 5),))
        given = given.set_column(0, EVENT_TIME, pa.array([15] * len(asked_for)))
        assert engine.as_of(relation, given, ["rows"])["rows"].to_pylist() == [1, 1, 1, 1, 1, 1, 0, 0]
        tiles = engine.tiles(relation, 5, None, 100).read().read_all()
        assert sorted(tuple(row[name] for name in keys.names) for row in tiles.to_pylist()) == sorted(pairs)

    def test_keys_of_any_type(self, engine: Engine, tmp_path: Path) -> None:
        values: dict[str, list[Any]] = {
            "s": ["", "é", "z"], "raw": [b"", b"\x00", b"\xff"], "ok": [True, False, True], "moment": [-1, 0, 10**16],
            "day": [-1, 0, 40_000], "small": [-(2**31), 0, 2**31 - 1],
        }  # fmt: skip
        keys = VALUES.select(values)
        made = [event(1, at, **{name: values[name][at] for name in values}) for at in range(3)]
        facts = source(write(tmp_path / "rows", made))
        asked_for = [[*row] for row in zip(*values.values(), strict=True)]
        asked_for += [[None if n == place else value for n, value in enumerate(asked_for[0])] for place in range(6)]
        columns = zip(keys, zip(*asked_for, strict=True), strict=True)
        given = pa.table({column.name: to_arrow([*of_rows], column.type) for column, of_rows in columns})
        given = given.append_column(EVENT_TIME, pa.array([9] * len(asked_for)))
        found = engine.as_of(latest(facts, "at", keys=keys), given, ["at"])
        assert found[EVENT_TIME].to_pylist() == [0, 1, 2, *[None] * 6]
        relation = Windows(facts, keys, (window("rows", "count", None, 20, 5),))
        assert engine.as_of(relation, given, ["rows"])["rows"].to_pylist() == [1, 1, 1, *[0] * 6]
        newest = engine.latest(latest(facts, "at", keys=keys), None, 9).read().read_all().sort_by(EVENT_TIME)
        for column in keys:
            assert newest.schema.field(column.name).type == column.type.arrow
            assert from_arrow(newest[column.name], column.type) == values[column.name]

    def test_rows_without_key_or_time_are_left_out(self, engine: Engine, tmp_path: Path) -> None:
        made = [event(None, 1, n=1), event(2, None, n=1)]
        facts = source(write(tmp_path / "rows", made))
        relation = Windows(facts, KEYS, (window("rows", "count", None, 20, 5),), Schedule("daily"))
        assert engine.latest(latest(facts), None, 100).read().read_all().num_rows == 0
        assert engine.tiles(relation, 5, None, 100).read().read_all().num_rows == 0
        assert engine.snapshot(relation, 100).read().read_all().num_rows == 0
        found = engine.as_of(latest(facts, "n"), spine((None, 10), (2, 10)), ["n"])
        assert found.to_pylist() == [{"n": None, EVENT_TIME: None}] * 2

    def test_a_key_of_many_events(self, engine: Engine, tmp_path: Path) -> None:
        made = [event(number % 3, number, x=number / 3, n=number) for number in range(3000)]
        random.Random(1).shuffle(made)
        windows = (window("sum", "sum", "x", 4000, 10), window("last", "last_n", "n", 4000, 10, n=3))
        relation = Windows(source(write(tmp_path / "rows", made, 3)), KEYS, windows)
        found = engine.as_of(relation, spine(*((key, 2000) for key in range(4))), ["sum", "last"])
        sums = [sum(number / 3 for number in range(2000) if number % 3 == key) for key in range(3)]
        assert all(abs(one - two) <= 1e-12 * two for one, two in zip(found["sum"].to_pylist(), sums, strict=False))
        last = [sorted(number for number in range(2000) if number % 3 == key)[-3:] for key in range(3)]
        assert found["last"].to_pylist() == [*last, None]
        assert engine.tiles(relation, 10, None, 3000).count() == 900

    def test_sums_overflow_in_answers_alone(self, engine: Engine, tmp_path: Path) -> None:
        """Whole tiles are too large, and the windows over them are not."""
        wide, long = 6 * 10**37, 2**62
        amounts = [(wide, long), (wide, long), (wide, long), (-wide, -long), (-wide, -long), (1, 1)]
        made = [event(1, at, q=Decimal(q), n=n) for at, (q, n) in enumerate(amounts)]
        sums = {"q": "sum", "mean": "mean", "n": "sum"}
        windows = tuple(window(name, sums[name], "n" if name == "n" else "q", 100, 3) for name in sums)
        relation = Windows(source(write(tmp_path / "rows", made)), KEYS, windows)
        tiles = raw(engine.tiles(relation, 3, None, 6).read().read_all(), types_of(tile_schema(windows)))
        names = tile_schema(windows).names
        stored = {row[ITEM]: (row[EVENT_TIME], row[CREATED], tuple(row[name] for name in names)) for row in tiles}
        _, _, answers = WindowReader(windows).read([stored], 6)
        found = engine.as_of(relation, spine((1, 6)), [*sums])
        for total, mean, whole in (answers, [found[name][0].as_py() for name in sums]):
            assert (total, whole) == (Decimal(wide + 1), long + 1)
            assert oracle.agrees(mean, (wide + 1) / 6)
        with pytest.raises(InvalidInputError, match='the sum of "q" does not fit'):
            WindowReader(windows).read([stored], 3)
        with pytest.raises(FeatureStoreError, match='the sum of "q" does not fit'):
            engine.as_of(relation, spine((1, 3)), [*sums])

    def test_scheduled_windows_stand_still_until_midnight_of_their_zone(self, engine: Engine, tmp_path: Path) -> None:
        texts = ("2026-03-01T15:59:59", "2026-03-01T16:00:00", "2026-03-02T03:00:00")
        path = write(tmp_path / "rows", [event(1, moment(text), n=1) for text in texts])
        schedule = Schedule("daily", "Asia/Shanghai")  # midnight is at 16:00 UTC
        relation = Windows(source(path), KEYS, (window("n", "count", None, 2 * DAY, HOUR),), schedule)
        times = ["2026-03-01T15:59:59.999999", "2026-03-01T16:00:00", "2026-03-02T15:59:59", "2026-03-02T16:00:00"]
        found = engine.as_of(relation, spine(*((1, moment(text)) for text in times)), ["n"])
        assert found["n"].to_pylist() == [0, 1, 1, 3]

    def test_rows_known_too_late_for_a_snapshot_as_of_a_time(self, engine: Engine, tmp_path: Path) -> None:
        """The boundary decides which events count, and T which of them were known."""
        day = moment("2026-03-02")
        made = [event(1, day - 5, day - 1), event(1, day - 4, day + HOUR), event(1, day + 1, day + 1)]
        relation = Windows(
            source(write(tmp_path / "rows", made)), KEYS, (window("n", "count", None, DAY, HOUR),), Schedule("daily")
        )
        found = engine.as_of(relation, spine((1, day + 2), (1, day + 2 * HOUR)), ["n"], as_known=True)
        assert found["n"].to_pylist() == [1, 2]
        assert found.schema.metadata == {b"hidden": b"1"}

    def test_the_order_of_rows_and_duplicates_are_kept(self, engine: Engine, tmp_path: Path) -> None:
        made = [event(key, 5, n=key) for key in range(50)]
        facts = source(write(tmp_path / "rows", made))
        keys = [random.Random(3).randrange(60) for _ in range(5000)]
        found = engine.as_of(latest(facts, "n"), spine(*((key, 9) for key in keys)), ["n"])
        assert found["n"].to_pylist() == [key if key < 50 else None for key in keys]
        relation = Windows(facts, KEYS, (window("sum", "sum", "n", 20, 5),))
        found = engine.as_of(relation, spine(*((key, 9) for key in keys)), ["sum"])
        assert found["sum"].to_pylist() == [key if key < 50 else None for key in keys]

    def test_a_column_of_the_spine_may_have_a_name_of_a_value(self, engine: Engine, tmp_path: Path) -> None:
        keys, schema = Schema.of(n=INT64), Schema.of(at=TIMESTAMP, n=INT64, s=STRING)
        facts = source(write(tmp_path / "rows", [event(1, 5, n=7, s="x")]), schema, created=None)
        given = pa.table({"n": [7], EVENT_TIME: [9], "s": ["given"]})
        assert engine.as_of(latest(facts, "n", "s", keys=keys), given, ["n", "s"]).to_pylist() == [
            {"n": 7, "s": "x", EVENT_TIME: 5}
        ]

    def test_rows_never_created_are_known_always(self, engine: Engine, tmp_path: Path) -> None:
        facts = source(write(tmp_path / "rows", [event(1, 5, n=1), event(1, 5, NO_CREATED + 10**9, n=0)]))
        found = engine.latest(latest(facts, "n"), None, 9).read().read_all()
        assert (found["n"].to_pylist(), found[CREATED].to_pylist()) == ([0], [NO_CREATED + 10**9])
        plain = engine.latest(LatestRow(source(facts.path, created=None), KEYS, latest(facts, "n").values), None, 9)
        assert plain.read().read_all().select(["n", CREATED]).to_pylist() == [{"n": 1, CREATED: NO_CREATED}]
