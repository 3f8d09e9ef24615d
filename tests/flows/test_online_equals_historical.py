"""The product in one property: for every (rows, T), online(T) = historical(T) = what the contract says.

Rows of generated repositories arrive in any order, by files, late files, pushes (each of them repeated) and messages of
a stream (repeated, and read again by a worker that follows one that died), between runs of materialize and
materialize-incremental; then every feature, value and status, is compared at T with a
brute-force oracle, read online and historically.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_store import FeatureStore
from feature_store.engines.streams import Messages, TopicId
from feature_store.pipelines.stream_task import StreamTask
from tests.oracle import Event, Seen, agrees, latest, windowed

pytestmark = pytest.mark.timeout(600)

DAY, HOUR, MINUTE = 86_400_000_000, 3_600_000_000, 60_000_000
START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
USERS = (1, 2, 3)
UNKNOWN = 99

REPO = """
entity: {name: user, join_key: user_id, type: INT64}
---
source:
  name: events
  path: data/events
  timestamp: at
  created: seen_at
  columns:
    - {name: id, type: INT64}
    - {name: user_id, type: INT64}
    - {name: at, type: TIMESTAMP}
    - {name: seen_at, type: TIMESTAMP}
    - {name: price, type: FLOAT64}
    - {name: item, type: INT64}
    - {name: kind, type: STRING}
  unique: [id]
  stream: {push: true, kafka: {topic: events}}
---
source:
  name: batch_events
  path: data/events
  timestamp: at
  created: seen_at
---
source:
  name: changes
  path: data/events
  timestamp: at
  created: seen_at
  deleted: gone
  stream: {push: true, kafka: {topic: changes}}
---
feature_views:
  - name: present
    entities: [user]
    source: changes
    features: [{name: last_item, type: INT64, column: item, default: -9}]
    ttl: 9d
  - name: latest
    entities: [user]
    source: events
    features: [{name: price, type: FLOAT64}, {name: kind, type: STRING, default: none}]
    ttl: 3d
  - name: moving
    entities: [user]
    source: events
    aggregations:
      - {name: c1h, function: count, window: 1h}
      - {name: c7d, function: count, window: 7d, where: "kind = 'a'"}
      - {name: s7d, function: sum, column: item, window: 7d}
      - {name: p30d, function: mean, column: price, window: 30d, default: -1.0}
      - {name: v30d, function: variance, column: price, window: 30d}
      - {name: l3, function: last_n(3), column: item, window: 7d}
      - {name: d30, function: count_distinct, column: kind, window: 30d}
      - {name: first7, function: first, column: item, window: 7d}
      - {name: top, function: max, column: kind, window: 1h}
  - name: daily
    entities: [user]
    source: batch_events
    schedule: daily
    aggregations:
      - {name: dc7d, function: count, window: 7d}
      - {name: dp7d, function: sum, column: price, window: 7d}
  - name: queried
    entities: [user]
    schedule: daily
    sql: |
      SELECT user_id, COUNT(*) AS n, MAX(item) AS most FROM batch_events
      WHERE at >= date_sub('${date}', 6) AND at < date_add('${date}', 1) GROUP BY user_id
    features: [{name: n, type: INT64}, {name: most, type: INT64, default: 0}]
"""
SERVICE = """
---
on_demand_feature_view:
  name: mixed
  inputs: [{request: [{name: bid, type: FLOAT64}]}, moving, latest]
  features:
    - {name: rate, type: FLOAT64, expression: "c1h / c7d", default: 0.5}
    - {name: worth, type: FLOAT64, expression: "price * bid"}
