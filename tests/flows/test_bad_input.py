"""Wrong rows, wrong sources and wrong definitions: each error says what is wrong with which value, where, and what to
do, and leaves everything as it was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store import FeatureStore
from feature_store.errors import (
    DefinitionError,
    ExpressionError,
    FeatureStoreError,
    InvalidInputError,
    NotFoundError,
    SourceError,
    UsageError,
)
from tests.flows.broken import fs, make, visible

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
INSTANTS = pa.timestamp("us", "UTC")
DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: events, path: data/events, timestamp: at, created: seen_at, stream: {push: true}}
---
source: {name: files, path: data/events, timestamp: at, created: seen_at}
---
feature_views:
  - name: latest
    entities: [user]
    source: events
    features: [{name: price, type: FLOAT64}, {name: kind, type: STRING, default: none}]
  - name: moving
    entities: [user]
    source: events
    aggregations: [{name: c7d, function: count, window: 7d}, {name: s7d, function: sum, column: price, window: 7d}]
  - name: daily
    entities: [user]
    source: files
    schedule: daily
    aggregations: [{name: dc7d, function: count, window: 7d}]
  - name: queried
    entities: [user]
    schedule: daily
    sql: SELECT user_id, COUNT(*) AS n FROM files GROUP BY user_id
    features: [{name: n, type: INT64}]
---
on_demand_feature_view:
  name: mixed
  inputs: [{request: [{name: bid, type: FLOAT64}]}, latest]
  features: [{name: worth, type: FLOAT64, expression: "price * bid"}]
"""
VIEWS = ["latest", "moving", "daily", "queried"]


def rows(*users: Any, **columns: Any) -> dict[str, list[Any]]:
    """Columns as a caller gives them: one event for each user, an hour apart; others replace these."""
    count = len(users)
    return {
        "user_id": list(users),
        "at": [NOON + timedelta(hours=hour) for hour in range(count)],
        "seen_at": [NOON + timedelta(days=1)] * count,
        "price": [float(hour) for hour in range(count)],
        "kind": ["a"] * count,
        **columns,
    }


def write(root: Path, columns: Any, name: str = "events") -> Path:
    path = root / "data" / "events" / f"{name}.parquet"
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    root = make(tmp_path / "repo", definitions=DEFINITIONS)
    write(root, rows(1, 2, 2))
    store = FeatureStore(root)
    store.apply()
    yield store
    store.close()


def spine(*users: Any, at: Any = None) -> dict[str, list[Any]]:
    return {"user_id": list(users), "event_timestamp": at or [NOON + timedelta(days=1)] * len(users)}


def history(store: FeatureStore, entities: Any, *features: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = (
        store.get_historical_features(entities, list(features or VIEWS)).to_arrow().to_pydict()
    )
    return found


# Sources


def both_ways(store: FeatureStore, error: type[FeatureStoreError], *parts: str, views: Any = VIEWS) -> None:
    """Materialization and history say the same, view by view; nothing is visible afterwards that was not before."""
    before = visible(store)
    for view in views:
        for ask in (
            lambda view=view: store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1), [view]),
            lambda view=view: store.materialize_incremental(NOON + timedelta(days=2), [view]),
            lambda view=view: history(store, spine(1), view),
        ):
            with pytest.raises(error) as caught:
                ask()
            for part in parts:
                assert part in str(caught.value), f"{view}: {caught.value}"
    assert visible(store) == before


def test_a_source_that_vanishes(store: FeatureStore) -> None:
    store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1), ["latest", "moving", "daily"])
    path = store.root / "data" / "events"
    path.rename(store.root / "data" / "elsewhere")
    both_ways(store, SourceError, str(path), "Check the path, or restore the files")
    message = fs(store.root, "materialize-incremental", "2024-03-05", code=1)
    assert str(path) in message
    message = fs(store.root, "plan", code=1)
    assert str(path) in message
    (store.root / "data" / "elsewhere").rename(path)
    assert store.materialize_incremental(NOON + timedelta(days=2)) > 0


