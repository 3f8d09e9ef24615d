from __future__ import annotations

from pathlib import Path

import pytest

from feature_store.storage.online import OnlineStore, Table
from tests.conformance.online_store import TABLES, OnlineStoreConformance
from tests.conformance.test_hbase import raw_rows as hbase_rows
from tests.conformance.test_sqlite import TestSQLite as SQLite
from tests.storage.tiers import wait_until_open

LEASE = "50ms"


class TestRedisBeforeSQLite(OnlineStoreConformance):
    """What the slow tier holds is what any store holds."""

    @pytest.fixture
    def uri(self, redis_url: str, tmp_path: Path) -> str:
        return f"tiered:{redis_url}|sqlite:///{tmp_path}/slow.db?lease={LEASE}&budget=20s"

    @pytest.fixture
    def store(self, open_store) -> OnlineStore:  # type: ignore[no-untyped-def,override]
        store = open_store()
        for table in TABLES:
            store.create(table)
        wait_until_open(store)
        return store

    def raw(self, uri: str, project: str, table: Table) -> dict[tuple[bytes, bytes], bytes]:
        return SQLite().raw(uri.partition("|")[2].partition("?")[0], project, table)


@pytest.mark.timeout(300)
class TestRedisBeforeHBase(TestRedisBeforeSQLite):
    @pytest.fixture
    def uri(self, redis_url: str, hbase_url: str) -> str:  # type: ignore[override]
        return f"tiered:{redis_url}|{hbase_url}&lease=200ms&budget=20s"

    def raw(self, uri: str, project: str, table: Table) -> dict[tuple[bytes, bytes], bytes]:
        return hbase_rows(uri.partition("|")[2], project, table)
