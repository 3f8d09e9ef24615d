"""Historical retrieval: against hand-written DuckDB that gives the same answer, and Feast's two embedded stores."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks import data
from benchmarks.processes import WorkerError, feast_python, worker
from benchmarks.report import Report, number, ratio
from benchmarks.sizes import Size

TIMES_DUCKDB = 1.2
TIMES_DASK = 5.0
_TURNS = 3
LIMIT, LIMIT_MIB = "1GiB", 2048
Cost = dict[str, float]


@dataclass(frozen=True)
class Case:
    """Entity rows, the sources to look them up in, and what to compare with."""

    name: str
    entities: Path
    sources: Sequence[Path]
    stores: Sequence[str]

    @property
    def large(self) -> bool:
        """Whether it is measured at full size: Feast's default store takes a small one."""
        return "dask" not in self.stores

    @property
    def paths(self) -> list[str]:
        return [str(path) for path in self.sources]


def measure(size: Size) -> Report:
    """All cases, one process a measurement."""
    report = Report("Historical retrieval", ["case", "how", "wall s", "CPU s", "peak MiB", "rows"])
    for case in _cases(size):
        _measure_case(case, report)
    _measure_windows(size, report)
    return report


def _cases(size: Size) -> list[Case]:
    rows, users = size.entity_rows, size.entity_rows
    few = size.few_entities_rows

    def sources(count: int, of: int, views: int = data.VIEWS) -> list[Path]:
        return [data.history(count, of, view) for view in range(views)]

    return [
        Case(
            f"{rows:,} rows, 3 views over {size.source_rows:,} rows each",
            data.entities(rows, users), sources(size.source_rows, users), ["duckdb"],
        ),
        Case(
            f"{rows:,} rows, 1 view over {rows:,} rows",
            data.entities(rows, users), sources(rows, users, 1), ["duckdb"],
        ),
        Case(
            f"{few // 50:,} rows, 1 view with 1,000 rows an entity",
            data.entities(few // 50, few // 1000), sources(few, few // 1000, 1), ["duckdb"],
        ),
        Case(
            f"{size.dask_rows:,} rows, 3 views over {size.dask_rows:,} rows each",
            data.entities(size.dask_rows, size.dask_rows // 10), sources(size.dask_rows, size.dask_rows // 10),
            ["duckdb", "dask"],
        ),
    ]  # fmt: skip


def _measure_case(case: Case, report: Report) -> None:
    out = data.ROOT / "answers"
    out.mkdir(exist_ok=True)
    entities, root = str(case.entities), _empty("historical")
    ours, by_hand = _in_turns(
        lambda: worker("ours", "historical", root=root, paths=case.paths, entities=entities, out=str(out / "ours")),
        lambda: worker("by_hand", "asof", paths=case.paths, entities=entities, out=str(out / "by_hand")),
    )
    _add(report, case.name, "feature_store", ours)
    _add(report, case.name, "hand-written DuckDB ASOF joins", by_hand)
    same = _same(out / "ours", out / "by_hand")
    report.holds(f"historical, {case.name}: the answer of hand-written DuckDB", _said(same), "equal", same)
    name = f"historical, {case.name}: wall, ours over hand-written"
    times = ours["wall"] / by_hand["wall"]
    if case.large:
        report.at_most(name, times, TIMES_DUCKDB)
    else:
        report.state(name, number(times, "x"))
    report.state(f"historical, {case.name}: CPU, ours over hand-written", number(ours["cpu"] / by_hand["cpu"], "x"))
    for store in case.stores:
        _against_feast(case, store, ours, report)
    if case.large and len(case.sources) > 1:
        _measure_limited(case, report)


def _against_feast(case: Case, store: str, ours: Cost, report: Report) -> None:
    least = TIMES_DASK if store == "dask" else 1.0
    name = f"historical, {case.name}: wall, Feast's {store} store over ours"
    try:
        (feast,) = _in_turns(lambda: _feast(case, store))  # as many runs as ours: the best counts
    except (WorkerError, OSError) as error:
        report.notes.append(f"{case.name}: Feast's {store} store could not be measured: {error}")
        report.at_least(name, None, least)
        return
    _add(report, case.name, f"Feast, {store} store", feast)
    report.at_least(name, ratio(feast["wall"], ours["wall"]), least)


def _feast(case: Case, store: str) -> Cost:
    python, root = feast_python(), _empty(f"feast_{store}")
    features = [data.features(view) for view in range(len(case.sources))]
    worker("feast_side", "apply", python, root=root, paths=case.paths, features=features, offline=store)
    names = [f"view_{view}:{name}" for view, types in enumerate(features) for name in types]
    out = str(data.ROOT / "answers" / "feast")
    found: Cost = worker(
        "feast_side", "historical", python, timeout=900, root=root, entities=str(case.entities), features=names, out=out
    )
    return found


def _measure_limited(case: Case, report: Report) -> None:
    out = str(data.ROOT / "answers" / "limited")
    found = worker(
        "ours", "historical", root=_empty("limited"), paths=case.paths, entities=str(case.entities), out=out,
        memory=LIMIT,
    )  # fmt: skip
    _add(report, case.name, f"feature_store, limits: {{memory: {LIMIT}}}", found)
    report.at_most(f"historical, {case.name}: peak with limits.memory {LIMIT}", found["peak"], LIMIT_MIB, "MiB")


def _measure_windows(size: Size, report: Report) -> None:
    users = size.events // 100
    events, entities = str(data.events(size.events, users)), str(data.entities(size.entity_rows, users))
    name = f"{size.entity_rows:,} rows, ten windows (1 h, 7 d, 30 d) over {size.events:,} events"
    out = data.ROOT / "answers"
    ours, by_hand = _in_turns(
        lambda: worker(
            "ours", "historical", root=_empty("windows"), paths=[events], entities=entities, out=str(out / "ours"),
            windows=True,
        ),
        lambda: worker("by_hand", "windows", path=events, entities=entities, out=str(out / "by_hand")),
    )  # fmt: skip
    _add(report, name, "feature_store", ours)
    _add(report, name, "hand-written DuckDB range join", by_hand)
    same = _same(out / "ours", out / "by_hand")
    report.holds(f"historical, {name}: the answer of hand-written DuckDB", _said(same), "equal", same)
    report.state(f"historical, {name}: wall, hand-written over ours", number(by_hand["wall"] / ours["wall"], "x"))
    report.state(f"historical, {name}: CPU, hand-written over ours", number(by_hand["cpu"] / ours["cpu"], "x"))


def _in_turns(*works: Callable[[], Cost]) -> list[Cost]:
    """Of each work the best of some runs, in turns: a shared machine slows now one, now the other."""
    costs = [[work() for work in works] for _ in range(_TURNS)]
    return [{key: min(cost[key] for cost in of_one) for key in of_one[0]} for of_one in zip(*costs, strict=True)]


def _same(one: Path, other: Path) -> bool:
    """Whether two files hold the same rows in the same order, column by column."""
    columns = pq.read_schema(one).names
    if sorted(columns) != sorted(pq.read_schema(other).names):
        return False
    for column in columns:
        left, right = (pq.read_table(path, columns=[column])[column].combine_chunks() for path in (one, other))
        if not left.equals(right.cast(left.type)):
            return False
    return True


def _said(same: bool) -> str:
    return "equal" if same else "differs"


def _empty(name: str) -> str:
    folder = data.ROOT / "repositories" / name
    shutil.rmtree(folder, ignore_errors=True)
    return str(folder)


def _add(report: Report, case: str, how: str, cost: Cost) -> None:
    report.add(case, how, *(number(cost[key]) for key in ("wall", "cpu", "peak", "rows")))
