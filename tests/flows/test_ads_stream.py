"""The ads repository streams: a click posted to Kafka, and one pushed over HTTP, change what is read over REST."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from feature_store.templates import create
from tests.live import until
from tests.servers import KafkaServer, free_port

pytestmark = pytest.mark.timeout(300)

NOW = "user_clicks:user_click_cnt_1h"


class Repo:
    """A copy of the repository, its command line, and its server."""

    def __init__(self, root: Path, kafka: KafkaServer) -> None:
        self.root, self.kafka = root, kafka
        self._environment = os.environ | {"KAFKA": kafka.url}
        self._fs = [sys.executable, "-m", "feature_store.cli", "-c", str(root)]
        self._port = free_port()

    def fs(self, *arguments: str) -> str:
        done = subprocess.run([*self._fs, *arguments], env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def serve(self) -> subprocess.Popen[bytes]:
        with (self.root / "serve.log").open("wb") as log:
            command = [*self._fs, "serve", "--port", str(self._port)]
            server = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        until(self._ready)
        return server

    def _ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self._port}/health").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        answer = httpx.post(f"http://127.0.0.1:{self._port}{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def clicks(self, *users: int) -> list[int]:
        """Clicks of the last hour, read over REST."""
        body = {"features": [NOW], "entities": {"user_id": list(users)}}
        return [int(value or 0) for value in self.post("/get-online-features", body)["results"][1]["values"]]


@pytest.fixture
def repo(tmp_path: Path, kafka_server: KafkaServer, ads_topics: tuple[str, ...]) -> Iterator[Repo]:
    repo = Repo(create(tmp_path / "ads", "ads", events=2_000), kafka_server)
    for topic in ads_topics:
        kafka_server.topic(2, topic)
    repo.fs("apply")
    repo.fs("materialize-incremental", datetime.now(UTC).isoformat())
    server = repo.serve()
    repo.fs("stream", "start", "user_clicks")
    yield repo
    repo.fs("stream", "stop")
    server.terminate()
    assert server.wait(30) == 0


def click(number: int, user: int, ago: timedelta = timedelta()) -> dict[str, Any]:
    at = (datetime.now(UTC) - ago).isoformat()
    return {
        "impression_id": 2**40 + number,
        "user_id": user,
        "ad_id": 7,
        "price": 0.5,
        "event_time": at,
        "ingested_at": at,
    }


def test_the_ads_repository_streams(repo: Repo, tmp_path: Path) -> None:
    ann, bob = 900_001, 900_002
    assert repo.clicks(ann, bob) == [0, 0]

    def post(*clicks: dict[str, Any]) -> None:
        repo.kafka.produce("ad_click", [json.dumps(each).encode() for each in clicks], b"one partition")

    post(click(1, ann))
    until(lambda: repo.clicks(ann, bob) == [1, 0])
    rows = {name: [value] for name, value in click(2, bob).items()}
    repo.post("/push", {"push_source_name": "dwd_ad_click", "df": rows, "to": "online_and_offline"})
    assert repo.clicks(ann, bob) == [1, 1]

    late = click(3, ann, timedelta(days=3))
    post(late, click(4, ann), late, late, click(5, bob))  # repeated, as `unique` says that it may be
    until(lambda: repo.clicks(ann, bob) == [2, 2])
    (status,) = json.loads(repo.fs("stream", "status", "user_clicks", "--json"))
    assert (status["source"], status["state"], status["events"]) == ("dwd_ad_click", "running", 6)
    repo.fs("stream", "stop", "user_clicks")

    spine = tmp_path / "spine.csv"
    now = datetime.now(UTC).isoformat()
    spine.write_text(f"user_id,event_timestamp\n{ann},{now}\n{bob},{now}\n")
    features = f"{NOW},user_clicks:user_click_cnt_7d"
    history = json.loads(repo.fs("get-historical-features", "--entities", str(spine), "--features", features, "--json"))
    found = [(row["user_click_cnt_1h"], row["user_click_cnt_7d"]) for row in history]
    assert found == [(2, 3), (2, 2)]
    repo.fs("materialize-incremental", datetime.now(UTC).isoformat())
    assert repo.clicks(ann, bob) == [2, 2]
