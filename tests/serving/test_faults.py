"""Redis away at the start, restarted under load, and hanging; workers killed and stopped."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from feature_store.definitions.tables import push_log
from tests.servers import RedisServer, free_port
from tests.serving.conftest import Served, make_repo, materialize, serve

ASK = {"features": ["user_stats:clicks"], "entities": {"user_id": [1, 999]}}


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    server = RedisServer(durable=True).start()
    yield server
    server.close()


@pytest.fixture
def faulty(tmp_path: Path, own_redis: RedisServer) -> Iterator[Served]:
    """A service over a Redis of its own, not running when the service starts."""
    store = make_repo(tmp_path / "repo", own_redis.url)
    own_redis.stop()
    yield from serve(store)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Served]:
    """A service over SQLite for one test."""
    yield from serve(make_repo(tmp_path / "repo"))


def row(user: int) -> dict[str, list[Any]]:
    """An event of ten minutes ago."""
    at = (datetime.now(UTC) - timedelta(minutes=10)).isoformat()
    empty = {name: [None] for name in ("ctr", "city", "token", "seen", "born", "price", "scores")}
    return {"user_id": [user], "clicks": [70], "at": [at], **empty}


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_starts_without_redis_and_recovers(faulty: Served, own_redis: RedisServer) -> None:
    response = faulty.client.post("/get-online-features", json=ASK)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "STORE_UNAVAILABLE"
    assert int(response.headers["retry-after"]) > 0
    assert faulty.client.get("/health").json() == {"status": "ok", "online_store": "unavailable"}
    own_redis.start()
    materialize(faulty.store)
    wait_for(lambda: faulty.client.post("/get-online-features", json=ASK).status_code == 200)
    assert faulty.client.post("/get-online-features", json=ASK).json()["results"][1]["values"] == [10, None]
    assert faulty.client.get("/health").json() == {"status": "ok", "online_store": "ok"}


def test_redis_restarted_under_load(faulty: Served, own_redis: RedisServer) -> None:
    own_redis.start()
    materialize(faulty.store)
    answers: Counter[int] = Counter()
    wrong: list[str] = []
    stop = threading.Event()

    def right(response: httpx.Response) -> bool:
        """The known user's value and the unknown one's, or that the store is away; no loss in between."""
        if response.status_code == 200:
            return bool(response.json()["results"][1]["values"] == [10, None])
        error = response.json()["error"]["code"]
        return error == "STORE_UNAVAILABLE" and int(response.headers["retry-after"]) > 0

    def load() -> None:
        with httpx.Client(base_url=faulty.url, timeout=30) as client:
            while not stop.is_set():
                response = client.post("/get-online-features", json=ASK)
                if not right(response):
                    wrong.append(response.text)
                answers[response.status_code] += 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: answers[200] > 50)
    own_redis.stop()
    wait_for(lambda: answers[503] > 20)
    own_redis.start()
    before = answers[200]
    wait_for(lambda: answers[200] > before + 50)
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert set(answers) == {200, 503}
    assert wrong == []


def test_a_push_while_redis_is_away_can_be_sent_again(faulty: Served, own_redis: RedisServer) -> None:
    body = {"push_source_name": "stats", "df": row(7), "to": "online_and_offline"}
    refused = faulty.client.post("/push", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "STORE_UNAVAILABLE")
    assert int(refused.headers["retry-after"]) > 0
    own_redis.start()
    wait_for(lambda: faulty.client.post("/push", json=body).status_code == 200)
    features = ["user_stats:clicks", "live:n_1h"]
    online = faulty.ask(features, {"user_id": [7]}).json()["results"]
    assert [column["values"] for column in online] == [[7], [70], [1]]
    spine = pa.table({"user_id": [7], "event_timestamp": [datetime.now(UTC)]})
    past = faulty.store.get_historical_features(spine, features).to_arrow()
    assert (past["clicks"].to_pylist(), past["n_1h"].to_pylist()) == ([70], [1])


def test_a_push_that_others_were_faster_than_is_a_conflict(alone: Served) -> None:
    """Others change the log's table without a pause; what was refused is not stored, and can be sent again."""
    path = alone.store.offline_store.path(push_log("stats"))

    def push(user: int) -> httpx.Response:
        body = {"push_source_name": "stats", "df": row(user), "to": "offline"}
        return alone.client.post("/push", json=body)

    assert push(0).status_code == 200
    taken, refused = [0], []
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            with suppress(CommitFailedError):
                DeltaTable(path).alter.set_table_properties({"delta.logRetentionDuration": "interval 30 days"})

    others = [threading.Thread(target=change) for _ in range(2)]
    for other in others:
        other.start()
    try:
        deadline = time.monotonic() + 60
        while not refused:
            assert time.monotonic() < deadline
            user = len(taken)
            response = push(user)
            (taken if response.status_code == 200 else refused).append(user)
    finally:
        stop.set()
        for other in others:
            other.join(timeout=30)
    assert response.status_code == 409, response.text
    assert response.json()["error"]["code"] == "CONFLICT"
    assert sorted(DeltaTable(path).to_pyarrow_table()["user_id"].to_pylist()) == taken
    assert push(refused[0]).status_code == 200
    assert sorted(DeltaTable(path).to_pyarrow_table()["user_id"].to_pylist()) == taken + refused


