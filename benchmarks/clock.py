"""What a worker measures of itself. Standard library only: Feast's environment runs it too."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of work, with its wall and processor seconds and the process's greatest memory in MiB."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": peak_mib(),
    }


def peak_mib() -> float:
    """The greatest resident memory of this process so far (ru_maxrss would count the parent's too)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def repeated(calls: dict[str, Callable[[int], Any]], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Each call over and over, in turns: of the best round p50 and processor time a call, in ms."""
    best: dict[str, dict[str, float]] = {}
    for call in calls.values():
        for n in range(50):
            call(n)
    for _ in range(rounds):
        for name, call in calls.items():
            gc.collect()
            found = _round(call, seconds)
            known = best.setdefault(name, found)
            for key, value in found.items():
                known[key] = min(known[key], value)
    return best


def _round(call: Callable[[int], Any], seconds: float) -> dict[str, float]:
    times: list[float] = []
    until, cpu = time.perf_counter() + seconds, time.process_time()
    while (began := time.perf_counter()) < until:
        call(len(times))
        times.append(time.perf_counter() - began)
    cpu = time.process_time() - cpu
    times.sort()
    return {"p50": 1000 * times[len(times) // 2], "cpu": 1000 * cpu / len(times)}
