"""Delta tables on a real disk, in an S3-compatible store and in HDFS."""

from __future__ import annotations

import os
import resource
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest

from feature_store.engines.local import LocalEngine
from feature_store.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    SettingsError,
    StoreUnavailableError,
)
from feature_store.expressions.relations import Rows
from feature_store.storage.offline import OfflineStore, delta_dataset, delta_files, delta_parquet
from feature_store.types import INT64, STRING, Schema


@pytest.fixture(params=["disk", "s3", "hdfs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return f"{tmp_path}/data/offline"
    return f"{request.getfixturevalue(f'{request.param}_url')}/data/offline"


@pytest.fixture
def store(location: str, tmp_path: Path) -> OfflineStore:
    return OfflineStore(location, tmp_path)


def rows(day: str, *values: int) -> pa.Table:
    return pa.table({"day": [day] * len(values), "x": pa.array(values, pa.int64())})


def test_a_relative_location_lies_under_the_root(tmp_path: Path) -> None:
    assert OfflineStore("data/offline", tmp_path).path("a/b") == f"{tmp_path}/data/offline/a/b"
    assert OfflineStore("s3://bucket/prefix/", tmp_path).path("t") == "s3://bucket/prefix/t"


@pytest.mark.parametrize("name", ["", "../x", "a//b", "a/.."])
def test_a_name_cannot_leave_the_location(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError):
        OfflineStore("data/offline", tmp_path).path(name)


def test_a_scheme_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"files at ftp:// are not supported.*s3:// or hdfs://"):
        OfflineStore("ftp://host/offline", tmp_path)


def test_append_then_read(store: OfflineStore) -> None:
    assert not store.exists("t")
    store.append("t", rows("a", 1, 2), partition_by=["day"])
    store.append("t", rows("b", 3), partition_by=["day"])
    assert store.exists("t")
    assert sorted(store.read("t")["x"].to_pylist()) == [1, 2, 3]
    assert store.read("t", {"day": "b"})["x"].to_pylist() == [3]
    assert store.partitions("t") == [{"day": "a"}, {"day": "b"}]


def test_appended_columns_are_merged(store: OfflineStore) -> None:
    store.append("t", pa.table({"x": [1]}))
    store.append("t", pa.table({"y": ["new"]}))
    assert sorted(store.read("t").to_pylist(), key=str) == [{"x": 1, "y": None}, {"x": None, "y": "new"}]


def test_replace_touches_one_partition_and_is_idempotent(store: OfflineStore) -> None:
    store.replace("t", rows("a", 1, 2), {"day": "a"})
    store.replace("t", rows("b", 3), {"day": "b"})
    for _ in range(2):
        store.replace("t", rows("a", 9), {"day": "a"})
    assert store.read("t", {"day": "a"})["x"].to_pylist() == [9]
    assert store.read("t", {"day": "b"})["x"].to_pylist() == [3]


def test_replace_takes_a_stream_of_batches(store: OfflineStore) -> None:
    table = rows("a", *range(10))
    for _ in range(2):
        reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=3))
        store.replace("t", reader, {"day": "a"})
    assert sorted(store.read("t")["x"].to_pylist()) == list(range(10))


def test_partition_values_of_any_text(store: OfflineStore) -> None:
    odd = "it's a b/c=é"
    for _ in range(2):
        store.replace("t", rows(odd, 1), {"day": odd})
    assert store.partitions("t") == [{"day": odd}]
    assert store.read("t", {"day": odd})["x"].to_pylist() == [1]


def test_rows_outside_the_partition_are_refused_whole(store: OfflineStore) -> None:
    store.replace("t", rows("a", 1), {"day": "a"})
    with pytest.raises(InvalidInputError, match="do not fit"):
        store.replace("t", pa.concat_tables([rows("a", 2), rows("b", 3)]), {"day": "a"})
    assert store.read("t").to_pylist() == [{"day": "a", "x": 1}]


def test_rows_of_another_type_are_refused_whole(store: OfflineStore) -> None:
    store.append("t", rows("a", 1))
    with pytest.raises(InvalidInputError):
        store.append("t", pa.table({"day": ["a"], "x": ["one"]}))
    assert store.read("t").num_rows == 1


def test_times_are_kept_as_microseconds_utc(store: OfflineStore) -> None:
    naive = pa.array([datetime(2026, 1, 2, 3, 4, 5, 678901)], pa.timestamp("ns"))
    words = pa.array(["a"]).dictionary_encode()
    store.append("t", pa.table({"at": naive, "word": words}))
    read = store.read("t")
    assert read.schema.field("at").type == pa.timestamp("us", "UTC")
    assert read["at"].to_pylist() == [datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)]
    assert read["word"].to_pylist() == ["a"]


def test_a_missing_table(store: OfflineStore) -> None:
    with pytest.raises(NotFoundError, match='no offline table "t"'):
        store.read("t")
    assert store.partitions("t") == []
    store.drop("t")


def test_drop(store: OfflineStore) -> None:
    store.append("t", rows("a", 1))
    store.append("u", rows("a", 1))
    store.drop("t")
    assert not store.exists("t")
    assert store.read("u").num_rows == 1
    store.append("t", pa.table({"x": ["of another type"]}))
    assert store.read("t").to_pylist() == [{"x": "of another type"}]


def test_an_unwritable_place_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError, match="nothing was committed"):
        OfflineStore("file/offline", tmp_path).append("t", rows("a", 1))


