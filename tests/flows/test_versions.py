"""A changed definition under load: every answer comes from one version, the old one until the new one is complete."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest

from feature_store import FeatureStore
from feature_store.materialization.rollout import filling
from tests.flows.broken import FS, add, error_of, events, fs, make, start, wait_for
from tests.servers import free_port

USERS = 500
END = "2024-04-20T12:34:56Z"
DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: events, path: data/events, timestamp: at, created: seen_at, unique: [id], stream: {push: true}}
---
feature_view:
  name: spend
  entities: [user]
  source: events
  features:
    - {name: price, type: FLOAT64, expression: "%s"}
    - {name: same, type: FLOAT64, expression: "%s"}
---
on_demand_feature_view:
  name: over
  inputs: [spend]
  features: [{name: both, type: FLOAT64, expression: "%s"}]
---
feature_service: {name: model, features: [spend, over]}
"""
OLD = DEFINITIONS % ("price + 1", "price + 1", "price + same")
NEW = DEFINITIONS % ("0 - price - 1", "0 - price - 1", "0 - price - same")
"""The sign tells the versions of the view apart, that of `both` the versions of the on-demand view: with each its own
it is positive."""


class Client:
    """Asks for the same entities again and again over one connection, which one worker of the service has."""

    def __init__(self, url: str, users: list[int]) -> None:
        self.seen: list[set[tuple[bool, bool, bool]]] = []
        self._http = httpx.Client(base_url=url, timeout=30, limits=httpx.Limits(max_connections=1))
        self._users = users
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failure: BaseException | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.wait(0.02):  # the service is not what is tested: leave the machine to the others
                self.seen.append(set(zip(*(map(_positive, v) for v in self.ask(self._users).values()), strict=True)))
        except BaseException as error:
            self.failure = error

    def ask(self, users: list[int]) -> dict[str, list[Any]]:
        answer = self._http.post(
            "/get-online-features", json={"feature_service": "model", "entities": {"user_id": users}}
        )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        columns = [result["values"] for result in body["results"]]
        return dict(zip(body["metadata"]["feature_names"][1:], columns[1:], strict=True))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self._http.close()
        if self.failure is not None:
            raise self.failure


def _positive(value: float | None) -> bool:
    assert value is not None, "a row is missing: it comes from a version that is not complete"
    return value > 0


WHOLLY_OLD, WHOLLY_NEW = {(True, True, True)}, {(False, False, True)}


@pytest.fixture
def served(tmp_path: Path, redis_url: str) -> Iterator[tuple[FeatureStore, str]]:
    """A repository that is materialized as it was defined first, and a service of two workers over it."""
    root = make(tmp_path / "repo", redis_url, OLD)
    add(root, "all", events(6_000, USERS, since="2024-04-01T00:00:00Z"))
    store = FeatureStore(root)
    store.apply()
    store.materialize_incremental(END)
    port = free_port()
    command = [FS, "-c", str(root), "serve", "--port", str(port), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: _answers(url))
    yield store, url
    process.terminate()
    process.wait(20)
    store.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.timeout(300)
def test_services_switch_in_one_step_when_a_new_version_is_complete(served: tuple[FeatureStore, str]) -> None:
    store, url = served
    users = [row["user_id"] for row in _rows(store)]
    assert len(users) > USERS * 0.95
    clients = [Client(url, users[n::2]) for n in range(2)]
    (store.root / "features.yaml").write_text(NEW)
    assert "they are served until the new version is complete: fs backfill spend START END" in fs(store.root, "apply")
    store.refresh()
    bound = store.catalog.views["spend"]
    fill = ("backfill", "spend", "2024-04-01", END, "--parallel", "1")

    killed = start(store.root, *fill)
    wait_for(lambda: bool((job := store.registry.backfills.get("spend", bound.version)) and len(job.done) >= 3), killed)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    push = {
        "id": [-1],
        "user_id": [USERS + 1],
        "at": [END],
        "seen_at": [END],
        "price": [5.0],
        "item": [1],
        "kind": ["a"],
    }
    pushed = httpx.post(f"{url}/push", json={"push_source_name": "events", "df": push, "to": "online"})
    assert pushed.status_code == 200, pushed.text
    with httpx.Client(base_url=url) as http:
        body = {"feature_service": "model", "entities": {"user_id": [USERS + 1]}}
        assert http.post("/get-online-features", json=body).json()["results"][1]["values"] == [6.0]

    two = [start(store.root, *fill) for _ in range(2)]
    for process in two:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
        assert "of spend is complete and served from now on" in out or "Backfilled spend" in out
    wait_for(lambda: all(client.seen[-1] == WHOLLY_NEW for client in clients))
    for client in clients:
        client.end()
    for client in clients:
        assert [versions for versions, _ in groupby(client.seen)] == [WHOLLY_OLD, WHOLLY_NEW]
    with httpx.Client(base_url=url) as http:
        assert http.post("/get-online-features", json=body).json()["results"][1]["values"] == [-6.0]
    assert store.describe("spend")["complete"] is True


@pytest.mark.timeout(300)
def test_a_backfill_that_was_killed_goes_on_where_it_was(served: tuple[FeatureStore, str]) -> None:
    """What is left of it is a lease that ends by itself, and the chunks that it wrote."""
    store, _ = served
    (store.root / "features.yaml").write_text(NEW)
    fs(store.root, "apply")
    store.refresh()
    bound = store.catalog.views["spend"]
    fill = ("backfill", "spend", "2024-04-01", END, "--parallel", "1")
    killed = start(store.root, *fill)
    wait_for(lambda: bool((job := store.registry.backfills.get("spend", bound.version)) and len(job.done) >= 8), killed)
    killed.kill()
    killed.communicate()
    job = store.registry.backfills.get("spend", bound.version)
    assert job is not None
    assert store.registry.leases.held(filling("spend", bound.version)) is not None
    reports: list[tuple[int, int, int]] = []
    notices: list[str] = []
    store.backfill("spend", "2024-04-01", END, 1, lambda view, *report: reports.append(report), notices.append)
    assert reports[0] == (len(job.done), reports[-1][1], 0)
    assert "seems to be under way" in notices[0], "it is not known to be dead yet"
    assert store.describe("spend")["complete"] is True


def test_what_stops_a_backfill_is_one_line(served: tuple[FeatureStore, str]) -> None:
    store, _ = served
    (store.root / "features.yaml").write_text(NEW)
    fs(store.root, "apply")
    (store.root / "data/events/broken.parquet").write_bytes(b"PAR1 this is none")
    process = start(store.root, "backfill", "spend", "2024-04-01", END)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "broken.parquet" in error_of(err)
    assert store.describe("spend")["complete"] is False


def _rows(store: FeatureStore) -> list[dict[str, Any]]:
    from feature_store.definitions.tables import latest_table

    return [
        row
        for batch in store.online_store.scan(latest_table(store.catalog.views["spend"]))
        for row in batch.to_pylist()
    ]
