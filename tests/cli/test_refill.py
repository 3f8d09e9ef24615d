"""fs refill: Redis emptied, and filled again by one command that computes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from feature_store.cli import run
from tests.servers import RedisServer

REPO = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: users, path: users.csv, timestamp: at}
---
feature_view: {name: ages, entities: [user], source: users, features: [{name: age, type: INT64}]}
"""


def make(root: Path, redis_url: str, lease: str = "50ms") -> None:
    online = f"tiered:{redis_url}|sqlite:///data/slow.db?lease={lease}"
    (root / "feature_store.yaml").write_text(f'project: refilled\nonline_store: "{online}"\n')
    (root / "views.yaml").write_text(REPO)
    (root / "users.csv").write_text("user_id,at,age\n1,2026-01-01T00:00:00Z,30\n2,2026-01-01T00:00:00Z,40\n")


def test_one_command_fills_redis_again(tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, redis_url)

    def fs(*arguments: str) -> str:
        code = run(["-c", str(tmp_path), *arguments])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    def copies() -> int:
        with redis.Redis.from_url(redis_url) as client:
            return len(
                [name for name in client.keys("fs1:refilled:ages.*") if re.search(rb"ages\.\w+~\w+:{\x01", name)]
            )

    fs("apply")
    fs("materialize-incremental", "2026-02-01")
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert "Materialized 0 rows" in fs("materialize-incremental", "2026-02-01")
    assert copies() == 0
    assert "Copied 3 keys" in fs("refill")  # two users, and when the view was first written
    assert copies() == 2
    assert "40" in fs("get-online-features", "--features", "ages", "--entity", "user_id=2")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer().start()
    yield server
    server.close()


def test_a_redis_that_was_started_again_is_filled(
    tmp_path: Path, server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """No other process runs that would tell that the copies of before are void."""
    make(tmp_path, server.url, lease="300ms")
    for command in (("apply",), ("materialize-incremental", "2026-02-01"), ("refill",)):
        assert run(["-c", str(tmp_path), *command]) == 0
    server.stop()
    server.start()
    capsys.readouterr()
    code = run(["-c", str(tmp_path), "refill"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "Copied 3 keys" in printed.out
    with server.client() as client:
        assert len(client.keys("fs1:refilled:ages.*~*:{\1*")) == 3


def test_a_redis_that_takes_nothing_is_no_success(
    tmp_path: Path, server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, server.url)
    for command in (("apply",), ("materialize-incremental", "2026-02-01")):
        assert run(["-c", str(tmp_path), *command]) == 0
    with server.client() as client:
        client.flushall()
        client.config_set("maxmemory", 1)
    capsys.readouterr()
    assert run(["-c", str(tmp_path), "refill"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(
        r'error: "ages\.\S+" is not refilled, 0 keys were copied: .* Raise its maxmemory.* then run fs refill again\n',
        printed.err,
    )