---
feature_service: {name: everything, features: [present, latest, moving, daily, queried, mixed]}
"""


@dataclass(frozen=True)
class Row:
    id: int
    user: int
    at: int
    lag: int
    price: float | None
    item: int | None
    kind: str | None
    gone: bool | None
    batch: int  # 0..2: the file it comes in; 3: pushed; 4: streamed

    @property
    def seen_at(self) -> int:
        return self.at + self.lag


rows = st.lists(
    st.builds(
        lambda user, step, fine, lag, price, item, kind, gone, batch: Row(
            0, user, START + step * HOUR + fine, lag * MINUTE, price, item, kind, gone, batch
        ),
        st.sampled_from(USERS),
        st.integers(0, 40 * 24),
        st.sampled_from([0, 0, 1, 299_999_999, 300_000_000, HOUR - 1]),
        st.sampled_from([0, 1, 600]),
        st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(float("nan"))),
        st.one_of(st.none(), st.integers(-5, 5)),
        st.one_of(st.none(), st.sampled_from(["a", "b", "Ä", ""])),
        st.sampled_from([None, False, True]),
        st.integers(0, 4),
    ),
    max_size=25,
).map(
    lambda found: [Row(i, *(getattr(r, f) for f in Row.__dataclass_fields__ if f != "id")) for i, r in enumerate(found)]
)


@given(rows, st.integers(1, 41 * 24), st.sampled_from([0, 1, HOUR // 2, 300_000_000]), st.permutations([0, 1, 2, 3, 4]))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_sqlite(found: list[Row], step: int, fine: int, order: list[int]) -> None:
    check(found, START + step * HOUR + fine, order, "sqlite:///data/online.db")


@given(rows, st.integers(1, 41 * 24), st.sampled_from([0, 1, HOUR // 2]), st.permutations([0, 1, 2, 3, 4]))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_redis(redis_url: str, found: list[Row], step: int, fine: int, order: list[int]) -> None:
    check(found, START + step * HOUR + fine, order, redis_url)


def check(found: list[Row], at: int, order: list[int], online: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = _repository(Path(folder), online)
        try:
            arrived = [row for row in found if row.at <= at]
            _arrive(store, Path(folder), arrived, order, at)
            _compare(store, arrived, at)
        finally:
            store.teardown()
            store.close()


def _repository(root: Path, online: str) -> FeatureStore:
    (root / "data" / "events").mkdir(parents=True)
    _write(root, "empty", [])
    (root / "feature_store.yaml").write_text(f"project: flow\nonline_store: {online}\n")
    (root / "features.yaml").write_text(REPO + SERVICE)
    store = FeatureStore(root)
    store.apply()
    return store


def _arrive(store: FeatureStore, root: Path, found: list[Row], order: list[int], at: int) -> None:
    """Files and pushes come in some order; after each, something is materialized; at last everything up to T."""
    for turn, batch in enumerate(order):
        part = [row for row in found if row.batch == batch]
        if batch < 3:
            _write(root, f"part{batch}", part)
        if batch == 3 and part:
            for _ in range(2):
                store.push("events", _table(part).drop_columns(["gone"]), to="online_and_offline")
                store.push("changes", _table(part), to="online_and_offline")
        if batch == 4:
            for source in ("events", "changes"):
                _stream(store, source, part, order, at)
        if turn == 0:
            store.materialize(_time(START), _time(max(START, at - 5 * DAY)))
        elif turn % 2:
            store.materialize_incremental(_time(at - (4 - turn) * DAY))
    store.materialize_incremental(_time(at))


def _stream(store: FeatureStore, source: str, found: list[Row], order: list[int], at: int) -> None:
    """Each row as two messages of its partition, in an order of its own, taken in batches by workers of which all but
    the last die before they have landed anything."""
    rows = sorted([*found, *found], key=lambda row: (row.id * 7 + order[0]) % 5)
    topic = [Messages.of(_messages([row for row in rows if row.id % 2 == half]), half, produced=at) for half in (0, 1)]
    ranges = {half: (0, len(messages)) for half, messages in enumerate(topic)}
    for last in (False, True):
        task = StreamTask(store, source, "worker", clock=lambda: at)
        starts = task.assigned(TopicId(source), ranges, ranges)
        for half, messages in enumerate(topic):
            for first in range(starts[half], len(messages), 1 + order[1]):
                here = np.arange(first, min(first + 1 + order[1], len(messages)))
                assert not task.handle(messages.take(here))
                if not last and first > len(messages) // 2:
                    break
        (task.close if last else task.abandon)()


def _messages(found: list[Row]) -> list[bytes]:
    return [
        json.dumps(
            {
                "id": row.id,
                "user_id": row.user,
                "at": _time(row.at).isoformat(),
                "seen_at": _time(row.seen_at).isoformat(),
                "price": "NaN" if row.price != row.price else row.price,
                "item": row.item,
                "kind": row.kind,
                "gone": row.gone,
            }
        ).encode()
        for row in found
    ]


def _compare(store: FeatureStore, found: list[Row], at: int) -> None:
    users = [*USERS, UNKNOWN]
    names = [str(ref) for ref in store.catalog.resolve("everything")]
    response = store.online.get("everything", {"user_id": users, "bid": [2.0] * len(users)}, now=at)
    spine = pa.table(
        {
            "user_id": users,
            "bid": [2.0] * len(users),
            "event_timestamp": pa.array([at] * len(users), pa.timestamp("us", "UTC")),
        }
    )
    historical = store.get_historical_features(spine, "everything", statuses=True).to_arrow()
    for index, user in enumerate(users):
        expected = _expected([row for row in found if row.user == user], at)
        for name in names:
            feature = name.partition(":")[2]
            position = response.names.index(feature)
            online = response.cells[position][0][index], response.statuses(feature)[index].name
            past = historical[feature][index].as_py(), historical[f"{feature}__status"][index].as_py()
            for where, (value, status) in (("online", online), ("historical", past)):
                wanted, wanted_status = expected[feature]
                shown = f"{where} {name} of user {user}: {value!r} {status}, expected {wanted!r} {wanted_status}"
                assert status == wanted_status, shown
                assert _same(value, wanted), shown


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and wanted != wanted:
        return isinstance(value, float) and value != value
    return agrees(value, wanted, scale=1e6 if isinstance(wanted, float) else 0.0)


def _expected(found: list[Row], at: int) -> dict[str, tuple[Any, str]]:
    """Every feature of one user at T by the contract's words: pushed rows are no part of `batch_events`."""
    files = [row for row in found if row.batch < 3]
    midnight = at // DAY * DAY
    out: dict[str, tuple[Any, str]] = {}
    changes = [Seen(row.at, (row.item,), row.seen_at, bool(row.gone)) for row in found]
    how, last = latest(changes, at, 9 * DAY)
    item = last.values[0] if last and how == "FOUND" else None
    out["last_item"] = (-9, "NULL_VALUE" if how == "FOUND" else how) if item is None else (item, "PRESENT")
    price, kind = _latest(found, at)
    out["price"], out["kind"] = price, kind if kind[1] == "PRESENT" else ("none", kind[1])
    for name, function, column, length, hop, default in (
        ("c1h", "count", None, HOUR, 5 * MINUTE, None),
        ("s7d", "sum", "item", 7 * DAY, HOUR, None),
        ("p30d", "mean", "price", 30 * DAY, DAY, -1.0),
        ("v30d", "variance", "price", 30 * DAY, DAY, None),
        ("l3", "last_n", "item", 7 * DAY, HOUR, None),
        ("d30", "count_distinct", "kind", 30 * DAY, DAY, None),
        ("first7", "first", "item", 7 * DAY, HOUR, None),
        ("top", "max", "kind", HOUR, 5 * MINUTE, None),
    ):
        out[name] = _window(found, function, column, at, length, hop, default)
    out["c7d"] = _window([row for row in found if row.kind == "a"], "count", None, at, 7 * DAY, HOUR, None)
    out["dc7d"] = _window(files, "count", None, midnight, 7 * DAY, HOUR, None)
    out["dp7d"] = _window(files, "sum", "price", midnight, 7 * DAY, HOUR, None)
    week = [row for row in files if midnight - 7 * DAY <= row.at < midnight]
    items = [row.item for row in week if row.item is not None]
    out["n"] = (len(week), "PRESENT") if week else (None, "NOT_FOUND")
    most = max(items) if items else 0
    out["most"] = (most, "PRESENT" if items else "NULL_VALUE" if week else "NOT_FOUND")
    c1h, c7d = out["c1h"][0], out["c7d"][0]
    out["rate"] = (c1h / c7d, "PRESENT") if c7d else (0.5, "NULL_VALUE")
    out["worth"] = (price[0] * 2.0, "PRESENT") if price[0] is not None else (None, "NULL_VALUE")
    return out


