"""Sources in S3 and HDFS: what is read there is what is read from the same files on a disk."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from feature_store.engines.local import LocalEngine, mapped
from feature_store.engines.scans import Scan
from feature_store.engines.spark import SparkEngine
from feature_store.errors import SourceError, StoreUnavailableError
from feature_store.expressions.relations import Rows
from feature_store.storage.remote import remove
from feature_store.types import Schema
from tests.remotes import Remote, remote

__all__ = ["remote"]

ODD = "it's a b/c=é"
DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")


def table(start: int, count: int = 3, **more: Any) -> pa.Table:
    ids = list(range(start, start + count))
    return pa.table({"id": ids, "price": [each / 4 for each in ids], "word": [f"w{each}," for each in ids], **more})


def parquet(folder: Path) -> str:
    pq.write_table(table(0), folder / "one.parquet")
    return "one.parquet"


def partitioned(folder: Path) -> str:
    """As Hive and Spark leave it: with marks, checksums and empty files among the data."""
    for index, day in enumerate(DAYS):
        (folder / f"events/day={day}/_kind=x y").mkdir(parents=True)
        pq.write_table(table(index * 10), folder / f"events/day={day}/_kind=x y/part-0.parquet")
    (folder / "events/_SUCCESS").write_text("")
    (folder / "events/_temporary").mkdir()
    pq.write_table(table(90), folder / "events/_temporary/part-0.parquet")
    (folder / "events/.part-0.parquet.crc").write_text("crc")
    (folder / "events/empty.parquet").write_text("")
    return "events"


def csvs(folder: Path) -> str:
    (folder / "texts").mkdir()
    (folder / "texts/a.csv").write_text('id,word,at\n1,"a,b",2024-01-01T00:00:00Z\n2,,2024-01-02\n')
    (folder / "texts/b.csv.gz").write_bytes(gzip.compress(b"id,at\n3,2024-01-03T00:00:00Z\n"))
    return "texts"


def pattern(folder: Path) -> str:
    for year, month in (("2023", "12"), ("2024", "01"), ("2024", "02")):
        (folder / f"years/{year}/{month}").mkdir(parents=True)
        pq.write_table(table(int(month)), folder / f"years/{year}/{month}/rows.parquet")
        (folder / f"years/{year}/{month}/notes.txt").write_text("not data")
    return "years/2024/**/*.parquet"


def delta(folder: Path) -> str:
    path = str(folder / "plain")
    write_deltalake(path, table(0))
    write_deltalake(path, table(3, more=[1, None, 3]), mode="append", schema_mode="merge")
    write_deltalake(path, table(9), mode="append", schema_mode="merge")
    return "plain"


def delta_by_text(folder: Path) -> str:
    rows = pa.concat_tables([table(0, day=[ODD] * 3), table(3, day=["b"] * 3), table(6, day=pa.nulls(3, pa.string()))])
    write_deltalake(str(folder / "by_text"), rows, partition_by=["day"])
    return "by_text"


def delta_by_date(folder: Path) -> str:
    day = pa.array(["2024-02-29", "2024-03-01", None]).cast(pa.date32())
    write_deltalake(str(folder / "by_date"), table(0, day=day, n=[1, 1, 2]), partition_by=["day", "n"])
    return "by_date"


MAKERS = (parquet, partitioned, csvs, pattern, delta, delta_by_text, delta_by_date)


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine()
    yield engine
    engine.close()


def rows_at(path: str) -> Rows:
    return Rows("s", Schema(()), path, None, None, None, (), None)


def read(engine: LocalEngine | SparkEngine, path: str) -> tuple[Schema, list[dict[str, Any]], int]:
    """The schema, all rows and the number of files of a source."""
    schema = engine.schema(rows_at(path))
    rows = Rows("s", schema, path, None, None, None, (), None)
    found = engine.select("SELECT * FROM s", (rows,)).to_pylist()
    return schema, sorted(found, key=lambda row: row["id"]), len(engine.inputs(rows))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_the_same_is_read(maker: Callable[[Path], str], remote: Remote, engine: LocalEngine, tmp_path: Path) -> None:
    name = maker(tmp_path)
    uri = remote.put(tmp_path, "files")
    schema, rows, files = read(engine, f"{uri}/{name}")
    assert (schema, rows, files) == read(engine, f"{tmp_path}/{name}")
    assert len(rows) >= 3 and files >= 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_spark_reads_the_same(
    maker: Callable[[Path], str], remote: Remote, engine: LocalEngine, spark_engine: SparkEngine, tmp_path: Path
) -> None:
    name = maker(tmp_path)
    uri = remote.put(tmp_path, "files")
    assert read(spark_engine, f"{uri}/{name}") == read(engine, f"{tmp_path}/{name}")


@pytest.mark.parametrize("maker", [partitioned, delta, delta_by_text], ids=lambda maker: maker.__name__)
def test_one_file_of_several_can_be_read(maker: Callable[[Path], str], remote: Remote, tmp_path: Path) -> None:
    name = maker(tmp_path)
    rows = rows_at(f"{remote.put(tmp_path, 'files')}/{name}")
    with duckdb.connect() as connection:
        files = list(Scan(connection, rows).parts[0].files.fingerprints)
        found = []
        for file in files:
            part = Scan(connection, rows, [file]).parts[0]
            found.append(
                {row["id"] for row in connection.sql(f"SELECT * FROM {part.relation}").to_arrow_table().to_pylist()}
            )
        every = connection.sql(f"SELECT * FROM {Scan(connection, rows).parts[0].relation}").to_arrow_table()
    assert len(files) == 3 and all(found)
    assert sorted(each for ids in found for each in ids) == sorted(every["id"].to_pylist())


def test_threads_read_one_file_at_once(remote: Remote, engine: LocalEngine, tmp_path: Path) -> None:
    count = 400_000
    rows = table(0, count)
    pq.write_table(rows, tmp_path / "big.parquet", row_group_size=20_000)
    lines = "".join(f"{row},{row / 4},w{row}\n" for row in range(count))
    (tmp_path / "big.csv").write_text("id,price,word\n" + lines)
    uri = remote.put(tmp_path, "files")
    for name in ("big.parquet", "big.csv"):
        path = f"{uri}/{name}"
        source = Rows("s", engine.schema(rows_at(path)), path, None, None, None, (), None)
        sql = "SELECT COUNT(*) AS n, SUM(id) AS ids, SUM(price) AS prices, COUNT(DISTINCT word) AS words FROM s"
        found = engine.select(sql, (source,)).to_pylist()
        total = count * (count - 1) // 2
        assert found == [{"n": count, "ids": total, "prices": total / 4, "words": count}]


def test_a_file_that_changes_has_another_fingerprint(remote: Remote, engine: LocalEngine, tmp_path: Path) -> None:
    parquet(tmp_path)
    rows = rows_at(remote.put(tmp_path / "one.parquet", "one.parquet"))
    before = engine.inputs(rows)
    pq.write_table(table(5), tmp_path / "one.parquet")
    remote.put(tmp_path / "one.parquet", "one.parquet")
    after = engine.inputs(rows)
    assert before.keys() == after.keys() and before != after
    assert sorted(row["id"] for row in read(engine, str(rows.path))[1]) == [5, 6, 7]


def test_what_is_not_there_is_said(remote: Remote, engine: LocalEngine, tmp_path: Path) -> None:
    parquet(tmp_path)
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/line.csv").write_text("id,word\n1,a\n2,b,c\n")
    uri = remote.put(tmp_path, "files")
    for path in ("nothing", "nothing/*.parquet", "nothing.csv"):
        with pytest.raises(SourceError, match=f"there is nothing at {uri}"):
            engine.schema(rows_at(f"{uri}/{path}"))
    with pytest.raises(SourceError, match=r"notes\.txt is no Parquet or CSV file"):
        engine.schema(rows_at(f"{uri}/notes.txt"))
    with pytest.raises(SourceError, match=r"3 values in a line, where the header has 2"):
        engine.schema(rows_at(f"{uri}/odd"))


def test_a_file_that_goes_amid_a_run(remote: Remote, tmp_path: Path) -> None:
    """DuckDB reports what happens to a file that it opens as a traceback; of that one line is left."""
    parquet(tmp_path)
    uri = remote.put(tmp_path / "one.parquet", "one.parquet")
    with duckdb.connect() as connection:
        part = Scan(connection, rows_at(uri)).parts[0]
        relation = f"SELECT * FROM {part.relation}"
        remove(uri)
        with pytest.raises(StoreUnavailableError, match=rf"^s: {uri} .*: it is gone\. Run it again"), mapped("s"):
            connection.sql(relation).to_arrow_table()
