"""Reads in process: `get_online_features` against redis-py reading the same bytes, and Feast; windows against a row."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from benchmarks import data
from benchmarks.processes import WorkerError, cpu_seconds, feast_python, free_port, server, worker
from benchmarks.report import Report, number, ratio
from benchmarks.serving import PATH, put_load, serve
from benchmarks.world import World

SHAPES = ((1, 10), (10, 50), (100, 50))
TIMES_REDIS = {(1, 10): 2.0, (100, 50): 3.0}
TIMES_ROW = 3.0
_NAMES = {
    "ours": "get_online_features().to_dict()",
    "unread": "get_online_features()",
    "redis": "redis-py, pipelined GETs of the same keys",
    "mget": "redis-py, one MGET of the same keys",
    "feast": "Feast get_online_features().to_dict()",
}


def measure(world: World) -> Report:
    """Ours and redis-py in turns in one process, then Feast; then windows."""
    size = world.size
    report = Report("Online reads in process", ["entities x features", "call", "p50 ms", "CPU ms"])
    pace = {"rounds": size.rounds, "seconds": size.seconds / 2}
    shapes = [list(shape) for shape in SHAPES]
    found = worker(
        "ours", "online", root=str(world.ours), port=world.port, users=size.feast_users, shapes=shapes, **pace
    )
    found |= _feast(world, report, pace)
    for shape in SHAPES:
        name = f"{shape[0]}x{shape[1]}"
        for call, label in _NAMES.items():
            if one := found.get(f"{call} {name}"):
                report.add(name, label, number(one["p50"]), number(one["cpu"]))
        ours, raw, feast = (found.get(f"{call} {name}", {}) for call in ("ours", "redis", "feast"))
        times = ratio(ours["p50"], raw["p50"])
        if shape in TIMES_REDIS:
            report.at_most(f"in process {name}: p50, ours over pipelined redis-py", times, TIMES_REDIS[shape])
        elif times:
            report.state(f"in process {name}: p50, ours over pipelined redis-py", number(times or 0.0, "x"))
        if feast:
            report.state(f"in process {name}: CPU, Feast over ours", number(feast["cpu"] / ours["cpu"], "x"))
    _windows(world, report, pace)
    return report


def _feast(world: World, report: Report, pace: dict[str, float]) -> dict[str, dict[str, float]]:
    try:
        if world.feast_error:
            raise WorkerError(world.feast_error)
        shapes = [[count, data.spread(features)] for count, features in SHAPES]
        found: dict[str, dict[str, float]] = worker(
            "feast_side", "online", feast_python(), root=str(world.feast), users=world.size.feast_users,
            shapes=shapes, **pace,
        )  # fmt: skip
    except (WorkerError, OSError) as error:
        report.notes.append(f"Feast could not be measured: {error}")
        return {}
    return found


def _windows(world: World, report: Report, pace: dict[str, float]) -> None:
    online, root = f"redis://127.0.0.1:{world.port}/3", data.ROOT / "windowed"
    shutil.rmtree(root, ignore_errors=True)
    found = worker("ours", "windowed", root=str(root), online=online, **pace)
    found |= _windows_over_http(world, root)
    labels = {"windows": "ten windows of a busy user", "plain": "ten features of a row"}
    for call, label in labels.items():
        report.add("1x10", label, number(found[call]["p50"]), number(found[call]["cpu"]))
    for call, label in labels.items():
        over = found[f"http {call}"]
        report.add("1x10", f"{label}, over HTTP", number(over["p50"]), number(over["cpu"]))
    report.notes.append(
        f"The busy user has {found['count_1h']:,} events in the last hour and {found['count_30d']:,} in 30 days."
    )
    times = ratio(found["windows"]["p50"], found["plain"]["p50"])
    report.state("windows 1 h, 7 d, 30 d, ten features, in process: p50 over a plain row", number(times or 0.0, "x"))
    times = ratio(found["http windows"]["p50"], found["http plain"]["p50"])
    report.at_most("windows 1 h, 7 d, 30 d, ten features, over HTTP: p50 over a plain row", times, TIMES_ROW)


def _windows_over_http(world: World, root: Path) -> dict[str, dict[str, float]]:
    """The same two reads from a server, in turns."""
    best: dict[str, dict[str, float]] = {}
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-windows-") as folder,
        server(serve(root, port), port) as process,
    ):
        files = {view: Path(folder) / view for view in ("windows", "plain")}
        for view, file in files.items():
            file.write_text(json.dumps([{"features": [view], "entities": {"user_id": [user]}} for user in range(4)]))
            put_load(port, PATH, file, 0.3)
        for _ in range(world.size.rounds):
            for view, file in files.items():
                before = cpu_seconds(process)
                one = put_load(port, PATH, file, world.size.seconds)
                one["cpu"] = 1000 * (cpu_seconds(process) - before) / one["requests"]
                known = best.setdefault(f"http {view}", one)
                best[f"http {view}"] = {key: min(known[key], one[key]) for key in one}
    return best
