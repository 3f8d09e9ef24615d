"""Whatever the OpenAPI description allows, and much that it does not, is no error of the service's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from tests.serving.conftest import Served, make_repo, materialize, serve


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = make_repo(Path(tmp_path_factory.mktemp("attacked")) / "repo")
    materialize(store)
    yield from serve(store)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_no_server_error(attacked: Served, mode: schemathesis.GenerationMode) -> None:
    api = schemathesis.openapi.from_url(f"{attacked.url}/openapi.json")
    seen = set()
    for found in api.get_all_operations():
        operation = found.ok()
        seen.add(operation.path)
        if mode.is_negative and operation.method.upper() == "GET":
            continue

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def attack(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=[not_a_server_error], timeout=30)

        attack()
    assert len(seen) == 7


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
times = st.sampled_from([0, 1.5, "2026-11-23T12:00:00", "2026-11-23T12:00:00.5+02:00", "9999-12-31T23:59:59Z", -1e11])
names = st.sampled_from(["user_stats", "live", "context", "clicks", "user_stats:ctr", "live:n_1h", "twice"])
online = st.fixed_dictionaries(
    {"features": st.lists(names, min_size=1, max_size=4)},
    optional={
        "entities": st.fixed_dictionaries(
            {"user_id": st.lists(st.sampled_from([1, 2, 999]) | values, max_size=3)},
            optional={"request_time": st.lists(times | values, max_size=3), "odd]": st.lists(values, max_size=3)},
        ),
        "request_data": st.fixed_dictionaries({"request_time": times | st.lists(times, max_size=2) | values}) | values,
        "full_feature_names": st.booleans() | values,
        "timestamps": st.sampled_from(["iso", "epoch"]) | values,
    },
)
columns = ["user_id", "clicks", "ctr", "city", "token", "seen", "born", "price", "scores"]
column = st.lists(
    st.sampled_from([1, 2.5, "a", "AAE=", "12.50", "2026-01-01", True, [1]]) | values, min_size=1, max_size=2
)
rows = st.fixed_dictionaries(
    {"at": st.lists(times | values, min_size=1, max_size=2)}, optional=dict.fromkeys(columns, column)
)


def fine(response: httpx.Response) -> bool:
    return response.status_code < 500 and (response.status_code == 200 or set(response.json()) == {"error"})


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=online, accept=st.sampled_from(["*/*", "application/vnd.apache.arrow.stream"]))
def test_nearly_right_reads(attacked: Served, body: dict[str, Any], accept: str) -> None:
    response = attacked.client.post("/get-online-features", json=body, headers={"accept": accept})
    if response.headers["content-type"] != accept:
        assert fine(response), response.text


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(df=rows, to=st.sampled_from(["online", "offline", "online_and_offline", "x"]))
def test_nearly_right_writes(attacked: Served, df: dict[str, Any], to: str) -> None:
    assert fine(attacked.client.post("/push", json={"push_source_name": "stats", "df": df, "to": to}))
    body = {"feature_view_name": "user_stats", "df": {"event_timestamp" if k == "at" else k: v for k, v in df.items()}}
    assert fine(attacked.client.post("/write-to-online-store", json=body))
