"""A repository to break: its data, `fs` as a process of its own, and what can be seen in its online store."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store import FeatureStore
from feature_store.definitions.catalog import BoundView
from feature_store.definitions.tables import (
    is_snapshot,
    latest_table,
    marker_key,
    marker_table,
    snapshot_table,
    tile_table,
)
from feature_store.expressions.instants import DAY, instant
from feature_store.expressions.relations import LatestRow, Windows
from feature_store.storage.online import CREATED, EVENT_TIME, ITEM, Row

FS = str(Path(sys.executable).parent / "fs")
_PROGRESS = re.compile(r"\w+: \d+/\d+, [\d,]+ rows")
START, END = "2023-01-01T00:00:00Z", "2024-04-20T12:34:56Z"
DAYS = 6
"""Snapshots of the query to take."""

RUNS = (
    ("materialize", START, END, "-v", "c_daily", "-v", "b_moving", "-v", "a_latest"),
    ("materialize", "2024-04-14T12:34:56Z", END, "-v", "d_queried"),
)
"""All views: an explicit run of the query from START on would take a snapshot for each of 474 days."""

DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: events, path: data/events, timestamp: at, created: seen_at, unique: [id], stream: {push: true}}
---
source: {name: batch_events, path: data/events, timestamp: at, created: seen_at}
---
feature_views:
  - name: a_latest
    entities: [user]
    source: events
    features: [{name: price, type: FLOAT64}, {name: kind, type: STRING}]
    ttl: 30d
  - name: b_moving
    entities: [user]
    source: events
    aggregations:
      - {name: c1h, function: count, window: 1h}
      - {name: s7d, function: sum, column: item, window: 7d}
      - {name: p400d, function: mean, column: price, window: 400d, where: "kind = 'a'"}
  - name: c_daily
    entities: [user]
    source: batch_events
    schedule: daily
    aggregations: [{name: dc400d, function: count, window: 400d}]
  - name: d_queried
    entities: [user]
    schedule: daily
    sql: |
      SELECT user_id, COUNT(*) AS n, MAX(item) AS most FROM batch_events
      WHERE at < date_add('${date}', 1) GROUP BY user_id
    features: [{name: n, type: INT64}, {name: most, type: INT64}]
---
feature_service: {name: everything, features: [a_latest, b_moving, c_daily, d_queried]}
"""


def make(root: Path, online: str = "sqlite:///data/online.db", definitions: str = DEFINITIONS, **settings: str) -> Path:
    """A repository without data; its folder."""
    (root / "data" / "events").mkdir(parents=True)
    lines = {"project": "broken", "online_store": online, **settings}
    (root / "feature_store.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    (root / "features.yaml").write_text(definitions)
    return root


def events(count: int, users: int, seed: int = 0, since: str = START, until: str = END) -> pa.Table:
    """Events at random times; later parts of an equal seed are the same."""
    random = np.random.default_rng(seed)
    at = random.integers(instant(since), instant(until), count)
    instants = pa.timestamp("us", "UTC")
    return pa.table(
        {
            "id": pa.array(np.arange(count) + seed * 1_000_000),
            "user_id": pa.array(random.integers(0, users, count)),
            "at": pa.array(at).cast(instants),
            "seen_at": pa.array(at + random.integers(0, DAY, count)).cast(instants),
            "price": pa.array(np.round(random.random(count) * 100, 2)),
            "item": pa.array(random.integers(0, 50, count)),
            "kind": pa.array(random.choice(["a", "b", "c"], count)),
        }
    )


def add(root: Path, name: str, rows: pa.Table) -> Path:
    """Put rows into a file of the events."""
    path = root / "data" / "events" / f"{name}.parquet"
    pq.write_table(rows, path)
    return path


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [FS, "-c", str(root), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def fs(root: Path, *arguments: str, code: int = 0) -> str:
    """Run a command to its end; what it wrote. An error is one line, the last, behind lines of progress."""
    process = start(root, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    return out + (error_of(err) if code else err)


def error_of(err: str) -> str:
    """The line that says what was wrong; nothing but progress, and what Delta's driver says of itself, is beside it."""
    lines = [line for line in err.splitlines() if line and not _PROGRESS.fullmatch(line)]
    begins = next((index for index, line in enumerate(lines) if line.startswith("error: ")), len(lines))
    assert begins == len(lines) - 1, err
    assert begins == 0 or "tokio" in lines[0], err
    assert "fault of feature_store" not in err, err
    return lines[-1]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.002)


def visible(store: FeatureStore) -> dict[str, Any]:
    """All that a reader of the online store can see, by view: rows, tiles, and of the snapshots the one published."""
    return {name: _visible(store, bound) for name, bound in store.catalog.views.items()}


def _visible(store: FeatureStore, bound: BoundView) -> Any:
    if isinstance(bound.relation, LatestRow):
        return _rows(store, latest_table(bound))
    if not is_snapshot(bound):
        assert isinstance(bound.relation, Windows)
        return {hop: _rows(store, tile_table(bound, hop)) for hop in bound.relation.levels}
    marker = store.online_store.read([(marker_table(bound), [marker_key(bound)])])[0][0]
    if not isinstance(marker, Row):
        return None
    item = (marker.values[0] + 2**63).to_bytes(8, "big")
    published = [row for row in store.online_store.scan(snapshot_table(bound)) for row in row.to_pylist()]
    kept = [{k: v for k, v in row.items() if k not in (ITEM, CREATED)} for row in published if row[ITEM] == item]
    return marker.event_time, sorted(kept, key=lambda row: row["user_id"])


def _rows(store: FeatureStore, table: Any) -> list[dict[str, Any]]:
    found = [row for batch in store.online_store.scan(table) for row in batch.to_pylist()]
    return sorted(found, key=lambda row: (row["user_id"], row.get(ITEM, b""), row[EVENT_TIME]))
