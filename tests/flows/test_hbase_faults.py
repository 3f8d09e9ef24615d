"""An HBase that fails: its gateway or all of it killed under reads and writes, hanging, away, at a wrong port."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from feature_store import FeatureStore
from feature_store.definitions.tables import latest_table
from feature_store.errors import FeatureStoreError, StoreUnavailableError
from feature_store.storage.hbase import HBaseOnlineStore
from feature_store.storage.online import Row
from tests.conformance.online_store import USERS, run_together, users
from tests.flows.broken import RUNS, add, error_of, events, fs, make, start, visible, wait_for
from tests.servers import HBaseServer, RedisServer, free_port

KEYS = 60
FACTOR = 10**12
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def hbase(hbase_server: HBaseServer) -> Iterator[HBaseServer]:
    """A server to stop; it runs again when the test is over."""
    yield hbase_server
    hbase_server.start()


class Traffic:
    """Threads that read and write while something fails. The value of a key is KEY * FACTOR and a version: of every
    answer it can be seen whether it belongs to its key, and whether an acknowledged write is lost."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.store = HBaseOnlineStore(uri, "ads")
        self.acknowledged = [0] * KEYS
        self.answers, self.writes, self.failures = 0, 0, 0
        self._over = threading.Event()

    def during(self, disturb: Callable[[], None]) -> None:
        """Read and write from several threads; `disturb` in the middle, and then until both work again."""
        tasks = [self._disturbed(disturb), *[self._until_over(self._read)] * 3, *[self._until_over(self._write)] * 2]
        with closing(self.store):
            self.store.create(USERS)
            run_together(tasks)

    def _disturbed(self, disturb: Callable[[], None]) -> Callable[[], None]:
        def task() -> None:
            try:
                self._flows()
                disturb()
                self._flows()
            finally:
                self._over.set()

        return task

    def _flows(self) -> None:
        """Wait for a good many answers and writes from now on."""
        answers, writes = self.answers + 100, self.writes + 20
        wait_for(lambda: self.answers > answers and self.writes > writes, seconds=120)

    def _until_over(self, once: Callable[[], None]) -> Callable[[], None]:
        def task() -> None:
            while not self._over.is_set():
                try:
                    once()
                except StoreUnavailableError:
                    self.failures += 1
                    time.sleep(0.01)

        return task

    def _read(self) -> None:
        first = self.answers % KEYS
        keys = [(first + 7 * n) % (KEYS + 5) for n in range(10)]
        least = [self.acknowledged[key] if key < KEYS else 0 for key in keys]
        rows = self.store.read([(USERS, [(key,) for key in keys])])[0]
        for key, row, known in zip(keys, rows, least, strict=True):
            check(key, row, known)
        self.answers += 1

    def _write(self) -> None:
        version = time.time_ns() // 1000 % FACTOR
        keys = [(version + n) % KEYS for n in range(10)]
        self.store.write(USERS, users(*((key, version, key * FACTOR + version) for key in keys)))
        for key in keys:
            self.acknowledged[key] = max(self.acknowledged[key], version)
        self.writes += 1


def check(key: int, row: Any, known: int) -> None:
    """The row is of this key, and no older than what was acknowledged before it was asked for."""
    if row is None:
        assert known == 0
        return
    assert isinstance(row, Row)
    assert row.values[0] == key * FACTOR + row.event_time
    assert row.event_time >= known


def test_the_gateway_is_killed_under_reads_and_writes(hbase: HBaseServer, hbase_url: str) -> None:
    traffic = Traffic(f"{hbase_url}&timeout=5")

    def disturb() -> None:
        for number in (signal.SIGKILL, signal.SIGTERM):
            hbase.stop("thrift", number)
            failures = traffic.failures
            wait_for(lambda failures=failures: traffic.failures > failures + 5)  # type: ignore[misc]
            hbase.start()

    traffic.during(disturb)
    everything_is_there(traffic)


def test_everything_is_killed_under_writes(hbase: HBaseServer, hbase_url: str) -> None:
    """Master, region server and gateway: what was acknowledged is in the log of the region server."""
    traffic = Traffic(f"{hbase_url}&timeout=5")

    def disturb() -> None:
        hbase.stop("master")
        hbase.stop("thrift")
        hbase.start()

    traffic.during(disturb)
    everything_is_there(traffic)


def test_the_region_server_is_killed_under_reads_and_writes(hbase: HBaseServer, hbase_url: str) -> None:
    """The gateway lives on, waits for it, and finds it again."""
    traffic = Traffic(f"{hbase_url}&timeout=3")

    def disturb() -> None:
        hbase.stop("master")
        failures = traffic.failures
        wait_for(lambda: traffic.failures > failures)
        hbase.start()

    traffic.during(disturb)
    everything_is_there(traffic)


def everything_is_there(traffic: Traffic) -> None:
    with closing(HBaseOnlineStore(traffic.uri, "ads")) as store:
        rows = store.read([(USERS, [(key,) for key in range(KEYS)])])[0]
        for key, row in enumerate(rows):
            check(key, row, traffic.acknowledged[key])
        assert min(traffic.acknowledged) > 0
        assert len(rows) == sum(batch.num_rows for batch in store.scan(USERS)) == KEYS


