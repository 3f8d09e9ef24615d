from __future__ import annotations

import random
import time
from contextlib import closing
from functools import partial
from hashlib import blake2b
from urllib.parse import parse_qs, urlsplit

import happybase
import pytest

from feature_store.errors import InvalidInputError, SettingsError
from feature_store.storage.hbase import HBaseOnlineStore
from feature_store.storage.online import Row, Table
from tests.conformance.online_store import (
    TILES,
    USERS,
    Entry,
    OnlineStoreConformance,
    rows_of,
    run_together,
    tiles,
    users,
)
from tests.servers import HBaseServer

FIRST = 2 + 1
"""Behind `f:` and the length of an item."""


def raw_rows(uri: str, project: str, table: Table) -> dict[tuple[bytes, bytes], bytes]:
    """The rows of a table as its layout says, read without the store; nothing of a dropped table may be left."""
    place = urlsplit(uri)
    name = f"{parse_qs(place.query)['prefix'][0]}.{project}".encode()
    rows: dict[tuple[bytes, bytes], bytes] = {}
    with closing(happybase.Connection(place.hostname, place.port, timeout=30_000)) as connection:
        if name not in connection.tables():
            return {}
        found = list(connection.table(name).scan(include_timestamp=True))
    heads = {row[9:].decode(): cells for row, cells in found if row[1:9] == bytes(8)}
    generation = int.from_bytes(heads.get(table.name, {}).get(b"f:generation", (b"",))[0], "big")
    ours = blake2b(f"{generation}:{table.name}".encode(), digest_size=8).digest()
    gone = {blake2b(f"{old}:{table.name}".encode(), digest_size=8).digest() for old in range(generation)}
    for row, cells in found:
        assert row[1:9] not in gone
        if row[1:9] == ours:
            for column in sorted(cells):
                item = column[FIRST : FIRST + column[2]] if table.items else b""
                value, timestamp = cells[column]
                stamp = column[FIRST + len(item) :] if table.items else column[2:]
                assert value[1:17] == stamp[:16]
                event_time = int.from_bytes(stamp[:8], "big") - 2**63
                assert timestamp == max(event_time, 0) // 86_400_000_000 * 86_400_000
                rows[row[9:], item] = value
    return rows


class TestHBase(OnlineStoreConformance):
    @pytest.fixture
    def uri(self, hbase_url: str) -> str:
        return hbase_url

    def raw(self, uri: str, project: str, table: Table) -> dict[tuple[bytes, bytes], bytes]:
        return raw_rows(uri, project, table)


def store_of(uri: str, options: str = "", project: str = "ads") -> HBaseOnlineStore:
    return HBaseOnlineStore(f"{uri}{'&' if '?' in uri else '?'}{options}" if options else uri, project)


def cells_of(uri: str, project: str = "ads") -> list[tuple[bytes, dict[bytes, tuple[bytes, int]]]]:
    """All rows but the head rows, as HBase has them."""
    place = urlsplit(uri)
    name = f"{parse_qs(place.query)['prefix'][0]}.{project}".encode()
    with closing(happybase.Connection(place.hostname, place.port, timeout=30_000)) as connection:
        rows = list(connection.table(name).scan(include_timestamp=True))
    return [(row, cells) for row, cells in rows if row[1:9] != bytes(8)]


def test_the_same_item_comes_back_after_it_was_dropped(hbase_url: str) -> None:
    """HBase hides what is written with the timestamp of something deleted."""
    store = store_of(hbase_url)
    for x in (1, 2, 3):
        c = {b"c": Row(5, 0, (x, ""))}
        store.write(TILES, tiles((1, b"a", 5, x), (1, b"b", 5, x), (1, b"c", 5, x)))
        assert store.read([(TILES, [(1,)])]) == [[{b"a": Row(5, 0, (x, "")), b"b": Row(5, 0, (x, "")), **c}]]
        store.write(TILES, tiles((1, b"c", 5, x)), keep_from=b"b\0")
        assert store.read([(TILES, [(1,)])]) == [[c]]
    other = store_of(hbase_url)
    other.write(TILES, tiles((1, b"a", 5, 9)))
    other.write(TILES, tiles((1, b"a", 5, 10)))
    assert store.read([(TILES, [(1,)])]) == [[{b"a": Row(5, 0, (10, "")), b"c": Row(5, 0, (3, ""))}]]
    store.close()
    other.close()


