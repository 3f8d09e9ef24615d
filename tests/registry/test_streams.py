from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from feature_store.errors import ConflictError
from feature_store.registry.records import Claim, StreamState, StreamWorker
from feature_store.registry.registry import Registry
from feature_store.registry.streams import FORGOTTEN
from feature_store.registry.tables import STREAM_WORKERS


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/registry.db" if sqlite else str(request.getfixturevalue("postgres_url"))
    registry = Registry(url, "p")
    yield registry
    registry.close()


def test_whoever_claims_first_decides_where_a_version_begins(registry: Registry) -> None:
    streams = registry.streams
    assert streams.claim("v", "1", {0: 5}, "1") == {0: Claim(5, "1")}
    assert streams.claim("v", "1", {0: 9, 1: 7}, "1") == {0: Claim(5, "1"), 1: Claim(7, "1")}
    # the online store has lost its rows
    assert streams.claim("v", "1", {0: 11}, "2") == {0: Claim(11, "2"), 1: Claim(7, "1")}
    assert streams.claim("v", "1", {0: 12, 1: 12}, "2") == {0: Claim(11, "2"), 1: Claim(12, "2")}
    # Who was before the loss does not know better.
    assert streams.claim("v", "1", {0: 13, 1: 13}, "1") == {0: Claim(11, "2"), 1: Claim(12, "2")}
    assert streams.claims("v", "2") == {}
    registry.forget_progress("v", "1")
    assert streams.claims("v", "1") == {}


def test_a_stream_that_another_changed_is_not_written_over(registry: Registry) -> None:
    streams = registry.streams
    saved = streams.save(StreamState("clicks", "kafka", True, job={"group": "g"}))
    assert streams.get("clicks") == saved and saved.revision == 1
    stopped = streams.save(replace(saved, running=False))
    for stale in (saved, replace(saved, revision=0)):
        with pytest.raises(ConflictError, match="clicks"):
            streams.save(stale)
    assert streams.all() == {"clicks": stopped}


def test_workers_are_heard_of_until_their_stream_is_forgotten(registry: Registry) -> None:
    streams = registry.streams
    streams.save(StreamState("clicks", "kafka", True))
    streams.beat(StreamWorker("clicks", "w", events=1))
    streams.beat(StreamWorker("clicks", "w", events=7, late=2, newest=3, positions={0: 5}))
    (worker,) = streams.workers("clicks")
    heard = StreamWorker("clicks", "w", events=7, late=2, newest=3, positions={0: 5})
    assert replace(worker, silent=0) == heard and worker.silent >= 0
    streams.leave(worker)
    assert streams.workers("clicks") == []
    streams.beat(worker)
    streams.forget("clicks")
    assert streams.get("clicks") is None and streams.workers("clicks") == []


def test_what_workers_counted_outlives_them(registry: Registry) -> None:
    streams = registry.streams
    assert streams.counts("clicks") == {"events": 0, "late": 0, "bad": 0, "lost": 0}
    state = streams.save(StreamState("clicks", "kafka", True))
    first = StreamWorker("clicks", "left", events=5, bad=1)
    more = replace(first, events=7, late=2)
    streams.beat(first)
    streams.beat(more, first)
    streams.leave(replace(more, events=8, lost=3), more)
    killed = StreamWorker("clicks", "killed", events=100)
    streams.beat(killed)
    streams.sweep("clicks", -1)
    streams.beat(replace(killed, events=101), killed)  # it was only slow
    assert streams.counts("clicks") == {"events": 109, "late": 2, "bad": 1, "lost": 3}
    streams.save(replace(state, running=False))
    assert streams.counts("clicks")["events"] == 109


def test_workers_that_were_killed_are_forgotten_in_the_end(registry: Registry) -> None:
    streams = registry.streams
    streams.beat(StreamWorker("clicks", "killed"))
    with registry._database.writing() as connection:
        connection.execute(STREAM_WORKERS.update().values(seen=STREAM_WORKERS.c.seen - FORGOTTEN))
    streams.beat(StreamWorker("clicks", "new"))
    assert [worker.name for worker in streams.workers("clicks")] == ["new"]
