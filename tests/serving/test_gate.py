"""Who may ask what of the service, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feature_store.errors import SettingsError
from feature_store.serving.failures import TooManyRequestsError
from feature_store.serving.gate import Gate
from feature_store.settings import Client, load_settings
from tests.serving.conftest import Served, make_repo, materialize, serve

READER, LOADER = "a-token-that-reads", "a-token-that-writes"
CLIENTS = f"""
clients:
  ranker: {{token: {READER}}}
  loader: {{token: {LOADER}, may: [write]}}
"""
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/get-online-features", {"features": ["user_stats:clicks"], "entities": {"user_id": [1]}}),
    ("/push", {"push_source_name": "stats", "df": {}}),
    ("/write-to-online-store", {"feature_view_name": "small", "df": {}}),
    ("/materialize", {}),
    ("/materialize-incremental", {}),
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = make_repo(tmp_path_factory.mktemp("guarded") / "repo", more=CLIENTS)
    materialize(store)
    yield from serve(store)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_nobody_asks_without_a_token_that_is_known(guarded: Served, path: str, body: dict[str, Any]) -> None:
    for headers in ({}, bearer("another-token-of-no-one"), {"Authorization": f"Basic {READER}"}):
        answer = guarded.client.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHENTICATED")
        assert answer.headers["www-authenticate"] == "Bearer" and answer.headers["x-request-id"]
        assert READER not in answer.text and LOADER not in answer.text


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_a_client_may_do_what_it_is_allowed(guarded: Served, path: str, body: dict[str, Any]) -> None:
    may, not_ = (READER, LOADER) if path == "/get-online-features" else (LOADER, READER)
    answer = guarded.client.post(path, json=body, headers=bearer(not_))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
    assert "may not" in answer.json()["error"]["message"]
    assert guarded.client.post(path, json=body, headers=bearer(may)).status_code in (200, 422)


def test_a_reader_reads_and_a_loader_loads(guarded: Served) -> None:
    path, body = ASKED[0]
    answer = guarded.client.post(path, json=body, headers={"authorization": f"bearer  {READER}"})
    assert answer.status_code == 200 and answer.json()["results"][1]["values"] == [10]
    rows = {"user_id": [7], "small_clicks": [3], "small_city": ["Rome"], "event_timestamp": ["2026-11-01T00:00:00Z"]}
    body = {"feature_view_name": "small", "df": rows}
    pushed = guarded.client.post("/write-to-online-store", json=body, headers=bearer(LOADER))
    assert (pushed.status_code, pushed.json()) == (200, {"rows": 1})


def test_a_large_body_without_a_token_is_refused_all_the_same(guarded: Served) -> None:
    for path in ("/get-online-features", "/push"):
        answer = guarded.client.post(path, content=b" " * 200_000)
        assert answer.status_code == 401


def test_probes_and_documentation_are_open(guarded: Served) -> None:
    for path in ("/health", "/metrics", "/openapi.json"):
        assert guarded.client.get(path).status_code == 200
    assert guarded.client.post("/nowhere").status_code == 404


def test_who_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    more = f"clients:\n  ranker: {{token: {READER}, requests_per_s: 0.01}}\n"
    store = make_repo(tmp_path / "repo", more=more)
    materialize(store)
    for served in serve(store):
        path, body = ASKED[0]
        codes = [served.client.post(path, json=body, headers=bearer(READER)) for _ in range(2)]
        assert [answer.status_code for answer in codes] == [200, 429]
        assert codes[1].json()["error"]["code"] == "TOO_MANY_REQUESTS"
        assert 0 < int(codes[1].headers["retry-after"]) <= 100
        assert served.client.get("/health").status_code == 200
        assert 'status="429"' in served.client.get("/metrics").text


def scope(token: str = READER) -> dict[str, Any]:
    return {"path": "/get-online-features", "headers": [(b"authorization", f"Bearer {token}".encode())]}


def test_a_second_s_worth_may_come_at_once_and_comes_back_at_the_rate() -> None:
    now, waits = [100.0], list[int]()
    clients = {"a": Client(token=READER, requests_per_s=4), "b": Client(token=LOADER)}
    gate = Gate(clients, 2, lambda: now[0])

    def passed(token: str) -> int:
        for count in range(10):
            try:
                gate.check(scope(token))
            except TooManyRequestsError as error:
                waits.append(error.wait)
                return count
        return 10

    assert (passed(READER), passed(LOADER)) == (4, 2)
    now[0] += 0.5
    assert (passed(READER), passed(LOADER)) == (2, 1)
    now[0] += 3600
    assert (passed(READER), passed(LOADER)) == (4, 2)
    assert waits == [1] * 6


def test_without_clients_there_is_one_rate_for_all() -> None:
    gate = Gate({}, 1, lambda: 0.0)
    gate.check({"path": "/push", "headers": []})
    with pytest.raises(TooManyRequestsError, match="clients ask more than 1 times a second"):
        gate.check(scope())


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a: {token: short}", "at least 16"),
        (f"a: {{token: {READER}, may: [all]}}", "'read' or 'write'"),
        (f"a: {{token: {READER}, may: []}}", "at least 1"),
        (f"a: {{token: {READER}}}\n  b: {{token: {READER}}}", 'clients "a" and "b" have the same token'),
    ],
)
def test_clients_that_cannot_be_told_apart_or_may_nothing_are_refused(tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "feature_store.yaml").write_text(f"project: p\nclients:\n  {text}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(tmp_path / "feature_store.yaml")
    assert wrong in str(caught.value) and READER not in str(caught.value)
