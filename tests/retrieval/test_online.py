from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.definitions import Source
from feature_store.definitions.bind import bind
from feature_store.definitions.catalog import BoundView, Catalog
from feature_store.definitions.files import loads
from feature_store.definitions.tables import (
    latest_table,
    marker_key,
    marker_table,
    snapshot_table,
    tables_of,
    tile_table,
)
from feature_store.errors import InvalidInputError, NotFoundError, TooLargeError
from feature_store.expressions.aggregates import fragment_item, tile_item
from feature_store.expressions.instants import DAY, HOUR, SECOND
from feature_store.expressions.visibility import MISSING, Status, statuses
from feature_store.plugins import open_online_store
from feature_store.retrieval.lookups import Columns, Feature
from feature_store.retrieval.online import OnlineFeatures
from feature_store.storage.online import CREATED, EVENT_TIME, ITEM, NO_CREATED, Key, OnlineStore, Row, Table
from feature_store.types import INT64, STRING, Column, Schema

NOW = 1_800_000_000 * SECOND
DEFINITIONS = """
entities:
  - {name: user, join_key: user_id, type: INT64}
  - {name: shop, join_key: shop_id, type: STRING}
---
sources:
  - name: stats
    timestamp: at
    columns:
      - {name: user_id, type: INT64}
      - {name: shop_id, type: STRING}
      - {name: clicks, type: INT64}
      - {name: ctr, type: FLOAT64}
      - {name: city, type: STRING}
      - {name: seen, type: TIMESTAMP}
      - {name: at, type: TIMESTAMP}
    stream: {push: true}
  - {name: files, path: files, timestamp: at}
---
feature_views:
  - name: user_stats
    entities: [user]
    source: stats
    ttl: 7d
    features:
      - {name: clicks, type: INT64}
      - {name: ctr, type: FLOAT64, default: 0.25}
      - {name: city, type: STRING}
      - {name: seen, type: TIMESTAMP}
  - name: visits
    entities: [user, shop]
    source: stats
    features: [{name: visits, type: INT64, column: clicks}]
  - name: archive
    entities: [user]
    source: stats
    features: [{name: archived, type: INT64, column: clicks}]
    online: false
  - name: live
    entities: [user]
    source: stats
    aggregations:
      - {name: n_1h, function: count, window: 1h}
      - {name: sum_1d, function: sum, column: clicks, window: 1d}
  - name: nightly
    entities: [user]
    source: files
    aggregations:
      - {name: n_7d, function: count, window: 7d}
      - {name: sum_7d, function: sum, column: clicks, window: 7d, default: -1}
---
on_demand_feature_views:
  - name: later
    inputs: [doubled, {request: [{name: bonus, type: INT64, default: 5}]}]
    features: [{name: with_bonus, type: INT64, expression: "twice + bonus"}]
  - name: doubled
    inputs: [user_stats]
    features: [{name: twice, type: INT64, expression: "clicks * 2", default: 0}]
  - name: context
    inputs: [{request: [{name: request_time, type: TIMESTAMP}]}, user_stats]
    features:
      - {name: hour, type: INT64, expression: "hour(request_time)"}
      - {name: rate, type: FLOAT64, expression: "ctr * 100"}
---
feature_service: {name: all_of_it, features: [user_stats, live]}
"""


@dataclass
class Counting:
    """A store that counts reads and remembers what was asked."""

    store: OnlineStore
    asked: list[list[tuple[Table, list[Key]]]] = field(default_factory=list)

    def read(self, requests: Sequence[tuple[Table, Sequence[Key]]]) -> list[Any]:
        self.asked.append([(table, list(keys)) for table, keys in requests])
        return self.store.read(requests)


