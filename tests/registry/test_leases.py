"""Leases, and what is written under them, on both databases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from feature_store.errors import ConflictError
from feature_store.registry.records import Filling, Runs
from feature_store.registry.registry import Registry


@pytest.fixture(params=["sqlite", "postgres"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else f"sqlite:///{tmp_path}/registry"
    found = Registry(url, "leases")
    yield found
    found.drop()
    found.close()


def test_one_holder_at_a_time(registry: Registry) -> None:
    first = registry.leases.acquire("a", "one", 60)
    assert first is not None
    assert registry.leases.acquire("a", "two", 60) is None
    assert registry.leases.acquire("b", "two", 60) is not None, "another name is another lease"
    assert registry.leases.held("a") == first
    registry.leases.release(first)
    assert registry.leases.held("a") is None
    second = registry.leases.acquire("a", "two", 60)
    assert second is not None
    assert second.token > first.token
    registry.leases.release(first)
    assert registry.leases.held("a") == second, "whom it was taken from does not release it"


def test_a_lease_that_is_not_renewed_is_taken_over_and_its_token_refused(registry: Registry) -> None:
    first = registry.leases.acquire("a", "one", 0)
    second = registry.leases.acquire("a", "two", 60)
    assert first is not None
    assert second is not None
    with pytest.raises(ConflictError, match='the lease of "a" ran out'):
        registry.leases.renew(first, 60)
    registry.runs.save(Runs("view", through=2), second)
    with pytest.raises(ConflictError, match='the lease of "a" ran out'):
        registry.runs.save(Runs("view", through=1), first)
    assert registry.runs.get("view") == Runs("view", through=2)


def test_renewing_moves_the_end(registry: Registry) -> None:
    lease = registry.leases.acquire("a", "one", 5)
    assert lease is not None
    renewed = registry.leases.renew(lease, 60)
    assert renewed.until - lease.until > 50_000_000
    assert abs(renewed.until - time.time_ns() // 1000 - 60_000_000) < 5_000_000
    assert registry.leases.held("a") == renewed


@pytest.mark.parametrize("begun", [False, True], ids=["the first", "expired"])
def test_of_many_at_once_one_gets_it(registry: Registry, begun: bool) -> None:
    if begun:
        assert registry.leases.acquire("a", "before", 0) is not None
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: registry.leases.acquire("a", str(n), 60), range(8)))
    assert sum(lease is not None for lease in found) == 1


def test_records_of_runs_and_backfills_come_back_as_they_were(registry: Registry) -> None:
    lease = registry.leases.acquire("a", "one", 60)
    assert lease is not None
    runs = Runs("view", through=3, began=1, ended=2, holder="one", attempts=4, error="no", retry_at=5)
    registry.runs.save(runs, lease)
    assert registry.runs.all() == {"view": runs}
    assert registry.runs.get("other") == Runs("other")
    filling = registry.backfills.save(Filling("view", "v1", {"file": "mark"}, frozenset({(0, 1, 2), (5, 1, 2)})))
    assert registry.backfills.get("view", "v1") == filling
    assert registry.backfills.get("view", "v2") is None
    with pytest.raises(ConflictError, match="another backfill"):
        registry.backfills.save(Filling("view", "v1"))
    registry.forget_progress("view", "v1")
    assert registry.backfills.get("view", "v1") is None
