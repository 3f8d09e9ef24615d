"""A Spark cluster of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyspark

from tests.jars import java
from tests.servers.processes import SMALL, command_line, family, free_port


class SparkCluster:
    """A standalone Spark cluster on this machine: a master, and two workers of one core, with small heaps."""

    _WORKERS = 2

    def __init__(self) -> None:
        self._home = Path(pyspark.__file__).parent
        self.port, self._web = free_port(), free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="fs-spark-"))
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"spark://127.0.0.1:{self.port}"

    def start(self) -> SparkCluster:
        java()
        self._run("master.Master", "--port", str(self.port), "--webui-port", str(self._web))
        for number in range(self._WORKERS):
            self._run("worker.Worker", *self.worker(number))
        deadline = time.monotonic() + 90
        while self._state().get("aliveworkers") != self._WORKERS:
            if time.monotonic() > deadline:
                log = (self._folder / "log").read_text(errors="replace")
                self.close()
                raise RuntimeError(f"the Spark cluster at {self.url} did not start: {log[-2000:]}")
            time.sleep(0.1)
        return self

    def worker(self, number: int) -> list[str]:
        """What a worker is told."""
        return ["--cores", "1", "--memory", "512m", "--work-dir", str(self._folder / f"worker{number}"), self.url]

    def kill_executor(self) -> None:
        """kill -9 of one process that computes, on whatever worker; the worker starts another in its place."""
        executor = next(iter(self._executors()))
        executor.kill()
        psutil.wait_procs([executor], timeout=20)

    def close(self) -> None:
        processes = [each for process in self._processes for each in family(process.pid)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for started in self._processes:
            started.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _executors(self) -> list[psutil.Process]:
        found = [each for process in self._processes for each in family(process.pid)]
        return [each for each in found if any("CoarseGrainedExecutorBackend" in word for word in command_line(each))]

    def _state(self) -> Any:
        try:
            return httpx.get(f"http://127.0.0.1:{self._web}/json/", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return {}

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self._home / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}", "--host", "127.0.0.1"]
        heap = {"SPARK_HOME": str(self._home), "SPARK_DAEMON_MEMORY": "256m", "SPARK_DAEMON_JAVA_OPTS": SMALL}
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *arguments], env=os.environ | heap, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder
            )
        self._processes.append(process)