def test_who_knows_an_old_floor_writes_again(hbase_url: str) -> None:
    """Of two processes one drops items while the other, which has not heard of it, writes one of them again."""
    store, other = store_of(hbase_url), store_of(hbase_url)
    other.write(TILES, tiles((1, b"a", 5, 1)))
    store.write(TILES, tiles((1, b"c", 5, 2)), keep_from=b"b")
    other.write(TILES, tiles((1, b"a", 5, 3)))
    expected = {b"a": Row(5, 0, (3, "")), b"c": Row(5, 0, (2, ""))}
    assert store.read([(TILES, [(1,)])]) == other.read([(TILES, [(1,)])]) == [[expected]]
    store.close()
    other.close()


def test_who_knows_a_dropped_table_writes_to_the_new_one(hbase_url: str) -> None:
    store, other = store_of(hbase_url), store_of(hbase_url)
    other.write(USERS, users((1, 5, 1), (2, 5, 1)))
    store.drop(USERS)
    other.write(USERS, users((1, 5, 2)))
    assert store.read([(USERS, [(1,), (2,)])]) == [[Row(5, 0, (2, "")), None]]
    deadline = time.monotonic() + 10
    while other.read([(USERS, [(1,), (2,)])]) != [[Row(5, 0, (2, "")), None]]:
        assert time.monotonic() < deadline
    store.drop(USERS)
    while other.read([(USERS, [(1,)])]) != [[None]]:  # looked at anew within a second
        assert time.monotonic() < deadline
    store.close()
    other.close()


def test_rows_of_equal_event_times_from_many_writers(hbase_url: str) -> None:
    """Only `created` tells them apart, in whatever order they arrive."""
    stores = [store_of(hbase_url) for _ in range(4)]
    stores[0].create(USERS)

    def write(writer: int) -> None:
        for step in random.Random(writer).sample(range(10), 10):
            created = step * 4 + writer
            rows = [Entry((key,), 5, created, (created, "")) for key in range(20)]
            stores[writer].write(USERS, rows_of(USERS, rows))

    run_together([partial(write, writer) for writer in range(4)])
    assert stores[0].read([(USERS, [(key,) for key in range(20)])]) == [[Row(5, 39, (39, ""))] * 20]
    for store in stores:
        store.close()


def test_what_lost_is_tidied_away(hbase_url: str) -> None:
    """About one write in eight tidies a key: after two hundred to each of twenty keys few cells are left."""
    store = store_of(hbase_url)
    for event_time in range(200):
        store.write(USERS, users(*((key, event_time, event_time) for key in range(20))))
    sizes = [len(cells) for _, cells in cells_of(hbase_url)]
    assert len(sizes) == 20
    assert sum(sizes) < 20 * 40
    assert store.read([(USERS, [(key,) for key in range(20)])]) == [[Row(199, 0, (199, ""))] * 20]
    store.close()


def test_cells_have_event_times_and_salts(hbase_url: str) -> None:
    store, day = store_of(hbase_url), 86_400_000_000
    store.write(USERS, users(*((key, key * day + 1234, key) for key in range(500))))
    rows = cells_of(hbase_url)
    times = {timestamp for _, cells in rows for _, timestamp in cells.values()}
    assert times == {key * 86_400_000 for key in range(500)}
    assert len({row[0] for row, _ in rows}) == 64
    assert max(row[0] for row, _ in rows) == 63
    store.close()


def test_reads_as_of_a_time(hbase_url: str) -> None:
    store, day = store_of(hbase_url, "versions=100"), 86_400_000_000
    times = [-7, 0, 5, 6, day - 1, day, 3 * day + 2]
    for n in (3, 0, 6, 2, 5, 1, 4):
        store.write(USERS, rows_of(USERS, [Entry((1,), times[n], 9 - n, (n, "")), Entry((2,), times[n], 0, (n, ""))]))
    for at in {instant + step for instant in times for step in (-1, 0, 1)}:
        n = max((n for n in range(7) if times[n] <= at), default=None)
        expected = [[None if n is None else Row(times[n], 9 - n, (n, "")), None]]
        assert store.read_as_of([(USERS, [(1,), (3,)])], at) == expected
    store.close()


def test_as_many_versions_as_the_uri_says(hbase_url: str) -> None:
    store = store_of(hbase_url, "versions=3")
    for event_time in range(300):
        store.write(USERS, users((1, event_time, event_time)))
    kept = [len(cells) for _, cells in cells_of(hbase_url)]
    assert 3 <= kept[0] < 100
    assert store.read_as_of([(USERS, [(1,)])], 297) == [[Row(297, 0, (297, ""))]]
    store.close()


