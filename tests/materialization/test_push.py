"""A push stores all of its rows or none; projects that share an offline store share nothing in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from feature_store import FeatureStore
from feature_store.errors import DestructiveChangeError, FeatureStoreError
from feature_store.expressions.instants import instant
from feature_store.materialization.push import push_log

DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source:
  name: events
  path: events
  timestamp: at
  columns: [{name: user_id, type: INT64}, {name: at, type: TIMESTAMP}, {name: price, type: INT64}]
  stream: {push: true}
---
feature_views:
  - name: a_plain
    entities: [user]
    source: events
    features: [{name: price, type: INT64}]
  - name: m_moving
    entities: [user]
    source: events
    aggregations: [{name: n7d, function: count, window: 7d}]
"""
COMPUTED = """
  - name: z_last
    entities: [user]
    source: events
"""
LATEST = COMPUTED + '    features: [{name: much, type: INT64, expression: "price * 9000000000000000000"}]\n'
SNAPSHOT = COMPUTED + (
    "    schedule: daily\n"
    '    aggregations: [{name: s7d, function: count, window: 7d, where: "price * 9000000000000000000 > 0"}]\n'
)
QUERIED = """
  - name: queried
    entities: [user]
    schedule: daily
    sql: SELECT user_id, COUNT(*) AS n FROM events WHERE at < date_add('${date}', 1) GROUP BY user_id
    features: [{name: n, type: INT64}]
"""
AT = "2026-03-01T12:00:00Z"
DESTINATIONS = ("online", "offline", "online_and_offline")


def make(root: Path, definitions: str, settings: str = "") -> FeatureStore:
    root.mkdir(exist_ok=True)
    (root / "events").mkdir()
    (root / "feature_store.yaml").write_text(f"project: {root.name}\n{settings}")
    (root / "views.yaml").write_text(definitions)
    store = FeatureStore(root)
    store.apply()
    return store


def rows(*prices: int) -> dict[str, Any]:
    return {"user_id": list(range(len(prices))), "at": [AT] * len(prices), "price": list(prices)}


def online(store: FeatureStore, user: int = 0) -> dict[str, Any]:
    now = instant("2026-03-02T12:00:00Z")
    return store.online.get(["a_plain", "m_moving"], {"user_id": [user]}, now=now).to_dict()


@pytest.mark.parametrize("computed", [LATEST, SNAPSHOT], ids=["latest", "snapshot"])
@pytest.mark.parametrize("to", DESTINATIONS)
def test_what_one_view_cannot_compute_is_stored_nowhere(tmp_path: Path, computed: str, to: str) -> None:
    """The view that fails is the last: those before it have nothing either."""
    store = make(tmp_path / "refusing", DEFINITIONS + computed)
    with pytest.raises(FeatureStoreError, match=r"(?i)INT64|overflow|range"):
        store.push("events", rows(1, 2), to=to)
    assert online(store) == {"user_id": [0], "price": [None], "n7d": [0]}
    assert not store.offline_store.exists(push_log("events"))
    assert store.push("events", rows(1), to=to) == 1
    assert online(store)["n7d"] == [0 if to == "offline" else 1]
    assert store.offline_store.exists(push_log("events")) == (to != "online")
    store.close()


