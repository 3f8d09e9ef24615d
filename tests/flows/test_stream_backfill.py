"""Batch beside a stream that runs, over the same days again and again: it takes nothing back, nothing counts twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from feature_store import FeatureStore
from feature_store.expressions.instants import DAY, HOUR, to_datetime
from tests.live import FEATURES, VIEWS, Live, repository, until
from tests.load import USERS, WEEK, Load, expected
from tests.servers import KafkaServer

pytestmark = pytest.mark.timeout(400)

GROWING = ["counts:n", "counts:total", "week:seen"]
"""No event is near an edge of their windows: they grow, or stay."""


class Reader(threading.Thread):
    """Reads what grows until told to stop; `fallen` has what became less."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self._store, self._ended = FeatureStore(root), threading.Event()
        self.reads = 0
        self.fallen: list[tuple[str, int, int, int]] = []

    def run(self) -> None:
        rows, most = [{"user_id": user} for user in range(USERS)], dict[tuple[str, int], int]()
        while not self._ended.is_set():
            found = self._store.get_online_features(GROWING, rows).to_dict()
            for name in ("n", "total", "seen"):
                for user, value in enumerate(found[name]):
                    before = most.get((name, user), 0)
                    if (value or 0) < before:
                        self.fallen.append((name, user, before, value))
                    most[name, user] = max(value or 0, before)
            self.reads += 1

    def stop(self) -> None:
        self._ended.set()
        self.join()
        self._store.close()


def test_what_is_read_never_falls_while_batch_fills_what_a_stream_fills(
    tmp_path: Path, kafka_server: KafkaServer, redis_url: str
) -> None:
    topic = kafka_server.topic(2)
    live = Live(repository(tmp_path, kafka_server, topic, settings={"online_store": redis_url}), kafka_server, topic)
    store, load = live.store, Load(kafka_server, topic, 300)
    begin = time.time_ns() // 1000 - 8 * DAY
    live.fs("stream", "start")
    try:
        load.start()
        load.more(1500)
        (tmp_path / "views.yaml").write_text(VIEWS.format(topic=topic, engine="kafka") + WEEK)
        store.apply()
        live.fs("stream", "bootstrap", "week")
        reader = Reader(tmp_path)
        reader.start()
        for _ in range(2):
            load.more(500)
            now = time.time_ns() // 1000
            for view in ("counts", "latest", "week"):
                assert store.backfill(view, to_datetime(begin), to_datetime(now)) > 0 or view == "counts"
            store.materialize(to_datetime(begin), to_datetime(now))
            start, end = (to_datetime(at).isoformat() for at in (begin, now + HOUR))
            assert "Backfilled week" in live.fs("backfill", "week", start, end)
            store.materialize_incremental(to_datetime(now))
        events = load.stop()
        until(live.caught_up)
        reader.stop()
    finally:
        live.fs("stream", "stop")
    assert reader.reads > 20 and not reader.fallen
    features = [*FEATURES, "week:seen", "week:mean"]
    for again in (False, True):
        if again:
            store.backfill("week", to_datetime(begin), to_datetime(time.time_ns() // 1000))
        found, past, wanted = live.online(features, USERS), live.history(features, USERS), expected(events)
        assert {name: found[name] for name in wanted} == wanted
        assert found == {name: past[name] for name in found}
        assert sum(found["seen"]) == sum(number % 7 != 6 for number in range(len(events)))
    store.close()