def _latest(found: list[Row], at: int) -> list[tuple[Any, str]]:
    seen = [Seen(row.at, (_ordered(row.price), row.kind), row.seen_at) for row in found]
    kind, row = latest(seen, at, 3 * DAY)
    if kind != "FOUND" or row is None:
        return [(None, kind)] * 2
    values = (None if row.values[0] is None else row.values[0][1], row.values[1])
    return [(value, "NULL_VALUE" if value is None else "PRESENT") for value in values]


def _ordered(value: float | None) -> tuple[bool, float] | None:
    """NaN is the greatest."""
    return None if value is None else (value != value, value if value == value else float("nan"))


def _window(found: list[Row], function: str, column: str | None, at: int, length: int, hop: int, default: Any) -> Any:
    events = [Event(row.at, getattr(row, column) if column else 1, row.seen_at) for row in found]
    value = windowed(function, events, at, length, hop, 3 if function == "last_n" else None, rows=column is None)
    return (default, "NULL_VALUE") if value is None else (value, "PRESENT")


def _write(root: Path, name: str, found: list[Row]) -> None:
    pq.write_table(_table(found), root / "data" / "events" / f"{name}.parquet")


def _table(found: list[Row]) -> pa.Table:
    instants = pa.timestamp("us", "UTC")
    return pa.table(
        {
            "id": pa.array([row.id for row in found], pa.int64()),
            "user_id": pa.array([row.user for row in found], pa.int64()),
            "at": pa.array([row.at for row in found], instants),
            "seen_at": pa.array([row.seen_at for row in found], instants),
            "price": pa.array([row.price for row in found], pa.float64()),
            "item": pa.array([row.item for row in found], pa.int64()),
            "kind": pa.array([row.kind for row in found], pa.string()),
            "gone": pa.array([row.gone for row in found], pa.bool_()),
        }
    )


def _time(micros: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


if __name__ == "__main__":
    pytest.main([__file__])