@pytest.mark.parametrize("column", ["user_id", "at", "seen_at"])
def test_a_column_that_vanishes(store: FeatureStore, column: str) -> None:
    columns = rows(1)
    del columns[column]
    write(store.root, columns)
    expected = "STRING" if column == "kind" else "INT64" if column == "user_id" else "TIMESTAMP"
    both_ways(store, SourceError, f'column "{column}" was {expected} at apply and is gone', "data/events")


def test_a_column_of_a_view_that_vanishes(store: FeatureStore) -> None:
    """Views that do not read it go on."""
    columns = rows(1, 2, 3)
    del columns["price"]
    write(store.root, columns)
    both_ways(store, SourceError, 'column "price" was FLOAT64 at apply and is gone', views=["latest", "moving"])
    assert store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1), ["daily"]) > 0


@pytest.mark.parametrize(
    ("column", "values", "expected", "found"),
    [
        ("user_id", ["1"], "INT64", "STRING"),
        ("price", ["high"], "FLOAT64", "STRING"),
        ("at", [1_709_294_400], "TIMESTAMP", "INT64"),
        ("at", ["2024-03-01"], "TIMESTAMP", "STRING"),
        ("price", [[1.0]], "FLOAT64", "ARRAY<FLOAT64>"),
    ],
)
def test_a_column_that_changes_its_type(
    store: FeatureStore, column: str, values: list[Any], expected: str, found: str
) -> None:
    write(store.root, rows(1, **{column: values}))
    views = ["latest", "moving"] if column == "price" else VIEWS
    message = f'column "{column}" was {expected} at apply and is {found}'
    both_ways(store, SourceError, 'source "', message, "run fs apply", views=views)


def test_a_bad_row_far_down_in_a_csv_file_is_named(tmp_path: Path) -> None:
    root = make(tmp_path / "repo", definitions=DEFINITIONS.replace("data/events", "data/events.csv"))
    path = root / "data" / "events.csv"
    line = "1,2024-03-01T12:00:00Z,2024-03-01T13:00:00Z,1.5,a\n"
    path.write_text("user_id,at,seen_at,price,kind\n" + line * 50_000)
    store = FeatureStore(root)
    store.apply()
    for wrong, what in (("2,noon,2024-03-01T13:00:00Z,1.5,a\n", "noon"), (line.replace("a", "a,b"), "Columns")):
        path.write_text("user_id,at,seen_at,price,kind\n" + line * 45_000 + wrong + line * 5_000)
        with pytest.raises(SourceError) as caught:
            store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1), ["latest"])
        assert what in str(caught.value)
        assert f"{path}:45002" in str(caught.value)
    store.close()


def test_no_file_no_rows(store: FeatureStore) -> None:
    """An empty folder, a file without a byte, a file of no rows: no features, no error."""
    path = store.root / "data" / "events" / "events.parquet"
    whole = path.read_bytes()
    nothing = {"price": [None], "kind": ["none"], "c7d": [0], "s7d": [None], "dc7d": [0], "n": [None]}
    empty = pq.read_table(path).slice(0, 0)
    for make_empty in (path.unlink, lambda: path.write_bytes(b""), lambda: pq.write_table(empty, path)):
        make_empty()
        found = history(store, spine(1))
        assert {name: found[name] for name in nothing} == nothing
        store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1))
        online = store.online.get(VIEWS, {"user_id": [1]}, now=_micros(NOON + timedelta(days=1))).to_dict()
        assert {name: online[name] for name in nothing} == nothing
    path.write_bytes(whole)
    store.materialize_incremental(NOON + timedelta(days=1))
    online = store.online.get(VIEWS, {"user_id": [2]}, now=_micros(NOON + timedelta(days=1))).to_dict()
    assert (online["price"], online["c7d"], online["dc7d"]) == ([2.0], [2], [2])
    assert online["n"] == [None], "a snapshot stays as it was served"


def test_a_file_that_is_broken_is_named(store: FeatureStore) -> None:
    path = store.root / "data" / "events" / "events.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    both_ways(store, SourceError, "events.parquet")


