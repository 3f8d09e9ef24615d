"""The forms in which the answer of a historical retrieval can be had."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from feature_store import FeatureStore
from feature_store.errors import MissingExtraError

DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: users, path: users.csv, timestamp: updated_at}
---
feature_view: {name: profile, entities: [user], source: users, features: [{name: city, type: STRING}]}
"""
SPINE = pa.table({
    "user_id": [2, 1, 2],
    "event_timestamp": pa.array([datetime(2026, 1, 2, tzinfo=UTC)] * 3, pa.timestamp("us", "UTC")),
})  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    (tmp_path / "features.yaml").write_text(DEFINITIONS)
    (tmp_path / "users.csv").write_text("user_id,city,updated_at\n1,Wien,2026-01-01\n")
    store = FeatureStore(tmp_path)
    store.apply()
    yield store
    store.close()


def test_a_polars_frame(store: FeatureStore) -> None:
    found = store.get_historical_features(SPINE, ["profile:city"]).to_polars()
    assert isinstance(found, pl.DataFrame)
    assert found.schema == {"user_id": pl.Int64, "event_timestamp": pl.Datetime("us", "UTC"), "city": pl.String}
    assert found.select("user_id", "city").rows() == [(2, None), (1, "Wien"), (2, None)]


@pytest.mark.parametrize(("library", "form"), [("polars", "to_polars"), ("pandas", "to_df")])
def test_a_missing_library_names_the_extra(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, library: str, form: str
) -> None:
    job = store.get_historical_features(SPINE, ["profile:city"])
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"{form}\(\) needs the extra \[{library}\]") as caught:
        getattr(job, form)()
    assert caught.value.hint == f"Run: pip install 'feature_store[{library}]'"
