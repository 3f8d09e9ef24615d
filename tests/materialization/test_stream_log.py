"""The log of a stream: rows and positions are one commit; of two who move the same position one is told."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_store.engines.streams import TopicId
from feature_store.errors import ConflictError, InvalidInputError, SourceError, StoreUnavailableError
from feature_store.materialization.landing import Landing
from feature_store.materialization.stream_log import SPAN, StreamLog
from feature_store.storage.offline import OfflineStore, delta_files
from feature_store.types import FLOAT64, INT64, STRING, Column, Schema

SCHEMA = Schema.of(x=INT64)


def rows(*values: int) -> pa.Table:
    return pa.table({"x": pa.array(values, pa.int64())})


def stored(log: StreamLog, offline: OfflineStore) -> list[int]:
    return sorted(offline.read(log.table)["x"].to_pylist())


@pytest.fixture
def offline(tmp_path: Path) -> OfflineStore:
    return OfflineStore(str(tmp_path / "offline"), tmp_path)


@pytest.fixture
def log(offline: OfflineStore) -> StreamLog:
    return StreamLog(offline, "clicks")


def add(landing: Landing, first: int, *values: int, partition: int = 0) -> None:
    offsets = np.arange(first, first + len(values))
    landing.add(rows(*values), np.full(len(values), partition), offsets, {partition: first + len(values)})


def test_a_partition_that_was_met_is_known_before_a_row_of_it_is_there(log: StreamLog) -> None:
    assert log.positions() == {}
    log.begin(SCHEMA, {2: 7})
    assert log.positions() == {2: 7}
    log.begin(SCHEMA, {0: 5})
    assert log.positions() == {0: 5, 2: 7} and log.position_of([1, 2]) == {2: 7}
    with pytest.raises(ConflictError):
        log.begin(SCHEMA, {2: 0})
    assert log.positions() == {0: 5, 2: 7}


def test_workers_that_meet_partitions_at_once_all_come_to_know_them(log: StreamLog) -> None:
    landings = [Landing(log) for _ in range(6)]
    threads = [threading.Thread(target=each.begin, args=(SCHEMA, {at: 0})) for at, each in enumerate(landings)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.positions() == dict.fromkeys(range(6), 0)


def test_rows_land_once_with_the_position_behind_them(log: StreamLog, offline: OfflineStore) -> None:
    first = Landing(log)
    assert first.begin(SCHEMA, {0: 0, 1: 10}) == {0: 0, 1: 10}
    add(first, 0, 1, 2)
    add(first, 10, 3, partition=1)
    assert (first.rows, first.land(), first.land()) == (3, 3, 0)
    assert log.positions() == {0: 2, 1: 11} and stored(log, offline) == [1, 2, 3]
    second = Landing(log)
    assert second.begin(SCHEMA, {0: 0}) == {0: 2}
    add(second, 2, 4)
    assert second.land() == 1
    add(first, 2, 4)
    with pytest.raises(ConflictError):
        first.land()
    assert stored(log, offline) == [1, 2, 3, 4] and first.rows == 0


def test_what_waits_of_a_partition_goes_with_it(log: StreamLog, offline: OfflineStore) -> None:
    landing = Landing(log)
    landing.begin(SCHEMA, {0: 0, 1: 0})
    add(landing, 0, 1, 2)
    add(landing, 0, 3, partition=1)
    landing.drop([0])
    assert landing.positions == {1: 1} and landing.land() == 1
    assert stored(log, offline) == [3] and log.positions() == {0: 0, 1: 1}


def test_what_could_not_be_landed_is_landed_later(log: StreamLog, offline: OfflineStore) -> None:
    landing = Landing(log)
    landing.begin(SCHEMA, {0: 0})
    add(landing, 0, 1, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # stands in for a full disk
    try:
        with pytest.raises(StoreUnavailableError):
            landing.land()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    add(landing, 2, 3)
    assert landing.land() == 3 and stored(log, offline) == [1, 2, 3] and log.positions() == {0: 3}


def test_small_files_are_put_together_while_rows_land(log: StreamLog, offline: OfflineStore) -> None:
    landing = Landing(log)
    landing.begin(SCHEMA, {0: 0})
    for number in range(12):
        add(landing, number, number)
        landing.land()
    files = len(delta_files(offline.path(log.table)))
    assert log.compact() == files
    add(landing, 12, 12)
    landing.land()
    assert len(delta_files(offline.path(log.table))) == 2 and stored(log, offline) == list(range(13))
    assert log.positions() == {0: 13}


def test_rows_from_before_and_after_a_column_changed_its_type_land(log: StreamLog, offline: OfflineStore) -> None:
    landing = Landing(log)
    landing.begin(SCHEMA, {0: 0})
    narrow = pa.table({"x": pa.array([1], pa.int32())})
    landing.add(narrow, np.zeros(1, np.int64), np.zeros(1, np.int64), {0: 1})
    add(landing, 1, 2)
    assert landing.land() == 2 and stored(log, offline) == [1, 2]


def test_rows_that_do_not_fit_together_wait_on(log: StreamLog, offline: OfflineStore) -> None:
    """Positions never go without the rows before them."""
    landing = Landing(log)
    landing.begin(SCHEMA, {0: 0})
    add(landing, 0, 1)
    landing.add(pa.table({"x": ["text"]}), np.zeros(1, np.int64), np.ones(1, np.int64), {0: 2})
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="do not fit"):
            landing.land()
    assert landing.rows == 2 and log.positions() == {0: 0}


def test_partitions_of_another_topic_are_others(log: StreamLog) -> None:
    first, second = TopicId("clicks", "a"), TopicId("views", "b")
    assert log.base(first) is None
    assert log.meet(SCHEMA, first, {0: 5, 1: 7}) == 0 == log.base(first)
    assert log.meet(SCHEMA, second, {0: 0}) == SPAN == log.base(second)
    assert log.meet(SCHEMA, first, {0: 99, 1: 99}) == 0
    assert log.positions() == {0: 5, 1: 7, SPAN: 0}
    log.begin(SCHEMA, {SPAN + 1: 3})
    assert log.positions() == {0: 5, 1: 7, SPAN: 0, SPAN + 1: 3}


def test_a_topic_made_anew_is_met_only_on_purpose(log: StreamLog) -> None:
    old, new = TopicId("clicks", "a"), TopicId("clicks", "b")
    log.meet(SCHEMA, old, {0: 5})
    with pytest.raises(
        SourceError, match=r'topic "clicks" is another one than source "clicks" has read.*--from earliest'
    ):
        log.base(new)
    assert log.meet(SCHEMA, new, {0: 0}) == SPAN == log.base(new)
    assert log.base(old) == 0 and log.positions() == {0: 5, SPAN: 0}


def test_workers_that_meet_a_topic_at_once_agree(log: StreamLog) -> None:
    found: list[int] = []
    topic = TopicId("clicks", "a")
    threads = [threading.Thread(target=lambda: found.append(log.meet(SCHEMA, topic, {0: 5, 1: 6}))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0] * 5 and log.positions() == {0: 5, 1: 6}


def test_rows_of_other_types_than_those_there_are_refused(log: StreamLog) -> None:
    log.check(SCHEMA)
    log.meet(SCHEMA, TopicId("clicks"), {0: 0})
    log.check(SCHEMA)
    log.check(Schema((*SCHEMA, Column("more", FLOAT64))))
    (first, *others) = SCHEMA
    with pytest.raises(SourceError, match=f'column "{first.name}" is STRING, and .* in the log of its stream'):
        log.check(Schema((Column(first.name, STRING), *others)))
