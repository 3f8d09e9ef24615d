from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feature_store.errors import SettingsError, StoreUnavailableError
from feature_store.storage.online import Row, Table
from feature_store.storage.sqlite import SQLiteOnlineStore
from tests.conformance.online_store import USERS, OnlineStoreConformance, users


class TestSQLite(OnlineStoreConformance):
    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/deep/online.db"

    def raw(self, uri: str, project: str, table: Table) -> dict[tuple[bytes, bytes], bytes]:
        connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = [name for name in names if name.rpartition(".")[0] == f"online.{project}.{table.name}"]
        rows = [row for name in found for row in connection.execute(f'SELECT * FROM "{name}"')]
        connection.close()
        return {(row[0], row[1] if table.items else b""): row[-1] for row in rows}


def test_relative_files_belong_to_the_repo(tmp_path: Path) -> None:
    from feature_store.plugins import open_online_store

    store = open_online_store("sqlite:///data/online.db", "ads", tmp_path)
    store.create(USERS)
    store.close()
    assert (tmp_path / "data" / "online.db").exists()


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///x.db?timeout=long", "sqlite:///x.db?a=1"]
)
def test_wrong_uris(uri: str) -> None:
    with pytest.raises(SettingsError):
        SQLiteOnlineStore(uri, "ads")


def test_a_locked_file_is_unavailable_after_the_timeout(tmp_path: Path) -> None:
    store = SQLiteOnlineStore(f"sqlite:///{tmp_path}/o.db?timeout=0.2", "ads")
    store.write(USERS, users((1, 5, 10)))
    other = sqlite3.connect(tmp_path / "o.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="locked"):
        store.write(USERS, users((1, 6, 11)))
    assert time.monotonic() - begun < 3
    assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]
    other.execute("ROLLBACK")
    other.close()
    store.write(USERS, users((1, 6, 11)))
    assert store.read([(USERS, [(1,)])]) == [[Row(6, 0, (11, ""))]]
    store.close()


def test_a_full_disk_is_unavailable_and_loses_nothing(tmp_path: Path) -> None:
    store = SQLiteOnlineStore(f"sqlite:///{tmp_path}/o.db", "ads")
    store.write(USERS, users((1, 5, 10)))
    with store._connection() as connection:
        connection.execute("PRAGMA max_page_count = 12")
    with pytest.raises(StoreUnavailableError, match="full"):
        store.write(USERS, users(*((key, 6, 11) for key in range(5_000))))
    assert store.read([(USERS, [(1,)])]) == [[Row(5, 0, (10, ""))]]
    store.close()


def test_a_place_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match="cannot be used"):
        SQLiteOnlineStore(f"sqlite:///{tmp_path}/file/o.db", "ads")
    (tmp_path / "not.db").write_bytes(b"no database, but long enough to be read as one" * 50)
    with pytest.raises(StoreUnavailableError, match="not a database"):
        SQLiteOnlineStore(f"sqlite:///{tmp_path}/not.db", "ads")


WRITER = """
import sys
from feature_store.storage.sqlite import SQLiteOnlineStore
from tests.conformance.online_store import USERS, users
store = SQLiteOnlineStore(sys.argv[1], "ads")
for step in range(40):
    time = step * 2 + int(sys.argv[2])
    store.write(USERS, users(*((key, time, time) for key in range(50))))
store.close()
"""


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/o.db?timeout=30"
    root = Path(__file__).parents[2]
    commands = [[sys.executable, "-c", WRITER, uri, str(writer)] for writer in range(2)]
    writers = [subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}) for command in commands]
    assert [writer.wait(timeout=100) for writer in writers] == [0, 0]
    store = SQLiteOnlineStore(uri, "ads")
    assert store.read([(USERS, [(key,) for key in range(50)])]) == [[Row(79, 0, (79, ""))] * 50]
    store.close()


KILLED = """
import sys
from feature_store.storage.sqlite import SQLiteOnlineStore
from tests.conformance.online_store import USERS, users
store = SQLiteOnlineStore(sys.argv[1], "ads")
for key in range(100_000):
    store.write(USERS, users((key, 1, key)))
    print(key, flush=True)
"""


def test_a_killed_writer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, f"sqlite:///{tmp_path}/o.db"]
    env = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(next(writer.stdout)) for _ in range(200)][-1]
        writer.kill()
    store = SQLiteOnlineStore(f"sqlite:///{tmp_path}/o.db", "ads")
    found = store.read([(USERS, [(key,) for key in range(acknowledged + 1)])])[0]
    assert found == [Row(1, 0, (key, "")) for key in range(acknowledged + 1)]
    store.close()
