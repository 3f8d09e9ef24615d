"""Historical retrieval on Spark: the answers of the embedded engine, for whatever form entity rows come in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from feature_store import FeatureStore
from feature_store.engines.spark import SparkEngine
from feature_store.engines.spark_joins import Spread, collected
from feature_store.errors import InvalidInputError, SourceError
from tests.oracle import agrees

pytestmark = pytest.mark.timeout(900)

DAY, HOUR, MINUTE = 86_400_000_000, 3_600_000_000, 60_000_000
START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
INSTANT = pa.timestamp("us", "UTC")
REPO = """
entities: [{name: user, join_key: user_id, type: INT64}, {name: shop, join_key: shop, type: STRING}]
---
source: {name: events, path: data/events, timestamp: at, created: seen_at, stream: {push: true}}
---
source: {name: batch, path: data/events, timestamp: at, created: seen_at}
---
feature_views:
  - name: latest
    entities: [user]
    source: events
    features: [{name: price, type: FLOAT64}, {name: kind, type: STRING, default: none}]
    ttl: 12h
  - {name: plain, entities: [user], source: events, features: [{name: amount, type: "DECIMAL(12,2)", column: amount}]}
  - name: moving
    entities: [shop, user]
    source: events
    aggregations:
      - {name: c7d, function: count, window: 7d, where: "kind = 'a'"}
      - {name: p30d, function: mean, column: price, window: 30d, default: -1.0}
      - {name: l3, function: last_n(3), column: amount, window: 7d}
  - name: daily
    entities: [user]
    source: batch
    schedule: daily
    aggregations: [{name: dc7d, function: count, window: 7d}]
  - name: queried
    entities: [user]
    schedule: daily
    sql: |
      SELECT user_id, COUNT(*) AS n, MAX(price) AS most FROM batch
      WHERE at >= date_sub('${date}', 6) AND at < date_add('${date}', 1) GROUP BY user_id
    features: [{name: n, type: INT64}, {name: most, type: FLOAT64, default: 0}]
---
on_demand_feature_view:
  name: mixed
  inputs: [{request: [{name: bid, type: FLOAT64}]}, moving, latest]
  features:
    - {name: rate, type: FLOAT64, expression: "p30d / c7d", default: 0.5}
    - {name: worth, type: FLOAT64, expression: "price * bid"}
---
on_demand_feature_view:
  name: again
  inputs: [mixed, {request: [{name: count, type: INT64}]}]
  features: [{name: twice, type: FLOAT64, expression: "worth * 2"}, {name: more, type: INT64, expression: "count + 1"}]
