"""A Flink cluster of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.jars import java
from tests.servers.processes import SMALL, command_line, family, free_port

_ROOT = Path(__file__).resolve().parents[2]


class FlinkCluster:
    """A session cluster on this machine, of PyFlink's own distribution: a job manager, and a task manager of two slots.
    Each can be killed and started again, at the same address. It keeps no job when its job manager dies.
    """

    SLOTS = 2

    def __init__(self) -> None:
        self._home = _home()
        self.port, self._rpc = free_port(), free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="fs-flink-"))
        for name in ("log", "pid", "plugins", "lib"):
            (self._folder / name).mkdir()
        for jar in [*self._home.glob("lib/*.jar"), *self._home.glob("opt/flink-python-*.jar")]:
            (self._folder / "lib" / jar.name).symlink_to(jar)
        shutil.copytree(self._home / "conf", self._folder / "conf")
        (self._folder / "conf" / "config.yaml").write_text(yaml.safe_dump(self.settings()))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def savepoints(self) -> str:
        """A folder for savepoints."""
        return f"file://{self._folder}/savepoints"

    @property
    def python(self) -> str:
        """The Python that computes."""
        return sys.executable

    def start(self) -> FlinkCluster:
        """Start what is not running; returns when every slot is registered."""
        java()
        for service in ("jobmanager", "taskmanager"):
            if self._running(service) is None:
                self._run(service)
        self.wait(self.SLOTS)
        return self

    def kill_job_manager(self) -> None:
        """kill -9: the cluster forgets its jobs; the files of their checkpoints stay."""
        self._kill("jobmanager")

    def kill_task_manager(self) -> None:
        """kill -9; returns when the job manager knows. The Python processes that compute end by themselves."""
        process = self._processes.pop("taskmanager")
        process.kill()
        process.wait()
        self.wait(0)

    def kill_worker(self) -> None:
        """kill -9 of the Python processes that compute; the task manager lives."""
        workers = self.workers()
        for each in workers:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(workers, timeout=20)

    def workers(self) -> list[psutil.Process]:
        """The Python processes that compute."""
        process = self._running("taskmanager")
        found = family(process.pid) if process else []
        return [each for each in found if any("pyflink.fn_execution" in word for word in command_line(each))]

    def wait(self, slots: int) -> None:
        """Until the job manager knows of that many slots."""
        deadline = time.monotonic() + 120
        while self._state().get("slots-total") != slots:
            if time.monotonic() > deadline:
                self.close(keep=True)
                raise RuntimeError(f"Flink at {self.url} has no {slots} slots. Its logs are in {self._folder}")
            time.sleep(0.1)

    def close(self, keep: bool = False) -> None:
        """End it; `keep` leaves logs and checkpoints where they are."""
        for service in list(self._processes):
            self._kill(service)
        if not keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def settings(self) -> dict[str, object]:
        """What both run with."""
        return {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.rpc.port": self._rpc,
            "jobmanager.bind-host": "127.0.0.1",
            "jobmanager.memory.process.size": "1024m",
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": self.port,
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "taskmanager.memory.process.size": "1728m",
            "taskmanager.numberOfTaskSlots": self.SLOTS,
            "execution.checkpointing.dir": f"file://{self._folder}/checkpoints",
            "heartbeat.interval": "1 s",
            "heartbeat.timeout": "15 s",
            "io.tmp.dirs": str(self._folder),
            "env.java.opts.all": f"{SMALL} {_java_options(self._home)}",
            "python.executable": self.python,
        }

    def _run(self, service: str) -> None:
        folders = ("conf", "log", "pid", "plugins", "lib")
        environment = {f"FLINK_{name.upper()}_DIR": str(self._folder / name) for name in folders}
        environment["PYTHONPATH"] = str(_ROOT)  # so that workers find the handlers of tests
        command = [str(self._home / "bin" / f"{service}.sh"), "start-foreground"]
        with (self._folder / "log" / service).open("ab") as log:
            self._processes[service] = subprocess.Popen(
                command, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder
            )

    def _running(self, service: str) -> subprocess.Popen[bytes] | None:
        process = self._processes.get(service)
        return process if process and process.poll() is None else None

    def _kill(self, service: str) -> None:
        process = self._processes.pop(service)
        processes = family(process.pid)
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        psutil.wait_procs(processes, timeout=20)

    def _state(self) -> Any:
        try:
            return httpx.get(f"{self.url}/overview", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return {}


def _home() -> Path:
    """PyFlink's folder: a whole distribution."""
    found = find_spec("pyflink")
    if found is None or found.origin is None:
        raise RuntimeError("there is no PyFlink. Run: pip install 'feature_store[flink]'")
    return Path(found.origin).parent


def _java_options(home: Path) -> str:
    """What opens Java's modules to Flink."""
    conf = yaml.safe_load((home / "conf" / "config.yaml").read_text())
    return str(conf["env"]["java"]["opts"]["all"])
