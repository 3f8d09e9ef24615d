from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from feature_store.errors import SettingsError, StoreUnavailableError
from feature_store.storage.online import Key, OnlineStore, Row, Table
from feature_store.storage.redis import RedisOnlineStore
from tests.conformance.online_store import TILES, USERS, OnlineStoreConformance, run_together, tiles, users
from tests.servers import RedisCluster, RedisServer, free_port


def raw_rows(server: RedisServer, project: str, table: Table) -> dict[tuple[bytes, bytes], bytes]:
    """The rows under a prefix, compared as text and not as a pattern."""
    prefix = f"fs1:{project}:{quote(table.name, safe='@')}:{{".encode()
    rows: dict[tuple[bytes, bytes], bytes] = {}
    with server.client() as client:
        for name in client.scan_iter():
            if name.startswith(prefix):
                key = name[len(prefix) : -1]
                if client.type(name) == b"hash":
                    rows |= {(key, item): row for item, row in client.hgetall(name).items()}
                else:
                    rows[key, b""] = client.get(name)
    return rows


class TestRedis(OnlineStoreConformance):
    @pytest.fixture
    def uri(self, redis_url: str, redis_server: RedisServer) -> str:
        self.server = redis_server
        return redis_url

    def raw(self, uri: str, project: str, table: Table) -> dict[tuple[bytes, bytes], bytes]:
        return raw_rows(self.server, project, table)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    cluster = RedisCluster().start()
    yield cluster
    cluster.close()


class TestRedisCluster(OnlineStoreConformance):
    """Keys lie on three nodes, and no command may take keys of two."""

    @pytest.fixture
    def uri(self, cluster: RedisCluster) -> str:
        self.cluster = cluster
        cluster.clear()
        return cluster.url

    def raw(self, uri: str, project: str, table: Table) -> dict[tuple[bytes, bytes], bytes]:
        return {key: row for node in self.cluster.nodes for key, row in raw_rows(node, project, table).items()}

    def test_one_call_writes_and_reads_on_every_node(self, store: OnlineStore, uri: str) -> None:
        keys = range(300)
        store.write(USERS, users(*((key, 5, key) for key in keys)))
        store.write(TILES, tiles(*((key, b"a", 5, key) for key in keys)))
        for table in (USERS, TILES):
            shares = [len(raw_rows(node, "ads", table)) for node in self.cluster.nodes]
            assert min(shares) > 50 and sum(shares) == len(keys)
        rows = [Row(5, 0, (key, "")) for key in keys]
        asked: list[Key] = [(key,) for key in keys]
        assert store.read([(USERS, asked), (TILES, asked)]) == [rows, [{b"a": row} for row in rows]]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server that a test may stop."""
    server = RedisServer().start()
    yield server
    server.close()


def test_a_restart_is_survived(server: RedisServer) -> None:
    store = RedisOnlineStore(server.url, "ads")
    store.write(USERS, users((1, 5, 10)))
    run_together([lambda: [store.read([(USERS, [(1,)])]) for _ in range(20)] for _ in range(4)])
    server.stop()
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="Check that Redis runs"):
        store.read([(USERS, [(1,)])])
    assert time.monotonic() - begun < 1
    server.start()
    assert store.read([(USERS, [(1,)])]) == [[None]]
    store.write(TILES, tiles((1, b"a", 5, 10)))
    store.write(USERS, users((1, 4, 9)))
    assert store.read([(USERS, [(1,)])]) == [[Row(4, 0, (9, ""))]]
    store.close()


def test_broken_connections_are_replaced_in_one_call(server: RedisServer) -> None:
    store = RedisOnlineStore(server.url, "ads")
    run_together([lambda: [store.read([(USERS, [(1,)])]) for _ in range(20)] for _ in range(4)])
    server.stop()
    server.start()
    assert store.read([(USERS, [(1,)])]) == [[None]]
    server.stop()
    server.start()
    store.write(USERS, users((1, 5, 10)))
    assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]
    store.close()


def test_no_server_is_unavailable_at_once() -> None:
    port = free_port()
    store = RedisOnlineStore(f"redis://user:secret@127.0.0.1:{port}/0", "ads")
    for call in (
        lambda: store.read([(USERS, [(1,)])]),
        lambda: store.write(USERS, users((1, 5, 10))),
        lambda: store.drop(USERS),
        lambda: list(store.scan(USERS)),
    ):
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=f"127.0.0.1:{port}") as caught:
            call()
        assert time.monotonic() - begun < 1
        assert "secret" not in str(caught.value)
    store.close()


def test_no_cluster_is_unavailable_at_once() -> None:
    store = RedisOnlineStore(f"redis+cluster://127.0.0.1:{free_port()}", "ads")
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        store.read([(USERS, [(1,)])])
    assert time.monotonic() - begun < 2
    store.close()


def test_a_server_that_hangs_times_out_and_replies_never_mix(server: RedisServer) -> None:
    store = RedisOnlineStore(f"{server.url}?timeout=0.3", "ads")
    store.write(USERS, users(*((key, 5, key) for key in range(50))))
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"(?i)time"):
        store.read([(USERS, [(1,)])])
    assert time.monotonic() - begun < 2
    os.kill(server.pid, signal.SIGCONT)
    for key in range(50):
        assert store.read([(USERS, [(key,)])]) == [[Row(5, 0, (key, ""))]]
    store.close()


def test_threads_never_read_each_others_replies(redis_url: str) -> None:
    store = RedisOnlineStore(redis_url, "ads")
    store.write(USERS, users(*((key, 5, key) for key in range(40))))

    def read(start: int) -> None:
        for step in range(300):
            key = (start + step) % 40
            assert store.read([(USERS, [(key,)])]) == [[Row(5, 0, (key, ""))]]

    run_together([partial(read, n) for n in range(6)])
    store.close()


def test_a_server_without_memory_is_unavailable(server: RedisServer) -> None:
    store = RedisOnlineStore(server.url, "ads")
    store.write(USERS, users((1, 5, 10)))
    with server.client() as client:
        client.config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailableError, match="maxmemory"):
        store.write(USERS, users((1, 6, 11)))
    assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]
    store.close()


def test_a_wrong_password_is_unavailable(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("requirepass", "right")
    store = RedisOnlineStore(server.url.replace("://", "://:wrong@"), "ads")
    with pytest.raises(StoreUnavailableError, match="password") as caught:
        store.read([(USERS, [(1,)])])
    assert ":wrong@" not in str(caught.value)
    store.close()


@pytest.mark.parametrize("option", ["timeout=soon", "nosuch=1"])
def test_wrong_options(option: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        RedisOnlineStore(f"redis://localhost:6379/0?{option}", "ads")


def test_one_read_is_one_round_trip(redis_url: str, redis_server: RedisServer) -> None:
    store = RedisOnlineStore(redis_url, "ads")
    store.read([(USERS, [(1,)])])
    with redis_server.client() as client:
        before = client.info("commandstats")
        store.read([(USERS, [(1,), (2,)]), (TILES, [(1,)]), (USERS, [(3,)])])
        after = client.info("commandstats")

    def calls(name: str) -> int:
        return int(after.get(f"cmdstat_{name}", {"calls": 0})["calls"]) - int(
            before.get(f"cmdstat_{name}", {"calls": 0})["calls"]
        )

    assert (calls("mget"), calls("hgetall"), calls("get")) == (1, 1, 0)
    store.close()