def test_null_and_duplicate_keys_in_sources(store: FeatureStore) -> None:
    """Rows without a key or a time are no facts; every other row counts, as often as it is there."""
    write(store.root, rows(1, None, 1, 1, at=[NOON, NOON, None, NOON], price=[1.0, 2.0, 3.0, 5.0]))
    store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1))
    found = history(store, spine(1, None, 1))
    online = store.online.get(VIEWS, {"user_id": [1, None, 1]}, now=_micros(NOON + timedelta(days=1))).to_dict()
    for answer in (found, online):
        assert answer["price"] == [5.0, None, 5.0]
        assert (answer["c7d"], answer["s7d"]) == ([2, 0, 2], [6.0, None, 6.0])
        assert answer["dc7d"] == [2, 0, 2]
        assert answer["user_id"] == [1, None, 1]


def test_absurd_times_in_sources(store: FeatureStore) -> None:
    """Years 1 and 9999 are times like any other: what lies after T is not seen at T."""
    first, last = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
    times = pa.array([first, last, NOON], INSTANTS)
    write(store.root, rows(1, 2, 3, at=times, seen_at=pa.array([None, None, None], INSTANTS)))
    store.materialize(NOON - timedelta(days=1), NOON + timedelta(days=1))
    store.materialize_incremental(NOON + timedelta(days=1))
    for at in (NOON + timedelta(days=1), last):
        found = history(store, spine(1, 2, 3, at=[at] * 3), "latest", "moving", "daily")
        assert found["price"] == [0.0, 1.0 if at == last else None, 2.0]
    found = history(store, spine(1, 1, 2, at=[first, first + timedelta(hours=1), last]), "latest", "moving", "daily")
    assert found["price"] == [0.0, 0.0, 1.0]
    assert found["c7d"] == [0, 1, 0]


def test_a_bad_row_in_a_csv_file_is_named(tmp_path: Path) -> None:
    root = make(tmp_path / "repo", definitions=DEFINITIONS.replace("data/events", "data/events.csv"))
    path = root / "data" / "events.csv"
    head = "user_id,at,seen_at,price,kind\n1,2024-03-01T12:00:00Z,2024-03-01T13:00:00Z,1.5,a\n"
    path.write_text(head)
    store = FeatureStore(root)
    store.apply()
    for line, what in (
        ("2,2024-03-01T12:00:00Z,2024-03-01T13:00:00Z,cheap,a\n", "cheap"),
        ("two,2024-03-01T12:00:00Z,2024-03-01T13:00:00Z,1.5,a\n", "two"),
        ("2,yesterday,2024-03-01T13:00:00Z,1.5,a\n", "yesterday"),
        ("2,2024-03-01T12:00:00Z,2024-03-01T13:00:00Z,1.5,a,b,c\n", "7 values in a line, where the header has 5"),
    ):
        path.write_text(head + head.splitlines()[1] + "\n" + line)
        both_ways(store, SourceError, what, f"{path}:4", views=["latest", "moving"])
    message = fs(root, "materialize", "2024-03-01", "2024-03-02", code=1)
    assert f"{path}:4" in message
    store.close()


# Entity rows


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([None], "row 0 of the entity rows has no event_timestamp"),
        ([pd.NaT], "row 0 of the entity rows has no event_timestamp"),
        ([1_709_294_400], 'column "event_timestamp" does not hold times'),
        ([1.5], 'column "event_timestamp" does not hold times'),
        ([True], 'column "event_timestamp" does not hold times'),
        (["noon"], '"noon" is not a time'),
        (["2024-13-01"], '"2024-13-01" is not a time'),
        (["10000-01-01T00:00:00Z"], '"10000-01-01T00:00:00Z" is not a time'),
    ],
)
def test_entity_rows_without_right_times(store: FeatureStore, times: list[Any], message: str) -> None:
    for entities in (spine(1, at=times), pd.DataFrame({"user_id": [1], "event_timestamp": times})):
        with pytest.raises(InvalidInputError) as caught:
            history(store, entities)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "time",
    [
        NOON + timedelta(days=1),
        (NOON + timedelta(days=1)).replace(tzinfo=None),
        "2024-03-02T12:00:00",
        "2024-03-02 12:00:00Z",
        "2024-03-02T20:00:00+08:00",
        pd.Timestamp("2024-03-02 12:00:00"),
        pd.Timestamp("2024-03-02 07:00:00", tz="America/New_York"),
    ],
)
def test_a_naive_time_is_utc_everywhere(store: FeatureStore, time: Any) -> None:
    found = history(store, spine(1, at=[time]))
    assert (found["price"], found["c7d"], found["dc7d"]) == ([0.0], [1], [1])


