"""What reads streams gives the values that batch gives and the contract means: expressions, and every aggregate.

Events go through a real topic into a consumer group and into a job of Flink; then what is read online is compared with
brute force, and so are what history says of the log that the stream has landed, and what batch writes from it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from feature_store import FeatureStore
from feature_store.definitions.catalog import BoundView
from feature_store.expressions.instants import DAY, HOUR, MINUTE, to_datetime
from feature_store.expressions.relations import Windows
from feature_store.expressions.scalars import bind
from feature_store.types import INT64, TIMESTAMP, Schema
from feature_store.values import json_writer
from tests import scalars
from tests.conformance import histories
from tests.live import Live, until
from tests.servers import KafkaServer

pytestmark = pytest.mark.timeout(400)
USERS = 5
EVENTS = 60
"""Of a user, at most."""
_LATE = 36 * DAY
"""Three times the longest window."""
_HOP = 5 * MINUTE
"""Answers change at its multiples."""

Make = Callable[..., Live]


@pytest.fixture
def make(
    stream_engine: tuple[str, dict[str, Any]], tmp_path: Path, kafka_server: KafkaServer, kafka_topic: str
) -> Make:
    """Makes a repository of one view over a source of `id`, `user_id`, `at` and some columns, and starts its stream."""
    engine, of_engine = stream_engine
    settings = {"project": "p", "kafka": {"brokers": kafka_server.url}} | of_engine

    def made(columns: Schema, view: dict[str, Any], unique: bool = True) -> Live:
        every = [*Schema.of(id=INT64, user_id=INT64, at=TIMESTAMP), *columns]
        source = {
            "name": "clicks",
            "timestamp": "at",
            "unique": ["id"] if unique else [],
            "columns": [{"name": each.name, "type": str(each.type)} for each in every],
            "stream": {"engine": engine, "kafka": {"topic": kafka_topic}},
        }
        source |= {"created": "created"} if "created" in columns.names else {}
        user = {"name": "user", "join_key": "user_id", "type": "INT64"}
        definitions = {
            "entity": user,
            "source": source,
            "feature_view": {"source": "clicks", "entities": ["user"]} | view,
        }
        (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(settings))
        (tmp_path / "views.yaml").write_text(json.dumps(definitions, ensure_ascii=False))
        store = FeatureStore(tmp_path)
        store.apply()
        live = Live(store, kafka_server, kafka_topic)
        live.fs("stream", "start")
        return live

    return made


def written(columns: Mapping[str, Sequence[Any]], schema: Schema) -> list[dict[str, Any]]:
    """Raw row values as events in JSON."""
    texts = {}
    for column in schema:
        write, values = json_writer(column.type, iso=True), columns[column.name]
        texts[column.name] = values if write is None else write(values)
        assert [value is None for value in texts[column.name]] == [value is None for value in values]
    return [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]


def sent(live: Live, events: Sequence[dict[str, Any]], rng: random.Random, twice: bool = True) -> None:
    """Send events in no order, some of them `twice`; all are taken when it returns, and none was bad."""
    told = [*events, *(rng.sample(events, len(events) // 4) if twice else ())]
    rng.shuffle(told)
    live.send(told)
    until(live.caught_up)
    (status,) = live.streams.status(["clicks"])
    assert (status["bad"], status["error"]) == (0, None)


@pytest.mark.parametrize("which", ["table", "generated"])
def test_expressions_mean_what_the_contract_says(make: Make, which: str) -> None:
    rng = random.Random(3)
    columns: dict[str, list[Any]] = scalars.rows(rng, 40) if which == "generated" else scalars.ROW
    if which == "generated":
        cases = [*islice(scalars.expressions(rng, columns), 120)]
    else:
        cases = [(text, bind(text, scalars.SCHEMA), [answer]) for text, answer in scalars.TABLE]
    features = [
        {"name": f"v{n}", "type": str(scalar.type), "expression": text} for n, (text, scalar, _) in enumerate(cases)
    ]
    live = make(scalars.SCHEMA, {"name": "all", "features": features})
    rows = written(columns, scalars.SCHEMA)
    now = to_datetime(time.time_ns() // 1000).isoformat()
    try:
        sent(live, [{"id": n, "user_id": n, "at": now, **row} for n, row in enumerate(rows)], rng)
        users = [{"user_id": n} for n in range(len(rows))]
        found = live.store.get_online_features(["all"], users).to_arrow()
    finally:
        live.fs("stream", "stop")
    past = live.store.get_historical_features(_spine(users, time.time_ns() // 1000), ["all"]).to_arrow()
    for n, (text, scalar, expected) in enumerate(cases):
        for answers in (found[f"v{n}"], past[f"v{n}"]):
            wrong = [
                (one, other)
                for one, other in zip(expected, scalars.from_arrow(answers, scalar.type), strict=True)
                if not scalars.same(one, other)
            ]
            assert not wrong, (text, wrong[:3])
    live.store.close()


def _spine(users: Sequence[dict[str, Any]], at: int) -> pa.Table:
    return pa.Table.from_pylist([user | {"event_timestamp": to_datetime(at)} for user in users])


@pytest.mark.parametrize(
    ("stream_engine", "seed", "unique"),
    [("kafka", 5, True), ("flink", 5, True), ("kafka", 11, True), ("kafka", 8, False)],
    indirect=["stream_engine"],
)
def test_aggregates_are_those_of_batch_and_of_brute_force(make: Make, seed: int, unique: bool) -> None:
    """Every function over every type, of events up to three windows late, shuffled, some of them twice where events
    have a name."""
    rng = random.Random(seed)
    windows = histories.every_window()
    live = make(
        Schema((*Schema.of(created=TIMESTAMP), *histories.VALUES)),
        {"name": "all", "aggregations": [_aggregation(window) for window in windows]},
        unique,
    )
    bound = live.store.catalog.view("all")
    assert isinstance(bound, BoundView) and isinstance(bound.relation, Windows)
    now = time.time_ns() // 1000
    made = _events(rng, now)
    columns = {name: [each.value(name) for each in made] for name in histories.VALUES.names}
    columns |= {"created": [each.created for each in made], "at": [each.at for each in made]}
    columns |= {"id": range(len(made)), "user_id": [each.key for each in made]}
    schema = Schema((*Schema.of(id=INT64, user_id=INT64, at=TIMESTAMP, created=TIMESTAMP), *histories.VALUES))
    users = [{"user_id": n} for n in range(USERS + 1)]
    try:
        sent(live, written(columns, schema), rng, twice=unique)
        at, found = _read(live, users)
    finally:
        live.fs("stream", "stop")
    past = live.store.get_historical_features(_spine(users, at), ["all"]).to_arrow()
    live.fs("stream", "bootstrap", "all", "--again")
    later, batch = _read(live, users)
    for window in bound.relation.windows:
        for user in range(USERS + 1):
            known = histories.Found.of(window, [each for each in made if each.key == user])
            for when, answers in ((at, found), (at, past), (later, batch)):
                (answer,) = scalars.from_arrow(answers[window.name].slice(user, 1), window.type)
                assert known.agrees(answer, when), (window.name, user, answer)
    live.store.close()


def _aggregation(window: Any) -> dict[str, Any]:
    function = window.function if window.n is None else f"{window.function}({window.n})"
    found = {"name": window.name, "function": function, "window": f"{window.length // MINUTE}m"}
    found |= {"hop": f"{window.hop // MINUTE}m"}
    found |= {} if window.value is None else {"column": window.value.name}
    return found | ({} if window.where is None else {"where": _CONDITIONS[next(iter(window.where.columns))]})


_CONDITIONS = {"ok": "ok", "y": "y > 0"}


def _events(rng: random.Random, now: int) -> list[histories.Event]:
    """Of the last minutes, hours and weeks, none newer than the last multiple of the hop."""
    made = []
    for key in range(USERS):
        for _ in range(rng.randint(1, EVENTS)):
            age = rng.choice([20 * MINUTE, 40 * MINUTE, 3 * HOUR, 3 * DAY, 12 * DAY, _LATE])
            at = now // _HOP * _HOP - 1 - rng.randrange(age)
            made.append(histories.drawn(rng, key, at, rng.choice([None, at, at + rng.randrange(HOUR)])))
    return made


def _read(live: Live, users: Sequence[dict[str, Any]]) -> tuple[int, Any]:
    """What is read online, and when: between two multiples of the hop."""
    while True:
        at = time.time_ns() // 1000
        found = live.store.get_online_features(["all"], list(users)).to_arrow()
        if time.time_ns() // 1000 // _HOP == at // _HOP:
            return at, found