@dataclass
class House:
    catalog: Catalog
    store: OnlineStore
    counting: Counting
    online: OnlineFeatures

    def view(self, name: str) -> BoundView:
        return self.catalog.views[name]

    def write(self, table: Table, rows: list[dict[str, Any]]) -> None:
        self.store.create(table)
        columns = [*table.keys, *table.values]
        arrays = {c.name: pa.array([row.get(c.name) for row in rows], c.type.arrow) for c in columns}
        arrays[EVENT_TIME] = pa.array([row["at"] for row in rows], pa.int64())
        arrays[CREATED] = pa.array([row.get("created", NO_CREATED) for row in rows], pa.int64())
        if table.items:
            arrays[ITEM] = pa.array([row["item"] for row in rows], pa.binary())
        self.store.write(table, pa.table(arrays))

    def get(self, features: Any, entities: Any, **more: Any) -> Any:
        return self.online.get(features, entities, now=NOW, **more)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    definitions = loads(DEFINITIONS)
    source = next(item for item in definitions if isinstance(item, Source))
    schema = Schema(tuple(Column(column.name, column.type) for column in source.columns))
    return bind(
        "test",
        definitions,
        root=Path("/nowhere"),
        offline=lambda table: f"/nowhere/{table}",
        timezone="UTC",
        schema_of=lambda rows: schema,
    )


@pytest.fixture
def house(catalog: Catalog, tmp_path: Path) -> Iterator[House]:
    store = open_online_store("sqlite:///online.db", "test", tmp_path)
    for bound in catalog.views.values():
        for table in tables_of(bound):
            store.create(table)
    counting = Counting(store)
    yield House(catalog, store, counting, OnlineFeatures(catalog, counting, 1000))  # type: ignore[arg-type]
    store.close()


@pytest.fixture
def filled(house: House) -> House:
    rows = [
        {"user_id": 1, "clicks": 10, "ctr": 0.5, "city": "Wien", "seen": 3 * SECOND, "at": NOW - HOUR},
        {"user_id": 2, "clicks": None, "ctr": None, "city": None, "seen": None, "at": NOW - 7 * DAY},
        {"user_id": 3, "clicks": 30, "ctr": 0.1, "city": "Linz", "seen": 0, "at": NOW - 7 * DAY - 1},
        {"user_id": 4, "clicks": 40, "ctr": 0.1, "city": "Graz", "seen": 0, "at": NOW + 1},
        {"user_id": 5, "clicks": 50, "ctr": 0.1, "city": "Graz", "seen": 0, "at": NOW},
    ]
    house.write(latest_table(house.view("user_stats")), rows)
    return house


P, NULL, GONE, OLD = Status.PRESENT, Status.NULL_VALUE, Status.NOT_FOUND, Status.OUTSIDE_MAX_AGE


def test_values_statuses_and_event_times(filled: House) -> None:
    response = filled.get(["user_stats"], [{"user_id": user} for user in (1, 2, 3, 4, 5, 6)])
    assert response.to_dict() == {
        "user_id": [1, 2, 3, 4, 5, 6],
        "clicks": [10, None, None, None, 50, None],
        "ctr": [0.5, 0.25, 0.25, 0.25, 0.1, 0.25],
        "city": ["Wien", None, None, None, "Graz", None],
        "seen": [datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC), None, None, None, datetime(1970, 1, 1, tzinfo=UTC), None],
    }
    assert response.statuses("user_id") == [P] * 6
    assert response.statuses("clicks") == response.statuses("ctr") == [P, NULL, OLD, GONE, P, GONE]
    assert response.event_times("city") == [NOW - HOUR, NOW - 7 * DAY, NOW - 7 * DAY - 1, 0, NOW, 0]


def test_rows_stay_in_order_with_duplicates_and_null_keys(filled: House) -> None:
    response = filled.get(["user_stats:clicks"], {"user_id": [5, 1, None, 5, 6, 1]})
    assert response.to_dict() == {"user_id": [5, 1, None, 5, 6, 1], "clicks": [50, 10, None, 50, None, 10]}
    assert response.statuses("clicks") == [P, P, GONE, P, GONE, P]
    assert [keys for _, keys in filled.counting.asked[0]] == [[(5,), (1,), (6,)]]


