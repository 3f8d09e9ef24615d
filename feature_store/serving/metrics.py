"""What a service counts, in Prometheus' format: latency by route, statuses by view, store latency, freshness.

A worker counts in plain Python numbers (a request costs a microsecond or two) and leaves them every second in a file
of a folder that all workers share; whichever worker is asked adds up the files. A worker that ended leaves its file, so
that counters never go back.
"""

from __future__ import annotations

import contextlib
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from feature_store.expressions.visibility import Status

CONTENT_TYPE = CONTENT_TYPE_LATEST
BUCKETS = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_REQUEST = "feature_store_request_seconds"
_STORE = "feature_store_online_read_seconds"
_TIER_COUNTS = {
    "promoted": "Keys copied to the fast tier",
    "missed": "Writes that the fast tier missed",
    "losses": "Times that the fast tier was found to have lost its copies",
}


class Metrics:
    """The counters of one worker."""

    def __init__(self, folder: Path | None = None) -> None:
        self._file = folder / f"{os.getpid()}-{time.time_ns()}.json" if folder else None
        self._requests: dict[str, list[float]] = {}
        self._answers: dict[str, int] = {}
        self._reads: list[float] = _histogram()
        self._read_failures = 0
        self._statuses: dict[str, list[int]] = {}
        self._newest: dict[str, int] = {}
        self._through: dict[str, int] = {}
        self._entities = 0
        self._tiers: dict[str, int] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """One answered request."""
        histogram = self._requests.get(route)
        if histogram is None:
            histogram = self._requests[route] = _histogram()
        _observe(histogram, seconds)
        key = f"{route} {status}"
        self._answers[key] = self._answers.get(key, 0) + 1

    def read(self, seconds: float, failed: bool = False) -> None:
        """One read of the online store."""
        _observe(self._reads, seconds)
        self._read_failures += failed

    def tiers(self, counts: dict[str, int]) -> None:
        """What this worker's tiered stores counted so far, and as `up` whether the fast tier is used."""
        self._tiers = counts

    def served(self, rows: int) -> None:
        """Entity rows of one answer."""
        self._entities += rows

    def statuses(self, view: str, status: int, count: int) -> None:
        """Values of a view answered with a status."""
        counts = self._statuses.get(view)
        if counts is None:
            counts = self._statuses[view] = [0] * len(Status)
        counts[status] += count

    def newest(self, view: str, event_time: int) -> None:
        """The event time (microseconds) of a row that was served."""
        if event_time > self._newest.get(view, 0):
            self._newest[view] = event_time

    def through(self, views: dict[str, int]) -> None:
        """Up to what instant (microseconds) each view is materialized."""
        self._through = views

    def save(self) -> None:
        """Leave this worker's counters where the others find them."""
        if self._file is not None:
            partial = self._file.with_suffix(".partial")
            partial.write_bytes(orjson.dumps(self._state()))
            partial.replace(self._file)

    def render(self) -> bytes:
        """All workers' counters as Prometheus text."""
        states = [self._state()]
        if self._file is not None:
            for file in self._file.parent.glob("*.json"):
                if file != self._file:
                    with contextlib.suppress(OSError, orjson.JSONDecodeError):
                        states.append(orjson.loads(file.read_bytes()))
        registry = CollectorRegistry()
        registry.register(_Families(states))
        return generate_latest(registry)

    def _state(self) -> dict[str, Any]:
        return {
            "requests": self._requests, "answers": self._answers, "reads": self._reads, "newest": self._newest,
            "read_failures": self._read_failures, "statuses": self._statuses, "through": self._through,
            "entities": self._entities, "tiers": self._tiers,
        }  # fmt: skip


def _histogram() -> list[float]:
    """Counts a bucket, the last one for what is longer, then the sum."""
    return [0.0] * (len(BUCKETS) + 2)


def _observe(histogram: list[float], seconds: float) -> None:
    histogram[bisect_left(BUCKETS, seconds)] += 1
    histogram[-1] += seconds


