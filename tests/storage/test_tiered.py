"""Whatever happens to the fast tier, every read sees every write acknowledged before it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from feature_store.errors import SettingsError, StoreUnavailableError
from feature_store.plugins import open_online_store
from feature_store.storage.generations import State, state_table
from feature_store.storage.online import Answers, Key, OnlineStore, Row, Table
from feature_store.storage.tiered import Options, TieredOnlineStore
from tests.conformance.online_store import (
    ITEMS,
    KEYS,
    TABLES,
    TILES,
    USERS,
    Entry,
    batches,
    rows_of,
    run_together,
    tiles,
    users,
)
from tests.servers import RedisServer
from tests.storage.tiers import Gate, behind, has_copies, wait_for, wait_until_open

LEASE = 0.03


def tiered(fast: str, slow: str, project: str = "ads", more: str = "budget=20s") -> TieredOnlineStore:
    store = open_online_store(f"tiered:{fast}|{slow}?lease={LEASE * 1000:g}ms&{more}", project, Path("/"))
    assert isinstance(store, TieredOnlineStore)
    return store


class Tiers(RuleBasedStateMachine):
    """Two processes' stores over one fast and one slow tier, each with a way of its own to the fast one."""

    def __init__(self, server: RedisServer, slow: str, slow_gate: Gate | None, run: int) -> None:
        super().__init__()
        self.client = server.client()
        self.gates = [Gate(server.port), Gate(server.port)]
        self.slow_gate, self.slow_answers = slow_gate, True
        self.stores = [tiered(gate.url, slow, f"p{run}") for gate in self.gates]
        self.model: dict[str, dict[tuple[Any, bytes], Row]] = {table.name: {} for table in TABLES}
        for table in TABLES:
            self.stores[0].create(table)
            self.stores[1].read([(table, [])])
        self.settle()

    @rule(side=st.integers(0, 1), batch=batches(), keep_from=st.none() | ITEMS)
    def write(self, side: int, batch: tuple[Table, list[Entry]], keep_from: bytes | None) -> None:
        table, entries = batch
        keep_from = keep_from if table.items else None
        try:
            self.stores[side].write(table, rows_of(table, entries), keep_from)
        except StoreUnavailableError:
            assert not self.slow_answers
            return
        rows = self.model[table.name]
        for entry in entries:
            old = rows.get((entry.key, entry.item))
            if old is None or old[:2] <= entry.row[:2]:
                rows[entry.key, entry.item] = entry.row
        written = {entry.key for entry in entries}
        for key, item in list(rows):
            if keep_from is not None and key in written and item < keep_from:
                del rows[key, item]

    @rule(side=st.integers(0, 1))
    def cut(self, side: int) -> None:
        self.gates[side].shut()

    @rule(side=st.integers(0, 1))
    def mend(self, side: int) -> None:
        self.gates[side].open()

    @rule()
    def settle(self) -> None:
        """Let copies be used again, and be there."""
        if self.slow_answers:
            for gate in self.gates:
                gate.open()
            for store in self.stores:
                wait_until_open(store)
            self.reads_agree()

    @rule()
    def flush(self) -> None:
        self.client.flushdb()

    @rule(place=st.integers(0, 30))
    def evict(self, place: int) -> None:
        if names := sorted(self.client.keys("*")):
            self.client.delete(names[place % len(names)])

    @rule()
    def slow_outage(self) -> None:
        if self.slow_gate:
            self.slow_gate.shut()
            self.slow_answers = False

    @rule()
    def slow_back(self) -> None:
        if self.slow_gate:
            self.slow_gate.open()
            self.slow_answers = True

    @invariant()
    def reads_agree(self) -> None:
        requests = [(table, KEYS[table.name]) for table in TABLES]
        expected = [[self.expected(table, key) for key in KEYS[table.name]] for table in TABLES]
        for store in self.stores:
            try:
                assert store.read(requests) == expected
            except StoreUnavailableError:
                assert not self.slow_answers

    def expected(self, table: Table, key: Any) -> Any:
        rows = self.model[table.name]
        return {item: row for (k, item), row in rows.items() if k == key} if table.items else rows.get((key, b""))

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        for gate in self.gates:
            gate.shut()
        if self.slow_gate:
            self.slow_gate.open()
        self.client.flushall()
        self.client.close()