def test_entity_rows_that_are_wrong(store: FeatureStore) -> None:
    later = [NOON + timedelta(days=1)]
    wrong: list[tuple[Any, tuple[str, ...], tuple[str, ...]]] = [
        ({"event_timestamp": later}, ("latest",), ('no column "user_id"', "latest")),
        ({"user_id": [1]}, ("latest",), ('no column "event_timestamp"',)),
        ({"user": [1], "event_timestamp": later}, ("latest",), ('no column "user_id"', 'Did you mean "user"?')),
        ({"user_id": ["1"], "event_timestamp": later}, ("latest",), ('"user_id" wants INT64', "row 0 holds '1'")),
        ({"user_id": [1.5], "event_timestamp": later}, ("latest",), ('"user_id" wants INT64', "row 0 holds 1.5")),
        ({"user_id": [1, 2], "event_timestamp": later}, ("latest",), ("unequal length", "user_id: 2")),
        ({"user_id": [1, "b"], "event_timestamp": later * 2}, ("latest",), ('"user_id"', "different types")),
        (spine(1), ("mixed",), ('no column "bid"', "mixed")),
        (spine(1) | {"bid": ["much"]}, ("mixed",), ('"bid" wants FLOAT64', "'much'")),
        (spine(1) | {"price": [1.0]}, ("latest",), ('already have a column "price"', "full_feature_names")),
        (5, ("latest",), ("int is not a table", "Give a DataFrame")),
        (store.root / "nothing.parquet", ("latest",), ("nothing.parquet",)),
        (store.root / "features.yaml", ("latest",), ("neither Parquet nor CSV",)),
    ]
    for entities, features, parts in wrong:
        with pytest.raises((InvalidInputError, SourceError)) as caught:
            history(store, entities, *features)
        for part in parts:
            assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("latest:prise", 'Did you mean "price"?'),
        ("latst:price", 'Did you mean "latest"?'),
        ("prce", 'Did you mean "price"?'),
        ("", '""'),
        ("a:b:c", 'no feature view "a"'),
    ],
)
def test_unknown_features(store: FeatureStore, reference: str, message: str) -> None:
    for ask in (
        lambda: history(store, spine(1), reference),
        lambda: store.get_online_features([reference], [{"user_id": 1}]),
    ):
        with pytest.raises((NotFoundError, InvalidInputError, UsageError)) as caught:
            ask()
        assert message in str(caught.value)
    with pytest.raises(NotFoundError, match="ctr_v1"):
        store.get_historical_features(spine(1), "ctr_v1")


def test_no_entity_rows_give_no_rows_of_the_right_types(store: FeatureStore) -> None:
    empty = pa.table({"user_id": pa.array([], pa.int64()), "event_timestamp": pa.array([], INSTANTS)})
    several: list[Any] = [empty, empty.to_pandas(), {"user_id": [], "event_timestamp": []}]
    for entities in several:
        found = store.get_historical_features(entities, VIEWS, statuses=True).to_arrow()
        assert found.num_rows == 0
        assert found.schema.field("price").type == pa.float64()
        assert found.schema.field("n").type == pa.int64()
        assert found.schema.field("n__status").type == pa.string()
    assert store.get_online_features(VIEWS, {"user_id": []}).to_dict()["price"] == []


def test_entity_rows_keep_their_order_duplicates_and_columns(store: FeatureStore) -> None:
    entities = spine(2, 1, None, 2, 9) | {"label": ["x", "y", None, "x", "z"]}
    found = history(store, entities)
    assert found["user_id"] == entities["user_id"]
    assert found["label"] == entities["label"]
    assert found["c7d"] == [2, 1, 0, 2, 0]
    assert found["n"] == [2, 1, None, 2, None]


