"""Redis with the users of the benchmarks in it, as ours and as Feast's: filled once a run, for all that read it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import data
from benchmarks.processes import WorkerError, feast_python, redis_server, worker
from benchmarks.sizes import Size


@dataclass
class World:
    """A Redis server and the repositories over it; `costs` is what filling them took, by view."""

    port: int
    ours: Path
    feast: Path
    size: Size
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    feast_error: str | None = None

    @property
    def online(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


@contextlib.contextmanager
def filled(size: Size) -> Iterator[World]:
    """A world with all views materialized; if Feast fails, `feast_error` says why."""
    with redis_server() as port:
        world = World(port, data.ROOT / "ours", data.ROOT / "feast", size)
        for folder in (world.ours, world.feast):
            shutil.rmtree(folder, ignore_errors=True)
        _fill_ours(world)
        _fill_feast(world)
        yield world


def _fill_ours(world: World) -> None:
    paths = [str(data.profiles(world.size.users, view)) for view in range(data.VIEWS)]
    worker("ours", "apply", root=str(world.ours), paths=paths, online=world.online)
    for view in range(data.VIEWS):
        world.costs[f"ours {view}"] = worker("ours", "materialize", root=str(world.ours), views=[f"view_{view}"])


def _fill_feast(world: World) -> None:
    paths = [str(data.profiles(world.size.feast_users, view)) for view in range(data.VIEWS)]
    try:
        python = feast_python()
        features = [data.features(view) for view in range(data.VIEWS)]
        worker("feast_side", "apply", python, root=str(world.feast), paths=paths, features=features, port=world.port)
        for view in range(data.VIEWS):
            world.costs[f"feast {view}"] = worker(
                "feast_side", "materialize", python, root=str(world.feast), views=[f"view_{view}"],
                start=data.NOW - data.SPAN, end=data.NOW,
            )  # fmt: skip
    except (WorkerError, OSError) as error:
        world.feast_error = str(error)
