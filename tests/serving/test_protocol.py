"""Feast's protocol, request by request, over real HTTP."""

from __future__ import annotations

import json
import socket
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyarrow as pa
import pytest

from tests.serving.conftest import Served

ZERO = "1970-01-01T00:00:00Z"


def column(answer: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = answer["results"][answer["metadata"]["feature_names"].index(name)]
    return found


def test_what_feasts_client_sends(served: Served) -> None:
    body = {
        "entities": {"user_id": [1, 999]},
        "full_feature_names": False,
        "include_feature_view_version_metadata": False,
        "features": ["user_stats:clicks", "user_stats:city"],
    }
    response = served.client.post("/get-online-features", json=body)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer["metadata"] == {"feature_names": ["user_id", "clicks", "city"]}
    users, clicks, city = answer["results"]
    assert users == {"values": [1, 999], "statuses": ["PRESENT", "PRESENT"], "event_timestamps": [ZERO, ZERO]}
    assert clicks["values"] == [10, None]
    assert clicks["statuses"] == city["statuses"] == ["PRESENT", "NOT_FOUND"]
    assert city["values"] == ["Wien]", "nowhere"]
    first, second = clicks["event_timestamps"]
    assert second == ZERO
    age = datetime.now(UTC) - datetime.fromisoformat(first.replace("Z", "+00:00"))
    assert timedelta(minutes=29) < age < timedelta(minutes=40)


def test_json_of_every_type(served: Served) -> None:
    answer = served.ask(["user_stats"], {"user_id": [1, 2]}).json()
    values = {name: column(answer, name)["values"] for name in answer["metadata"]["feature_names"]}
    assert values == {
        "user_id": [1, 2],
        "clicks": [10, None],
        "ctr": ["NaN", 0.5],
        "city": ["Wien]", "nowhere"],
        "token": ["AP8=", None],
        "seen": [1_700_000_000, None],
        "born": ["1970-01-01", None],
        "price": ["1250.00", None],
        "scores": [[1.5, "Infinity"], []],
    }
    assert column(answer, "ctr")["statuses"] == ["PRESENT", "PRESENT"]
    assert column(answer, "seen")["statuses"] == ["PRESENT", "NULL_VALUE"]
    iso = served.ask(["user_stats:seen"], {"user_id": [1]}, timestamps="iso").json()
    assert column(iso, "seen")["values"] == ["2023-11-14T22:13:20.123456Z"]


def test_every_way_of_writing_columns_gives_the_same(served: Served) -> None:
    """Columns are written together or one by one, depending on what is in them."""
    names = ["clicks", "ctr", "city", "scores", "price"]
    together = served.ask([f"user_stats:{name}" for name in names], {"user_id": [1, 2, 999]}).json()
    for name in names:
        alone = served.ask([f"user_stats:{name}"], {"user_id": [1, 2, 999]}).json()
        assert column(alone, name) == column(together, name)


def test_services_full_names_windows_and_request_values(served: Served) -> None:
    by_service = served.client.post(
        "/get-online-features",
        json={"feature_service": "ctr_v1", "entities": {"user_id": [1]}, "full_feature_names": True},
    ).json()
    assert by_service["metadata"]["feature_names"] == ["user_id", "user_stats__clicks", "user_stats__ctr"]
    windows = served.ask(["live"], {"user_id": [1, 999]}).json()
    assert column(windows, "n_1h")["values"] == [1, 0]
    assert column(windows, "n_1h")["statuses"] == ["PRESENT", "PRESENT"]
    assert column(windows, "sum_7d")["statuses"] == ["PRESENT", "NULL_VALUE"]
    among = served.ask(["context"], {"user_id": [1], "request_time": ["2026-01-01T13:00:00Z"]}).json()
    beside = served.ask(["context"], {"user_id": [1]}, request_data={"request_time": [1_767_272_400]}).json()
    assert among["metadata"]["feature_names"] == ["user_id", "request_time", "hour", "twice"]
    assert beside["metadata"]["feature_names"] == ["user_id", "hour", "twice"]
    assert column(among, "hour") == column(beside, "hour")
    assert column(among, "twice")["values"] == [20]


def test_no_entities(served: Served) -> None:
    answer = served.ask(["user_stats:clicks"], {"user_id": []}).json()
    empty: dict[str, list[Any]] = {"values": [], "statuses": [], "event_timestamps": []}
    assert answer == {"results": [empty, empty], "metadata": {"feature_names": ["user_id", "clicks"]}}


def test_arrow(served: Served) -> None:
    response = served.client.post(
        "/get-online-features",
        json={"features": ["user_stats:clicks", "user_stats:seen"], "entities": {"user_id": [1, 999]}},
        headers={"accept": "application/vnd.apache.arrow.stream"},
    )
    assert response.headers["content-type"] == "application/vnd.apache.arrow.stream"
    table = pa.ipc.open_stream(response.content).read_all()
    assert table["clicks"].to_pylist() == [10, None]
    assert table["clicks__status"].to_pylist() == ["PRESENT", "NOT_FOUND"]
    assert table["seen"].type == pa.timestamp("us", "UTC")
    assert table["clicks__ts"].cast(pa.int64())[1].as_py() == 0


WRONG: list[tuple[Any, int, str, str]] = [
    ({"features": ["user_stats:click"], "entities": {"user_id": [1]}}, 404, "FEATURE_NOT_FOUND", "click"),
    ({"features": ["user_stat:clicks"], "entities": {"user_id": [1]}}, 404, "VIEW_NOT_FOUND", "user_stat"),
    ({"feature_service": "v9", "entities": {"user_id": [1]}}, 404, "SERVICE_NOT_FOUND", "v9"),
    ({"features": ["clicks"], "entities": {"user_id": ["1"]}}, 422, "INVALID_INPUT", 'column "user_id", row 0: "1"'),
    ({"features": ["clicks"], "entities": {"user_id": [1, True]}}, 422, "INVALID_INPUT", "row 1: True"),
    ({"features": ["clicks"], "entities": {"user_id": [1.0]}}, 422, "INVALID_INPUT", "1.0"),
    ({"features": ["clicks"], "entities": {"user_id": [2**70]}}, 422, "INVALID_INPUT", "user_id"),
    ({"features": ["clicks"], "entities": {"user": [1]}}, 422, "INVALID_INPUT", 'join key "user_id"'),
    ({"features": ["clicks"], "entities": {"user_id": [1], "b": []}}, 422, "INVALID_INPUT", "b"),
    ({"features": ["clicks"], "entities": {"user_id": 1}}, 422, "INVALID_INPUT", "user_id"),
    ({"features": ["clicks"], "entities": [1]}, 422, "INVALID_INPUT", "entities"),
    ({"features": ["clicks"]}, 422, "INVALID_INPUT", "entities"),
    ({"features": [], "entities": {"user_id": [1]}}, 422, "INVALID_INPUT", "features"),
    ({"features": [1], "entities": {"user_id": [1]}}, 422, "INVALID_INPUT", "1"),
    ({"features": [["a"]], "entities": {"user_id": [1]}}, 422, "INVALID_INPUT", "a"),
    ({"features": "clicks", "entities": {"user_id": [1]}}, 422, "INVALID_INPUT", "features"),
    ({"feature_service": 1, "entities": {"user_id": [1]}}, 422, "INVALID_INPUT", "feature_service"),
    ({"features": ["clicks"], "entities": {"user_id": [1]}, "full_feature_names": 1}, 422, "INVALID_INPUT", "full"),
    ({"features": ["clicks"], "entities": {"user_id": [1]}, "timestamps": "x"}, 422, "INVALID_INPUT", "timestamps"),
    ({"features": ["clicks"], "entities": {"user_id": [1]}, "request_data": [1]}, 422, "INVALID_INPUT", "request_data"),
    ({"features": ["hour"], "entities": {"user_id": [1]}}, 422, "INVALID_INPUT", "request_time"),
    ({"features": ["hour"], "entities": {"user_id": [1], "request_time": ["x"]}}, 422, "INVALID_INPUT", "request_time"),
    ({"features": ["clicks"], "entities": {"user_id": list(range(101))}}, 413, "TOO_LARGE", "101"),
    ([1], 400, "MALFORMED", "array"),
    (None, 400, "MALFORMED", "null"),
]


@pytest.mark.parametrize(("body", "status", "code", "part"), WRONG)
def test_wrong_requests(served: Served, body: Any, status: int, code: str, part: str) -> None:
    response = served.client.post("/get-online-features", content=json.dumps(body))
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert part in error["message"]
    assert set(error) == {"code", "message", "hint"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"entities":' * 5000,
        b'{"a":"\\ud800"}',
        b"[1]",
        b"null",
    ],
)
@pytest.mark.parametrize("path", ["/get-online-features", "/push", "/write-to-online-store", "/materialize"])
def test_malformed_json(served: Served, path: str, body: bytes) -> None:
    response = served.client.post(path, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "MALFORMED"


@pytest.mark.parametrize("path", ["/get-online-features", "/push"])
def test_large_bodies(served: Served, path: str) -> None:
    large = b" " * (10 * 2**20)

    def chunks() -> Any:
        yield from (large[start : start + 65536] for start in range(0, len(large), 65536))

    for content in (large, chunks()):
        response = served.client.post(path, content=content)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "TOO_LARGE"
    assert served.ask(["user_stats:clicks"], {"user_id": [1]}).status_code == 200


def test_chunks_are_one_body(served: Served) -> None:
    body = json.dumps({"features": ["user_stats:clicks"], "entities": {"user_id": [1]}}).encode()
    response = served.client.post("/get-online-features", content=(body[i : i + 7] for i in range(0, len(body), 7)))
    assert response.json()["results"][1]["values"] == [10]


def test_a_client_that_leaves(served: Served) -> None:
    port = int(served.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /get-online-features HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert served.client.get("/health").json()["status"] == "ok"


def test_request_ids(served: Served) -> None:
    for path, method in (("/get-online-features", "POST"), ("/health", "GET"), ("/nowhere", "GET")):
        given = served.client.request(method, path, headers={"X-Request-ID": "abc-123"})
        assert given.headers["x-request-id"] == "abc-123"
        odd = served.client.request(method, path, headers={"X-Request-ID": 'a"b{}'})
        other = served.client.request(method, path)
        assert len({odd.headers["x-request-id"], other.headers["x-request-id"], 'a"b{}'}) == 3


def test_unknown_routes_and_methods(served: Served) -> None:
    missing = served.client.get("/get-online-feature")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "ROUTE_NOT_FOUND")
    method = served.client.get("/get-online-features")
    assert (method.status_code, method.json()["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")


def test_access_log(served: Served) -> None:
    served.client.post("/get-online-features", content=b"{", headers={"X-Request-ID": "logged-1"})
    served.ask(["user_stats:clicks"], {"user_id": [1, 2]})
    served.client.get('/a"b%0a', headers={"X-Request-ID": "logged-2"})
    deadline = time.monotonic() + 5
    while b"logged-2" not in served.output.getvalue() and time.monotonic() < deadline:
        time.sleep(0.02)
    lines = [json.loads(line) for line in served.output.getvalue().splitlines()]
    by_id = {line.get("request_id"): line for line in lines}
    assert by_id["logged-1"] | {"time": "", "ms": 0, "client": ""} == {
        "time": "", "level": "info", "request_id": "logged-1", "method": "POST", "path": "/get-online-features",
        "status": 400, "ms": 0, "client": "", "error": "MALFORMED",
    }  # fmt: skip
    assert by_id["logged-2"]["path"] == '/a"b\n'
    assert any(line.get("rows") == 2 and line["features"] == 1 and line["status"] == 200 for line in lines)


def test_metrics(served: Served) -> None:
    served.ask(["user_stats:clicks", "user_stats:ctr"], {"user_id": [1, 2, 999]})
    text = served.client.get("/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    before = float(samples['feature_store_values_total{status="NOT_FOUND",view="user_stats"}'])
    served.ask(["user_stats:clicks", "user_stats:ctr"], {"user_id": [1, 2, 999]})
    samples = dict(
        line.rsplit(" ", 1) for line in served.client.get("/metrics").text.splitlines() if not line.startswith("#")
    )
    assert float(samples['feature_store_values_total{status="NOT_FOUND",view="user_stats"}']) == before + 2
    assert float(samples['feature_store_request_seconds_count{route="/get-online-features"}']) > 0
    assert float(samples["feature_store_online_read_seconds_count"]) > 0
    assert 0 <= float(samples['feature_store_freshness_seconds{view="user_stats"}']) < 3600
    assert 1700 < float(samples['feature_store_newest_served_seconds{view="user_stats"}']) < 3600


def test_documentation(served: Served) -> None:
    assert "swagger" in served.client.get("/docs").text
    paths = served.client.get("/openapi.json").json()["paths"]
    assert set(paths) >= {
        "/get-online-features", "/push", "/write-to-online-store", "/materialize", "/materialize-incremental",
        "/health", "/metrics",
    }  # fmt: skip
    schema = paths["/get-online-features"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "entities" in schema["properties"]


def test_concurrent_clients(served: Served) -> None:
    import asyncio

    async def load() -> list[int]:
        async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
            body = {"features": ["user_stats"], "entities": {"user_id": [1, 2, 3]}}
            answers = await asyncio.gather(*(client.post("/get-online-features", json=body) for _ in range(200)))
        return [answer.status_code for answer in answers]

    assert asyncio.run(load()) == [200] * 200
