from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn

from feature_store.serving.app import Service, create_app
from feature_store.serving.exchange import AccessLog
from feature_store.serving.server import impatient
from feature_store.store import FeatureStore
from tests.servers import free_port

SETTINGS = """
project: serving
online_store: {online}
limits: {{max_entities: 100, max_body_mb: 0.25}}
"""
DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source:
  name: stats
  path: data/stats.parquet
  timestamp: at
  columns:
    - {name: user_id, type: INT64}
    - {name: clicks, type: INT64}
    - {name: ctr, type: FLOAT64}
    - {name: city, type: STRING}
    - {name: token, type: BYTES}
    - {name: seen, type: TIMESTAMP}
    - {name: born, type: DATE}
    - {name: price, type: "DECIMAL(9,2)"}
    - {name: scores, type: ARRAY<FLOAT64>}
    - {name: at, type: TIMESTAMP}
  stream: {push: true}
---
feature_view:
  name: user_stats
  entities: [user]
  source: stats
  ttl: 90d
  features:
    - {name: clicks, type: INT64}
    - {name: ctr, type: FLOAT64}
    - {name: city, type: STRING, default: nowhere}
    - {name: token, type: BYTES}
    - {name: seen, type: TIMESTAMP}
    - {name: born, type: DATE}
    - {name: price, type: "DECIMAL(9,2)"}
    - {name: scores, type: ARRAY<FLOAT64>}
---
feature_view:
  name: small
  entities: [user]
  source: stats
  features: [{name: small_clicks, type: INT64, column: clicks}, {name: small_city, type: STRING, column: city}]
---
feature_view:
  name: live
  entities: [user]
  source: stats
  aggregations:
    - {name: n_1h, function: count, window: 1h}
    - {name: sum_7d, function: sum, column: clicks, window: 7d}
---
on_demand_feature_view:
  name: context
  inputs: [{request: [{name: request_time, type: TIMESTAMP}]}, user_stats]
  features:
    - {name: hour, type: INT64, expression: "hour(request_time)"}
    - {name: twice, type: INT64, expression: "clicks * 2"}
---
feature_service: {name: ctr_v1, features: ["user_stats:clicks", "user_stats:ctr"]}
"""


@dataclass
class Served:
    """A service that answers at `url`, its application and what it logged."""

    url: str
    app: Service
    store: FeatureStore
    output: io.BytesIO
    client: httpx.Client

    def ask(self, features: list[str], entities: dict[str, Any], **more: Any) -> httpx.Response:
        body = {"features": features, "entities": entities, **more}
        return self.client.post("/get-online-features", json=body)


def make_repo(folder: Path, online: str = "sqlite:///data/online.db", more: str = "") -> FeatureStore:
    """A repository with two users, applied and materialized; `more` settings."""
    (folder / "data").mkdir(parents=True)
    (folder / "feature_store.yaml").write_text(SETTINGS.format(online=online) + more)
    (folder / "features.yaml").write_text(DEFINITIONS)
    write_rows(folder / "data/stats.parquet")
    store = FeatureStore(folder)
    store.apply()
    return store


def write_rows(path: Path) -> None:
    now = datetime.now(UTC)
    table = {
        "user_id": [1, 2],
        "clicks": [10, None],
        "ctr": [float("nan"), 0.5],
        "city": ["Wien]", None],
        "token": [b"\x00\xff", None],
        "seen": pa.array([1_700_000_000_123_456, None], pa.timestamp("us", "UTC")),
        "born": pa.array([0, None], pa.date32()),
        "price": pa.array([1250, None], pa.int64()).cast(pa.decimal128(19, 0)).cast(pa.decimal128(21, 2)),
        "scores": [[1.5, float("inf")], []],
        "at": pa.array([now - timedelta(minutes=30), now - timedelta(days=1)], pa.timestamp("us", "UTC")),
    }
    arrow = pa.table(table)
    price = arrow["price"].cast(pa.decimal128(9, 2))
    pq.write_table(arrow.set_column(arrow.column_names.index("price"), "price", price), path)


def materialize(store: FeatureStore) -> None:
    now = datetime.now(UTC)
    store.materialize(now - timedelta(days=30), now)


class Running:
    """A real server in a thread of this process."""

    def __init__(self, app: Service) -> None:
        self.port = free_port()
        config = uvicorn.Config(
            app, host="127.0.0.1", port=self.port, access_log=False, log_level="warning", timeout_graceful_shutdown=5
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> Running:
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("the service did not start")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)


def serve(store: FeatureStore) -> Iterator[Served]:
    output = io.BytesIO()
    reader = store.open_online_store(impatient)
    app = create_app(store, None, AccessLog(output), reader)
    running = Running(app).start()
    url = f"http://127.0.0.1:{running.port}"
    with httpx.Client(base_url=url, timeout=30) as client:
        yield Served(url, app, store, output, client)
    running.stop()
    reader.close()
    store.close()


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service over SQLite that tests only read from."""
    store = make_repo(tmp_path_factory.mktemp("repo") / "repo")
    materialize(store)
    yield from serve(store)


@pytest.fixture
def fresh(tmp_path: Path, redis_url: str) -> Iterator[Served]:
    """A service over Redis of its own project, to write to."""
    store = make_repo(tmp_path / "repo", redis_url)
    materialize(store)
    yield from serve(store)
