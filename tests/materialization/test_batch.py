"""Runs over a repository whose files, views and snapshots come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from feature_store import FeatureStore
from feature_store.expressions.instants import instant
from feature_store.materialization.batch import _with_step
from feature_store.materialization.steps import LatestStep, chunk_of

DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: events, path: events, timestamp: at, created: seen_at}
---
feature_views:
  - name: other
    entities: [user]
    source: events
    features: [{name: price, type: INT64}]
"""
DAILY = """
  - name: daily
    entities: [user]
    source: events
    schedule: daily
    aggregations: [{name: n7d, function: count, window: 7d}]
"""
QUERIED = """
  - name: queried
    entities: [user]
    schedule: daily
    sql: |
      SELECT user_id, COUNT(*) AS n FROM events
      WHERE at >= '${date}' AND at < date_add('${date}', 1) GROUP BY user_id
    features: [{name: n, type: INT64}]
"""
END = "2026-03-05T12:00:00Z"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "events").mkdir()
    (tmp_path / "feature_store.yaml").write_text("project: runs\n")
    write(tmp_path, "first", ("2026-03-04T10:00:00Z", "2026-03-04T10:00:00Z"))
    return tmp_path


def write(root: Path, name: str, *times: tuple[str, str]) -> Path:
    """A file of events of user 1: (event time, created)."""
    at, seen = (pd.to_datetime([each[n] for each in times], utc=True) for n in (0, 1))
    path = root / "events" / f"{name}.parquet"
    pd.DataFrame({"user_id": 1, "at": at, "seen_at": seen, "price": 7}).to_parquet(path)
    return path


def applied(root: Path, views: str, **options: Any) -> FeatureStore:
    (root / "views.yaml").write_text(DEFINITIONS + views)
    store = FeatureStore(root)
    store.apply(**options)
    return store


def served(store: FeatureStore, feature: str, at: str = END) -> Any:
    return store.online.get([feature], {"user_id": [1]}, now=instant(at)).to_dict()[feature.partition(":")[2]][0]


def history(store: FeatureStore, at: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    spine = pd.DataFrame({"user_id": [1], "event_timestamp": [pd.Timestamp(at)]})
    job = store.get_historical_features(spine, ["queried:n"], **options)
    return job.to_arrow()["n"][0].as_py(), job.metadata


@pytest.mark.parametrize(("views", "feature"), [(DAILY, "daily:n7d"), (QUERIED, "queried:n")])
def test_a_view_that_was_dropped_and_made_again_serves_its_own_snapshots(root: Path, views: str, feature: str) -> None:
    """One that is older than what was served before it was dropped, too."""
    store = applied(root, views)
    store.materialize("2026-03-05T00:00:00Z", END)
    assert served(store, feature) == 1
    store = applied(root, "", allow_destructive=True)
    store = applied(root, views)
    assert served(store, feature) in (0, None)
    write(root, "earlier", ("2026-03-02T10:00:00Z", "2026-03-02T10:00:00Z"))
    store.materialize("2026-03-03T00:00:00Z", "2026-03-03T12:00:00Z")
    assert served(store, feature, "2026-03-03T12:00:00Z") == 1
    store.teardown()
    store.close()


def test_a_snapshot_is_taken_anew_where_a_file_is_gone(root: Path) -> None:
    store = applied(root, DAILY)
    gone = write(root, "second", ("2026-03-04T11:00:00Z", "2026-03-04T11:00:00Z"))
    store.materialize_incremental(END)
    assert served(store, "daily:n7d") == 2
    gone.unlink()
    assert store.materialize_incremental(END) > 0
    assert served(store, "daily:n7d") == 1
    assert store.materialize_incremental(END) == 0
    store.close()


def test_a_snapshot_of_no_rows_is_kept_too(root: Path) -> None:
    """What arrives after it was served changes it no more than one of many rows."""
    store = applied(root, QUERIED)
    store.materialize("2026-03-02T00:00:00Z", END)
    write(root, "late", ("2026-03-02T10:00:00Z", "2026-03-05T10:00:00Z"))
    found, metadata = history(store, "2026-03-03T12:00:00Z")
    assert (found, metadata["computed_snapshots"]) == (None, {})
    found, metadata = history(store, "2026-03-03T12:00:00Z", as_known=True)
    assert (found, metadata["computed_snapshots"], metadata["hidden"]) == (None, {}, {"queried": 0})
    store.close()


def test_only_empty_snapshots_are_kept_as_well(root: Path) -> None:
    store = applied(root, QUERIED)
    store.materialize("2026-03-02T00:00:00Z", "2026-03-03T12:00:00Z")
    write(root, "late", ("2026-03-02T10:00:00Z", "2026-03-05T10:00:00Z"))
    found, metadata = history(store, "2026-03-03T12:00:00Z")
    assert (found, metadata["computed_snapshots"]) == (None, {})
    store.close()


def test_a_missing_snapshot_is_computed_over_what_was_known_at_its_boundary(root: Path) -> None:
    write(
        root,
        "more",
        ("2026-03-04T11:00:00Z", "2026-03-04T23:59:59Z"),
        ("2026-03-04T12:00:00Z", "2026-03-05T00:00:00Z"),
        ("2026-03-04T13:00:00Z", "2026-03-05T00:00:01Z"),  # known before T, not when the snapshot was due
        ("2026-03-04T14:00:00Z", "2026-03-06T00:00:00Z"),
        ("2026-03-05T14:00:00Z", "2026-03-05T14:00:00Z"),  # had not happened
    )
    store = applied(root, QUERIED)
    boundary = instant("2026-03-05T00:00:00Z")
    found, metadata = history(store, "2026-03-05T18:00:00Z")
    assert (found, metadata["computed_snapshots"], metadata["hidden"]) == (5, {"queried": [boundary]}, {})
    found, metadata = history(store, "2026-03-05T18:00:00Z", as_known=True)
    assert (found, metadata["computed_snapshots"], metadata["hidden"]) == (3, {"queried": [boundary]}, {"queried": 2})
    store.materialize("2026-03-05T00:00:00Z", END)
    assert history(store, "2026-03-05T18:00:00Z", as_known=True)[0] == 5  # as it was served
    store.close()


def test_what_a_run_over_other_inputs_did_is_not_done(root: Path) -> None:
    """Of two runs that are both killed, the one that began later has read a file more."""
    store = applied(root, DAILY)
    bound = store.catalog.views["other"]
    materializer = store._materializer(None)
    first, second = {"a": "1"}, {"a": "1", "b": "1"}
    one, two = LatestStep(None, 1), LatestStep(2, 3)
    materializer.save(bound, lambda p: _with_step(p, one, first))
    materializer.save(bound, lambda p: _with_step(p, two, second))
    kept = materializer.progress(bound)
    assert (kept.done, kept.running) == ((chunk_of(two),), second)
    materializer.save(bound, lambda p: _with_step(p, one, second))
    assert set(materializer.progress(bound).done) == {chunk_of(one), chunk_of(two)}
    store.close()