---
feature_service: {name: everything, features: [latest, plain, moving, daily, queried, mixed, again]}
"""


@pytest.fixture(scope="module")
def store(spark_engine: SparkEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """A repository in which some days of the query were materialized and others were not."""
    assert spark_engine.session  # which the store's engine shares
    root = tmp_path_factory.mktemp("repo")
    (root / "data" / "events").mkdir(parents=True)
    rng = random.Random(11)
    for part in range(2):
        pq.write_table(_events(rng), root / "data" / "events" / f"{part}.parquet")
    (root / "feature_store.yaml").write_text(f"project: spark\nengines: {{spark: '{spark_engine.master}'}}\n")
    (root / "features.yaml").write_text(REPO)
    store = FeatureStore(root)
    store.apply()
    store.materialize(START + 4 * DAY, START + 7 * DAY, ["queried"])
    yield store
    store.close()


def _events(rng: random.Random) -> pa.Table:
    rows = [
        {
            "user_id": rng.choice([1, 1, 1, 2, 3, None]),
            "shop": rng.choice(["x", "y"]),
            "at": (at := START + rng.randint(0, 12 * 24) * HOUR + rng.choice([0, 1])),
            "seen_at": at + rng.choice([0, 1, 30 * HOUR]),
            "price": rng.choice([None, 1.5, -2.0, float("nan")]),
            "kind": rng.choice([None, "a", "b"]),
            "amount": rng.choice([None, "1.25", "-3.10"]),
        }
        for _ in range(60)
    ]
    table = pa.Table.from_pylist(rows)
    types = {"at": INSTANT, "seen_at": INSTANT, "amount": pa.decimal128(12, 2)}
    return table.cast(pa.schema([(f.name, types.get(f.name, f.type)) for f in table.schema]))


def entities(rows: int = 60, seed: int = 3) -> pa.Table:
    """Unknown users, no user, duplicates; in no order."""
    rng = random.Random(seed)
    columns = {
        "label": pa.array([f"row {n}" for n in range(rows)]),
        "user_id": pa.array([rng.choice([1, 1, 2, 3, 99, None]) for _ in range(rows)], pa.int64()),
        "shop": pa.array([rng.choice(["x", "y", "z"]) for _ in range(rows)]),
        "event_timestamp": pa.array([START + rng.randint(-24, 14 * 24) * HOUR for _ in range(rows)], INSTANT),
        "bid": pa.array([rng.choice([1.0, 2.5, None]) for _ in range(rows)]),
        "count": pa.array([rng.choice([1, None]) for _ in range(rows)], pa.int64()),
    }
    table = pa.table(columns)
    return pa.concat_tables([table, table.slice(0, 3)])


def same(found: pa.Table, expected: pa.Table) -> None:
    assert found.column_names == expected.column_names
    for name in expected.column_names:
        pairs = zip(found[name].to_pylist(), expected[name].to_pylist(), strict=True)
        assert all(agrees(one, other) or (one != one and other != other) for one, other in pairs), name


@pytest.mark.parametrize("as_known", [False, True])
def test_answers_are_those_of_the_embedded_engine(store: FeatureStore, as_known: bool) -> None:
    def asked(engine: str) -> Any:
        return store.get_historical_features(
            entities(), "everything", as_known=as_known, statuses=True, full_feature_names=True, engine=engine
        )

    found, expected = asked("spark"), asked("local")
    same(found.to_arrow(), expected.to_arrow())
    assert found.to_arrow().schema.equals(expected.to_arrow().schema)
    assert found.metadata == expected.metadata
    seen = {status for name in expected.to_arrow().column_names if name.endswith("__status")
            for status in expected.to_arrow()[name].to_pylist()}  # fmt: skip
    assert seen == {"PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"}
    assert expected.metadata["computed_snapshots"]["queried"]
    if as_known:
        assert expected.metadata["hidden"]["latest"] and expected.metadata["hidden"]["moving"]


def _two_files(table: pa.Table, folder: Path, store: FeatureStore) -> Any:
    """Nanoseconds, as pandas writes them; the second file is the longer one, which Spark would read first."""
    (folder / "spine").mkdir()
    table = table.set_column(3, "event_timestamp", table["event_timestamp"].cast(pa.timestamp("ns", "UTC")))
    pq.write_table(table.slice(0, 10), folder / "spine" / "a.parquet")
    pq.write_table(table.slice(10), folder / "spine" / "b.parquet", row_group_size=7)
    return str(folder / "spine")


def _csv(table: pa.Table, folder: Path, store: FeatureStore) -> Any:
    pyarrow.csv.write_csv(table, folder / "spine.csv")
    return folder / "spine.csv"


def _checked(table: pa.Table, folder: Path, store: FeatureStore) -> Any:
    """Times as text and keys as decimals, which the executors check."""
    texts = pa.array([time.isoformat() for time in table["event_timestamp"].to_pylist()])
    keys = table["user_id"].cast(pa.decimal128(20, 0))
    return table.set_column(3, "event_timestamp", texts).set_column(1, "user_id", keys)


def _frame(table: pa.Table, folder: Path, store: FeatureStore) -> Any:
    """A DataFrame of somebody's session, of whole numbers that are narrower and of times without a zone."""
    pq.write_table(table, folder / "frame.parquet")
    frame = store._engine("spark").session.newSession().read.parquet(f"file://{folder}/frame.parquet")  # type: ignore[attr-defined]
    return frame.selectExpr(
        "label", "CAST(user_id AS INT) AS user_id", "shop", "CAST(event_timestamp AS TIMESTAMP_NTZ) AS event_timestamp",
        "bid", "count",
    )  # fmt: skip


@pytest.mark.parametrize("form", [pa.Table.to_pandas, _two_files, _csv, _checked, _frame])
def test_entity_rows_come_in_many_forms(store: FeatureStore, tmp_path: Path, form: Callable[..., Any]) -> None:
    table = entities(30)
    given = form(table) if form is pa.Table.to_pandas else form(table, tmp_path, store)
    found = store.get_historical_features(given, ["plain:amount"], engine="spark").to_arrow()
    expected = store.get_historical_features(table, ["plain:amount"]).to_arrow()
    assert found.column_names == expected.column_names
    assert found["label"].to_pylist() == expected["label"].to_pylist()
    assert found["amount"].to_pylist() == expected["amount"].to_pylist()
    assert set(found["amount"].to_pylist()) > {None}


def test_text_in_a_csv_file_may_look_like_numbers(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "spine.csv").write_text(
        'shop,user_id,event_timestamp,note\nx,1,2026-03-09 00:00:00,""\n007,1,2026-03-09 12:00:00,\n'
    )
    (tmp_path / "numbers.csv").write_text("shop,user_id,event_timestamp\n007,1,2026-03-09 00:00:00\n")
    for file in ("spine.csv", "numbers.csv"):
        found, expected = (
            store.get_historical_features(tmp_path / file, ["moving:p30d"], engine=engine).to_arrow()
            for engine in ("spark", "local")
        )
        columns = [name for name in expected.column_names if name != "event_timestamp"]  # with a zone, and without
        same(found.select(columns), expected.select(columns))
        assert "007" in found["shop"].to_pylist() and found["p30d"][0].as_py() is not None


def test_entity_rows_are_a_select_over_sources(store: FeatureStore) -> None:
    sql = "SELECT user_id, at AS event_timestamp, seen_at, price AS paid FROM batch WHERE user_id = 2"
    order = [("event_timestamp", "ascending"), ("seen_at", "ascending"), ("paid", "ascending")]
    found, expected = (
        store.get_historical_features(sql, ["plain:amount"], engine=engine).to_arrow().sort_by(order)
        for engine in ("spark", "local")
    )
    assert found.num_rows > 10
    same(found, expected)


