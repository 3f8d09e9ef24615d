"""Runs the benchmarks, prints what they found and writes benchmarks/README.md."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import growth, hbase, historical, materialize, online, serving, spark, startup, streams, tiered, world
from benchmarks.report import Report
from benchmarks.sizes import FULL, QUICK, Size
from benchmarks.world import World

README = Path(__file__).parent / "README.md"
RESULTS = Path(__file__).parent / "results"
_IN_WORLD: dict[str, Callable[[World], Report]] = {
    "serving": serving.measure,
    "online": online.measure,
    "materialize": materialize.measure,
    "tiered": tiered.measure,
}
_ALONE: dict[str, Callable[[Size], Report]] = {
    "historical": historical.measure,
    "startup": startup.measure,
    "hbase": hbase.measure,
    "spark": spark.measure,
    "growth": growth.measure,
    "streams": streams.measure,
    "freshness": streams.measure_freshness,
}
_PACKAGES = ("duckdb", "pyarrow", "redis", "hiredis", "happybase", "orjson", "uvicorn", "fastapi", "deltalake",
             "pyspark", "apache-flink", "confluent-kafka")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: everything ran, whatever it measured; 1: a benchmark failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes; README.md stays as it is")
    parser.add_argument("--only", choices=[*_IN_WORLD, *_ALONE], action="append", help="this one; may be repeated")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    console = Console() if sys.stdout.isatty() else Console(width=150)
    names = options.only or [*_IN_WORLD, *_ALONE]
    reports: list[Report] = []
    failed = False
    for name, measure in _measures(size, names, console):
        console.print(f"{name}: measuring", highlight=False)
        began = time.monotonic()
        try:
            report = measure()
        except Exception:
            failed = True
            traceback.print_exc()
            continue
        reports.append(report)
        console.print(_details(report))
        for note in report.notes:
            console.print(note, markup=False)
        if not options.quick:
            _keep(name, report, (time.monotonic() - began) / 60)
            README.write_text(_page(size))
    console.print(_summary(reports))
    return 1 if failed else 0


def _measures(size: Size, names: list[str], console: Console) -> Iterator[tuple[str, Callable[[], Report]]]:
    if any(name in _IN_WORLD for name in names):
        console.print("filling Redis", highlight=False)
        with world.filled(size) as place:
            for name, of_world in _IN_WORLD.items():
                if name in names:
                    yield name, partial(of_world, place)
    for name, of_size in _ALONE.items():
        if name in names:
            yield name, partial(of_size, size)


def _keep(name: str, report: Report, minutes: float) -> None:
    """What one benchmark found, beside the circumstances, for the page."""
    RESULTS.mkdir(exist_ok=True)
    how = f"Measured on {date.today()}, in {minutes:.0f} minutes, at a mean load of {os.getloadavg()[2]:.1f}."
    kept = {"how": how, "machine": _machine(), "report": asdict(report)}
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def _details(report: Report) -> Table:
    table = Table(title=report.title, title_justify="left")
    for n, name in enumerate(report.head):
        table.add_column(name, justify="left" if n < 2 and not name.endswith(" s") else "right")
    for row in report.rows:
        table.add_row(*row)
    return table


def _summary(reports: Iterable[Report]) -> Table:
    table = Table(title="Figures", title_justify="left")
    for name in ("figure", "value", "target", ""):
        table.add_column(name, justify="right" if name == "value" else "left")
    colours = {"met": "green", "missed": "red"}
    for report in reports:
        for figure in report.figures:
            verdict = figure.verdict
            colour = colours.get(verdict, "dim")
            table.add_row(figure.name, figure.value, figure.target, f"[{colour}]{verdict}[/{colour}]")
        table.add_section()
    return table


def _page(size: Size) -> str:
    """benchmarks/README.md, of all results that are kept."""
    files = {name: RESULTS / f"{name}.json" for name in [*_IN_WORLD, *_ALONE]}
    kept = [json.loads(file.read_text()) for file in files.values() if file.exists()]
    reports = [Report(**each["report"]) for each in kept]
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks.run` (`make bench`); `--quick` takes small sizes, `--only NAME` one of them.",
        "Everything in one table was measured in one run, side by side, on one machine, over the same data: compare",
        "ratios, and processor time before wall time where the machine was busy. Of repeated measurements the least",
        "counts. Feast runs in its own environment: `FEAST_PYTHON`, or one made under `benchmarks/.feast`.",
        "",
        *[f"- {machine}" for machine in dict.fromkeys(each["machine"] for each in kept)],
        f"- {size.users:,} users online, 3 views of 20 features (8 INT64, 10 FLOAT64, 2 STRING), of which Feast and the"
        f" naive service hold {size.feast_users:,}; load asks for those only",
        "",
        "## Figures",
        "",
        *_markdown(["figure", "value", "target", ""],
                   [(f.name, f.value, f.target, f.verdict) for report in reports for f in report.figures]),
    ]  # fmt: skip
    for each, report in zip(kept, reports, strict=True):
        lines += ["", f"## {report.title}", "", each["how"], "", *_markdown(report.head, report.rows)]
        for note in report.notes:
            lines += ["", note]
    return "\n".join(lines) + "\n"


def _markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    table = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]


def _machine() -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    server = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout
    redis_version = found[1] if (found := re.search(r"v=(\S+)", server)) else "?"
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {_memory_gib():.0f} GiB, {platform.system()},"
        f" Python {platform.python_version()}, Redis {redis_version}, {versions}"
    )


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    sys.exit(main())