def _fill_beyond_the_limit(root: str) -> str:
    """Runs in a process of its own: a limit on file size stands in for a full disk."""
    import signal

    store = OfflineStore("offline", Path(root))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    big = pa.table({"day": ["a"] * 5000, "x": pa.array(os.urandom(8 * 5000)[i * 8 : i * 8 + 8] for i in range(5000))})
    try:
        store.append("t", big)
    except StoreUnavailableError:
        return "unavailable"
    return "written"


def test_a_full_disk_leaves_nothing_half_visible(tmp_path: Path) -> None:
    root = tmp_path / "full"
    OfflineStore("offline", root).append("t", pa.table({"day": ["a"], "x": [b"old"]}))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(_fill_beyond_the_limit, str(root)).result() == "unavailable"
    assert OfflineStore("offline", root).read("t").to_pylist() == [{"day": "a", "x": b"old"}]


def _append(location: str, number: int) -> None:
    OfflineStore(location, Path()).append("t", rows("a", number), partition_by=["day"])


def _replace(location: str, number: int) -> str:
    try:
        OfflineStore(location, Path()).replace("t", rows("a", number, number), {"day": "a"})
    except ConflictError:
        return "conflict"
    return "done"


def test_concurrent_writers(location: str, store: OfflineStore) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        list(pool.map(_append, [location] * 8, range(8)))
        assert sorted(store.read("t")["x"].to_pylist()) == list(range(8))
        answers = list(pool.map(_replace, [location] * 8, range(100, 108)))
    assert "done" in answers
    left = store.read("t")["x"].to_pylist()
    assert len(left) == 2 and left[0] == left[1] >= 100


def staged(store: OfflineStore, folder: str, *values: int) -> None:
    """Files of a table of its own below "t", as an engine leaves them."""
    OfflineStore(store.path("t"), Path("/")).append(folder, pa.table({"x": pa.array(values, pa.int64())}))


def test_files_are_adopted_in_place_of_a_partition(store: OfflineStore) -> None:
    schema = pa.schema([("x", pa.int64())])
    for folder, day, values in (("a", "it's a b", (1, 2)), ("b", "2", (3,)), ("c", "it's a b", (4,))):
        staged(store, folder, *values)
        store.adopt("t", folder, schema, {"day": day})
    assert sorted(store.read("t")["x"].to_pylist()) == [3, 4]
    assert store.partitions("t") == [{"day": "2"}, {"day": "it's a b"}]
    store.replace("t", rows("2", 5), {"day": "2"})
    assert store.read("t", {"day": "2"})["x"].to_pylist() == [5]
    staged(store, "d")
    store.adopt("t", "d", schema, {"day": "2"})
    assert store.read("t", {"day": "2"}).num_rows == 0


def test_of_writers_of_one_empty_partition_one_wins(store: OfflineStore) -> None:
    """Whether rows are written or adopted: there is nothing to remove over which they could meet."""
    schema, start = pa.schema([("x", pa.int64())]), Barrier(4)
    store.replace("t", rows("first", 0), {"day": "first"})

    def work(number: int, day: str) -> str:
        start.wait()
        try:
            if number % 2:
                store.replace("t", rows(day, number), {"day": day})
            else:
                staged(store, f"{day}-{number}", number)
                store.adopt("t", f"{day}-{number}", schema, {"day": day})
        except ConflictError:
            return "told"
        return "kept"

    for day in ("1", "2", "3"):
        with ThreadPoolExecutor(4) as pool:
            ends = list(pool.map(work, range(4), [day] * 4))
        assert "kept" in ends
        assert store.read("t", {"day": day}).num_rows == 1


def test_files_of_a_delta_table(store: OfflineStore) -> None:
    odd = "a b/c"
    store.append("t", rows(odd, 1), partition_by=["day"])
    first = delta_files(store.path("t"))
    store.append("t", rows(odd, 2), partition_by=["day"])
    both = delta_files(store.path("t"))
    assert len(first) == 1 and len(both) == 2
    assert first.items() <= both.items()
    (added,) = both.keys() - first.keys()
    assert delta_dataset(store.path("t"), {added}).to_table()["x"].to_pylist() == [2]


@pytest.mark.parametrize(
    ("name", "days", "folders"),
    [
        ("t", ["it's a b/c=é", None, "NULL", "100%"], ("day",)),
        ("t", [""], ()),
        ("t", ["__HIVE_DEFAULT_PARTITION__"], ()),
        ("of=x/t", ["2"], ()),
        ("t*", ["2"], ()),
    ],
)
def test_partitions_are_read_from_folders_where_these_tell_them(
    tmp_path: Path, name: str, days: list[str | None], folders: tuple[str, ...]
) -> None:
    """Whether they do or not, what is read is what was written."""
    store, path = OfflineStore("", tmp_path), str(tmp_path / name)
    for number, day in enumerate(days):
        store.append(name, pa.table({"day": pa.array([day], pa.string()), "x": [number]}), partition_by=["day"])
    found = delta_parquet(path)
    assert (found.folders if found else ()) == folders
    engine = LocalEngine()
    source = Rows("s", Schema.of(day=STRING, x=INT64), path)
    assert engine.schema(source) == source.schema
    read = engine.select("SELECT day, x FROM s ORDER BY x", [source])
    assert read["day"].to_pylist() == [day or None for day in days]
    engine.close()


def test_adopted_files_lie_in_folders_that_tell_nothing(tmp_path: Path) -> None:
    store = OfflineStore("", tmp_path)
    staged(store, "a", 1, 2)
    store.adopt("t", "a", pa.schema([("x", pa.int64())]), {"day": "2"})
    assert delta_parquet(store.path("t")) is None