def test_projects_that_share_an_offline_store_keep_their_own_rows(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    ours, theirs = (make(tmp_path / name, DEFINITIONS + QUERIED, f"offline_store: {lake}\n") for name in ("a", "b"))
    spine = pd.DataFrame({"user_id": [0, 1], "event_timestamp": [pd.Timestamp("2026-03-02T12:00:00Z")] * 2})

    def history(store: FeatureStore) -> tuple[list[Any], dict[str, Any]]:
        job = store.get_historical_features(spine, ["a_plain:price", "queried:n"])
        found = job.to_arrow()
        return found.select(["price", "n"]).to_pylist(), job.metadata["computed_snapshots"]

    ours.push("events", rows(1, 2), to="online_and_offline")
    theirs.push("events", rows(5), to="online_and_offline")
    for store in (ours, theirs):
        store.materialize("2026-03-01T00:00:00Z", "2026-03-02T12:00:00Z")
    seen = ([{"price": 5, "n": 1}, {"price": None, "n": None}], {})
    assert history(ours) == ([{"price": 1, "n": 1}, {"price": 2, "n": 1}], {})
    assert history(theirs) == seen
    ours.teardown()
    assert history(theirs) == seen
    assert [each.name for each in lake.iterdir()] == ["b"]
    theirs.teardown()
    assert list(lake.iterdir()) == []
    ours.close()
    theirs.close()


HEAD, *_ = DEFINITIONS.partition("feature_views:")
PLAIN, MOVING = "features: [{name: price, type: INT64}]", "aggregations: [{name: n7d, function: count, window: 7d}]"


@pytest.mark.parametrize(
    "after",
    [
        HEAD.removesuffix("---\n"),
        DEFINITIONS.replace(PLAIN, PLAIN.replace("INT64", "FLOAT64")).replace(MOVING, MOVING.replace("n7d", "n")),
    ],
    ids=["removed", "retyped"],
)
def test_rows_that_were_only_pushed_online_do_not_go_unasked(tmp_path: Path, after: str) -> None:
    store = make(tmp_path / "pushed", DEFINITIONS)
    definitions = tmp_path / "pushed/views.yaml"
    definitions.write_text(after)
    assert store.plan().destructive == (), "nothing is stored yet"
    store.push("events", rows(7), to="online")
    with pytest.raises(DestructiveChangeError) as caught:
        store.apply()
    for view in ("a_plain", "m_moving"):
        assert f'feature view "{view}" with stored rows' in str(caught.value)
    assert online(store) == {"user_id": [0], "price": [7], "n7d": [1]}
    assert {change.name for change in store.plan().destructive} == {"a_plain", "m_moving"}
    store.apply(allow_destructive=True)
    assert store.plan().is_empty
    store.close()


def test_rows_that_were_only_pushed_online_are_served_until_a_changed_view_is_filled(tmp_path: Path) -> None:
    """What was pushed before and is nowhere else is in no later version; what is pushed from now on is in both."""
    store = make(tmp_path / "pushed", DEFINITIONS)
    store.push("events", rows(7), to="online")
    changed = DEFINITIONS.replace(PLAIN, PLAIN.replace("INT64", "INT64, expression: '-price'"))
    (tmp_path / "pushed/views.yaml").write_text(changed.replace("window: 7d", "window: 7d, where: 'price > 7'"))
    plan = store.apply()
    assert plan.destructive == ()
    assert plan.serving.keys() == {"a_plain", "m_moving"}
    assert online(store) == {"user_id": [0], "price": [7], "n7d": [1]}
    store.push("events", rows(8) | {"at": ["2026-03-01T13:00:00Z"]}, to="online")
    assert online(store) == {"user_id": [0], "price": [8], "n7d": [2]}
    for view in plan.serving:
        store.backfill(view, "2026-03-01", "2026-03-02")
    assert online(store) == {"user_id": [0], "price": [-8], "n7d": [1]}
    store.close()


def history(store: FeatureStore, view: str = "a_plain:price") -> list[Any]:
    asked = pd.DataFrame({"user_id": [0], "event_timestamp": [pd.Timestamp("2026-03-02T12:00:00Z")]})
    return store.get_historical_features(asked, [view]).to_arrow().column(2).to_pylist()


@pytest.mark.parametrize("kept", [True, False], ids=["retyped", "removed"])
def test_rows_pushed_offline_go_with_their_source_and_its_types(tmp_path: Path, kept: bool) -> None:
    store = make(tmp_path / "pushed", DEFINITIONS)
    store.push("events", rows(7), to="online_and_offline")
    assert history(store) == [7]
    after = DEFINITIONS.replace("{name: price, type: INT64}", "{name: price, type: STRING}")
    (tmp_path / "pushed/views.yaml").write_text(after if kept else HEAD.partition("---")[0])
    with pytest.raises(DestructiveChangeError, match='source "events" with stored rows'):
        store.apply()
    assert history(store) == [7]
    store.apply(allow_destructive=True)
    assert not store.offline_store.exists(push_log("events"))
    (tmp_path / "pushed/views.yaml").write_text(after)
    store.apply()
    assert history(store) == [None]
    store.push("events", rows(7) | {"price": ["seven"]}, to="online_and_offline")
    assert history(store) == ["seven"]
    store.materialize("2026-03-01T00:00:00Z", "2026-03-02T12:00:00Z")
    store.teardown()
    assert not list((tmp_path / "pushed/data/offline").iterdir())
    store.close()


def test_rows_pushed_offline_stay_when_a_column_goes(tmp_path: Path) -> None:
    store = make(tmp_path / "pushed", DEFINITIONS)
    store.push("events", rows(7), to="offline")
    without = DEFINITIONS.replace(", {name: price, type: INT64}]", "]", 1)
    (tmp_path / "pushed/views.yaml").write_text(
        without.replace(PLAIN, "features: [{name: twice, type: INT64, expression: user_id * 2}]")
    )
    store.apply(allow_destructive=True)
    assert history(store, "m_moving:n7d") == [1]
    (tmp_path / "pushed/views.yaml").write_text(DEFINITIONS)
    store.apply(allow_destructive=True)
    assert history(store) == [7]
    store.close()


def test_text_in_a_csv_file_stays_text(tmp_path: Path) -> None:
    store = make(tmp_path / "pushed", DEFINITIONS.replace("price, type: INT64", "price, type: STRING"))
    file = tmp_path / "more.csv"
    file.write_text(f"user_id,at,price\n0,{AT},00501\n")
    store.push("events", file)
    assert online(store)["price"] == ["00501"]
    file.write_text("user_id,event_timestamp,price\n0,2026-03-01T13:00:00Z,2026-03-01\n")
    store.write_to_online_store("a_plain", file, allow_registry_cache=False)
    assert online(store)["price"] == ["2026-03-01"]
    store.close()
