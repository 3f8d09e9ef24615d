"""Real servers for tests: started on free ports in folders of their own, stopped at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import redis


class RedisServer:
    """A redis-server that keeps nothing on disk. It can be stopped and started again at the same port."""

    def __init__(self, *, cluster: bool = False) -> None:
        self._binary = shutil.which("redis-server")
        if self._binary is None:
            raise RuntimeError("there is no redis-server. Run: apt-get install redis-server")
        self.port = free_port()
        self._cluster = cluster
        self._folder = Path(tempfile.mkdtemp(prefix="fs-redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        scheme = "redis+cluster" if self._cluster else "redis"
        return f"{scheme}://127.0.0.1:{self.port}" + ("" if self._cluster else "/0")

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def client(self) -> redis.Redis:
        """A connection around the store."""
        return redis.Redis(port=self.port, socket_timeout=10)

    def start(self) -> RedisServer:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        options += ["--save", "", "--appendonly", "no", "--logfile", str(self._folder / "log")]
        if self._cluster:
            options += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
        self._process = subprocess.Popen([str(self._binary), *options])
        self._wait()
        return self

    def stop(self) -> None:
        """End the server at once; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        with self.client() as client:
            while True:
                try:
                    if self._cluster and client.cluster("INFO")["cluster_state"] != "ok":
                        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
                    elif client.ping():
                        return
                except redis.RedisError:
                    pass
                if time.monotonic() > deadline:
                    self.close()
                    raise RuntimeError(f"redis-server did not answer at port {self.port}")
                time.sleep(0.02)


class PostgresServer:
    """A PostgreSQL server of its own cluster. PostgreSQL refuses root, so as root it runs as the user postgres.

    The user postgres needs no password; the user `guarded` (for tests to make) does.
    """

    def __init__(self) -> None:
        found = shutil.which("pg_ctl") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), default=None)
        if found is None:
            raise RuntimeError("there is no PostgreSQL server. Run: apt-get install postgresql")
        self._bin = Path(found).parent
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="fs-postgres-"))
        if os.getuid() == 0:
            shutil.chown(self._folder, "postgres")

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def database(self, name: str) -> str:
        """The URL of a new, empty database of that name; an old one goes, with its connections."""
        with self.client() as client:
            client.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
            client.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url.rsplit("/", 1)[0] + f"/{name}"

    def client(self, database: str = "postgres") -> psycopg.Connection:
        """A connection around the registry, each statement a transaction."""
        return psycopg.connect(self.url.rsplit("/", 1)[0] + f"/{database}", autocommit=True)

    def start(self) -> PostgresServer:
        data = str(self._folder / "data")
        if not Path(data).exists():
            self._run(
                "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"
            )
            rules = Path(data, "pg_hba.conf")
            rules.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", data, "-w", "-l", str(self._folder / "log"), "-o", options, "start")
        return self

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-w", "-m", "immediate", "stop")

    def kill(self) -> None:
        """kill -9 of the server and all its processes; what was committed is on disk."""
        try:
            server = psutil.Process(int(Path(self._folder, "data", "postmaster.pid").read_text().split()[0]))
            processes = [server, *server.children(recursive=True)]
        except (FileNotFoundError, psutil.NoSuchProcess):
            return
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=20)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        subprocess.run(
            [*user, str(self._bin / program), *arguments], check=True, stdout=subprocess.DEVNULL, cwd=self._folder
        )


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