def test_executors_write_the_answer(store: FeatureStore, tmp_path: Path) -> None:
    table = entities(500).slice(0, 500)
    job = store.get_historical_features(table, ["plain:amount", "latest:kind"], engine="spark")
    job.to_file(tmp_path / "training")
    found = pq.read_table(tmp_path / "training").sort_by("label")
    expected = store.get_historical_features(table, ["plain:amount", "latest:kind"])
    same(found, expected.to_arrow().sort_by("label"))
    with pytest.raises(InvalidInputError, match="there is already something at"):
        job.to_file(tmp_path / "training")
    job.to_file(tmp_path / "one.parquet")
    assert b"feature_store" in pq.read_schema(tmp_path / "one.parquet").metadata
    frame = job.to_spark_df()
    assert frame.columns == expected.to_arrow().column_names
    assert sorted(row["label"] for row in frame.collect()) == sorted(table["label"].to_pylist())


def test_nothing_is_asked(store: FeatureStore) -> None:
    job = store.get_historical_features(entities().slice(0, 0), "everything", engine="spark", as_known=True)
    expected = store.get_historical_features(entities().slice(0, 0), "everything", as_known=True)
    assert job.to_arrow().num_rows == 0
    assert job.to_arrow().column_names == expected.to_arrow().column_names
    assert job.metadata == expected.metadata


def _without_time(table: pa.Table) -> pa.Table:
    times = table["event_timestamp"].to_pylist()
    return table.set_column(3, "event_timestamp", pa.array([None, *times[1:]], INSTANT))


@pytest.mark.parametrize(
    ("change", "features", "words"),
    [
        (lambda t: t.drop_columns(["user_id"]), ["latest"], 'no column "user_id"'),
        (lambda t: t.drop_columns(["event_timestamp"]), ["latest"], 'no column "event_timestamp"'),
        (lambda t: t.drop_columns(["bid"]), ["mixed"], 'no column "bid"'),
        (lambda t: t.append_column("kind", t["label"]), ["latest"], 'already have a column "kind"'),
        (_without_time, ["latest:price"], "has no event_timestamp"),
        (lambda t: t.set_column(1, "user_id", t["label"]), ["latest:price"], 'column "user_id" wants INT64'),
        (
            lambda t: t.set_column(5, "count", pa.array([2**63 - 1] * t.num_rows)),
            ["again:more"],
            "overflow.* in again:more, row 0",
        ),
    ],
)
def test_what_is_wrong_with_entity_rows_is_said(
    store: FeatureStore, change: Callable[[pa.Table], pa.Table], features: list[str], words: str
) -> None:
    for engine in ("spark", "local"):
        with pytest.raises(InvalidInputError, match=words):
            store.get_historical_features(change(entities(5)), features, engine=engine).to_arrow()


@pytest.mark.parametrize("features", [["plain:amount"], ["moving:c7d", "moving:l3"]])
def test_a_key_of_very_many_rows_is_spread(store: FeatureStore, features: list[str]) -> None:
    """The answers of the user who asks most come from one partition, and with a smaller measure from several."""
    engine: Any = store._engine("spark")
    rows = entities(200).slice(0, 200)
    rows = rows.set_column(1, "user_id", pa.array([1] * 200)).set_column(2, "shop", pa.array(["x"] * 200))
    expected = store.get_historical_features(rows, features).to_arrow().select(["label", *_names(features)])
    conf = {"spark.sql.adaptive.coalescePartitions.enabled": "false", "spark.sql.shuffle.partitions": "4"}
    try:
        for name, value in conf.items():
            engine.session.conf.set(name, value)
        for spread, apart in ((Spread(), False), (Spread(rows=30, one_in=1, slices=8), True)):
            engine.spread = spread
            frame = store.get_historical_features(rows, features, engine="spark").to_spark_df()
            found = collected(frame.selectExpr("label", *_names(features), "spark_partition_id() AS place"))
            assert (len(set(found["place"].to_pylist())) > 1) is apart
            same(found.drop_columns(["place"]).sort_by("label"), expected.sort_by("label"))
    finally:
        engine.spread = Spread()
        for name in conf:
            engine.session.conf.unset(name)


def _names(features: list[str]) -> list[str]:
    return [each.partition(":")[2] for each in features]


def test_spark_is_asked_for_by_name(store: FeatureStore, spark_engine: SparkEngine) -> None:
    with pytest.raises(InvalidInputError, match=r"to_spark_df\(\) needs a retrieval by the Spark engine"):
        store.get_historical_features(entities(3), ["plain"]).to_spark_df()
    frame = spark_engine.session.range(3)
    with pytest.raises(InvalidInputError, match="a Spark DataFrame stays on Spark"):
        store.get_historical_features(frame, ["plain"]).to_arrow()
    with pytest.raises(SourceError, match="there is no file"):
        store.get_historical_features("nowhere.parquet", ["plain"], engine="spark").to_arrow()
