"""fs refill: Redis emptied, and filled again by one command that computes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis

from feature_store.cli import run

REPO = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: users, path: users.csv, timestamp: at}
---
feature_view: {name: ages, entities: [user], source: users, features: [{name: age, type: INT64}]}
"""


def test_one_command_fills_redis_again(tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    online = f"tiered:{redis_url}|sqlite:///data/slow.db?lease=50ms"
    (tmp_path / "feature_store.yaml").write_text(f'project: refilled\nonline_store: "{online}"\n')
    (tmp_path / "views.yaml").write_text(REPO)
    (tmp_path / "users.csv").write_text("user_id,at,age\n1,2026-01-01T00:00:00Z,30\n2,2026-01-01T00:00:00Z,40\n")

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
