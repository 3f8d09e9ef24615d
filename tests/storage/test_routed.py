"""Views that name a store of their own rest there, by alias, and are read together with the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import redis

from feature_store import FeatureStore
from feature_store.definitions.tables import epoch_table, latest_table
from feature_store.errors import DefinitionError, UsageError
from feature_store.storage.online import Answers

REPO = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: users, path: users.csv, timestamp: at}
---
feature_views:
  - {name: here, entities: [user], source: users, features: [{name: age, type: INT64}]}
  - name: there
    entities: [user]
    source: users
    features: [{name: city, type: STRING}]
    storage: {online: "redis://feature_cache"}
"""


def make(root: Path, aliases: str) -> FeatureStore:
    (root / "feature_store.yaml").write_text(f"project: routed\n{aliases}")
    (root / "views.yaml").write_text(REPO)
    (root / "users.csv").write_text("user_id,at,age,city\n1,2026-01-01T00:00:00Z,30,Bonn\n2,2026-01-01T00:00:00Z,40,\n")
    return FeatureStore(root)


def test_a_view_rests_in_the_store_that_its_alias_names(tmp_path: Path, redis_url: str) -> None:
    store = make(tmp_path, f"aliases: {{feature_cache: '{redis_url}'}}\n")
    assert store.apply().warnings == ()
    store.materialize_incremental("2026-02-01")
    client = redis.Redis.from_url(redis_url)
    there = store.catalog.views["there"]
    tables = Counter(key.split(b":")[2].decode() for key in client.keys("*") if b"routed" in key)
    assert tables == {latest_table(there).name: 2, epoch_table(there).name: 1}
    found = store.get_online_features(["here:age", "there:city"], [{"user_id": 1}, {"user_id": 2}]).to_dict()
    assert found == {"user_id": [1, 2], "age": [30, 40], "city": ["Bonn", None]}
    store.teardown()
    assert not [key for key in client.keys("*") if b"routed" in key]
    store.close()


def test_without_the_alias_the_embedded_stores_serve(tmp_path: Path) -> None:
    store = make(tmp_path, "")
    (warning,) = store.apply().warnings
    assert 'no alias "feature_cache"' in warning
    store.materialize_incremental("2026-02-01")
    assert store.get_online_features(["there:city"], [{"user_id": 1}]).to_dict()["city"] == ["Bonn"]
    store.close()


@pytest.mark.parametrize("uri", ["tiered:redis://feature_cache|sqlite:///data/slow.db", "tiered://both"])
def test_a_view_may_rest_in_two_tiers(tmp_path: Path, redis_url: str, uri: str) -> None:
    slow = "sqlite:///data/slow.db"
    aliases = f"aliases: {{feature_cache: '{redis_url}', both: 'tiered:{redis_url}|{slow}?lease=50ms'}}\n"
    store = make(tmp_path, aliases)
    views = tmp_path / "views.yaml"
    views.write_text(views.read_text().replace("redis://feature_cache", uri))
    assert store.apply().warnings == ()
    store.materialize_incremental("2026-02-01")
    assert store.refill() == 3  # two users, and when the view began
    requests = store.online.plan(["here:age", "there:city"]).prepare({"user_id": [1, 2]}).requests
    answers = store.online_store.read(requests)
    assert isinstance(answers, Answers)
    assert answers.behind == [None, {}]
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        # What was lost was a copy: nothing is computed again, and one command brings it back.
        assert store.materialize_incremental("2026-02-01") == 0
        assert store.refill() == 3
    assert store.online_store.read(requests).behind == [None, {}]  # type: ignore[attr-defined]
    found = store.get_online_features(["here:age", "there:city"], [{"user_id": 1}, {"user_id": 2}]).to_dict()
    assert found == {"user_id": [1, 2], "age": [30, 40], "city": ["Bonn", None]}
    store.teardown()
    store.close()


def test_an_alias_of_a_tier_must_be_known(tmp_path: Path) -> None:
    store = make(tmp_path, "aliases: {feature_cache: 'redis://localhost:1'}\nonline_store: redis://localhost:1\n")
    views = tmp_path / "views.yaml"
    views.write_text(views.read_text().replace("redis://feature_cache", "tiered:redis://feature_cache|hbase://nowhere"))
    with pytest.raises(DefinitionError, match='no alias "nowhere"'):
        store.plan()


def test_nothing_is_refilled_without_tiers(tmp_path: Path) -> None:
    store = make(tmp_path, "")
    store.apply()
    with pytest.raises(UsageError, match="no tiers"):
        store.refill()
    store.close()
