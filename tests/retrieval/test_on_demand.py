"""On-demand features: only what is asked for is computed and read, and what fails says where, online and in history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feature_store import FeatureStore
from feature_store.errors import InvalidInputError

MOST = 2**63 - 1
AT = "2026-01-02T00:00:00Z"
DEFINITIONS = """
entities: [{name: user, join_key: user_id, type: INT64}, {name: shop, join_key: shop_id, type: INT64}]
---
sources:
  - {name: users, path: users.csv, timestamp: at}
  - {name: shops, path: shops.csv, timestamp: at}
---
feature_views:
  - {name: profile, entities: [user], source: users, features: [{name: n, type: INT64}, {name: small, type: INT64}]}
  - {name: shop, entities: [shop], source: shops, features: [{name: visits, type: INT64}]}
---
on_demand_feature_views:
  - name: outer
    inputs: [inner, profile, shop, {request: [{name: bonus, type: INT64}]}]
    features:
      - {name: with_bonus, type: INT64, expression: "half + bonus"}
      - {name: more, type: INT64, expression: "twice + 1"}
      - {name: in_shop, type: INT64, expression: "small + visits"}
  - name: inner
    inputs: [profile, {request: [{name: day, type: DATE}]}]
    features:
      - {name: twice, type: INT64, expression: "n * 2"}
      - {name: small_too, type: INT64, expression: "small * 3"}
      - {name: half, type: INT64, expression: "small div 2"}
      - {name: later, type: DATE, expression: "date_add(day, small)"}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    root: Path = tmp_path_factory.mktemp("repo")
    (root / "feature_store.yaml").write_text("project: p\n")
    (root / "features.yaml").write_text(DEFINITIONS)
    (root / "users.csv").write_text(f"user_id,n,small,at\n1,10,4,{AT}\n2,{MOST},6,{AT}\n3,,,{AT}\n")
    (root / "shops.csv").write_text(f"shop_id,visits,at\n7,70,{AT}\n")
    store = FeatureStore(root)
    store.apply()
    store.materialize_incremental("2026-01-03")
    yield store
    store.close()


def ask(store: FeatureStore, way: str, features: list[str], **columns: Any) -> dict[str, list[Any]]:
    """The features of users 1, 2 and 3, and of what else the columns say."""
    given = {"user_id": [1, 2, 3], **columns}
    if way == "online":
        answer = store.get_online_features(features, given).to_dict()
    else:
        given["event_timestamp"] = ["2026-01-03T00:00:00Z"] * 3
        answer = store.get_historical_features(pa.table(given), features).to_arrow().to_pydict()
    return {name: values for name, values in answer.items() if name not in given}


WAYS = pytest.mark.parametrize("way", ["online", "history"])


@WAYS
def test_a_feature_that_nobody_asked_for_cannot_fail(store: FeatureStore, way: str) -> None:
    assert ask(store, way, ["inner:small_too"]) == {"small_too": [12, 18, None]}
    assert ask(store, way, ["outer:with_bonus"], bonus=[1, 2, 3]) == {"with_bonus": [3, 5, None]}


@WAYS
def test_only_the_inputs_of_what_is_asked_are_demanded(store: FeatureStore, way: str) -> None:
    assert ask(store, way, ["outer:in_shop"], shop_id=[7, 7, 8]) == {"in_shop": [74, 76, None]}
    for feature, missing in (("outer:in_shop", "shop_id"), ("outer:with_bonus", "bonus"), ("inner:later", "day")):
        with pytest.raises(InvalidInputError, match=missing):
            ask(store, way, [feature])


def test_only_the_inputs_of_what_is_asked_are_read(store: FeatureStore) -> None:
    plan = store.online.plan(["outer:with_bonus", "inner:small_too"])
    assert set(plan.join_keys) == {"user_id"}
    assert set(plan.request_columns) == {"bonus"}
    assert len(plan.prepare({"user_id": [1], "bonus": [1]}).requests) == 1
    views, on_demand = store.catalog.needed(plan.refs)
    assert views == {"profile": ["small"]}
    assert [(view.name, [f.name for f in view.features]) for view in on_demand] == [
        ("inner", ["small_too", "half"]),
        ("outer", ["with_bonus"]),
    ]


@WAYS
@pytest.mark.parametrize("features", [["inner:twice"], ["outer:more"], ["inner:small_too", "inner:twice"]])
def test_an_overflow_says_where(store: FeatureStore, way: str, features: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        ask(store, way, features)
    assert str(caught.value) == (
        f"integer overflow in inner:twice, row 1: {MOST * 2} does not fit 64 bits. "
        "Cast an operand to FLOAT64 if that is precise enough"
    )


def test_a_date_out_of_range_says_where(store: FeatureStore) -> None:
    days = pa.array([0, 2**31 - 3, 0], pa.int32()).cast(pa.date32())  # no date that a request could hold
    with pytest.raises(InvalidInputError, match="date or timestamp out of range in inner:later, row 1: "):
        ask(store, "history", ["inner:later"], day=days)
