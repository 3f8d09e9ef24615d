"""Processes that a benchmark starts: workers that measure themselves, servers, and Redis."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import redis

HERE = Path(__file__).parent
_FEAST_ENVIRONMENT = HERE / ".feast"
FEAST_VERSION = "0.67.*"


class WorkerError(Exception):
    """A worker failed; the message is the end of what it wrote."""


def worker(module: str, task: str, python: str = sys.executable, timeout: float = 1800, **arguments: Any) -> Any:
    """Runs `benchmarks/{module}.py TASK ARGUMENTS` in a process of its own; the JSON that it prints last."""
    command = (
        [python, "-m", f"benchmarks.{module}"] if python == sys.executable else [python, str(HERE / f"{module}.py")]
    )
    try:
        done = subprocess.run(
            [*command, task, json.dumps(arguments)], capture_output=True, text=True, timeout=timeout, cwd=HERE.parent
        )
    except subprocess.TimeoutExpired:
        raise WorkerError(f"{module} {task} took more than {timeout:.0f} s") from None
    if done.returncode:
        raise WorkerError(f"{module} {task}: {_error(done.stderr) or f'exit code {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def feast_python() -> str:
    """The interpreter of Feast's environment: FEAST_PYTHON, or one made under benchmarks/.feast."""
    if given := os.environ.get("FEAST_PYTHON"):
        return given
    python = _FEAST_ENVIRONMENT / "bin" / "python"
    if not python.exists():
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "uv"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, _FEAST_ENVIRONMENT], check=True)
        package = f"feast[redis,duckdb]=={FEAST_VERSION}"
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, package], check=True)
    return str(python)


@contextlib.contextmanager
def redis_server() -> Iterator[int]:
    """A Redis server of its own; its port."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="benchmarks-redis-") as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        command += ["--save", "", "--appendonly", "no"]
        with server(command, port):
            yield port


@contextlib.contextmanager
def server(command: Sequence[str], port: int, env: dict[str, str] | None = None) -> Iterator[psutil.Process]:
    """A server that listens on a port; stopped with all its children afterwards."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            list(command), stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parent, env=os.environ | (env or {})
        )
        try:
            _await_port(process, port, log)
            yield psutil.Process(process.pid)
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for child in psutil.wait_procs(children, timeout=5)[1]:
                child.kill()


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of a process and its children so far."""
    return sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def redis_reads(client: redis.Redis) -> tuple[int, int]:
    """How often the server has read from connections, and how many commands it has run."""
    stats = client.info("stats")
    return stats["total_reads_processed"], stats["total_commands_processed"]


def _await_port(process: subprocess.Popen[bytes], port: int, log: Any, timeout: float = 90) -> None:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            log.seek(0)
            raise WorkerError(f"{process.args[0]} stopped: {_last_line(log.read().decode(errors='replace'))}")
        time.sleep(0.05)
    raise WorkerError(f"{process.args[0]} did not open port {port} within {timeout:.0f} s")


def _error(text: str) -> str:
    """The line of a traceback that says what went wrong."""
    lines = [line for line in text.splitlines() if re.match(r"[\w.]+(Error|Exception)?: ", line)]
    return lines[-1][:300] if lines else _last_line(text)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
