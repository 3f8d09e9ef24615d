from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from feature_store.errors import StoreUnavailableError
from feature_store.serving.metrics import Metrics
from feature_store.serving.reads import MOST_WAITING, QUICK_IN_A_ROW, SLOW, Reads


class Store:
    """A store that is quick, fails, or waits until it is released."""

    def __init__(self) -> None:
        self.mode = "quick"
        self.release = threading.Event()
        self.threads: list[bool] = []

    def read(self, requests: Any) -> list[Any]:
        self.threads.append(threading.current_thread() is not threading.main_thread())
        if self.mode == "fails":
            raise StoreUnavailableError("down")
        if self.mode == "waits":
            assert self.release.wait(30)
        if self.mode == "slow":
            threading.Event().wait(SLOW * 1.5)
        return ["answer"]


REQUESTS: Any = [("table", ["key"])]


async def read(reads: Reads, store: Any, times: int) -> None:
    for _ in range(times):
        assert await reads.read(store, REQUESTS) == ["answer"]


@pytest.mark.parametrize("trouble", ["fails", "slow"])
def test_quick_reads_are_inline_and_others_in_threads(trouble: str) -> None:
    store, reads = Store(), Reads(Metrics())

    async def flow() -> None:
        await read(reads, store, QUICK_IN_A_ROW + 3)
        assert store.threads == [True] * QUICK_IN_A_ROW + [False] * 3
        store.mode = trouble
        if trouble == "fails":
            with pytest.raises(StoreUnavailableError):
                await reads.read(store, REQUESTS)  # type: ignore[arg-type]
            assert reads.failed
        else:
            await read(reads, store, 1)
        store.mode = "quick"
        store.threads.clear()
        await read(reads, store, QUICK_IN_A_ROW + 1)
        assert store.threads == [True] * QUICK_IN_A_ROW + [False]
        assert not reads.failed

    asyncio.run(flow())
    reads.close()


def test_nobody_queues_without_end_for_a_store_that_is_down() -> None:
    store, reads = Store(), Reads(Metrics())

    async def flow() -> None:
        store.mode = "fails"
        with pytest.raises(StoreUnavailableError, match="down"):
            await reads.read(store, REQUESTS)  # type: ignore[arg-type]
        store.mode = "waits"
        waiting = [asyncio.create_task(reads.read(store, REQUESTS)) for _ in range(MOST_WAITING)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailableError, match="wait for the online store already"):
            await reads.read(store, REQUESTS)  # type: ignore[arg-type]
        store.release.set()
        assert await asyncio.gather(*waiting) == [["answer"]] * MOST_WAITING

    asyncio.run(flow())
    reads.close()


def test_a_burst_at_the_start_is_answered() -> None:
    store, reads = Store(), Reads(Metrics())

    async def flow() -> None:
        assert len(await asyncio.gather(*(reads.read(store, REQUESTS) for _ in range(500)))) == 500  # type: ignore[arg-type]

    asyncio.run(flow())
    reads.close()
