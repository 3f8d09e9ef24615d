"""How an asynchronous service reads a store that blocks: inline while the store is quick, in threads while it is not.

A read of Redis next door takes 0.02 to 0.08 ms of processor time; handing it to a thread and back costs 0.07 ms more
(measured: 21 against 97 µs) and, under load, fights for the interpreter lock. So reads run on the event loop as long as
they are quick. A read that fails, or takes longer than `SLOW`, sends the following ones to threads, where a hanging
store holds up nobody else (`/health` answers), until `QUICK_IN_A_ROW` of them were quick again. At the start reads go
to threads. So the loop is held up at most once, by one read, for the store's own time limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from feature_store.errors import StoreUnavailableError
from feature_store.retrieval.online import StoreRequests
from feature_store.serving.metrics import Metrics
from feature_store.storage.online import OnlineStore

SLOW = 0.02
QUICK_IN_A_ROW = 16
THREADS = 8
MOST_WAITING = 64


class Reads:
    """Reads of the online store by one worker."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="online-read")
        self._waiting = 0
        self._quick = 0
        self._failed = False

    @property
    def failed(self) -> bool:
        """Whether the last read failed."""
        return self._failed

    @property
    def inline(self) -> bool:
        """Whether the next read runs on the event loop."""
        return self._quick >= QUICK_IN_A_ROW

    async def read(self, store: OnlineStore, requests: StoreRequests) -> list[Any]:
        """What the store answers; `StoreUnavailableError` also when many reads wait for a store that failed last."""
        if not requests:
            return []
        if self._quick >= QUICK_IN_A_ROW:
            return self._noted(*_measured(store.read, requests))
        if self._failed and self._waiting >= MOST_WAITING:
            raise StoreUnavailableError(
                f"{self._waiting} reads wait for the online store already",
                hint="It did not answer the last one; try again soon",
            )
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return self._noted(*await loop.run_in_executor(self._pool, _measured, store.read, requests))
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _noted(self, answers: list[Any], error: Exception | None, seconds: float) -> list[Any]:
        """The answers, or the error raised, after counting; on the event loop, so that no count is lost."""
        self._metrics.read(seconds, failed=error is not None)
        self._failed = error is not None
        self._quick = self._quick + 1 if error is None and seconds < SLOW else 0
        if error is not None:
            raise error
        return answers


def _measured(
    read: Callable[[StoreRequests], list[Any]], requests: StoreRequests
) -> tuple[list[Any], Exception | None, float]:
    """A read's answers, its error, and the seconds that it took."""
    began = time.perf_counter()
    try:
        return read(requests), None, time.perf_counter() - began
    except Exception as error:
        return [], error, time.perf_counter() - began
