"""Snapshots in HBase that are taken again while somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pytest

from feature_store.errors import ConflictError
from feature_store.expressions.instants import instant
from feature_store.materialization.sinks import Address, OnlineSink, Stamp
from feature_store.storage.hbase_snapshots import Batches, HBaseSnapshots, KeptSnapshot
from feature_store.types import INT64, Schema

AT = instant("2024-04-18")
USERS = range(12_000)
FEW = range(10)

Reader = Callable[[HBaseSnapshots], Batches]
READERS: dict[str, Reader] = {
    "all": lambda snapshots: snapshots.batches(AT),
    "by key": lambda snapshots: snapshots._found(AT, pa.table({"user_id": USERS})),
}
any_reader = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)


@pytest.fixture
def snapshots(hbase_url: str) -> Iterator[HBaseSnapshots]:
    snapshots = HBaseSnapshots(hbase_url, "ads", "daily", Schema.of(user_id=INT64), Schema.of(n=INT64))
    yield snapshots
    snapshots.close()


def take(
    snapshots: HBaseSnapshots, n: int, users: Sequence[int] = USERS, meanwhile: Callable[[], object] = lambda: None
) -> KeptSnapshot:
    """Take the snapshot of AT, in which all of these users have this value."""
    rows = pa.table({"user_id": pa.array(users, pa.int64()), "n": pa.array([n] * len(users), pa.int64())})
    address = Address(snapshots.uri, snapshots.project, "")

    def write(run: int) -> int:
        written = OnlineSink(address, snapshots.table, None, Stamp(AT, run), snapshots.store)(iter(rows.to_batches()))
        meanwhile()
        return written

    return snapshots.keep(AT, write)


def stored(snapshots: HBaseSnapshots) -> set[int]:
    """The values of all cells, of whatever run."""
    return {n for batch in snapshots.store.scan(snapshots.table) for n in batch.column("n").to_pylist()}


@any_reader
def test_who_reads_goes_on_with_the_snapshot_that_he_began(snapshots: HBaseSnapshots, reader: Reader) -> None:
    take(snapshots, 1)
    batches = reader(snapshots)
    first = next(batches)
    take(snapshots, 2, FEW)
    rest = [*batches]
    assert rest
    found = pa.Table.from_batches([first, *rest])
    assert sorted(found["user_id"].to_pylist()) == [*USERS]
    assert set(found["n"].to_pylist()) == {1}
    after = snapshots.read(AT)
    assert sorted(after["user_id"].to_pylist()) == [*FEW]
    assert set(after["n"].to_pylist()) == {2}
    assert snapshots.count(AT) == len(FEW)
    assert snapshots.boundaries() == [AT]


@any_reader
def test_who_reads_what_was_removed_meanwhile_is_told(snapshots: HBaseSnapshots, reader: Reader) -> None:
    snapshots.grace = 0
    take(snapshots, 1)
    batches = reader(snapshots)
    next(batches)
    take(snapshots, 2, FEW)
    with pytest.raises(ConflictError, match=r'"daily" at 2024-04-18T00:00:00Z was removed .* Run it again'):
        list(batches)
    assert stored(snapshots) == {2}


def test_what_is_published_is_a_whole_snapshot(snapshots: HBaseSnapshots) -> None:
    """Of two that take a snapshot at once one may publish while the other one's takes its place."""

    def publish(batches: Batches) -> int:
        written = next(batches).num_rows
        take(snapshots, 2, FEW)
        return written + sum(batch.num_rows for batch in batches)

    assert take(snapshots, 1).write(publish) == len(USERS)
    snapshots.grace = 0
    with pytest.raises(ConflictError, match="was removed"):
        take(snapshots, 3).write(publish)


def test_of_two_runs_at_once_the_later_one_counts_and_none_is_forgotten(snapshots: HBaseSnapshots) -> None:
    take(snapshots, 1, FEW, meanwhile=lambda: take(snapshots, 2, FEW))
    assert set(snapshots.read(AT)["n"].to_pylist()) == {2}
    assert stored(snapshots) == {1, 2}
    snapshots.grace = 0
    take(snapshots, 3, FEW)
    assert stored(snapshots) == {3}


def test_dropped_snapshots_are_gone(snapshots: HBaseSnapshots) -> None:
    take(snapshots, 1)
    batches = snapshots.batches(AT)
    next(batches)
    snapshots.drop()
    for rows in (batches, snapshots.batches(AT)):
        with pytest.raises(ConflictError, match="was removed"):
            list(rows)
    assert snapshots.boundaries() == []
