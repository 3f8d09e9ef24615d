"""Where sinks may be sent: to the machines that reach the store, and without this process's connections."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from feature_store.materialization.sinks import Address, OnlineSink
from feature_store.plugins import open_online_store
from feature_store.storage.online import CREATED, EVENT_TIME, Table
from feature_store.types import INT64, Schema

USERS = Table("users", Schema.of(user_id=INT64), Schema.of(age=INT64))


@pytest.mark.parametrize(
    ("uri", "anywhere"),
    [
        ("redis://redis-host:6379/0", True),
        ("rediss://redis-host:6380", True),
        ("hbase://thrift-host:9090?versions=3", True),
        ("tiered:redis://redis-host|hbase://thrift-host:9090?budget=20ms", True),
        ("sqlite:///data/online.db", False),
        ("SQLite:///data/online.db", False),
        ("memory://", False),
        ("tiered:redis://redis-host|sqlite:///data/slow.db?lease=50ms", False),
        ("tiered:sqlite:///data/fast.db|hbase://thrift-host", False),
    ],
)
def test_only_a_store_in_the_network_is_written_anywhere(uri: str, anywhere: bool) -> None:
    assert OnlineSink(Address(uri, "ads", "/repo"), USERS).anywhere is anywhere


def test_a_sink_that_was_sent_opens_the_store_by_its_address(redis_url: str) -> None:
    store = open_online_store(redis_url, "ads", Path("/nowhere"))
    try:
        store.create(USERS)
        sink = OnlineSink(Address(redis_url, "ads", "/nowhere"), USERS, store=store)
        sent = pickle.loads(pickle.dumps(sink))
        assert sent == sink and sent.store is None
        rows = pa.record_batch({"user_id": [1, 2], "age": [30, 40], EVENT_TIME: [5, 6], CREATED: [5, 6]})
        assert sent(iter([rows, rows.slice(0, 0)])) == 2
        found = store.read([(USERS, [(1,), (2,)])])[0]
        assert [row and row.values for row in found] == [(30,), (40,)]  # type: ignore[union-attr]
    finally:
        store.close()
