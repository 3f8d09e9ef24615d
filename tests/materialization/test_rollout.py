"""Versions of a view side by side: what is served while the applied one is filled, and after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from feature_store import FeatureStore
from feature_store.definitions.tables import tables_of
from feature_store.errors import DestructiveChangeError, NotFoundError
from feature_store.expressions.instants import instant

END = "2026-03-05T12:00:00Z"
SOURCE = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: events, path: events, timestamp: at}
---
"""
VIEW = "feature_view: {name: spend, entities: [user], source: events, features: [%s]}\n"
PRICE = "{name: price, type: INT64}"
TWICE = "{name: twice, type: INT64, expression: 'price * 2'}"
RICHER = "{name: price, type: INT64, expression: 'price + 1000'}"
OVER = """---
on_demand_feature_view:
  name: over
  inputs: [spend]
  features: [{name: most, type: INT64, expression: "%s"}]
---
feature_service: {name: model, features: [%s]}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "events").mkdir()
    (tmp_path / "feature_store.yaml").write_text("project: rollout\n")
    write(tmp_path, "first", {1: 10, 2: 20})
    return tmp_path


@pytest.fixture
def store(root: Path) -> Iterator[FeatureStore]:
    """With `spend` materialized as it was defined first."""
    found = FeatureStore(root)
    apply(found, PRICE)
    found.materialize_incremental(END)
    yield found
    found.close()


def write(root: Path, name: str, prices: dict[int, int], at: str = "2026-03-04T10:00:00Z") -> None:
    rows = pd.DataFrame({"user_id": prices.keys(), "at": pd.Timestamp(at), "price": prices.values()})
    rows.to_parquet(root / "events" / f"{name}.parquet")


def apply(store: FeatureStore, features: str, more: str = "", push: bool = False, **options: Any) -> Any:
    source = SOURCE.replace("timestamp: at", "timestamp: at, stream: {push: true}") if push else SOURCE
    (store.root / "views.yaml").write_text(source + VIEW % features + more)
    return store.apply(**options)


def read(store: FeatureStore, *features: str, service: str | None = None) -> dict[str, Any]:
    found = store.online.get(service or [*features], {"user_id": [1, 2, 3]}, now=instant(END)).to_dict()
    return {name: values for name, values in found.items() if name != "user_id"}


def test_the_old_version_is_served_until_the_new_one_is_filled(store: FeatureStore) -> None:
    plan = apply(store, RICHER)
    served = store.registry.load().versions
    assert [(v.view, v.role) for v in served] == [("spend", "served")]
    assert plan.serving == {"spend": served[0].version}
    assert read(store, "spend:price") == {"price": [10, 20, None]}
    assert FeatureStore(store.root).get_online_features(["spend:price"], [{"user_id": 1}]).to_dict()["price"] == [10]
    described = store.describe("spend")
    assert (described["complete"], described["served_version"]) == (False, served[0].version)
    assert described["materialized_through"] is None
    store.materialize_incremental(END)
    assert read(store, "spend:price") == {"price": [1010, 1020, None]}
    described = store.describe("spend")
    assert (described["complete"], described["served_version"]) == (True, described["data_version"])
    assert [(v.version, v.role) for v in store.registry.load().versions] == [(served[0].version, "retired")]


def test_a_version_that_was_never_materialized_goes_at_once(root: Path) -> None:
    store = FeatureStore(root)
    apply(store, PRICE)
    assert apply(store, RICHER).serving == {}
    store.materialize_incremental(END)
    assert read(store, "spend:price") == {"price": [1010, 1020, None]}
    store.close()


def test_what_does_not_change_stored_values_takes_effect_at_once(store: FeatureStore) -> None:
    apply(store, "{name: price, type: INT64, default: 7}")
    assert read(store, "spend:price") == {"price": [10, 20, 7]}
    assert store.registry.load().versions == ()


def test_a_part_of_the_past_is_not_enough(store: FeatureStore) -> None:
    write(store.root, "late", {3: 30}, "2026-03-05T10:00:00Z")
    apply(store, RICHER)
    store.materialize("2026-03-05T00:00:00Z", END)
    assert read(store, "spend:price") == {"price": [10, 20, 30]}, "the old version is kept fresh, and served"
    store.materialize("2026-03-01T00:00:00Z", "2026-03-05T00:00:00Z")
    assert read(store, "spend:price") == {"price": [10, 20, 30]}, "all there is was asked of the old one"
    store.materialize_incremental(END)
    assert store.describe("spend")["complete"] is False, "what lies before its start is still to come"


def test_an_earlier_end_is_not_enough(store: FeatureStore) -> None:
    apply(store, RICHER)
    store.materialize_incremental("2026-03-05T00:00:00Z")
    assert read(store, "spend:price") == {"price": [10, 20, None]}
    store.materialize_incremental(END)
    assert read(store, "spend:price") == {"price": [1010, 1020, None]}


def test_a_new_feature_is_refused_with_what_to_do_until_it_is_there(store: FeatureStore) -> None:
    more = OVER % ("price + 1", "'spend:price'")
    apply(store, PRICE, more)
    assert read(store, service="model") == {"price": [10, 20, None]}
    new = "---\nfeature_service: {name: new, features: [twice]}\n"
    apply(store, f"{PRICE}, {TWICE}", OVER % ("twice + 1", "'spend:twice', over") + new)
    version = store.catalog.views["spend"].version
    filling = f'version {version} of "spend" is being filled: fs backfill spend START END'
    for asked in (["spend:twice"], ["twice"], "new"):
        with pytest.raises(NotFoundError) as caught:
            store.online.get(asked, {"user_id": [1]})
        assert (caught.value.code, caught.value.hint) == ("FEATURE_NOT_FOUND", filling)
    assert read(store, service="model") == {"price": [10, 20, None]}, "the list it had"
    assert read(store, "over:most") == {"most": [11, 21, None]}, "as it was defined over the old version"
    store.materialize_incremental(END)
    assert read(store, service="model") == {"twice": [20, 40, None], "most": [21, 41, None]}
    assert read(store, service="new") == {"twice": [20, 40, None]}


def test_an_on_demand_view_that_is_new_with_the_version_waits_for_it(store: FeatureStore) -> None:
    apply(store, f"{PRICE}, {TWICE}", OVER % ("twice + 1", "over"))
    for asked in (["over:most"], ["over"], ["most"], "model"):
        with pytest.raises(NotFoundError, match='of "spend" is being filled: fs backfill spend'):
            store.online.get(asked, {"user_id": [1]})
    store.materialize_incremental(END)
    assert read(store, service="model") == {"most": [21, 41, None]}


def test_a_removed_feature_is_served_until_the_switch(store: FeatureStore) -> None:
    apply(store, f"{PRICE}, {TWICE}", OVER % ("price + 1", "'spend:price', twice"))
    store.materialize_incremental(END)
    smaller = OVER % ("price + 1", "'spend:price'")
    with pytest.raises(DestructiveChangeError):
        apply(store, PRICE, smaller)
    apply(store, PRICE, smaller, allow_destructive=True)
    assert read(store, "spend:twice") == {"twice": [20, 40, None]}
    assert read(store, service="model") == {"price": [10, 20, None]}, "a shorter list needs nothing that is missing"
    store.materialize_incremental(END)
    with pytest.raises(NotFoundError, match='has no feature "twice"'):
        read(store, "spend:twice")


def test_going_back_needs_nothing_and_leaves_nothing(store: FeatureStore) -> None:
    apply(store, f"{PRICE}, {TWICE}")
    second = store.catalog.views["spend"]
    apply(store, PRICE)  # destroys nothing: no value of "twice" was stored
    assert [(v.version, v.role) for v in store.registry.load().versions] == [(second.version, "retired")]
    assert read(store, "spend:price") == {"price": [10, 20, None]}
    assert store.describe("spend")["complete"] is True


def test_what_the_served_version_holds_counts_as_destroyed(store: FeatureStore) -> None:
    apply(store, f"{PRICE}, {TWICE}")
    with pytest.raises(DestructiveChangeError, match="spend"):
        apply(store, TWICE)


def test_a_third_version_before_the_second_is_complete(store: FeatureStore) -> None:
    first = store.catalog.views["spend"]
    apply(store, RICHER)
    second = store.catalog.views["spend"]
    apply(store, "{name: price, type: INT64, expression: 'price + 5'}")
    roles = {v.version: v.role for v in store.registry.load().versions}
    assert roles == {first.version: "served", second.version: "retired"}
    assert read(store, "spend:price") == {"price": [10, 20, None]}
    store.materialize_incremental(END)
    assert read(store, "spend:price") == {"price": [15, 25, None]}


def test_tables_of_retired_versions_go_after_a_while(store: FeatureStore) -> None:
    first = store.catalog.views["spend"]

    def rows() -> int:
        return sum(batch.num_rows for table in tables_of(first) for batch in store.online_store.scan(table))

    apply(store, RICHER)
    store.materialize_incremental(END)
    store.materialize_incremental(END)
    assert rows() == 3, "two rows, and when they were begun: a server may still read them"
    store._drop_retired(kept_for=0)
    assert rows() == 0
    assert store.registry.load().versions == ()
    assert store.registry.progress("spend", first.version) is None
    assert read(store, "spend:price") == {"price": [1010, 1020, None]}


def test_pushed_rows_reach_both_versions(store: FeatureStore) -> None:
    apply(store, RICHER, push=True)
    row = {"user_id": 3, "at": "2026-03-05T11:00:00Z", "price": 30}
    store.push("events", [row], to="online")
    assert read(store, "spend:price") == {"price": [10, 20, 30]}
    store.materialize_incremental(END)
    assert read(store, "spend:price") == {"price": [1010, 1020, 1030]}
    store.write_to_online_store("spend", [{"user_id": 3, "event_timestamp": "2026-03-05T11:30:00Z", "price": 5}])
    assert read(store, "spend:price") == {"price": [1010, 1020, 5]}


def test_a_view_that_goes_takes_its_versions_along(store: FeatureStore) -> None:
    first = store.catalog.views["spend"]
    apply(store, RICHER)
    (store.root / "views.yaml").write_text(SOURCE.removesuffix("---\n"))
    store.apply(allow_destructive=True)
    assert store.registry.load().versions == ()
    assert not [batch for table in tables_of(first) for batch in store.online_store.scan(table)]


def test_the_source_of_the_old_version_may_be_gone(store: FeatureStore) -> None:
    (store.root / "events").rename(store.root / "moved")
    (store.root / "views.yaml").write_text((SOURCE + VIEW % PRICE).replace("path: events", "path: moved"))
    store.apply()
    assert read(store, "spend:price") == {"price": [10, 20, None]}
    store.materialize_incremental(END)
    assert store.describe("spend")["complete"] is True
    assert read(store, "spend:price") == {"price": [10, 20, None]}
