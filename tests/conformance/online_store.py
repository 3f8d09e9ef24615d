"""What every online store must do. A store's tests are a subclass that gives a URI and a way to look behind it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from feature_store.errors import InvalidInputError
from feature_store.plugins import open_online_store
from feature_store.storage.keys import MOST_BYTES, key_codec
from feature_store.storage.online import EVENT_TIME, NO_CREATED, Key, OnlineStore, Row, Table
from feature_store.storage.rows import columns_of, row_codec, to_batch
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

VALUES = Schema.of(x=INT64, y=STRING)
USERS = Table("users.0123456789ab", Schema.of(user_id=INT64), VALUES)
PAIRS = Table("pairs.0123456789ab", Schema.of(name=STRING, place=INT64), VALUES)
TILES = Table("users.0123456789ab@300", Schema.of(user_id=INT64), VALUES, items=True)
TABLES = (USERS, PAIRS, TILES)


class Entry(NamedTuple):
    """A row to be written."""

    key: Key
    event_time: int
    created: int
    values: tuple[Any, ...]
    item: bytes = b""

    @property
    def row(self) -> Row:
        return Row(self.event_time, self.created, self.values)


def rows_of(table: Table, entries: Sequence[Entry]) -> pa.Table:
    rows = [(*e.key, *e.values, e.event_time, e.created, *([e.item] if table.items else [])) for e in entries]
    return pa.Table.from_batches([to_batch(columns_of(table), rows)])


def users(*rows: tuple[int, int, int]) -> pa.Table:
    """Rows of USERS: user_id, event time, x."""
    return rows_of(USERS, [Entry((user,), time, 0, (x, "")) for user, time, x in rows])


def tiles(*rows: tuple[int, bytes, int, int]) -> pa.Table:
    """Rows of TILES: user_id, item, event time, x."""
    return rows_of(TILES, [Entry((user,), time, 0, (x, ""), item) for user, item, time, x in rows])


def scanned(store: OnlineStore, table: Table) -> list[tuple[Any, ...]]:
    """All rows of a table as bytes of key, item and row, sorted."""
    found: list[tuple[Any, ...]] = []
    for batch in store.scan(table):
        assert batch.schema.names == [column.name for column in columns_of(table)]
        rows = pa.Table.from_batches([batch])
        items = rows.column("__item").to_pylist() if table.items else [b""] * rows.num_rows
        found += zip(key_codec(table.keys).encode_table(rows), items, row_codec(table.values).encode(rows), strict=True)
    return sorted(found)


class OnlineStoreConformance:
    """Subclasses define the fixture `uri`, of a store without rows, and `raw`.

    `raw(uri, project, table)` reads without the store: (encoded key, item or empty) to the encoded row.
    """

    def raw(self, uri: str, project: str, table: Table) -> dict[tuple[bytes, bytes], bytes]:
        raise NotImplementedError

    @pytest.fixture
    def open_store(self, uri: str, tmp_path: Path) -> Iterator[Callable[[str], OnlineStore]]:
        stores: list[OnlineStore] = []

        def open_store(project: str = "ads") -> OnlineStore:
            stores.append(open_online_store(uri, project, tmp_path))
            return stores[-1]

        yield open_store
        for store in stores:
            store.close()

    @pytest.fixture
    def store(self, open_store: Callable[[], OnlineStore]) -> OnlineStore:
        store = open_store()
        for table in TABLES:
            store.create(table)
        return store

    def test_a_store_is_a_dict_of_the_latest_rows(self, uri: str, tmp_path: Path) -> None:
        projects = count()

        def machine() -> StoreMachine:
            return StoreMachine(lambda name: open_online_store(uri, name, tmp_path), next(projects))

        run_state_machine_as_test(
            cast(Any, machine),
            settings=settings(
                max_examples=15,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )

    def test_nothing_written_is_nothing_read(self, store: OnlineStore) -> None:
        assert store.read([(USERS, [(1,), (2,)]), (TILES, [(1,)]), (PAIRS, [])]) == [[None, None], [{}], []]
        assert store.read([]) == []
        assert list(store.scan(USERS)) == []

    def test_a_table_never_created_is_empty(self, open_store: Callable[[], OnlineStore]) -> None:
        store = open_store()
        assert store.read([(USERS, [(1,)]), (TILES, [(1,)])]) == [[None], [{}]]
        assert list(store.scan(TILES)) == []
        store.drop(USERS)

    def test_answers_come_in_the_order_of_the_keys(self, store: OnlineStore) -> None:
        store.write(USERS, users((1, 5, 10), (2, 5, 20)))
        answers = store.read([(USERS, [(2,), (9,), (1,), (2,)])])
        assert answers == [[Row(5, 0, (20, "")), None, Row(5, 0, (10, "")), Row(5, 0, (20, ""))]]

    def test_one_call_reads_several_tables_and_some_twice(self, store: OnlineStore) -> None:
        store.write(USERS, users((1, 5, 10)))
        store.write(TILES, tiles((1, b"a", 5, 1), (1, b"b", 6, 2)))
        store.write(PAIRS, rows_of(PAIRS, [Entry(("1", 23), 1, NO_CREATED, (7, "z"))]))
        user, items = Row(5, 0, (10, "")), {b"a": Row(5, 0, (1, "")), b"b": Row(6, 0, (2, ""))}
        requests: list[tuple[Table, list[Key]]]
        requests = [(TILES, [(1,), (2,)]), (USERS, [(1,)]), (PAIRS, [("1", 23), ("12", 3)]), (USERS, [(1,)])]
        assert store.read(requests) == [[items, {}], [user], [Row(1, NO_CREATED, (7, "z")), None], [user]]

    def test_an_older_row_never_replaces_a_newer_one(self, store: OnlineStore) -> None:
        for event_time, created, x in [(5, 5, 1), (4, 9, 2), (5, 4, 3), (-5, 0, 4), (5, NO_CREATED, 5)]:
            store.write(USERS, rows_of(USERS, [Entry((1,), event_time, created, (x, None))]))
        assert store.read([(USERS, [(1,)])]) == [[Row(5, 5, (1, None))]]

    def test_of_two_equal_times_the_later_write_stays(self, store: OnlineStore) -> None:
        for x in (1, 2):
            store.write(USERS, users((1, 5, x)))
            store.write(TILES, tiles((1, b"a", 5, x)))
        assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (2, ""))]]
        assert store.read([(TILES, [(1,)])]) == [[{b"a": Row(5, 0, (2, ""))}]]

    def test_a_key_twice_in_a_batch(self, store: OnlineStore) -> None:
        store.write(USERS, users((1, 5, 1), (1, 7, 2), (1, 6, 3), (2, 5, 4), (2, 5, 5)))
        assert store.read([(USERS, [(1,), (2,)])]) == [[Row(7, 0, (2, "")), Row(5, 0, (5, ""))]]

    @pytest.mark.parametrize("times", [(1, 2), (255, 256), (-1, 0), (-(2**63), 2**63 - 1), (127, 128), (2**32, 2**53)])
    def test_times_compare_as_numbers(self, store: OnlineStore, times: tuple[int, int]) -> None:
        older, newer = times
        store.write(USERS, users((1, newer, 1), (1, older, 2), (2, older, 1), (2, newer, 2)))
        assert store.read([(USERS, [(1,), (2,)])]) == [[Row(newer, 0, (1, "")), Row(newer, 0, (2, ""))]]

    def test_any_order_of_writes_ends_the_same(self, open_store: Callable[[str], OnlineStore]) -> None:
        batches = [users((k, (7 * k * n) % 5, 10 * n), ((k + n) % 4, n, k)) for k in range(4) for n in range(4)]
        states = []
        for project, order in (("one", batches), ("two", batches[::-1]), ("three", batches[::2] + batches[1::2] * 2)):
            store = open_store(project)
            for batch in order:
                store.write(USERS, batch)
            rows = store.read([(USERS, [(k,) for k in range(4)])])[0]
            states.append([row.event_time for row in rows if isinstance(row, Row)])
        assert len(states[0]) == 4
        assert states[0] == states[1] == states[2]

    @pytest.mark.parametrize("items", [False, True])
    def test_every_type_comes_back_exactly(self, store: OnlineStore, items: bool) -> None:
        schema = Schema.of(
            i=INT32, l=INT64, f=FLOAT32, d=FLOAT64, s=STRING, b=BYTES, o=BOOL, t=TIMESTAMP, a=DATE,
            m=decimal(38, 2), al=array(INT64), af=array(FLOAT32), at=array(TIMESTAMP), an=array(array(STRING)),
        )  # fmt: skip
        table = Table("types.0123456789ab", schema, schema, items=items)
        table = Table(table.name, Schema.of(k=BYTES), schema, items)
        lots = Decimal("9" * 36 + ".99")
        values: list[tuple[Any, ...]] = [
            (None,) * len(schema),
            (0, 0, 0.0, 0.0, "", b"", False, 0, 0, Decimal("0.00"), [], [], [], []),
            (-(2**31), -(2**63), -math.inf, -0.0, "\0", b"\0", True, -1, -1, lots.copy_negate(),
             [-(2**63)], [math.nan], [-1], [[]]),
            (2**31 - 1, 2**63 - 1, math.inf, 5e-324, "用户🙂" * 9, b"\xff" * 300, True, 2**52, 2**20, lots,
             [None, 1], [math.inf, None, -0.0], [None, 2**52], [None, ["", None, "é"], []]),
            (1, 2, math.nan, math.nan, "a}b{c", b"}{*?[", False, 3, 4, Decimal("-0.01"),
             list(range(999)), [1.5] * 99, [0], [["x" * 999]]),
        ]  # fmt: skip
        keys = [b"", b"\0", b"\xff}", b"{*", b"?[a]\\"]
        entries = [Entry((k,), 1, NO_CREATED, v, k + b"!") for k, v in zip(keys, values, strict=True)]
        store.create(table)
        store.write(table, rows_of(table, entries))
        answers = store.read([(table, [(key,) for key in keys])])[0]
        expected = [{e.item: e.row} if items else e.row for e in entries]
        assert repr(answers) == repr(expected)
        assert scanned(store, table) == sorted(
            (
                key_codec(table.keys).encode(e.key),
                e.item if items else b"",
                row_codec(schema).encode(rows_of(table, [e]))[0],
            )
            for e in entries
        )

    def test_what_is_stored_is_the_encoded_row(self, store: OnlineStore, uri: str) -> None:
        store.write(USERS, users((1, 5, 10)))
        store.write(TILES, tiles((1, b"a\0b", 5, 10)))
        key, row = key_codec(USERS.keys).encode((1,)), row_codec(VALUES).encode(users((1, 5, 10)))[0]
        assert self.raw(uri, "ads", USERS) == {(key, b""): row}
        assert self.raw(uri, "ads", TILES) == {(key, b"a\0b"): row}

    def test_keep_from_drops_older_items_of_the_keys_written(self, store: OnlineStore) -> None:
        store.write(TILES, tiles((1, b"\x01", 1, 1), (1, b"\x02", 1, 2), (1, b"\x80", 1, 3), (2, b"\x01", 1, 4)))
        store.write(TILES, tiles((1, b"\xff", 1, 5), (1, b"\x01\xff", 1, 6)), keep_from=b"\x02")
        found = [items for items in store.read([(TILES, [(1,), (2,)])])[0] if isinstance(items, Mapping)]
        assert [sorted(items) for items in found] == [[b"\x02", b"\x80", b"\xff"], [b"\x01"]]
        store.write(TILES, tiles((2, b"\x01", 9, 4)), keep_from=b"\x09")
        assert store.read([(TILES, [(2,)])]) == [[{}]]

    def test_drop_takes_one_table_of_one_project(self, open_store: Callable[[str], OnlineStore], uri: str) -> None:
        names = ["t", "t2", "T", "t*", "t[a]", "t.1@300", "t.1@3600"]
        tables = [Table(name, USERS.keys, VALUES) for name in names]
        stores = {project: open_store(project) for project in ("ads", "ads2", "Ads", "a_s")}
        for store in stores.values():
            for table in tables:
                store.create(table)
                store.write(table, users((1, 1, 1)))
        for table in tables[::2]:
            stores["ads"].drop(table)
        for project in stores:
            left = [len(self.raw(uri, project, table)) for table in tables]
            assert left == ([0, 1, 0, 1, 0, 1, 0] if project == "ads" else [1] * 7)

    def test_a_dropped_table_can_be_used_again(self, store: OnlineStore) -> None:
        store.write(USERS, users((1, 9, 1), (2, 9, 1)))
        store.drop(USERS)
        assert store.read([(USERS, [(1,)])]) == [[None]]
        store.create(USERS)
        store.write(USERS, users((1, 5, 2)))
        assert store.read([(USERS, [(1,), (2,)])]) == [[Row(5, 0, (2, "")), None]]

    def test_projects_do_not_see_each_other(self, open_store: Callable[[str], OnlineStore], uri: str) -> None:
        one, other = open_store("one"), open_store("other")
        one.write(USERS, users((1, 5, 10)))
        other.create(USERS)
        assert other.read([(USERS, [(1,)])]) == [[None]]
        other.write(USERS, users((1, 4, 20)))
        assert one.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]
        assert len(scanned(other, USERS)) == 1
        assert len(self.raw(uri, "one", USERS)) == 1

    def test_rows_outlive_the_store(self, open_store: Callable[[], OnlineStore]) -> None:
        store = open_store()
        store.create(USERS)
        store.write(USERS, users((1, 5, 10)))
        store.close()
        assert open_store().read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]

    def test_create_keeps_what_is_there(self, store: OnlineStore) -> None:
        store.write(USERS, users((1, 5, 10)))
        store.create(USERS)
        assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]

    def test_empty_batches(self, store: OnlineStore) -> None:
        store.write(USERS, users())
        store.write(TILES, tiles(), keep_from=b"a")
        assert list(store.scan(USERS)) == []

    def test_a_large_batch_and_many_keys_in_one_read(self, store: OnlineStore) -> None:
        many = 70_000
        rows = pa.table(
            {
                "user_id": pa.array(range(many), pa.int64()),
                "x": pa.array(range(many), pa.int64()),
                "y": pa.array(["y"] * many),
                EVENT_TIME: pa.array([1] * many, pa.int64()),
                "__created": pa.array([2] * many, pa.int64()),
            }
        )
        store.write(USERS, rows)
        keys = [(k,) for k in range(many + 10)]
        found = store.read([(USERS, keys[-5_000:])])[0]
        assert found == [Row(1, 2, (k, "y")) for k in range(many - 4_990, many)] + [None] * 10
        assert sum(batch.num_rows for batch in store.scan(USERS)) == many

    def test_large_rows(self, store: OnlineStore) -> None:
        text = "x" * 3_000_000
        store.write(USERS, rows_of(USERS, [Entry((key,), 1, 0, (key, text)) for key in range(5)]))
        found = store.read([(USERS, [(4,), (0,)])])[0]
        assert found == [Row(1, 0, (4, text)), Row(1, 0, (0, text))]

    def test_the_longest_keys(self, store: OnlineStore) -> None:
        named = Table("named", Schema.of(a=BYTES, b=STRING), Schema.of(x=INT64), items=True)
        store.create(named)
        half = MOST_BYTES // 2
        keys: list[Key] = [(b"\0" * half, "\0" * half), (b"a" * half, "b" * half)]
        store.write(named, rows_of(named, [Entry(key, 5, 0, (1,), b"i" * 20) for key in keys]))
        assert store.read([(named, keys)]) == [[{b"i" * 20: Row(5, 0, (1,))}] * 2]

    def test_concurrent_writers_end_with_the_greatest(self, store: OnlineStore) -> None:
        def write(writer: int) -> None:
            for step in range(10):
                time = step * 4 + writer
                store.write(USERS, users(*((key, time, time) for key in range(20))))
                store.write(TILES, tiles(*((key, b"a", time, time) for key in range(20))))
                row = store.read([(USERS, [(0,)])])[0][0]
                assert isinstance(row, Row)
                assert row.event_time >= time

        run_together([partial(write, n) for n in range(4)])
        assert store.read([(USERS, [(key,) for key in range(20)])]) == [[Row(39, 0, (39, ""))] * 20]
        assert store.read([(TILES, [(key,) for key in range(20)])]) == [[{b"a": Row(39, 0, (39, ""))}] * 20]

    def test_wrong_input_is_refused_and_the_store_goes_on(self, store: OnlineStore) -> None:
        with pytest.raises(InvalidInputError, match="user_id"):
            store.read([(USERS, [("1",)])])
        with pytest.raises(InvalidInputError, match="user_id"):
            store.write(USERS, users((1, 5, 10)).drop_columns(["user_id"]))
        with pytest.raises(InvalidInputError, match="__item"):
            store.write(TILES, tiles((1, b"a", 5, 10)).drop_columns(["__item"]))
        store.write(USERS, users((1, 5, 10)))
        assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]


def run_together(tasks: Sequence[Callable[[], object]]) -> None:
    """Run each in a thread of its own; the first error is raised."""
    errors: list[BaseException] = []

    def guarded(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


TIMES = st.integers(-3, 3) | st.sampled_from([NO_CREATED, 2**63 - 1, 255, 256])
ITEMS = st.sampled_from([b"\x01", b"\x7f\x00", b"\x7f", b"\x80", b"\xff", b"0", b"A", b"a"])
KEYS: dict[str, list[Key]] = {
    USERS.name: [(n,) for n in (-1, 0, 1, 2**63 - 1)],
    PAIRS.name: [("1", 23), ("12", 3), ("", 0), ("}{", 0)],
    TILES.name: [(n,) for n in (-1, 0, 1)],
}


@st.composite
def batches(draw: st.DrawFn) -> tuple[Table, list[Entry]]:
    table = draw(st.sampled_from(TABLES))
    values = st.tuples(st.none() | st.integers(0, 9), st.none() | st.sampled_from(["", "a"]))
    key = st.sampled_from(KEYS[table.name])
    item = ITEMS if table.items else st.just(b"")
    return table, draw(st.lists(st.builds(Entry, key, TIMES, TIMES, values, item), max_size=6))


class StoreMachine(RuleBasedStateMachine):
    """Any calls in any order, beside a dict."""

    def __init__(self, open_store: Callable[[str], OnlineStore], run: int) -> None:
        super().__init__()
        self.open_store = open_store
        self.projects = [f"a{run}", f"b{run}"]
        self.stores = {project: open_store(project) for project in self.projects}
        self.model: dict[tuple[int, str], dict[tuple[Key, bytes], Row]] = {}

    @rule(side=st.integers(0, 1), table=st.sampled_from(TABLES))
    def create(self, side: int, table: Table) -> None:
        self.store(side).create(table)

    @rule(side=st.integers(0, 1), batch=batches(), keep_from=st.none() | ITEMS)
    def write(self, side: int, batch: tuple[Table, list[Entry]], keep_from: bytes | None) -> None:
        table, entries = batch
        keep_from = keep_from if table.items else None
        self.store(side).write(table, rows_of(table, entries), keep_from)
        rows = self.model.setdefault((side, table.name), {})
        for entry in entries:
            old = rows.get((entry.key, entry.item))
            if old is None or old[:2] <= entry.row[:2]:
                rows[entry.key, entry.item] = entry.row
        written = {entry.key for entry in entries}
        for key, item in list(rows):
            if keep_from is not None and key in written and item < keep_from:
                del rows[key, item]

    @rule(side=st.integers(0, 1), table=st.sampled_from(TABLES))
    def drop(self, side: int, table: Table) -> None:
        self.store(side).drop(table)
        self.model.pop((side, table.name), None)

    @rule(side=st.integers(0, 1))
    def reopen(self, side: int) -> None:
        self.store(side).close()
        self.stores[self.projects[side]] = self.open_store(self.projects[side])

    @rule(side=st.integers(0, 1), table=st.sampled_from(TABLES))
    def scan(self, side: int, table: Table) -> None:
        encode_key, encode = key_codec(table.keys).encode, row_codec(table.values).encode
        assert scanned(self.store(side), table) == sorted(
            (encode_key(key), item, encode(rows_of(table, [Entry(key, *row, item)]))[0])
            for (key, item), row in self.model.get((side, table.name), {}).items()
        )

    @invariant()
    def reads_agree(self) -> None:
        for side in (0, 1):
            requests = [(table, KEYS[table.name]) for table in TABLES]
            expected = [[self.expected(side, table, key) for key in KEYS[table.name]] for table in TABLES]
            assert self.store(side).read(requests) == expected

    def expected(self, side: int, table: Table, key: Key) -> Any:
        rows = self.model.get((side, table.name), {})
        if table.items:
            return {item: row for (k, item), row in rows.items() if k == key}
        return rows.get((key, b""))

    def store(self, side: int) -> OnlineStore:
        return self.stores[self.projects[side]]

    def teardown(self) -> None:
        for store in self.stores.values():
            for table in TABLES:
                store.drop(table)
            store.close()