def test_entity_rows_as_a_select(store: FeatureStore) -> None:
    """Spark SQL over the sources by name."""
    sql = """
        SELECT user_id, date_add(CAST(at AS DATE), 1) AS event_timestamp, price AS was
        FROM files WHERE price > 0 ORDER BY price DESC
    """
    found = history(store, sql)
    assert found["was"] == [2.0, 1.0]
    assert found["user_id"] == [2, 2]
    assert (found["c7d"], found["n"]) == ([2, 2], [2, 2])
    common = "WITH seen AS (SELECT DISTINCT user_id FROM files) " + (
        "SELECT user_id, TIMESTAMP '2024-03-01 13:30:00' AS event_timestamp FROM seen ORDER BY user_id"
    )
    assert history(store, common, "moving")["c7d"] == [1, 1]
    with pytest.raises(ExpressionError, match='Did you mean "files"'):
        history(store, "SELECT user_id, at AS event_timestamp FROM file")
    with pytest.raises(ExpressionError, match='Did you mean "user_id"'):
        history(store, "SELECT userid, at AS event_timestamp FROM files")
    with pytest.raises(InvalidInputError, match='no column "event_timestamp"'):
        history(store, "SELECT user_id, at FROM files")


# Pushes


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"user_id": [1, None]}, ('column "user_id" must not be null', "row 1")),
        ({"user_id": [1, "b"]}, ('"user_id"', "different types")),
        ({"user_id": ["1", "2"]}, ('"user_id" wants INT64', "row 0 holds '1'")),
        ({"user_id": [1, 2**70]}, ('"user_id"',)),
        ({"price": [1.0, "2"]}, ('"price"', "different types")),
        ({"at": [NOON, None]}, ('column "at" must not be null', "row 1")),
        ({"at": [NOON, pd.NaT]}, ('"at"',)),
        ({"at": [NOON, datetime(1, 1, 1, tzinfo=UTC)]}, ('"at", row 1', "0001-01-01", "outside the years 1970")),
        ({"at": [NOON, datetime(9999, 12, 31)]}, ('"at"', "9999-12-31")),
        ({"at": [NOON, datetime.now(UTC) + timedelta(hours=1)]}, ('"at", row 1', "future", "clock")),
        ({"at": [1_709_294_400, 1_709_294_401]}, ('"at" wants TIMESTAMP', "1709294400")),
        ({"at": ["2024-03-01T12:00:00", "noon"]}, ('"at" wants TIMESTAMP', "row 1 holds 'noon'")),
        ({"price": [1.0]}, ("unequal length", "price: 1")),
        ({"prise": [1.0, 2.0]}, ('no column "prise"', 'Did you mean "price"?')),
    ],
)
def test_a_push_of_bad_rows_stores_none_of_them(
    store: FeatureStore, changes: dict[str, list[Any]], parts: tuple[str, ...]
) -> None:
    before = visible(store)
    for to in ("online", "offline", "online_and_offline"):
        with pytest.raises(InvalidInputError) as caught:
            store.push("events", rows(1, 2, **changes), to=to)
        for part in parts:
            assert part in str(caught.value), str(caught.value)
    assert visible(store) == before
    assert not store.offline_store.exists("push/events")


def test_pushes_to_the_wrong_place(store: FeatureStore) -> None:
    missing = rows(1)
    del missing["price"]
    wrong: list[tuple[str, Any, str, type[FeatureStoreError], str]] = [
        ("event", rows(1), "online", NotFoundError, 'Did you mean "events"?'),
        ("files", rows(1), "online", InvalidInputError, "stream: {push: true}"),
        ("moving", rows(1), "online", InvalidInputError, "Push events to its source"),
        ("mixed", rows(1), "online", InvalidInputError, "computed"),
        ("latest", rows(1), "offline", InvalidInputError, 'Push rows of its source "events"'),
        ("events", rows(1), "nowhere", InvalidInputError, '"nowhere" is not a place'),
        ("events", missing, "online", InvalidInputError, 'column "price" is missing'),
        ("events", 5, "online", InvalidInputError, "int is not a table"),
    ]
    for name, data, to, error, part in wrong:
        with pytest.raises(error) as caught:
            store.push(name, data, to=to)
        assert part in str(caught.value), str(caught.value)
    assert not store.offline_store.exists("push/events")


