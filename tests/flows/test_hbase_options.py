"""Views of one HBase that keep more rows, or keep them less long: each by the options that its URI adds."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from feature_store import FeatureStore
from feature_store.definitions.tables import latest_table
from feature_store.expressions.instants import instant
from feature_store.storage.hbase import HBaseOnlineStore
from feature_store.storage.online import Row

REPO = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: users, path: users.csv, timestamp: at}
---
feature_views:
  - name: plain
    entities: [user]
    source: users
    features: [{name: age, type: INT64}]
    storage: {online: "hbase://ages"}
  - name: remembered
    entities: [user]
    source: users
    features: [{name: age, type: INT64}]
    storage: {online: "hbase://ages?versions=3"}
  - name: forgotten
    entities: [user]
    source: users
    features: [{name: age, type: INT64}]
    storage: {online: "hbase://ages?ttl=30d"}
"""
DAYS = ("2024-04-01T00:00:00Z", "2024-04-02T00:00:00Z", "2024-04-03T00:00:00Z")


def test_each_view_is_kept_as_its_options_say(tmp_path: Path, hbase_url: str) -> None:
    settings = f"project: kept\nonline_store: sqlite:///data/online.db\naliases: {{ages: '{hbase_url}'}}\n"
    (tmp_path / "feature_store.yaml").write_text(settings)
    (tmp_path / "views.yaml").write_text(REPO)
    rows = [f"1,{at},{30 + number}" for number, at in enumerate(DAYS)]
    (tmp_path / "users.csv").write_text("\n".join(["user_id,at,age", *rows, ""]))
    with closing(FeatureStore(tmp_path)) as store, closing(HBaseOnlineStore(hbase_url, "kept")) as hbase:
        store.apply()
        for at in DAYS:
            store.materialize(at, at)

        def age_as_of(view: str, at: str) -> int | None:
            table = latest_table(store.catalog.views[view])
            row = hbase.read_as_of([(table, [(1,)])], instant(at))[0][0]
            return row.values[0] if isinstance(row, Row) else None

        found = {view: [age_as_of(view, at) for at in DAYS] for view in ("plain", "remembered", "forgotten")}
        assert found.pop("plain")[-1] == 32  # HBase may tell older versions until it compacts
        assert found == {
            "remembered": [30, 31, 32],
            "forgotten": [None, None, None],  # what was true in 2024 is older than 30 days
        }
        found = dict.fromkeys(["plain", *found])
        features = [f"{view}:age" for view in found]
        answer = store.get_online_features(features, {"user_id": [1]}, full_feature_names=True).to_dict()
        assert [answer[f"{view}__age"] for view in found] == [[32], [32], [None]]