@pytest.mark.parametrize("slow", ["sqlite", "redis"])
@pytest.mark.timeout(300)
def test_two_tiers_are_a_dict_of_acknowledged_writes(slow: str, redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_server.client() as client:
        client.flushall()
    runs = iter(range(10**6))
    gate = Gate(redis_server.port) if slow == "redis" else None
    uri = f"sqlite:///{tmp_path}/slow.db" if gate is None else gate.url.replace("/0", "/1")
    run_state_machine_as_test(
        lambda: Tiers(redis_server, uri, gate, next(runs)),  # type: ignore[arg-type]
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
    if gate:
        gate.shut()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that a test may stop."""
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture
def slow(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/slow.db"


@pytest.fixture
def store(server: RedisServer, slow: str) -> Iterator[TieredOnlineStore]:
    store = tiered(server.url, slow)
    for table in TABLES:
        store.create(table)
    wait_until_open(store)
    yield store
    store.close()


KEYS_OF_LOAD = 6


class Load:
    """Writers with keys of their own, whose rows tell how many they wrote; readers who know what is acknowledged."""

    def __init__(self, stores: list[TieredOnlineStore]) -> None:
        self.stores = stores
        self.acknowledged = [0] * KEYS_OF_LOAD
        self.until = time.monotonic() + 4
        self.reads, self.slow = 0, 0

    def write(self, store: TieredOnlineStore, keys: range) -> None:
        """Equal event times now and then, so that the order of writes counts; tiles keep the newest two."""
        count = 0
        while time.monotonic() < self.until:
            count += 1
            store.write(USERS, users(*((key, count // 3, count) for key in keys)))
            item = count.to_bytes(4, "big")
            store.write(TILES, tiles(*((key, item, 1, count) for key in keys)), (count - 1).to_bytes(4, "big"))
            for key in keys:
                self.acknowledged[key] = count

    def read(self, store: TieredOnlineStore) -> None:
        keys = [(key,) for key in range(KEYS_OF_LOAD)]
        while time.monotonic() < self.until:
            least = list(self.acknowledged)
            answers = store.read([(USERS, keys), (TILES, keys)])
            for at in range(KEYS_OF_LOAD):
                self.check(answers[0][at], answers[1][at], least[at])
            assert isinstance(answers, Answers)
            self.slow += sum(each.get("slow", 0) for each in answers.behind)
            self.reads += 1

    def check(self, row: Any, items: Any, least: int) -> None:
        assert (row is None) <= (least == 0)
        assert row is None or row.values[0] >= least
        found = sorted(int.from_bytes(item, "big") for item in items)
        assert found == list(range(found[0], found[-1] + 1)) if found else least == 0
        assert len(found) <= 2
        assert not found or found[-1] >= least


def test_readers_see_what_was_acknowledged_under_load(server: RedisServer, slow: str) -> None:
    gates = [Gate(server.port) for _ in range(3)]
    stores = [tiered(gate.url, slow) for gate in gates]
    for table in TABLES:
        stores[0].create(table)
    load = Load(stores)
    noise = random.Random(7)

    def disturb() -> None:
        with server.client() as client:
            while time.monotonic() < load.until:
                time.sleep(noise.random() * 0.1)
                gate = noise.choice(gates)
                match noise.randrange(4):
                    case 0:
                        client.flushall()
                    case 1:
                        for name in noise.sample(found := client.keys("*"), min(3, len(found))):
                            client.delete(name)
                    case 2:
                        gate.shut()
                    case _:
                        pass
                for gate in gates:
                    if noise.random() < 0.7:
                        gate.open()

    halves = range(KEYS_OF_LOAD // 2), range(KEYS_OF_LOAD // 2, KEYS_OF_LOAD)
    run_together(
        [lambda s=s, h=h: load.write(s, h) for s, h in zip(stores, halves, strict=False)]  # type: ignore[misc]
        + [lambda s=s: load.read(s) for s in stores]  # type: ignore[misc]
        + [disturb]
    )
    assert min(load.acknowledged) > 3
    assert 100 < load.slow < load.reads * KEYS_OF_LOAD
    for each in (*stores, *gates):
        each.close() if isinstance(each, TieredOnlineStore) else each.shut()


def test_what_was_read_once_is_read_from_the_fast_tier(store: TieredOnlineStore) -> None:
    store.write(USERS, users((1, 5, 10)))
    store.write(TILES, tiles((1, b"a", 5, 1), (1, b"b", 6, 2)))
    requests = [(USERS, [(1,), (2,)]), (TILES, [(1,), (2,)])]
    first = store.read(requests)
    assert isinstance(first, Answers)
    assert first.behind == [{"slow": 2}, {"slow": 2}]
    wait_for(lambda: has_copies(store, USERS, [(1,), (2,)]) and has_copies(store, TILES, [(1,), (2,)]))
    assert store.read(requests) == first == [[Row(5, 0, (10, "")), None], [store.read(requests)[1][0], {}]]
    assert store.tally.promoted >= 4


def test_writes_update_copies_and_make_none(store: TieredOnlineStore, server: RedisServer) -> None:
    store.write(USERS, users((1, 5, 10), (2, 5, 20)))
    with server.client() as client:
        assert not [name for name in client.keys("*") if b"began" not in name]
    store.read([(USERS, [(1,)])])
    wait_for(lambda: has_copies(store, USERS, [(1,)]))
    store.write(USERS, users((1, 6, 11), (2, 6, 21)))
    assert behind(store, (USERS, [(1,), (2,)])) == [{"slow": 1}]
    assert store.read([(USERS, [(1,), (2,)])]) == [[Row(6, 0, (11, "")), Row(6, 0, (21, ""))]]


def test_a_copy_of_nothing_becomes_the_row_that_is_written(store: TieredOnlineStore, server: RedisServer) -> None:
    store.read([(USERS, [(1,)]), (TILES, [(1,)])])
    wait_for(lambda: has_copies(store, USERS, [(1,)]) and has_copies(store, TILES, [(1,)]))
    with server.client() as client:
        assert {client.ttl(name) > 0 for name in client.keys("*") if b"began" not in name} == {True}
    store.write(USERS, users((1, 5, 10)))
    store.write(TILES, tiles((1, b"a", 5, 1)))
    answers = store.read([(USERS, [(1,)]), (TILES, [(1,)])])
    assert answers == [[Row(5, 0, (10, ""))], [{b"a": Row(5, 0, (1, ""))}]]
    assert isinstance(answers, Answers)
    assert answers.behind == ()
    with server.client() as client:
        assert {client.ttl(name) for name in client.keys("*")} == {-1}


def test_a_server_started_again_with_an_older_state_is_not_believed(
    store: TieredOnlineStore, server: RedisServer
) -> None:
    store.write(USERS, users((1, 5, 10)))
    store.read([(USERS, [(1,)])])
    wait_for(lambda: has_copies(store, USERS, [(1,)]))
    with server.client() as client:
        kept = {name: client.dump(name) for name in client.keys("*")}
    store.write(USERS, users((1, 6, 11)))
    keeper, generations = store._keeper, store._generations
    keeper.close()  # nobody looks: only the connection tells
    keeper._process, generations.lease = os.getpid(), 60.0
    server.stop()
    server.start()
    with server.client() as client:
        for name, data in kept.items():
            client.restore(name, 0, data)
    assert generations.trusted
    assert keeper.fast_answers
    assert store.read([(USERS, [(1,)])]) == [[Row(6, 0, (11, ""))]]
    keeper._process, generations.lease = 0, LEASE
    wait_for(lambda: has_copies(store, USERS, [(1,)]))
    assert store.read([(USERS, [(1,)])]) == [[Row(6, 0, (11, ""))]]


def test_a_write_that_the_fast_tier_missed_is_read_by_those_who_reach_it(server: RedisServer, slow: str) -> None:
    gate = Gate(server.port)
    writer, reader = tiered(gate.url, slow), tiered(server.url, slow)
    writer.create(USERS)
    writer.write(USERS, users((1, 5, 10)))
    reader.read([(USERS, [(1,)])])
    wait_for(lambda: reader.fast_tier == "ok" and has_copies(reader, USERS, [(1,)]))
    gate.shut()
    began = time.monotonic()
    writer.write(USERS, users((1, 6, 11)))
    assert time.monotonic() - began >= LEASE
    assert reader.read([(USERS, [(1,)])]) == [[Row(6, 0, (11, ""))]]
    assert writer.tally.missed == 1
    assert writer.fast_tier == "unavailable"
    writer.write(USERS, users((1, 7, 12)))
    assert reader.read([(USERS, [(1,)])]) == [[Row(7, 0, (12, ""))]]
    gate.open()
    wait_for(lambda: writer.fast_tier == "ok")
    wait_for(lambda: has_copies(reader, USERS, [(1,)]))
    assert reader.read([(USERS, [(1,)])]) == [[Row(7, 0, (12, ""))]]
    with server.client() as client:
        generations = {name.partition(b"~")[2].partition(b":")[0] for name in client.keys("*") if b"~" in name}
    assert len(generations) == 1
    writer.close()
    reader.close()
    gate.shut()


def test_who_closes_may_end_in_between(store: TieredOnlineStore, slow: str) -> None:
    known = store._generations.look([USERS])[0]
    assert store._generations.move(USERS, known, State.CLOSING).state is State.CLOSING
    wait_until_open(store)
    assert store._generations.look([USERS])[0].number > known.number


def test_of_two_moves_at_once_the_safer_one_stays(store: TieredOnlineStore) -> None:
    store._keeper.close()  # nobody else moves
    known = store._generations.look([USERS])[0]
    for first, second in ((State.CLOSING, State.OPEN), (State.OPEN, State.CLOSING)):
        store._generations.move(USERS, known, first)
        known = store._generations.move(USERS, known, second)
        assert known.state is State.CLOSING


def test_a_lost_fast_tier_is_counted_and_filled_again(store: TieredOnlineStore, server: RedisServer) -> None:
    store.write(USERS, users((1, 5, 10)))
    store.read([(USERS, [(1,)])])
    wait_for(lambda: has_copies(store, USERS, [(1,)]))
    assert store.tally.losses == 0
    wait_for(lambda: bool(store._keeper._began))
    with server.client() as client:
        client.flushall()
    wait_for(lambda: store.tally.losses == 1)
    assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]
    wait_for(lambda: has_copies(store, USERS, [(1,)]))


def test_refill_copies_a_whole_table(store: TieredOnlineStore) -> None:
    store.write(USERS, users(*((key, 5, key) for key in range(2_500))))
    store.write(TILES, tiles(*((key % 40, bytes([1 + key // 40]), 5, key) for key in range(400))))
    assert store.refill(USERS) == 2_500
    assert store.refill(TILES) == 40
    answers = store.read([(USERS, [(key,) for key in range(2_500)]), (TILES, [(key,) for key in range(40)])])
    assert isinstance(answers, Answers)
    assert answers.behind == ()
    assert answers[0] == [Row(5, 0, (key, "")) for key in range(2_500)]
    assert [len(items) for items in answers[1]] == [10] * 40  # type: ignore[arg-type]


class Disturbed:
    """A slow tier; while it is read for the second time, something happens."""

    def __init__(self, slow: OnlineStore, happens: Callable[[], object]) -> None:
        self._slow, self._happens, self._reads = slow, happens, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._slow, name)

    def read(self, requests: Sequence[tuple[Table, Sequence[Key]]]) -> Any:
        self._reads += 1
        if self._reads == 2:
            self._happens()
        return self._slow.read(requests)


def restarted(server: RedisServer) -> None:
    server.stop()
    server.start()


@pytest.mark.parametrize(
    ("happens", "message"),
    [(RedisServer.stop, "not refilled, 1,000 keys were copied: .*PING, then run"), (restarted, "another server")],
    ids=["killed", "started again"],
)
def test_a_refill_fails_where_the_fast_tier_does(
    store: TieredOnlineStore, server: RedisServer, happens: Callable[[RedisServer], None], message: str
) -> None:
    store.write(USERS, users(*((key, 5, key) for key in range(2_500))))
    slow = store._slow
    store._slow = Disturbed(slow, lambda: happens(server))
    with pytest.raises(StoreUnavailableError, match=message):
        store.refill(USERS)
    store._slow = slow
    if server.pid is None:
        server.start()
    wait_for(lambda: store._generations.to_read(USERS).life == store._fast.life())
    wait_until_open(store)
    assert store.refill(USERS) == 2_500


def test_a_refill_fails_where_its_copies_become_void(store: TieredOnlineStore, server: RedisServer, slow: str) -> None:
    """A writer misses the fast tier once; what would be copied after that nobody would read, and nobody drop."""
    store.write(USERS, users(*((key, 5, key) for key in range(2_500))))
    gate = Gate(server.port)
    writer = tiered(gate.url, slow)
    before = store._generations.to_read(USERS)

    def miss() -> None:
        gate.shut()
        writer.write(USERS, users((1, 6, 11)))
        gate.open()
        wait_for(lambda: store._generations.to_read(USERS).number > before.number and store.fast_tier == "ok")

    store._slow = Disturbed(store._slow, miss)
    with pytest.raises(StoreUnavailableError, match=r"not refilled, 1,000 keys were copied: its copies became void"):
        store.refill(USERS)
    writer.close()
    gate.shut()
    assert store.refill(USERS) == 2_500
    with server.client() as client:
        generations = {name.partition(b"~")[2].partition(b":")[0] for name in client.keys(f"*:{USERS.name}~*")}
    assert generations == {b"%x" % store._generations.to_read(USERS).number}
    assert behind(store, (USERS, [(key,) for key in range(2_500)])) == []


def test_a_refill_counts_a_key_once(store: TieredOnlineStore) -> None:
    """Of the slow tier's batches one may end between two items of a key."""
    store.write(TILES, tiles(*((key % 7, key.to_bytes(2, "big"), 5, key) for key in range(20_500))))
    assert len([*store._slow.scan(TILES)]) > 1
    assert store.refill(TILES) == 7


def test_a_drop_takes_the_copies_too(store: TieredOnlineStore, server: RedisServer) -> None:
    store.write(USERS, users((1, 5, 10)))
    store.read([(USERS, [(1,)])])
    wait_for(lambda: has_copies(store, USERS, [(1,)]))
    for table in TABLES:
        store.drop(table)
    with server.client() as client:
        assert client.keys("*") == []
    assert store.read([(USERS, [(1,)])]) == [[None]]
    assert store._slow.read([(state_table(USERS), [(0,)])]) == [[None]]


@pytest.fixture
def other() -> Iterator[RedisServer]:
    """A slow tier that can be stopped for a while."""
    server = RedisServer().start()
    yield server
    server.close()


@pytest.mark.parametrize("on_timeout", ["error", "missing"])
def test_a_slow_tier_over_its_budget(server: RedisServer, other: RedisServer, on_timeout: str) -> None:
    store = tiered(server.url, other.url, more=f"budget=20ms&on_timeout={on_timeout}")
    store.create(USERS)
    store.create(TILES)
    store.write(USERS, users((1, 5, 10), (2, 5, 20)))
    wait_until_open(store)
    store.read([(USERS, [(1,)])])
    wait_for(lambda: has_copies(store, USERS, [(1,)]))
    assert other.pid is not None
    os.kill(other.pid, signal.SIGSTOP)
    assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]
    if on_timeout == "error":
        with pytest.raises(StoreUnavailableError, match="within 20 ms"):
            store.read([(USERS, [(1,), (2,)])])
    else:
        answers = store.read([(USERS, [(1,), (2,)]), (TILES, [(1,)])])
        assert answers == [[Row(5, 0, (10, "")), None], [{}]]
        assert isinstance(answers, Answers)
        assert answers.behind == [{"timeout": 1}, {"timeout": 1}]
    assert store.tally.timeout > 0
    os.kill(other.pid, signal.SIGCONT)
    wait_for(lambda: has_copies(store, USERS, [(1,), (2,)]))
    assert store.read([(USERS, [(1,), (2,)])]) == [[Row(5, 0, (10, "")), Row(5, 0, (20, ""))]]
    store.close()


def test_a_process_that_begins_without_the_fast_tier(server: RedisServer, slow: str) -> None:
    gate = Gate(server.port)
    gate.shut()
    store = tiered(gate.url, slow)
    store.create(USERS)
    store.write(USERS, users((1, 5, 10)))
    assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]
    assert store.fast_tier == "unavailable"
    gate.open()
    wait_until_open(store)
    wait_for(lambda: has_copies(store, USERS, [(1,)]))
    store.close()
    gate.shut()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("tiered:redis://h:1", "two tiers"),
        ("tiered:redis://h:1|", "two tiers"),
        ("tiered:|sqlite:///a.db", "two tiers"),
        ("tiered:redis://u:secret@h:1|redis://h:2|redis://h:3", "two tiers"),
        ("tiered:redis://h:1|redis://h:2?budget=20", "span of time"),
        ("tiered:redis://h:1|redis://h:2?lease=0s", "span of time"),
        ("tiered:redis://h:1|redis://h:2?on_timeout=null", "on_timeout"),
        ("tiered:sqlite:///a.db|redis://h:2", "no fast tier opens"),
        ("tiered:redis://h:1|nosuch://h:2", "no online store opens"),
        ("tiered:redis://h:1|redis://h:2?nosuch=1", "nosuch"),
    ],
)
def test_wrong_uris(uri: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        open_online_store(uri, "ads", Path("/"))
    assert "secret" not in str(caught.value)


def test_options_beside_those_of_the_slow_tier() -> None:
    found = Options.of("tiered:redis://h:1/0?timeout=1|hbase://h:2?timeout=3&budget=20ms&lease=2s&on_timeout=missing")
    assert found == Options("redis://h:1/0?timeout=1", "hbase://h:2?timeout=3", 0.02, 2.0, error=False)
    assert Options.of("tiered:redis://h|hbase://h") == Options("redis://h", "hbase://h")


@pytest.mark.parametrize(
    ("begin", "end"), [(State.CLOSING, State.CLOSED), (State.OPENING, State.OPEN)], ids=["closing", "opening"]
)
def test_nobody_moves_on_before_the_lease_is_over(store: TieredOnlineStore, begin: State, end: State) -> None:
    keeper, generations = store._keeper, store._generations
    keeper.close()
    generations.lease = 0.2
    began = time.monotonic()
    known = generations.move(USERS, generations.look([USERS])[0], begin, store._fast.life())
    assert known.state is begin
    while (known := generations.look([USERS])[0]).state is begin:
        keeper.tick()
    assert known.state is end
    assert time.monotonic() - began >= generations.lease