def test_a_push_of_no_rows_and_of_the_same_rows(store: FeatureStore) -> None:
    empty = pa.table(rows(1)).slice(0, 0)
    assert store.push("events", empty, to="online_and_offline") == 0
    assert store.push("events", [], to="online_and_offline") == 0
    assert not store.offline_store.exists("push/events")
    twice = rows(7, 7, at=[NOON, NOON], price=[1.0, 1.0])
    for _ in range(2):
        assert store.push("events", twice, to="online_and_offline") == 2
    at = NOON + timedelta(hours=1)
    online = store.online.get(["moving"], {"user_id": [7]}, now=_micros(at)).to_dict()
    assert (online["c7d"], online["s7d"]) == ([2], [2.0])
    found = history(store, spine(7, at=[at]), "moving", "latest")
    assert (found["c7d"], found["s7d"], found["price"]) == ([2], [2.0], [1.0])


def test_a_pushed_file_with_a_bad_row_is_refused_by_command(store: FeatureStore, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user_id,at,price,kind\n1,2024-03-01T12:00:00Z,1.0,a\n2,noon,1.0,a\n")
    message = fs(store.root, "push", "events", str(path), "--to", "online_and_offline", code=1)
    assert '"at" wants TIMESTAMP' in message
    assert "'noon'" in message
    assert not store.offline_store.exists("push/events")


# Definitions and settings


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("entity: {name: user,", "entity: {name: user", ("not YAML", "features.yaml:")),
        ("entity:", "\tentity:", ("features.yaml:2",)),
        ("type: INT64}\n---", "type: INT63}\n---", ("INT63", "features.yaml:2")),
        (
            "timestamp: at, created: seen_at, stream",
            "timestamp: att, created: seen_at, stream",
            ("att", "features.yaml:"),
        ),
        ("column: price", "column: prise", ('Did you mean "price"?', "features.yaml:")),
        ("window: 7d}, {", "window: 7y}, {", ("7y", "features.yaml:")),
        ("function: sum", "function: sun", ('Did you mean "sum"?', "features.yaml:")),
        ("function: sum, column: price", "function: sum, column: kind", ("s7d", "STRING", "features.yaml:")),
        ("    source: files\n", "    source: file\n", ('Did you mean "files"?', "features.yaml:")),
        ("entities: [user]", "entitys: [user]", ("entitys", "features.yaml:")),
        ('"price * bid"', '"price * bids"', ('Did you mean "bid"?', "features.yaml:")),
        ("FROM files", "FROM flies", ('Did you mean "files"?', "features.yaml:")),
        ("COUNT(*) AS n FROM", "COUNT(* AS n FROM", ("features.yaml:",)),
        ("{name: kind, type: STRING, default: none}", "{name: kind, type: INT64}", ("kind", "features.yaml:")),
    ],
)
def test_a_wrong_definition_changes_nothing(store: FeatureStore, old: str, new: str, parts: tuple[str, ...]) -> None:
    before = store.registry.serial()
    assert old in DEFINITIONS
    (store.root / "features.yaml").write_text(DEFINITIONS.replace(old, new, 1))
    with pytest.raises(DefinitionError) as caught:
        FeatureStore(store.root).apply()
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert store.registry.serial() == before


def test_exit_codes_of_wrong_definitions_and_settings(store: FeatureStore) -> None:
    features, settings = store.root / "features.yaml", store.root / "feature_store.yaml"
    features.write_text(DEFINITIONS.replace("column: price", "column: prise"))
    assert "features.yaml:" in fs(store.root, "apply", code=2)
    features.write_bytes(b"\xff\xfe\x00entity")
    assert "features.yaml" in fs(store.root, "plan", code=2)
    features.write_text(DEFINITIONS)
    settings.write_text("project: broken\nonline_stor: sqlite:///x.db\n")
    message = fs(store.root, "apply", code=2)
    assert 'Did you mean "online_store"?' in message
    assert "feature_store.yaml:2" in message
    settings.write_text("project: broken\nonline_store: sqlit:///x.db\n")
    assert "sqlit" in fs(store.root, "materialize", "2024-03-01", "2024-03-02", code=2)
    settings.write_text("project: broken\n")
    assert "is after" in fs(store.root, "materialize", "2024-03-02", "2024-03-01", code=2)
    assert "yesterday" in fs(store.root, "materialize-incremental", "yesterday", code=2)
    assert 'Did you mean "latest"?' in fs(store.root, "materialize-incremental", "2024-03-02", "-v", "latst", code=1)


def _micros(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000
