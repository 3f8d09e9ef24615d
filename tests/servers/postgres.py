"""A PostgreSQL of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg

from tests.servers.processes import free_port


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