def test_one_null_key_reads_nothing(filled: House) -> None:
    response = filled.get(["user_stats:clicks", "live:n_1h", "live:sum_1d"], {"user_id": [None]})
    assert response.to_dict() == {"user_id": [None], "clicks": [None], "n_1h": [0], "sum_1d": [None]}
    assert [response.statuses(name)[0] for name in response.names] == [P, GONE, P, NULL]


def test_one_read_however_many_views(filled: House) -> None:
    filled.get(["user_stats", "live", "nightly", "doubled"], {"user_id": [1, 2]})
    assert len(filled.counting.asked) == 1
    tables = [table.name.partition(".")[0] for table, _ in filled.counting.asked[0]]
    assert sorted(tables) == ["live", "live", "nightly", "nightly", "user_stats"]


def test_plans_are_compiled_once(filled: House) -> None:
    refs = ["user_stats:clicks", "live"]
    assert filled.online.plan(refs) is filled.online.plan(list(refs))
    assert filled.online.plan(refs) is not filled.online.plan(refs, full_feature_names=True)
    assert filled.online.plan("all_of_it") is filled.online.plan("all_of_it")


def test_composite_keys_do_not_collide(house: House) -> None:
    table = latest_table(house.view("visits"))
    rows = [
        {"user_id": 1, "shop_id": "23", "visits": 1, "at": NOW},
        {"user_id": 12, "shop_id": "3", "visits": 2, "at": NOW},
        {"user_id": 1, "shop_id": "", "visits": 3, "at": NOW},
    ]
    house.write(table, rows)
    entities = {"shop_id": ["3", "23", "", "2"], "user_id": [12, 1, 1, 13]}
    assert house.get(["visits"], entities).to_dict()["visits"] == [2, 1, 3, None]


def test_names_and_services(filled: House) -> None:
    full = filled.get(["user_stats:clicks", "city"], [{"user_id": 1}], full_feature_names=True)
    assert full.names == ("user_id", "user_stats__clicks", "user_stats__city")
    assert filled.get("all_of_it", [{"user_id": 1}]).names == (
        "user_id", "clicks", "ctr", "city", "seen", "n_1h", "sum_1d",
    )  # fmt: skip


def test_windows_merge_tiles_and_fragments(house: House) -> None:
    bound = house.view("live")
    hour = tile_table(bound, HOUR)
    start = (NOW - 3 * HOUR) // HOUR * HOUR
    state = dict.fromkeys(hour.values.names, 0) | {"covered": start + HOUR}
    rows = [
        {**state, "user_id": 1, "sum_1d.sum": 7, "at": start + 5, "item": tile_item(start)},
        {**state, "user_id": 1, "sum_1d.sum": 100, "at": start + 4, "item": fragment_item(start + 4, b"covered.")},
        {**state, "user_id": 1, "sum_1d.sum": 5, "at": NOW - 9, "item": fragment_item(NOW - 9, b"fragment")},
    ]
    house.write(hour, rows)
    response = house.get(["live"], {"user_id": [1, 2]})
    assert response.to_dict() == {"user_id": [1, 2], "n_1h": [0, 0], "sum_1d": [12, None]}
    assert response.statuses("n_1h") == [P, P]
    assert response.statuses("sum_1d") == [P, NULL]
    assert response.event_times("sum_1d") == [NOW - 9, 0]


