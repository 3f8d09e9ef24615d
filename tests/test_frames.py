"""Tables from files and to files."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from feature_store.errors import InvalidInputError, SourceError
from feature_store.frames import read_file, write_file


def test_an_empty_cell_is_null_and_quotes_are_an_empty_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('user_id,city,country,age,note\n1,,NA,30,\n2,"",FR,NA,\n,Graz,,,\n')
    assert read_file(path).to_pydict() == {
        "user_id": [1, 2, None],
        "city": [None, "", "Graz"],
        "country": ["NA", "FR", None],
        "age": [30, None, None],
        "note": [None, None, None],
    }


def test_columns_said_to_be_text_are_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("zip,code,n\n00501,,1\n12,0x1F,2\n")
    found = read_file(path, texts={"zip", "code", "not there"}).to_pydict()
    assert found == {"zip": ["00501", "12"], "code": [None, "0x1F"], "n": [1, 2]}


def test_csv_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    table = pa.table({
        "id": [1, None, 3],
        "text": ["", None, "x"],
        "odd": ['a,"b"\nc', "NA", None],
        "price": [0.5, None, 1e300],
    })  # fmt: skip
    write_file(table, path)
    assert read_file(path).equals(table)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Vienna"])
def test_csv_times_are_iso(tmp_path: Path, unit: str, zone: str | None) -> None:
    times = pa.array([datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), None], pa.timestamp("us", "UTC"))
    path = tmp_path / "rows.csv"
    column = times.cast(pa.timestamp(unit, "UTC"))
    write_file(pa.table({"t": column.cast(pa.timestamp(unit, zone)), "lists": [[1, None], None]}), path)
    assert path.read_text().splitlines()[1:] == ['"2026-01-02T03:04:05Z","[1, null]"', ","]


def test_csv_times_keep_microseconds(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_file(pa.table({"t": pa.array([1, 500_000, -1], pa.timestamp("us", "UTC"))}), path)
    assert path.read_text().replace('"', "").split() == [
        "t", "1970-01-01T00:00:00.000001Z", "1970-01-01T00:00:00.500000Z", "1969-12-31T23:59:59.999999Z",
    ]  # fmt: skip


def test_refuses_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no file"):
        read_file(tmp_path / "nothing.csv")
    (tmp_path / "rows.txt").write_text("a\n1\n")
    with pytest.raises(InvalidInputError, match="neither Parquet nor CSV"):
        read_file(tmp_path / "rows.txt")