@pytest.mark.parametrize("name", ["thrift", "master"])
def test_a_server_that_hangs_times_out_and_replies_never_mix(hbase: HBaseServer, hbase_url: str, name: str) -> None:
    store = HBaseOnlineStore(f"{hbase_url}&timeout=0.5", "ads")
    with closing(HBaseOnlineStore(hbase_url, "ads")) as patient:
        patient.write(USERS, users(*((key, 5, key) for key in range(50))))
    wait_for(lambda: answers(store, 0))
    hbase.pause(name, True)
    try:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="did not answer in time"):
            read_on(store)
        assert time.monotonic() - begun < 5
    finally:
        hbase.pause(name, False)
    wait_for(lambda: answers(store, 1))
    for key in range(50):
        wait_for(lambda key=key: answers(store, key))  # type: ignore[misc]
    store.close()


def read_on(store: HBaseOnlineStore) -> None:
    """Read until that fails: a process stops a moment after it is told to."""
    while True:
        store.read([(USERS, [(1,)])])


def answers(store: HBaseOnlineStore, key: int) -> bool:
    """Whether it answers; never wrongly."""
    try:
        found = store.read([(USERS, [(key,)])])
    except StoreUnavailableError:
        return False
    assert found == [[Row(5, 0, (key, ""))]]
    return True


@pytest.fixture(params=["nobody", "silent", "redis"])
def wrong_port(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[int]:
    """Where nobody listens, where somebody says nothing, where somebody speaks another protocol."""
    if request.param == "silent":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield listener.getsockname()[1]
    else:
        yield redis_server.port if request.param == "redis" else free_port()


def test_a_wrong_port(wrong_port: int) -> None:
    store = HBaseOnlineStore(f"hbase://127.0.0.1:{wrong_port}?timeout=0.5", "ads")
    for call in (
        lambda: store.create(USERS),
        lambda: store.read([(USERS, [(1,)])]),
        lambda: store.write(USERS, users((1, 5, 10))),
        lambda: store.drop(USERS),
        lambda: list(store.scan(USERS)),
    ):
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=f"hbase://127.0.0.1:{wrong_port}.*Check"):
            call()
        assert time.monotonic() - begun < 3
    store.close()


def test_a_wrong_port_at_the_command_line(tmp_path: Path) -> None:
    """One line, and nothing counts as done."""
    url = f"hbase://127.0.0.1:{free_port()}"
    root = make(tmp_path / "repo", url)
    add(root, "all", events(100, 10))
    for command in (("apply",), RUNS[1]):
        message = fs(root, *command, code=1)
        assert url in message
        assert "Check that an HBase Thrift gateway" in message


def test_hbase_is_down_behind_its_gateway(hbase: HBaseServer, hbase_url: str) -> None:
    with closing(HBaseOnlineStore(hbase_url, "ads")) as store:
        store.write(USERS, users((1, 5, 10)))
    hbase.stop("master")
    for uri in (f"{hbase_url}&timeout=2", f"{hbase_url}new&timeout=2"):
        with closing(HBaseOnlineStore(uri, "ads")) as store:
            begun = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=r"Check its load and that HBase behind it|HBase behind it"):
                store.write(USERS, users((1, 6, 11)))
            assert time.monotonic() - begun < 12
    hbase.start()
    with closing(HBaseOnlineStore(hbase_url, "ads")) as store:
        wait_for(lambda: found(store) in ([[Row(5, 0, (10, ""))]], [[Row(6, 0, (11, ""))]]))


def found(store: HBaseOnlineStore) -> Any:
    try:
        return store.read([(USERS, [(1,)])])
    except StoreUnavailableError:
        return None


def test_hbase_is_killed_while_a_run_writes(tmp_path: Path, hbase: HBaseServer, hbase_url: str) -> None:
    """The run fails in one line or lives through it; run again, everything is as if nothing had happened."""
    rows = events(30_000, 20_000)
    undisturbed = opened(make(tmp_path / "undisturbed"), rows)
    for run in RUNS:
        undisturbed.materialize(*run[1:3], run[4::2])
    expected = visible(undisturbed)
    undisturbed.close()
    store = opened(make(tmp_path / "repo", f"{hbase_url}&timeout=30"), rows)
    bound = store.catalog.views["a_latest"]
    process = start(store.root, *RUNS[0])
    wait_for(lambda: any(store.online_store.scan(latest_table(bound))), process)
    hbase.stop("master")
    hbase.stop("thrift")
    hbase.start()
    out, err = process.communicate(timeout=100)
    if process.returncode:
        assert process.returncode == 1, out + err
        assert "hbase://127.0.0.1" in error_of(err)
    for run in RUNS:
        fs(store.root, *run)
    assert visible(store) == expected
    store.close()


def opened(root: Path, rows: Any) -> FeatureStore:
    add(root, "all", rows)
    store = FeatureStore(root)
    try:
        store.apply()
    except FeatureStoreError:
        store.close()
        raise
    return store