def test_a_snapshot_switches_with_its_marker(house: House) -> None:
    bound = house.view("nightly")
    table = snapshot_table(bound)

    def rows(user: int, n: int, generation: int, at: int) -> dict[str, Any]:
        return {"user_id": user, "n_7d": n, "sum_7d": n * 10, "at": at, "item": tile_item(generation)}

    def marker(generation: int, at: int) -> None:
        view, version = marker_key(bound)
        house.store.write(
            marker_table(bound),
            pa.table(
                {"view": [view], "version": [version], "at": [generation], EVENT_TIME: [at], CREATED: [generation]}
            ),
        )

    def seen() -> dict[str, Any]:
        return house.get(["nightly"], {"user_id": [1, 2]}).to_dict()

    house.write(table, [rows(1, 1, 100, NOW - 2 * DAY), rows(2, 2, 100, NOW - 2 * DAY)])
    assert seen() == {"user_id": [1, 2], "n_7d": [0, 0], "sum_7d": [-1, -1]}
    marker(100, NOW - 2 * DAY)
    assert seen() == {"user_id": [1, 2], "n_7d": [1, 2], "sum_7d": [10, 20]}
    house.write(table, [rows(1, 7, 200, NOW - DAY)])
    assert seen() == {"user_id": [1, 2], "n_7d": [1, 2], "sum_7d": [10, 20]}
    marker(200, NOW - DAY)
    assert seen() == {"user_id": [1, 2], "n_7d": [7, 0], "sum_7d": [70, -1]}
    assert house.get(["nightly"], {"user_id": [2]}).statuses("sum_7d") == [NULL]
    house.write(table, [rows(1, 9, 300, NOW + DAY)])
    marker(300, NOW + DAY)
    assert seen()["n_7d"][0] == 7


def test_on_demand_features_follow_those_they_need(filled: House) -> None:
    response = filled.get(["later", "doubled"], {"user_id": [1, 6], "bonus": [1, None]})
    assert response.to_dict() == {"user_id": [1, 6], "bonus": [1, None], "with_bonus": [21, None], "twice": [20, 0]}
    assert response.statuses("twice") == [P, NULL]
    assert filled.get(["with_bonus"], {"user_id": [1, 6]}).to_dict()["with_bonus"] == [25, 5]


def test_request_values_come_beside_or_among_the_entities(filled: House) -> None:
    among = filled.get(["context"], [{"user_id": 1, "request_time": "2026-01-01T13:00:00Z"}])
    beside = filled.get(["context"], {"user_id": [1]}, request_data={"request_time": [1_767_272_400]})
    single = filled.get(["context"], {"user_id": [1, 6]}, request_data={"request_time": "2026-01-01T13:00:00Z"})
    assert among.to_dict()["hour"] == beside.to_dict()["hour"] == [13]
    assert single.to_dict() == {"user_id": [1, 6], "hour": [13, 13], "rate": [50.0, 25.0]}
    assert "request_time" not in beside.names


def test_no_rows(filled: House) -> None:
    response = filled.get(["user_stats", "live", "nightly", "doubled"], {"user_id": []})
    assert response.rows == 0
    assert all(values == [] for values in response.to_dict().values())


