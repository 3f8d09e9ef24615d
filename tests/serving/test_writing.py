"""Push, write and materialize over HTTP, read back over HTTP; and definitions that change meanwhile."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from feature_store.errors import InvalidInputError
from feature_store.serving.requests import (
    IncrementalRequest,
    MaterializeRequest,
    PushRequest,
    WriteRequest,
    read_model,
)
from feature_store.store import FeatureStore
from tests.serving.conftest import Served


def value(served: Served, feature: str, user: int) -> Any:
    return served.ask([feature], {"user_id": [user]}).json()["results"][1]["values"][0]


def row(**changes: Any) -> dict[str, list[Any]]:
    at = (datetime.now(UTC) - timedelta(minutes=10)).isoformat()
    whole = {
        "user_id": 7, "clicks": 70, "ctr": "Infinity", "city": "Graz", "token": "AAE=", "seen": 1.5,
        "born": "2000-02-29", "price": "12.50", "scores": [1, None], "at": at,
    }  # fmt: skip
    return {name: [item] for name, item in (whole | changes).items()}


def test_push(fresh: Served) -> None:
    response = fresh.client.post(
        "/push", json={"push_source_name": "stats", "df": row(), "to": "online", "allow_registry_cache": True}
    )
    assert response.status_code == 200, response.text
    answer = fresh.ask(["user_stats"], {"user_id": [7]}).json()
    assert [column["values"][0] for column in answer["results"]] == [
        7, 70, "Infinity", "Graz", "AAE=", 1, "2000-02-29", "12.50", [1.0, None],
    ]  # fmt: skip
    assert value(fresh, "live:n_1h", 7) == 1


def test_what_feasts_client_writes(fresh: Served) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = {name: values * 2 for name, values in row().items() if name != "at"}
    rows |= {
        "user_id": [1, 8],
        "clicks": [11, 80],
        "event_timestamp": [(now - timedelta(minutes=1)).isoformat(), (now - timedelta(days=1)).isoformat()],
        "created": [None, now.isoformat()],
    }
    body = {"feature_view_name": "user_stats", "df": rows, "allow_registry_cache": False}
    response = fresh.client.post("/write-to-online-store", json=body)
    assert response.status_code == 200, response.text
    assert value(fresh, "user_stats:clicks", 1) == 11
    assert value(fresh, "user_stats:clicks", 8) == 80


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("/push", {"push_source_name": "stat", "df": row()}, 404, "stat"),
        ("/push", {"push_source_name": "stats", "df": row(), "to": "nowhere"}, 422, "nowhere"),
        ("/push", {"push_source_name": "stats", "df": row(clicks="70")}, 422, 'column "clicks", row 0: "70"'),
        ("/push", {"push_source_name": "stats", "df": row(klicks=1)}, 422, "klicks"),
        ("/push", {"push_source_name": "stats", "df": row(at="2199-01-01")}, 422, ""),
        ("/push", {"push_source_name": "stats", "df": row(at=None)}, 422, ""),
        ("/push", {"push_source_name": "stats", "df": row(user_id=None)}, 422, ""),
        ("/push", {"push_source_name": "stats", "df": {"user_id": [1], "clicks": []}}, 422, "clicks"),
        ("/push", {"push_source_name": "stats", "df": {}}, 422, "df"),
        ("/push", {"push_source_name": "stats"}, 422, "df"),
        ("/push", {"push_source_name": 1, "df": {}}, 422, "push_source_name"),
        ("/write-to-online-store", {"feature_view_name": "nope", "df": row()}, 404, "nope"),
        ("/write-to-online-store", {"feature_view_name": "user_stats", "df": {"user_id": [1]}}, 422, ""),
        ("/materialize", {"start_ts": "2026-01-01"}, 422, "end_ts"),
        ("/materialize", {"start_ts": "x", "end_ts": "2026-01-01"}, 422, "start_ts"),
        ("/materialize", {"start_ts": "2026-01-01", "end_ts": "2026-01-02", "feature_views": ["x"]}, 404, "x"),
        ("/materialize-incremental", {}, 422, "end_ts"),
        ("/materialize-incremental", {"end_ts": [1]}, 422, '"end_ts" is a time'),
        ("/push", {"push_source_name": "stats", "df": {"user_id": 1}}, 422, '"df: user_id" is a list, not 1'),
        ("/push", {"push_source_name": "stats", "df": {"user_id": None}}, 422, 'lacks "df: user_id"'),
        ("/materialize", {"feature_views": [1]}, 422, '"feature_views" is a list of names, not [1]'),
        ("/materialize", {"disable_event_timestamp": 1}, 422, '"disable_event_timestamp" is true or false, not 1'),
    ],
)
def test_wrong_writes(served: Served, path: str, body: dict[str, Any], status: int, part: str) -> None:
    response = served.client.post(path, json=body)
    assert response.status_code == status, response.text
    assert part in response.json()["error"]["message"]


def test_an_example_shows_how_to_write() -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_model(PushRequest, {"push_source_name": "clicks"})
    assert caught.value.message == 'the request lacks "df"'
    assert caught.value.hint is not None and caught.value.hint.startswith("Send for example {")
    for model in (PushRequest, WriteRequest, MaterializeRequest, IncrementalRequest):
        assert read_model(model, json.loads(model.example))


def test_materialize(fresh: Served) -> None:
    now = datetime.now(UTC)
    span = {"start_ts": (now - timedelta(days=2)).isoformat(), "end_ts": now.isoformat()}
    assert fresh.client.post("/materialize", json=span).json()["rows"] > 0
    more = fresh.client.post(
        "/materialize-incremental", json={"end_ts": now.isoformat(), "feature_views": ["user_stats"]}
    )
    assert more.status_code == 200, more.text


def test_a_version_applied_meanwhile_is_served_once_it_is_filled(fresh: Served) -> None:
    file = fresh.store.root / "features.yaml"
    more = "  features:\n    - {name: new_name, type: INT64, column: clicks}"
    file.write_text(file.read_text().replace("  features:", more, 1))
    other = FeatureStore(fresh.store.root)
    other.apply()
    other.close()
    deadline = time.monotonic() + 20
    while "is being filled" not in fresh.ask(["user_stats:new_name"], {"user_id": [1]}).json()["error"]["hint"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert fresh.ask(["user_stats:clicks"], {"user_id": [1]}).json()["results"][1]["values"] == [10]
    end = datetime.now(UTC).isoformat()
    fresh.client.post("/materialize", json={"start_ts": "2000-01-01", "end_ts": end, "feature_views": ["user_stats"]})
    while fresh.ask(["user_stats:new_name"], {"user_id": [1]}).status_code == 404:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    answer = fresh.ask(["user_stats:new_name"], {"user_id": [1]}).json()
    assert answer["metadata"]["feature_names"] == ["user_id", "new_name"]
    assert answer["results"][1]["values"] == [10]


def test_health_answers_during_long_work(fresh: Served) -> None:
    now = datetime.now(UTC)
    with httpx.Client(base_url=fresh.url, timeout=30) as client:
        body = {"start_ts": (now - timedelta(days=400)).isoformat(), "end_ts": now.isoformat()}
        work = threading.Thread(target=lambda: client.post("/materialize", json=body))
        work.start()
        began = time.monotonic()
        assert fresh.client.get("/health").status_code == 200
        assert time.monotonic() - began < 5
        work.join(timeout=60)