def test_health_answers_while_redis_hangs(faulty: Served, own_redis: RedisServer) -> None:
    own_redis.start()
    materialize(faulty.store)
    for _ in range(40):
        assert faulty.client.post("/get-online-features", json=ASK).status_code == 200
    assert faulty.app.reads.inline
    assert own_redis.pid is not None
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        with httpx.Client(base_url=faulty.url, timeout=30) as client:
            assert client.post("/get-online-features", json=ASK).status_code == 503
            assert not faulty.app.reads.inline
            asking = [
                threading.Thread(target=client.post, args=("/get-online-features",), kwargs={"json": ASK})
                for _ in range(4)
            ]
            for thread in asking:
                thread.start()
            began = time.monotonic()
            assert faulty.client.get("/health").status_code == 200
            assert time.monotonic() - began < 0.4
            for thread in asking:
                thread.join(timeout=30)
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    wait_for(lambda: faulty.client.post("/get-online-features", json=ASK).status_code == 200)


def test_a_service_needs_no_read_to_say_that_names_are_wrong(faulty: Served) -> None:
    body = {"features": ["user_stats:nope"], "entities": {"user_id": [1]}}
    assert faulty.client.post("/get-online-features", json=body).status_code == 404


class Workers:
    """`run` in a process of its own, with its workers."""

    def __init__(self, repo: Path, workers: int) -> None:
        self.port = free_port()
        code = f"from feature_store.serving import run; run({str(repo)!r}, port={self.port}, workers={workers})"
        if workers > 1:  # each worker imports the script anew
            code = f"if __name__ == '__main__':\n    {code}"
        script = repo / "serve.py"
        script.write_text(code)
        self.process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def wait(self) -> None:
        def up() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            try:
                return self.client.get("/health").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(up, 60)

    def stop(self) -> tuple[bytes, bytes]:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=30)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    store = make_repo(tmp_path / "repo")
    materialize(store)
    store.close()
    return store.root


def test_workers_share_their_metrics(repo: Path) -> None:
    service = Workers(repo, 2)
    try:
        service.wait()
        for _ in range(60):
            with httpx.Client(base_url=str(service.client.base_url), timeout=30) as client:
                assert client.post("/get-online-features", json=ASK).status_code == 200

        def counted() -> bool:
            with httpx.Client(base_url=str(service.client.base_url), timeout=30) as client:
                text = client.get("/metrics").text
            return 'feature_store_requests_total{route="/get-online-features",status="200"} 60.0' in text

        wait_for(counted)
    finally:
        output, _ = service.stop()
    assert service.process.returncode == 0
    lines = [line for line in output.splitlines() if b'"path":"/get-online-features"' in line]
    assert len(lines) == 60


def test_requests_in_progress_are_answered_before_the_end(repo: Path) -> None:
    service = Workers(repo, 1)
    service.wait()
    body = b'{"features":["user_stats:clicks"],"entities":{"user_id":[1]}}'
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(b"POST /get-online-features HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        client.sendall(body[:10])
        time.sleep(0.3)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        client.sendall(body[10:])
        assert b"200 OK" in client.recv(65536)
    service.stop()
    assert service.process.returncode == 0


def test_a_run_in_progress_ends_with_its_step(tmp_path: Path) -> None:
    """The views that it has not come to are left; what it wrote is whole."""
    store = make_repo(tmp_path / "repo", "sqlite:///data/online.db?timeout=60")
    service = Workers(store.root, 1)
    service.wait()
    lock = sqlite3.connect(store.root / "data/online.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    body = b'{"end_ts":"2999-01-01T00:00:00Z"}'
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as client:
        head = b"POST /materialize-incremental HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        client.sendall(head + body)
        assert service.client.get("/health").status_code == 200, "by now it has the request, too"
        service.process.send_signal(signal.SIGTERM)
        while client.recv(65536):  # it is given up when the time for requests in progress is over
            pass
    lock.execute("ROLLBACK")
    lock.close()
    service.client.close()
    _, errors = service.process.communicate(timeout=30)
    assert service.process.returncode == 0, errors
    assert [each.view for each in store.registry.all_progress() if each.through is not None] in ([], ["live"])
    materialize(store)
    assert len(store.registry.all_progress()) == 3
    store.close()


def test_a_wrong_repository_fails_at_once(tmp_path: Path) -> None:
    code = f"from feature_store.serving import run; run({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "feature_store.yaml" in done.stderr