def test_arrow_and_pandas(filled: House) -> None:
    response = filled.get(["user_stats"], {"user_id": [1, 6]})
    table = response.to_arrow(statuses=True, include_event_timestamps=True)
    assert table.column_names[3:9] == ["clicks", "clicks__status", "clicks__ts", "ctr", "ctr__status", "ctr__ts"]
    assert table["clicks__status"].to_pylist() == ["PRESENT", "NOT_FOUND"]
    assert table["seen"].type == pa.timestamp("us", "UTC")
    assert table["clicks__ts"].cast(pa.int64()).to_pylist() == [NOW - HOUR, 0]
    frame = response.to_df(include_event_timestamps=True)
    assert frame["ctr"].tolist() == [0.5, 0.25]
    assert frame["ctr__ts"].tolist() == [(NOW - HOUR) // SECOND, 0]


@pytest.mark.parametrize(
    ("features", "entities", "message"),
    [
        (["user_stats"], {"user_id": ["1"]}, 'column "user_id", row 0: "1" is not an INT64'),
        (["user_stats"], {"user_id": [1, True]}, 'column "user_id", row 1: True is not an INT64'),
        (["user_stats"], {"user_id": [1.0]}, 'column "user_id", row 0: 1.0 is not an INT64'),
        (["visits"], {"user_id": [1], "shop_id": [2]}, 'column "shop_id", row 0: 2 is not a STRING'),
        (["visits"], {"user_id": [1]}, 'the entities lack the join key "shop_id" of feature view "visits"'),
        (["visits"], {"user_id": [1, 2], "shop_id": ["a"]}, 'column "shop_id" has 1 values and column "user_id" 2'),
        (["context"], {"user_id": [1]}, 'the request value "request_time" (TIMESTAMP) is missing'),
        (["user_stats"], {"user_id": [1], "ctr": [1]}, '"ctr" is an entity column and a feature'),
        (["user_stats"], [{"user_id": 1}, {"user": 1}], "entity row 1 and row 0"),
        (["user_stats"], "user_id", "entity rows are"),
        (["archive"], {"user_id": [1]}, 'feature view "archive" is not kept online'),
        ([1], {"user_id": [1]}, "1 is not a feature reference"),
        ([["a"]], {"user_id": [1]}, "['a'] is not a feature reference"),
    ],
)
def test_wrong_requests(house: House, features: Any, entities: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        house.get(features, entities)
    assert caught.value.message.startswith(message)
    assert house.counting.asked == []


def test_unknown_names(house: House) -> None:
    for features, code in (
        (["user_stats:click"], "FEATURE_NOT_FOUND"),
        (["usr:x"], "VIEW_NOT_FOUND"),
        ("al", "SERVICE_NOT_FOUND"),
    ):
        with pytest.raises(NotFoundError) as caught:
            house.get(features, {"user_id": [1]})
        assert caught.value.code == code
    with pytest.raises(NotFoundError) as caught:
        house.get(["user_stats:click"], {"user_id": [1]})
    assert caught.value.hint == 'Did you mean "clicks"?'


def test_too_many_entities(house: House) -> None:
    with pytest.raises(TooLargeError):
        house.get(["user_stats"], {"user_id": list(range(1001))})


times = st.integers(-5, 5)
cells = st.none() | st.integers(-3, 3)
stored = st.none() | st.builds(lambda at, a, b: Row(at, NO_CREATED, (a, b)), times, cells, cells)


@settings(max_examples=200)
@given(
    st.lists(stored, max_size=8),
    st.none() | st.integers(1, 6),
    st.none() | st.just(9),
    st.sampled_from([INT64, STRING]),
)
def test_columns_agree_with_the_rule_of_visibility(
    rows: list[Row | None], ttl: int | None, default: Any, type_: Any
) -> None:
    if type_ == STRING:
        rows = [row and Row(row[0], row[1], tuple(v if v is None else str(v) for v in row[2])) for row in rows]
    now = 2
    lookup: Any = SimpleNamespace(ttl=ttl, names=("a", "b"))
    columns = Columns(lookup, [Feature(1, type_, default), Feature(0, type_, None)])
    found = np.array([MISSING if row is None else row[0] for row in rows], np.int64)
    for (values, marks, seen), position, fill in zip(columns.of(rows, now), (1, 0), (default, None), strict=True):
        raw = [None if row is None else row[2][position] for row in rows]
        want = statuses(found, now, ttl, np.array([value is None for value in raw], bool)).tolist()
        assert ([marks] * len(rows) if isinstance(marks, Status) else list(marks)) == want
        assert list(values) == [value if mark == P else fill for value, mark in zip(raw, want, strict=True)]
        assert list(seen or [0] * len(rows)) == [
            0 if m == GONE else t for m, t in zip(want, found.tolist(), strict=True)
        ]


def test_nan_is_a_value(house: House) -> None:
    table = latest_table(house.view("user_stats"))
    house.write(table, [{"user_id": 1, "ctr": math.nan, "clicks": 1, "city": "x", "seen": 1, "at": NOW}])
    response = house.get(["user_stats:ctr"], {"user_id": [1]})
    assert math.isnan(response.to_dict()["ctr"][0])
    assert response.statuses("ctr") == [P]