def test_rows_expire_by_their_event_time(hbase_url: str) -> None:
    """Two views with different `ttl` share the HBase table; what is before 1970 has no time to expire by."""
    day, now = 86_400_000_000, time.time_ns() // 1000
    store, other = store_of(hbase_url, "ttl=10d"), store_of(hbase_url, "ttl=1000d")
    rows = users((1, now, 1), (2, now - 9 * day, 2), (3, now - 12 * day, 3), (4, -now, 4))
    store.write(USERS, rows)
    found = store.read([(USERS, [(1,), (2,), (3,), (4,)])])[0]
    assert [row and row.values[0] for row in found if row is None or isinstance(row, Row)] == [1, 2, None, 4]
    other.write(USERS, rows)
    assert other.read([(USERS, [(3,)])]) == [[Row(now - 12 * day, 0, (3, ""))]]
    store.close()
    other.close()


def test_regions_are_split_at_creation(hbase_server: HBaseServer, hbase_url: str) -> None:
    """By a Thrift 2 gateway; without one the error says what to type in HBase's shell."""
    with pytest.raises(SettingsError, match=r"admin=HOST:PORT.*create 't\w+\.ads', .*SPLITS => \[.\\x10.,"):
        store_of(hbase_url, "regions=4").create(USERS)
    try:
        store = store_of(hbase_url, f"regions=4&admin={hbase_server.start_admin()}")
        store.create(USERS)
        store.create(TILES)
    finally:
        hbase_server.stop("admin")
    store.write(USERS, users(*((key, 5, key) for key in range(400))))
    with closing(hbase_server.connection()) as connection:
        regions = connection.table(store._name).regions()
        assert [region["start_key"] for region in regions] == [b"", b"\x10", b"\x20", b"\x30"]
        for region in regions:
            stop = region["end_key"] or None
            found = list(connection.table(store._name).scan(row_start=region["start_key"], row_stop=stop))
            assert 60 < len(found) < 140
    assert store.read([(USERS, [(399,)])]) == [[Row(5, 0, (399, ""))]]
    store.close()
    again = store_of(hbase_url, "regions=4")  # the table is there: nothing to split
    again.create(USERS)
    again.close()


def test_two_stores_create_at_once(hbase_url: str) -> None:
    stores = [store_of(hbase_url) for _ in range(4)]
    run_together([partial(store.create, USERS) for store in stores])
    stores[0].write(USERS, users((1, 5, 1)))
    assert stores[1].read([(USERS, [(1,)])]) == [[Row(5, 0, (1, ""))]]
    for store in stores:
        store.close()


def test_a_table_removed_behind_the_store_is_made_again(hbase_server: HBaseServer, hbase_url: str) -> None:
    store = store_of(hbase_url)
    store.write(USERS, users((1, 5, 1)))
    with closing(hbase_server.connection()) as connection:
        connection.delete_table(store._name, disable=True)
    assert store.read([(USERS, [(1,)])]) == [[None]]
    store.write(USERS, users((1, 4, 2)))
    assert store.read([(USERS, [(1,)])]) == [[Row(4, 0, (2, ""))]]
    store.close()


def test_a_row_too_large_for_hbase_is_refused(hbase_url: str) -> None:
    store = store_of(hbase_url)
    with pytest.raises(InvalidInputError, match="size too large"):
        store.write(USERS, rows_of(USERS, [Entry((1,), 1, 0, (1, "x" * 11_000_000))]))
    with pytest.raises(InvalidInputError, match="item is longer"):
        store.write(TILES, tiles((1, b"x" * 256, 1, 1)))
    store.write(USERS, users((1, 5, 10)))
    assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]
    store.close()


def test_threads_never_read_each_others_replies(hbase_url: str) -> None:
    store = store_of(hbase_url, "pool=3")
    store.write(USERS, users(*((key, 5, key) for key in range(0, 40, 2))))

    def read(start: int) -> None:
        for step in range(100):
            keys = [(start + step + n) % 40 for n in range(5)]
            expected = [Row(5, 0, (key, "")) if key % 2 == 0 else None for key in keys]
            assert store.read([(USERS, [(key,) for key in keys])]) == [expected]

    run_together([partial(read, start) for start in range(6)])
    store.close()


@pytest.mark.parametrize(
    "uri",
    [
        "hbase://", "hbase://h/a/b", "hbase://h:port", "hbase://user@h", "hbase://h?timeout=long", "hbase://h?timeout=0",
        "hbase://h?a=1", "hbase://h?regions=65", "hbase://h?versions=0", "hbase://h?ttl=soon", "hbase://h?prefix=a/b",
        "hbase://h?admin=h", "hbase://h?pool=0", "hbase://h?pool",
    ],
)  # fmt: skip
def test_wrong_uris(uri: str) -> None:
    with pytest.raises(SettingsError, match="options are"):
        HBaseOnlineStore(uri, "ads")
