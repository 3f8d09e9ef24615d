"""A service over two tiers: Redis killed and emptied under load, and back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import RedisServer
from tests.serving.conftest import Served, make_repo, materialize, serve
from tests.storage.tiers import wait_for

FEATURES = ["user_stats:clicks", "live:n_1h"]
ASK = {"features": FEATURES, "entities": {"user_id": [1, 2, 999]}, "tiers": True}
FAST = {"user_stats": {"fast": 3}, "live": {"fast": 9}}


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture
def tiered(request: pytest.FixtureRequest, tmp_path: Path, own_redis: RedisServer) -> Iterator[Served]:
    """A service whose materialized rows rest in SQLite, or what the parameter says, behind a Redis that is empty."""
    slow = "sqlite:///data/online.db?"
    if getattr(request, "param", "sqlite") == "hbase":
        slow = request.getfixturevalue("hbase_url") + "&"
    store = make_repo(tmp_path / "repo", f'"tiered:{own_redis.url}|{slow}lease=100ms&budget=20s"')
    materialize(store)
    yield from serve(store)


def ask(served: Served) -> dict[str, Any]:
    response = served.client.post("/get-online-features", json=ASK)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def values(answer: dict[str, Any]) -> list[list[Any]]:
    return [column["values"] for column in answer["results"]]


def is_fast(served: Served) -> bool:
    return bool(ask(served)["metadata"]["tiers"] == FAST)


def health(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = served.client.get("/health").json()
    return found


def metric(served: Served, name: str) -> float:
    lines = served.client.get("/metrics").text.splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"feature_store_{name} ")))


def logged(served: Served, text: str) -> int:
    return served.output.getvalue().decode().count(text)


class Under:
    """Load on a service: what it answered, and that no value was wrong."""

    def __init__(self, served: Served) -> None:
        self.expected = values(ask(served))
        self.answers: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._served = served
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._load) for _ in range(3)]

    def __enter__(self) -> Under:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def go_on(self) -> None:
        """Wait for some more answers."""
        before = sum(self.answers.values())
        wait_for(lambda: sum(self.answers.values()) > before + 50)

    def _load(self) -> None:
        with httpx.Client(base_url=self._served.url, timeout=30) as client:
            while not self._stop.is_set():
                response = client.post("/get-online-features", json=ASK)
                self.answers[response.status_code] += 1
                if response.status_code != 200 or values(response.json()) != self.expected:
                    self.wrong.append(response.text)


def test_copies_are_made_as_they_are_asked_for(tiered: Served) -> None:
    wait_for(lambda: health(tiered)["fast_tier"] == "ok")
    tiers = ask(tiered)["metadata"]["tiers"]
    assert {view: sum(counts.values()) for view, counts in tiers.items()} == {"user_stats": 3, "live": 9}
    wait_for(lambda: is_fast(tiered))
    assert values(ask(tiered)) == [[1, 2, 999], [10, None, None], [1, 0, 0]]
    assert metric(tiered, "tier_promoted_total") >= 12
    assert metric(tiered, 'tier_keys_total{tier="fast"}') >= 12
    assert "tiers" not in tiered.ask(FEATURES, {"user_id": [1]}).json()["metadata"]


def test_a_write_is_seen_at_once(tiered: Served) -> None:
    wait_for(lambda: health(tiered)["fast_tier"] == "ok")
    for clicks in range(20, 24):
        now = datetime.now(UTC).isoformat()
        row = {"user_id": [1], "small_clicks": [clicks], "small_city": [None], "event_timestamp": [now]}
        body = {"feature_view_name": "small", "df": row}
        assert tiered.client.post("/write-to-online-store", json=body).status_code == 200
        answer = tiered.ask(["small:small_clicks"], {"user_id": [1]}).json()
        assert answer["results"][1]["values"] == [clicks]


@pytest.mark.parametrize("harm", ["killed", "flushed"])
@pytest.mark.parametrize("tiered", ["sqlite", "hbase"], indirect=True)
@pytest.mark.timeout(300)
def test_redis_lost_under_load(tiered: Served, own_redis: RedisServer, harm: str) -> None:
    wait_for(lambda: is_fast(tiered))
    with Under(tiered) as load:
        load.go_on()
        HARMS[harm](tiered, own_redis, load)
        wait_for(lambda: health(tiered) == {"status": "ok", "online_store": "ok", "fast_tier": "ok"})
        wait_for(lambda: is_fast(tiered))
        load.go_on()
    assert load.wrong == []
    assert metric(tiered, "fast_tier_up") == 1


def kill(served: Served, server: RedisServer, load: Under) -> None:
    server.stop()
    wait_for(lambda: health(served) == {"status": "ok", "online_store": "degraded", "fast_tier": "unavailable"})
    load.go_on()
    assert metric(served, "fast_tier_up") == 0
    assert set(ask(served)["metadata"]["tiers"]["user_stats"]) == {"slow"}
    assert logged(served, "the fast tier does not answer") == 1
    server.start()


def flush(served: Served, server: RedisServer, load: Under) -> None:
    assert logged(served, "lost its copies") == 0
    with server.client() as client:
        client.flushall()
    wait_for(lambda: metric(served, "tier_losses_total") == 1)
    load.go_on()
    assert logged(served, "lost its copies") == 1


HARMS: dict[str, Callable[[Served, RedisServer, Under], None]] = {"killed": kill, "flushed": flush}


def test_tiers_is_a_flag(tiered: Served) -> None:
    response = tiered.client.post("/get-online-features", json={**ASK, "tiers": 1})
    assert response.status_code == 422
    assert '"tiers" is true or false' in response.json()["error"]["message"]


def test_a_store_without_tiers_has_none_to_tell(served: Served) -> None:
    assert served.ask(FEATURES, {"user_id": [1]}, tiers=True).json()["metadata"]["tiers"] == {}
    assert "fast_tier" not in health(served)
    assert "feature_store_tier" not in served.client.get("/metrics").text
