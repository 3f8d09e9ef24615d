"""Materializing into Redis: rows a second and memory, against redis-py writing the same bytes, and Feast."""

from __future__ import annotations

import shutil

from benchmarks import data
from benchmarks.processes import worker
from benchmarks.report import Report, number, ratio
from benchmarks.world import World

SHARE_OF_REDIS = 0.5
TIMES_FEAST = 5.0
MOST_GROWTH = 1.25


def measure(world: World) -> Report:
    """One view of 20 features. Filling the world has materialized three; the best one counts."""
    size = world.size
    head = ["what", "rows", "rows/s", "CPU µs/row", "peak MiB"]
    report = Report("Materializing 20 features into Redis", head)
    few = size.users // 4
    small = data.ROOT / "ours_quarter"
    shutil.rmtree(small, ignore_errors=True)
    online = f"redis://127.0.0.1:{world.port}/4"
    worker("ours", "apply", root=str(small), paths=[str(data.profiles(few, 0))], online=online)
    quarter = worker("ours", "materialize", root=str(small), views=["view_0"])
    raw = [worker("by_hand", "redis_write", port=world.port, pattern="fs1:*view_0*", rows=size.users) for _ in range(2)]
    ours = min((world.costs[f"ours {view}"] for view in range(data.VIEWS)), key=lambda cost: cost["wall"])
    raw_best = min(raw, key=lambda cost: cost["wall"])
    feast = min(
        (cost for name, cost in world.costs.items() if name.startswith("feast")), key=lambda c: c["wall"], default=None
    )
    if feast:
        feast["rows"] = size.feast_users
    _add(report, "feature_store", ours)
    _add(report, "feature_store, a quarter", quarter)
    _add(report, f"redis-py, pipelined SETs of the same {raw_best['bytes']:.0f} bytes a row", raw_best)
    if feast:
        _add(report, "Feast", feast)
    else:
        report.notes.append(f"Feast could not be measured: {world.feast_error}")
    report.at_least("materialize: rate, ours over redis-py", ratio(_rate(ours), _rate(raw_best)), SHARE_OF_REDIS)
    report.at_least("materialize: rate, ours over Feast", ratio(_rate(ours), feast and _rate(feast)), TIMES_FEAST)
    if feast:
        report.state("materialize: CPU a row, Feast over ours", number(_cpu(feast) / _cpu(ours), "x"))
    growth = ours["peak"] / quarter["peak"]
    report.at_most(f"materialize: peak memory, {size.users:,} rows over {few:,}", growth, MOST_GROWTH)
    return report


def _add(report: Report, name: str, cost: dict[str, float]) -> None:
    cells = number(cost["rows"]), number(_rate(cost)), number(_cpu(cost)), number(cost["peak"])
    report.add(name, *cells)


def _rate(cost: dict[str, float]) -> float:
    return cost["rows"] / cost["wall"]


def _cpu(cost: dict[str, float]) -> float:
    return 1e6 * cost["cpu"] / cost["rows"]
