"""Views that name a store of their own rest there, by alias, and are read together with the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import redis

from feature_store import FeatureStore
from feature_store.definitions.tables import epoch_table, latest_table

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
