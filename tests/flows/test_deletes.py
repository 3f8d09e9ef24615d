"""A table of a database as features: of its changes, as Debezium tells them, the last one is seen, at every time.

Users come, change, go and come again; changes come in any order, and some twice.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_store import FeatureStore
from feature_store.definitions.tables import stream_log
from feature_store.engines.scans import OFFSET, PARTITION
from feature_store.expressions.instants import DAY, MINUTE, instant
from feature_store.materialization.events import Events
from feature_store.materialization.messages import Decoder
from feature_store.materialization.stream_writer import StreamEvents, StreamWriter

START = instant("2026-02-01T00:00:00Z")
USERS = 12
TEXT = """
entity: {name: user, join_key: user_id, type: INT64}
---
source:
  name: users
  timestamp: __source_ts_ms
  deleted: __deleted
  columns:
    - {name: user_id, type: INT64}
    - {name: country, type: STRING}
    - {name: __deleted, type: BOOL}
    - {name: __source_ts_ms, type: TIMESTAMP}
  stream: {push: true, kafka: {topic: users, envelope: debezium}}
---
feature_view:
  name: profile
  entities: [user]
  source: users
  features: [{name: country, type: STRING, default: nowhere}, {name: code, type: STRING, expression: "upper(country)"}]
"""


@dataclass(frozen=True)
class Change:
    """`country` is None where the user is deleted."""

    user: int | None
    at: int
    country: str | None

    @property
    def message(self) -> bytes:
        row = {"user_id": self.user, "country": self.country}
        op, before, after = ("d", row, None) if self.country is None else ("u", None, row)
        told = {"before": before, "after": after, "op": op, "source": {"ts_ms": self.at // 1000}}
        return json.dumps(told).encode()


def changes(rng: random.Random) -> list[Change]:
    """No two of a user at one time."""
    times = [START + n * MINUTE for n in range(240)]
    made = [Change(rng.randrange(USERS), at, rng.choice(["de", "cn", "br", None])) for at in times]
    return [*made, Change(None, START, "xx")]  # a row that has no key is nobody's


def store_of(root: Path, online: str) -> FeatureStore:
    (root / "feature_store.yaml").write_text(f"project: p\nonline_store: '{online}'\n")
    (root / "views.yaml").write_text(TEXT)
    store = FeatureStore(root)
    store.apply()
    return store


def stream(store: FeatureStore, told: list[Change], log: bool = False) -> None:
    """Reads changes as the messages of a topic: into the log, and unless that is all online, in batches of which some
    come twice."""
    source, rows = store.catalog.sources["users"], store.catalog.rows["users"]
    decoder, writer = Decoder(source, rows, None, None), StreamWriter(store.online_store, store.registry.streams)
    rng, now, at = random.Random(3), START + 10 * DAY, 0
    while at < len(told):
        messages = [each.message for each in told[at : at + rng.randint(1, 60)]]
        decoded = decoder.decode([*messages, None], np.full(len(messages) + 1, now), now)
        assert decoded.bad == ()
        offsets, partitions = decoded.places + at, np.zeros(len(messages), np.int64)
        logged = decoded.rows.append_column(PARTITION, pa.array(partitions, pa.int32()))
        store.offline_store.append(stream_log("users"), logged.append_column(OFFSET, pa.array(offsets)))
        events = StreamEvents(Events(rows, decoded.rows), partitions, offsets)
        for _ in range(0 if log else rng.randint(1, 2)):
            writer.apply([store.catalog.views["profile"]], events, now)
        at += len(messages)


def expected(made: list[Change], user: int, at: int) -> str | None:
    known = [each for each in made if each.user == user and each.at <= at]
    return max(known, key=lambda each: each.at).country if known else None


def check(store: FeatureStore, made: list[Change], end: int) -> None:
    times = [START - 1, *(START + n * 9 * MINUTE + n % 2 for n in range(27)), end]
    asked = [(user, at) for user in range(USERS + 1) for at in times]
    spine = {
        "user_id": [user for user, _ in asked],
        "event_timestamp": pa.array([at for _, at in asked], pa.timestamp("us", "UTC")),
    }
    refs = ["profile:country", "profile:code"]
    past = store.get_historical_features(pa.table(spine), refs, statuses=True).to_arrow().to_pylist()
    for (user, at), row in zip(asked, past, strict=True):
        country = expected(made, user, at)
        answer: dict[str, Any] = {name: row[name] for name in ("country", "code", "country__status", "code__status")}
        assert answer == _answer(country), (user, at)
    online = store.online.get(refs, {"user_id": [*range(USERS + 1)]}, now=end)
    for user in range(USERS + 1):
        for one in (online, store.online.get(refs, {"user_id": [user]}, now=end)):
            row = user if one is online else 0
            found = {name: list(one.to_dict()[name])[row] for name in ("country", "code")}
            found |= {f"{name}__status": one.statuses(name)[row].name for name in ("country", "code")}
            assert found == _answer(expected(made, user, end)), user


def _answer(country: str | None) -> dict[str, Any]:
    status = "NOT_FOUND" if country is None else "PRESENT"
    code = country.upper() if country else None
    return {"country": country or "nowhere", "code": code, "country__status": status, "code__status": status}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("place", ["sqlite", "redis", "hbase", "tiered"])
def test_a_deleted_row_is_not_found_until_it_comes_again(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    online = "sqlite:///online.db"
    if place in ("redis", "hbase"):
        online = request.getfixturevalue(f"{place}_url")
    elif place == "tiered":
        online = f"tiered:{request.getfixturevalue('redis_url')}|sqlite:///{tmp_path}/slow.db"
    store, rng = store_of(tmp_path, online), random.Random(5)
    made = changes(rng)
    late = made[:]
    rng.shuffle(late)
    stream(store, late)
    end = START + 240 * MINUTE
    check(store, made, end)

    times = pa.array([end, end], pa.timestamp("us", "UTC"))
    there = {"user_id": [0, 1], "country": ["fr", None], "__source_ts_ms": times}
    store.push("users", there, to="online_and_offline")  # a push may lack the column that deletes
    others = there | {"user_id": [2, 3], "country": ["it", "es"], "__deleted": [True, None]}
    store.push("users", others, to="online_and_offline")
    assert now(store, end) == [
        ("fr", "PRESENT"),
        ("nowhere", "NULL_VALUE"),
        ("nowhere", "NOT_FOUND"),
        ("es", "PRESENT"),
    ]
    written = {"user_id": [2], "country": ["pt"], "code": ["PT"], "event_timestamp": times[:1]}
    store.write_to_online_store("profile", written)
    assert now(store, end)[2] == ("pt", "PRESENT")
    store.close()


def now(store: FeatureStore, at: int) -> list[tuple[Any, str]]:
    found = store.online.get(["profile:country"], {"user_id": [0, 1, 2, 3]}, now=at)
    names = [status.name for status in found.statuses("country")]
    return list(zip(found.to_dict()["country"], names, strict=True))


def test_a_view_filled_from_the_log_knows_what_was_deleted(tmp_path: Path) -> None:
    store, made = store_of(tmp_path, "sqlite:///online.db"), changes(random.Random(6))
    stream(store, made, log=True)
    store.materialize("2026-02-01T00:00:00Z", "2026-02-01T02:00:00Z")
    store.materialize_incremental("2026-02-01T04:00:00Z")
    check(store, made, START + 240 * MINUTE)
    store.close()
