"""Events of a topic in tiles: any batches, read again from any offset, count each event once."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_store import FeatureStore
from feature_store.expressions.instants import DAY, HOUR, MINUTE
from feature_store.materialization.events import Events
from feature_store.materialization.stream_writer import StreamEvents, StreamWriter
from feature_store.types import TIMESTAMP

TEXT = """
entity: {{name: user, join_key: user_id, type: INT64}}
---
source:
  name: clicks
  timestamp: at
  unique: {unique}
  columns:
    - {{name: id, type: INT64}}
    - {{name: user_id, type: INT64}}
    - {{name: x, type: INT64}}
    - {{name: at, type: TIMESTAMP}}
  stream: {{kafka: {{topic: clicks}}}}
---
feature_view:
  name: counts
  entities: [user]
  source: clicks
  aggregations:
    - {{name: n, function: count, window: 1h}}
    - {{name: total, function: sum, column: x, window: 7d}}
"""


def store_of(folder: Path, unique: str, online: str = "sqlite:///data/online.db") -> FeatureStore:
    (folder / "feature_store.yaml").write_text(f"project: p\nonline_store: {online}\n")
    (folder / "views.yaml").write_text(TEXT.format(unique=unique))
    store = FeatureStore(folder)
    store.apply()
    return store


Placed = tuple[int, int, tuple[int, ...]]
"""Partition, offset, and the values of an event."""


def apply(writer: StreamWriter, store: FeatureStore, placed: list[Placed], now: int) -> None:
    rows = store.catalog.rows["clicks"]
    columns = list(zip(*(event for _, _, event in placed), strict=True))
    types = [pa.int64()] * 3 + [TIMESTAMP.arrow]
    arrays = [pa.array(column, pa.int64()).cast(type_) for column, type_ in zip(columns, types, strict=True)]
    table = pa.table(dict(zip(rows.schema.names, arrays, strict=True)))
    partitions, offsets = (np.array(column, np.int64) for column in list(zip(*placed, strict=True))[:2])
    writer.apply([store.catalog.views["counts"]], StreamEvents(Events(rows, table), partitions, offsets), now)


@pytest.fixture(params=["sqlite", "redis", "hbase", "tiered"])
def online(request: pytest.FixtureRequest) -> str:
    """The URI of an online store."""
    if request.param == "sqlite":
        return "sqlite:///data/online.db"
    urls = [request.getfixturevalue(name) for name in ("redis_url", "hbase_url") if name.startswith(request.param)]
    return urls[0] if urls else "|".join(["tiered:" + request.getfixturevalue("redis_url"), "sqlite:///data/slow.db"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("unique", ["[]", "[id]"])
def test_each_event_counts_once_whatever_is_read_again(tmp_path: Path, unique: str, online: str) -> None:
    store, random_ = store_of(tmp_path, unique, online), random.Random(7)
    now = time.time_ns() // 1000
    ages = [random_.choice([1, 10, 50, 500, 5_000]) * MINUTE for _ in range(200)]
    made = [(n, n % 3, n, now - age) for n, age in enumerate(ages)]
    if unique != "[]":
        made += [made[n] for n in random_.sample(range(200), 40)]  # the same event comes twice
    topic = [(number % 2, number // 2, event) for number, event in enumerate(made)]
    if unique != "[]":
        topic = [(0, number, event) for number, event in enumerate(made)]

    at = 0
    writer = StreamWriter(store.online_store, store.registry.streams)
    while at < len(topic):
        size = random_.randint(1, 40)
        apply(writer, store, topic[at : at + size], now)
        at += size
        if random_.random() < 0.3:  # killed, and started again at an earlier offset
            writer, at = StreamWriter(store.online_store, store.registry.streams), max(0, min(at, len(topic)) - 60)
    found = store.get_online_features(["counts:n", "counts:total"], [{"user_id": user} for user in range(3)]).to_dict()
    for user in range(3):
        mine = [event for event in made[:200] if event[1] == user]
        assert found["n"][user] == sum(now - event[3] <= 50 * MINUTE for event in mine)
        assert found["total"][user] == sum(event[2] for event in mine)
    store.close()


def test_an_event_counts_as_long_as_a_window_reaches_it(tmp_path: Path) -> None:
    """A window begins with a step: up to one more than its length ago."""
    store = store_of(tmp_path, "[]")
    now = 7 * DAY + 3 * MINUTE
    first = (now - 7 * DAY) // HOUR * HOUR
    writer = StreamWriter(store.online_store, store.registry.streams)
    apply(writer, store, [(0, 0, (1, 1, 10, first - 1)), (0, 1, (2, 1, 5, first))], now)
    found = store.online.get(["counts:total"], [{"user_id": 1}], now=now).to_dict()
    assert found["total"] == [5]
    store.close()


@pytest.mark.parametrize("looked", [True, False], ids=["seen between batches", "seen with a batch"])
def test_what_was_kept_goes_with_the_rows_that_the_store_has_lost(tmp_path: Path, looked: bool) -> None:
    """Else it would come back with the next event, and count again with what batch fills."""
    store = store_of(tmp_path, "[]")
    now = time.time_ns() // 1000
    writer = StreamWriter(store.online_store, store.registry.streams)
    apply(writer, store, [(0, 0, (1, 1, 10, now - 60))], now)
    store.clear_online("counts")
    if looked:
        assert writer.settle([store.catalog.views["counts"]], {0: 1})
    apply(writer, store, [(0, 1, (2, 1, 5, now - 50))], now)
    assert totals(store) == [5] and begins(store) == {0: 1}
    store.close()


@pytest.mark.parametrize("looked", [True, False], ids=["seen between batches", "seen with a batch"])
def test_a_batch_over_whose_writes_the_store_loses_its_rows_is_taken_back(tmp_path: Path, looked: bool) -> None:
    """It holds all that was kept of its tiles, which batch fills as well."""
    store = store_of(tmp_path, "[id]")
    now = time.time_ns() // 1000
    losing = Losing(store)
    writer = StreamWriter(losing, store.registry.streams)
    apply(writer, store, [(0, 0, (1, 1, 10, now - 60)), (0, 1, (2, 2, 7, now + MINUTE))], now)
    losing.next_read = True
    apply(writer, store, [(0, 2, (3, 1, 5, now - 50)), (0, 3, (4, 2, 2, now + MINUTE))], now)
    if looked:
        assert writer.settle([store.catalog.views["counts"]], {0: 4})
    apply(writer, store, [(0, 4, (5, 3, 1, now - 40))], now)
    assert totals(store, now + 2 * MINUTE) == [0, 0, 1] and begins(store) == {0: 4}
    store.close()


def test_partitions_begin_anew_one_after_the_other_as_their_events_come(tmp_path: Path) -> None:
    """What was written of the first since the loss stays when the second learns of it."""
    store = store_of(tmp_path, "[]")
    now = time.time_ns() // 1000
    writer = StreamWriter(store.online_store, store.registry.streams)
    apply(writer, store, [(0, 0, (1, 1, 10, now - 60)), (1, 0, (2, 2, 10, now - 60))], now)
    store.clear_online("counts")
    apply(writer, store, [(0, 1, (3, 1, 5, now - 50))], now)
    apply(writer, store, [(1, 1, (4, 2, 7, now - 40))], now)
    assert totals(store) == [5, 7] and begins(store) == {0: 1, 1: 1}
    store.close()


class Losing:
    """A store that loses all rows behind one read, as a server does that is started again without a copy."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.next_read = store, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store.online_store, name)

    def read(self, requests: Any) -> Any:
        answers = self.store.online_store.read(requests)
        if self.next_read:
            self.next_read = False
            self.store.clear_online("counts")
        return answers


def totals(store: FeatureStore, at: int | None = None) -> list[int | None]:
    users = [{"user_id": user} for user in (1, 2, 3)]
    found = store.online.get(["counts:total"], users, now=at or time.time_ns() // 1000).to_dict()["total"]
    return [value for value in found if value is not None] if at is None else [value or 0 for value in found]


def begins(store: FeatureStore) -> dict[int, int]:
    view = store.catalog.views["counts"]
    return {part: claim.begin for part, claim in store.registry.streams.claims("counts", view.version).items()}
