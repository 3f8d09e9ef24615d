"""HTTP: processor time a request, latency, round trips; beside Feast's server, a bare application and a naive one."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from benchmarks import data, load
from benchmarks.processes import (
    HERE,
    WorkerError,
    cpu_seconds,
    feast_python,
    free_port,
    redis_reads,
    server,
    worker,
)
from benchmarks.report import Report, number, ratio
from benchmarks.world import World

SHAPES = ((1, 10), (1, 50), (10, 50), (100, 50))
PATH = "/get-online-features"
LESS_THAN_FEAST = {(1, 10): 5, (10, 50): 10, (100, 50): 12}
_OURS, _FEAST, _FLOOR, _NAIVE = "feature_store", "Feast", "bare ASGI", "naive FastAPI"


@dataclass(frozen=True)
class Target:
    """A server under load."""

    name: str
    process: psutil.Process
    port: int

    def path(self, shape: str) -> str:
        return f"/{shape}" if self.name == _FLOOR else PATH


def measure(world: World) -> Report:
    """All servers and shapes, in turns; of each the best round."""
    head = ["entities x features", "server", "CPU ms/request", "p50 ms", "p99 ms", "Redis reads/request", "bytes"]
    report = Report("HTTP, one server process, one connection", head)
    with tempfile.TemporaryDirectory(prefix="benchmarks-serving-") as folder, contextlib.ExitStack() as servers:
        bodies = _write_bodies(world, Path(folder))
        targets = _start(world, servers, Path(folder), bodies, report)
        found = _in_turns(world, targets, bodies)
    for shape in map(_name, SHAPES):
        for target in targets:
            one = found[shape, target.name]
            cells = [number(one[key]) for key in ("cpu", "p50", "p99", "reads", "bytes")]
            report.add(shape, target.name, *cells)
    _judge(report, found)
    return report


def _start(
    world: World, servers: contextlib.ExitStack, folder: Path, bodies: dict[str, Path], report: Report
) -> list[Target]:
    targets = [_started(servers, _OURS, serve(world.ours, port := free_port()), port)]
    answers = folder / "answers"
    answers.mkdir()
    client = load.Client(targets[0].port)
    for shape, file in bodies.items():
        asked = json.loads(file.read_text())[0]
        (answers / shape).write_bytes(client.post(load.request(PATH, json.dumps(asked))))
    floor = [sys.executable, "-m", "benchmarks.apps", "floor", str(port := free_port()), str(answers)]
    targets.append(_started(servers, _FLOOR, floor, port))
    paths = [str(data.profiles(world.size.users, view)) for view in range(data.VIEWS)]
    worker("by_hand", "redis_hashes", port=world.port, paths=paths, rows=world.size.feast_users)
    naive = [sys.executable, "-m", "benchmarks.apps", "naive", str(port := free_port()), str(world.port)]
    targets.append(_started(servers, _NAIVE, naive, port))
    try:
        if world.feast_error:
            raise WorkerError(world.feast_error)
        targets.append(_started(servers, _FEAST, _feast_serve(world, port := free_port()), port))
        load.Client(port).post(load.request(PATH, json.dumps(asked)))
    except (WorkerError, OSError, RuntimeError) as error:
        targets = [target for target in targets if target.name != _FEAST]
        report.notes.append(f"Feast's server could not be measured: {error}")
    return targets


def serve(repository: Path, port: int) -> list[str]:
    """The command that serves a repository; its access log stays on."""
    fs = str(Path(sys.executable).parent / "fs")
    return [fs, "-c", str(repository), "serve", "--port", str(port), "--workers", "1"]


def _feast_serve(world: World, port: int) -> list[str]:
    feast = str(Path(feast_python()).parent / "feast")
    # Without --max-requests 0 its worker is replaced every thousand requests.
    options = [
        "-p",
        str(port),
        "--no-access-log",
        "--workers",
        "1",
        "--max-requests",
        "0",
        "--keep-alive-timeout",
        "75",
    ]
    return [feast, "-c", str(world.feast), "serve", *options, "--max-requests-jitter", "0"]


def _started(servers: contextlib.ExitStack, name: str, command: list[str], port: int) -> Target:
    return Target(name, servers.enter_context(server(command, port)), port)


def _write_bodies(world: World, folder: Path) -> dict[str, Path]:
    """200 requests of each shape, for users that every server has."""
    files = {}
    chance = random.Random(5)
    for count, features in SHAPES:
        references = data.spread(features)
        asked = [
            {"features": references, "entities": {"user_id": chance.sample(range(world.size.feast_users), count)}}
            for _ in range(200)
        ]
        files[_name((count, features))] = folder / f"{_name((count, features))}.json"
        files[_name((count, features))].write_text(json.dumps(asked))
    return files


def _in_turns(world: World, targets: list[Target], bodies: dict[str, Path]) -> dict[tuple[str, str], dict[str, float]]:
    found: dict[tuple[str, str], dict[str, float]] = {}
    client = redis.Redis(port=world.port)
    for shape, target in _pairs(bodies, targets):
        put_load(target.port, target.path(shape), bodies[shape], 0.3)
    for _ in range(world.size.rounds):
        for shape, target in _pairs(bodies, targets):
            before, (reads, _) = cpu_seconds(target.process), redis_reads(client)
            one = put_load(target.port, target.path(shape), bodies[shape], world.size.seconds)
            requests = one["requests"]
            one["cpu"] = 1000 * (cpu_seconds(target.process) - before) / requests
            one["reads"] = (redis_reads(client)[0] - reads - 1) / requests
            known = found.setdefault((shape, target.name), one)
            for key, value in one.items():
                known[key] = min(known[key], value)
    return found


def _pairs(bodies: dict[str, Path], targets: list[Target]) -> Iterator[tuple[str, Target]]:
    return ((shape, target) for shape in bodies for target in targets)


def put_load(port: int, path: str, bodies: Path, seconds: float) -> dict[str, Any]:
    """What `benchmarks.load` finds, run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", str(port), path, str(bodies), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        raise WorkerError(f"load on port {port}, {path}: {done.stderr.strip().splitlines()[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _judge(report: Report, found: dict[tuple[str, str], dict[str, float]]) -> None:
    for shape in SHAPES:
        name = _name(shape)
        ours, feast = found[name, _OURS], found.get((name, _FEAST), {})
        less = ratio(feast.get("cpu"), ours["cpu"])
        if shape in LESS_THAN_FEAST:
            report.at_least(f"HTTP {name}: CPU, Feast over ours", less, LESS_THAN_FEAST[shape])
        elif less:
            report.state(f"HTTP {name}: CPU, Feast over ours", number(less, "x"))
    for shape in SHAPES:
        name = _name(shape)
        share = found[name, _FLOOR]["cpu"] / found[name, _OURS]["cpu"]
        report.state(f"HTTP {name}: bare ASGI's share of our CPU", f"{share:.0%}")
    for shape in SHAPES:
        reads = found[_name(shape), _OURS]["reads"]
        report.holds(f"HTTP {_name(shape)}: Redis reads a request", number(reads), "1 round trip", reads < 1.05)
    ours, feast = found["100x50", _OURS], found.get(("100x50", _FEAST))
    report.holds(
        "HTTP 100x50: our p99 against Feast's p50",
        f"{number(ours['p99'])} against {number(feast['p50']) if feast else 'not measured'} ms",
        "below",
        ours["p99"] < feast["p50"] if feast else None,
    )


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
