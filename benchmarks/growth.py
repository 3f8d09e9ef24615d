"""How cost grows with data on each engine: the same retrieval over 1, 4 and 16 times the events, drawn as a picture.

`python -m benchmarks.growth retrieve JSON` runs one of them in a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import data
from benchmarks.processes import worker
from benchmarks.report import Report, number
from benchmarks.sizes import Size
from benchmarks.spark import Cost, answered, store_over, warmed_up

TIMES = (1, 4, 16)
ENGINES = ("local", "spark")
NEAR_LINEAR = 1.25
"""What 16 times the data may cost at most, over 16 times what it costs once."""
PICTURE = Path(__file__).parent / "growth.svg"


def measure(size: Size) -> Report:
    """One process a measurement; an entity row in ten events."""
    report = Report("Cost as data grows", ["engine", "events", "entity rows", "wall s", "CPU s", "CPU µs an event"])
    found = {engine: [_retrieved(engine, size.events * times // TIMES[-1]) for times in TIMES] for engine in ENGINES}
    for engine, costs in found.items():
        for cost in costs:
            events = cost["events"]
            cells = (number(cost[key]) for key in ("rows", "wall", "cpu"))
            report.add(engine, number(events), *cells, number(1e6 * cost["cpu"] / events))
        growth = costs[-1]["cpu"] / costs[0]["cpu"] / (TIMES[-1] / TIMES[0])
        report.at_most(f"growth, {engine}: CPU of 16 times the events over 16 times the CPU", growth, NEAR_LINEAR)
        first, second = (costs[n + 1]["cpu"] - costs[n]["cpu"] for n in (0, 1))
        if first > 0:  # of a few rows a clock says nothing
            steps = (TIMES[2] - TIMES[1]) / (TIMES[1] - TIMES[0])
            times = number(second / first / steps, "x")
            report.state(f"growth, {engine}: CPU of an event more, past 4 times over before", times)
    _draw(found, PICTURE if size.name == "full" else data.ROOT / PICTURE.name)
    report.notes.append("![cost against data, by engine](growth.svg)")
    return report


def _retrieved(engine: str, events: int) -> Cost:
    users = max(events // 100, 1)
    found: Cost = worker(
        "growth", "retrieve", engine=engine, events=str(data.events(events, users)),
        entities=str(data.entities(events // 10, users)), out=str(data.ROOT / "answers" / f"growth_{engine}"),
    )  # fmt: skip
    return {**found, "events": events}


def _draw(found: dict[str, list[Cost]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "growth"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for engine, costs in found.items():
        events = [cost["events"] / 1e6 for cost in costs]
        axes.plot(events, [cost["cpu"] for cost in costs], marker="o", label=f"{engine}: CPU")
        axes.plot(events, [cost["wall"] for cost in costs], marker="o", linestyle="--", label=f"{engine}: wall")
    axes.set(xlabel="million events (and a tenth as many entity rows)", ylabel="seconds", xlim=0, ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)


def retrieve(engine: str, events: str, entities: str, out: str) -> Cost:
    """The latest event of each entity row, in a file."""
    store = store_over(data.ROOT / "repositories" / f"growth_{engine}", events)
    path = out if engine == "spark" else f"{out}.parquet"
    warmed_up(store, engine, out)
    return answered(lambda: store.get_historical_features(entities, ["latest"], engine=engine).to_file(path), path)


if __name__ == "__main__":
    print(json.dumps({"retrieve": retrieve}[sys.argv[1]](**json.loads(sys.argv[2]))))
