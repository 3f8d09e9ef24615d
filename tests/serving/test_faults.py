"""Redis away at the start, restarted under load, and hanging; workers killed and stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.servers import RedisServer, free_port
from tests.serving.conftest import Served, make_repo, materialize, serve

ASK = {"features": ["user_stats:clicks"], "entities": {"user_id": [1, 999]}}


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture
def faulty(tmp_path: Path, own_redis: RedisServer) -> Iterator[Served]:
    """A service over a Redis of its own, not running when the service starts."""
    store = make_repo(tmp_path / "repo", own_redis.url)
    own_redis.stop()
    yield from serve(store)


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

    def load() -> None:
        with httpx.Client(base_url=faulty.url, timeout=30) as client:
            while not stop.is_set():
                response = client.post("/get-online-features", json=ASK)
                answers[response.status_code] += 1
                if response.status_code == 200 and response.json()["results"][1]["values"][1] is not None:
                    wrong.append(response.text)

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


def test_a_wrong_repository_fails_at_once(tmp_path: Path) -> None:
    code = f"from feature_store.serving import run; run({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "feature_store.yaml" in done.stderr
