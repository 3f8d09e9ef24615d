"""The command line: how long until help is there, and until many views are applied."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import data
from benchmarks.processes import HERE, WorkerError, feast_python, worker
from benchmarks.report import Report, number
from benchmarks.sizes import Size

MOST_HELP, MOST_APPLY = 0.3, 3.0
_FS = str(Path(sys.executable).parent / "fs")


def measure(size: Size) -> Report:
    """`fs --help`, `fs apply` of many views, again without changes; Feast's help beside it."""
    report = Report("Command line", ["command", "wall s", "CPU s"])
    help_wall, help_cpu = _best([_FS, "--help"], 7)
    report.add("fs --help", number(help_wall), number(help_cpu))
    root = data.ROOT / "repositories" / "many"
    costs = []
    for _ in range(3):
        shutil.rmtree(root, ignore_errors=True)
        worker("ours", "apply_many", root=str(root), paths=[str(data.profiles(10_000, 0))], views=size.views)
        costs.append(_best([_FS, "-c", str(root), "apply"], 1))
    apply_wall, apply_cpu = min(costs)
    report.add(f"fs apply, {size.views} views", number(apply_wall), number(apply_cpu))
    again = _best([_FS, "-c", str(root), "apply"], 2)
    report.add("fs apply, nothing changed", *map(number, again))
    try:
        report.add("feast --help", *map(number, _best([str(Path(feast_python()).parent / "feast"), "--help"], 3)))
    except (WorkerError, OSError) as error:
        report.notes.append(f"Feast could not be measured: {error}")
    report.at_most("fs --help: wall", help_wall, MOST_HELP, "s")
    report.state("fs --help: CPU", number(help_cpu, "s"))
    report.at_most(f"fs apply of {size.views} views: wall", apply_wall, MOST_APPLY, "s")
    report.state(f"fs apply of {size.views} views: CPU", number(apply_cpu, "s"))
    return report


def _best(command: list[str], times: int) -> tuple[float, float]:
    """The least wall and processor seconds of a command. Modules are compiled by its first run, as for everybody."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    walls, cpus = [], []
    for _ in range(times):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent)
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        if done.returncode:
            raise WorkerError(f"{Path(command[0]).name}: {(done.stderr or done.stdout).strip()[-300:]}")
    return min(walls), min(cpus)
