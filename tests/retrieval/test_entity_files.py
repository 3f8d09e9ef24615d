"""Entity rows in files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store import Entity, FeatureStore, FeatureView, Field, Source


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    (tmp_path / "feature_store.yaml").write_text("project: shops\n")
    at = pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 2, pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"zip": ["00501", "501"], "at": at, "shops": [7, 9]}), tmp_path / "shops.parquet")
    store = FeatureStore(tmp_path)
    store.apply(
        [
            Entity(name="area", join_key="zip", type="STRING"),
            Source(name="counted", path="shops.parquet", timestamp="at"),
            FeatureView(
                name="areas", entities=["area"], source="counted", features=[Field(name="shops", type="INT64")]
            ),
        ]
    )
    return store


def test_a_key_of_digits_in_csv_is_the_text_it_is(store: FeatureStore) -> None:
    path = store.root / "entities.csv"
    path.write_text("zip,event_timestamp,row\n00501,2024-02-01T00:00:00Z,1\n501,2024-02-01T00:00:00Z,2\n")
    answer = store.get_historical_features(path, ["areas:shops"]).to_arrow()
    assert answer["zip"].to_pylist() == ["00501", "501"]
    assert answer["shops"].to_pylist() == [7, 9]
    assert answer["row"].to_pylist() == [1, 2]


def test_a_store_says_where_it_is(store: FeatureStore) -> None:
    assert repr(store) == f"<FeatureStore in {store.root}>"