class _Families(Collector):
    """The merged states of workers as metric families."""

    def __init__(self, states: list[dict[str, Any]]) -> None:
        self._states = states

    def collect(self) -> Iterable[Metric]:
        latency = HistogramMetricFamily(_REQUEST, "Time from a request to its answer", labels=["route"])
        for route, histogram in sorted(self._lists("requests").items()):
            latency.add_metric([route], *_cumulative(histogram))
        yield latency
        answers = CounterMetricFamily("feature_store_requests", "Answered requests", labels=["route", "status"])
        for key, count in sorted(self._numbers("answers").items()):
            answers.add_metric(key.rsplit(" ", 1), count)
        yield answers
        yield from self._store()
        if any(state["tiers"] for state in self._states):
            yield from self._tiers()
        yield from self._values()

    def _store(self) -> Iterator[Metric]:
        reads = HistogramMetricFamily(_STORE, "Time of one read of the online store", labels=[])
        buckets, total = _cumulative(_added([state["reads"] for state in self._states]))
        reads.add_metric([], buckets, total)
        yield reads
        failures = sum(state["read_failures"] for state in self._states)
        yield CounterMetricFamily("feature_store_online_read_failures", "Reads that failed", value=failures)
        rows = sum(state["entities"] for state in self._states)
        yield CounterMetricFamily("feature_store_entity_rows", "Entity rows answered", value=rows)

    def _tiers(self) -> Iterator[Metric]:
        counts = self._numbers("tiers")
        keys = CounterMetricFamily("feature_store_tier_keys", "Keys read, by the tier that answered", labels=["tier"])
        for tier in ("fast", "slow", "timeout"):
            keys.add_metric([tier], counts[tier])
        yield keys
        for name, what in _TIER_COUNTS.items():
            yield CounterMetricFamily(f"feature_store_tier_{name}", what, value=counts[name])
        up = min(state["tiers"]["up"] for state in self._states if state["tiers"])
        yield GaugeMetricFamily("feature_store_fast_tier_up", "Whether every worker uses the fast tier", value=up)

    def _values(self) -> Iterator[Metric]:
        values = CounterMetricFamily("feature_store_values", "Feature values by status", labels=["view", "status"])
        for view, counts in sorted(self._lists("statuses").items()):
            for status in Status:
                values.add_metric([view, status.name], counts[status])
        yield values
        now = time.time()
        through = GaugeMetricFamily(
            "feature_store_freshness_seconds", "Time since that up to which a view is materialized", labels=["view"]
        )
        for view, at in sorted(self._latest("through").items()):
            through.add_metric([view], now - at / 1e6)
        yield through
        newest = GaugeMetricFamily(
            "feature_store_newest_served_seconds", "Age of the newest row served of a view", labels=["view"]
        )
        for view, at in sorted(self._latest("newest").items()):
            newest.add_metric([view], now - at / 1e6)
        yield newest

    def _lists(self, name: str) -> dict[str, list[float]]:
        keys = {key for state in self._states for key in state[name]}
        return {key: _added([state[name][key] for state in self._states if key in state[name]]) for key in keys}

    def _numbers(self, name: str) -> dict[str, float]:
        keys = {key for state in self._states for key in state[name]}
        return {key: sum(state[name].get(key, 0) for state in self._states) for key in keys}

    def _latest(self, name: str) -> dict[str, int]:
        keys = {key for state in self._states for key in state[name]}
        return {key: max(state[name].get(key, 0) for state in self._states) for key in keys}


def _added(lists: list[list[float]]) -> list[float]:
    return [sum(column) for column in zip(*lists, strict=True)]


def _cumulative(histogram: list[float]) -> tuple[list[tuple[str, float]], float]:
    total, buckets = 0.0, []
    for bound, count in zip([*map(str, BUCKETS), "+Inf"], histogram[:-1], strict=True):
        total += count
        buckets.append((bound, total))
    return buckets, histogram[-1]
