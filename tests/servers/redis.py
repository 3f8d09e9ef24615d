"""A Redis of its own, alone or as a cluster."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.servers.processes import free_port

_SLOTS = 16384


class RedisServer:
    """A redis-server that keeps nothing on disk, unless it is `durable`. It can be stopped, made to hang, and started
    again at the same port. For a `cluster` it is a node, without slots yet."""

    def __init__(self, *, cluster: bool = False, durable: bool = False) -> None:
        self._binary = shutil.which("redis-server")
        if self._binary is None:
            raise RuntimeError("there is no redis-server. Run: apt-get install redis-server")
        self.port = free_port()
        self.bus_port = free_port()
        """Where other nodes of its cluster reach it."""
        self._cluster, self._durable = cluster, durable
        self._folder = Path(tempfile.mkdtemp(prefix="fs-redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def client(self) -> redis.Redis:
        """A connection around the store."""
        return redis.Redis(port=self.port, socket_timeout=10)

    def start(self) -> RedisServer:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        options += [
            "--save",
            "",
            "--appendonly",
            "yes" if self._durable else "no",
            "--logfile",
            str(self._folder / "log"),
        ]
        if self._cluster:
            options += ["--cluster-enabled", "yes", "--cluster-port", str(self.bus_port)]
        self._process = subprocess.Popen([str(self._binary), *options])
        self._wait()
        return self

    def stop(self) -> None:
        """End the server at once; what it held is gone, unless it is durable."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self, paused: bool) -> None:
        """Let it hang, or go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """While it lasts, a write waits for so long, and then many may get through at once. Reads do not wait."""
        ended = threading.Event()

        def hold() -> None:
            with self.client() as client:
                while not ended.wait(0.05):
                    client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
                    ended.wait(seconds)
                    client.execute_command("CLIENT", "UNPAUSE")  # its own end may be seen late, when it is paused again

        holder = threading.Thread(target=hold, daemon=True)
        holder.start()
        try:
            yield
        finally:
            ended.set()
            holder.join()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        with self.client() as client:
            while True:
                try:
                    if client.ping():
                        return
                except redis.RedisError:
                    pass
                if time.monotonic() > deadline:
                    self.close()
                    raise RuntimeError(f"redis-server did not answer at port {self.port}")
                time.sleep(0.02)


class RedisCluster:
    """Nodes that share the slots among them, each the master of its own."""

    def __init__(self, nodes: int = 3) -> None:
        self.nodes = [RedisServer(cluster=True) for _ in range(nodes)]

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def start(self) -> RedisCluster:
        for number, node in enumerate(self.nodes):
            first, after = (_SLOTS * each // len(self.nodes) for each in (number, number + 1))
            with node.start().client() as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER ADDSLOTSRANGE", first, after - 1)
        with self.nodes[0].client() as client:
            for node in self.nodes[1:]:
                client.execute_command("CLUSTER MEET", "127.0.0.1", node.port, node.bus_port)
        self._wait()
        return self

    def clear(self) -> None:
        """Drop all that the nodes hold."""
        for node in self.nodes:
            with node.client() as client:
                client.flushall()

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def _wait(self) -> None:
        """Until every node knows who has which slot."""
        deadline = time.monotonic() + 30
        for node in self.nodes:
            with node.client() as client:
                while not _is_whole(client.cluster("INFO"), len(self.nodes)):
                    if time.monotonic() > deadline:
                        self.close()
                        raise RuntimeError("the nodes of Redis made no cluster")
                    time.sleep(0.02)


def _is_whole(told: dict[str, str], nodes: int) -> bool:
    return (told["cluster_state"], told["cluster_size"]) == ("ok", str(nodes))
