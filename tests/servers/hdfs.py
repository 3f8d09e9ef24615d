"""An HDFS of its own."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from pathlib import Path

import httpx
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from tests.jars import jars
from tests.servers.processes import JavaProcess, free_port, write_conf


class HdfsServer:
    """An HDFS name node and a data node, without permissions; both can be stopped and started again with their data."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fs-hdfs-"))
        self.port, self._pages = free_port(), free_port()
        self._jars, self._conf = jars("hdfs"), self._folder / "conf"
        write_conf(self._conf, self._settings(), "core-site.xml", "hdfs-site.xml")
        for page in ("hdfs", "datanode"):  # the web pages that its servers insist to have
            (self._conf / "webapps" / page).mkdir(parents=True)
        self._processes = {name: self._process(name) for name in ("namenode.NameNode", "datanode.DataNode")}

    @property
    def url(self) -> str:
        return f"hdfs://127.0.0.1:{self.port}"

    def start(self) -> HdfsServer:
        """Start what is not running; returns when a table can be written and read."""
        if not (self._folder / "name").exists():
            self._run("hdfs.server.namenode.NameNode", "-format", "-nonInteractive")
        for process in self._processes.values():
            if not process.alive:
                process.start()
        deadline = time.monotonic() + 90
        while not self._works():
            if time.monotonic() > deadline:
                self.close(keep=True)
                raise RuntimeError(f"HDFS did not answer within 90 s. Its logs are in {self._folder}")
            time.sleep(0.1)
        return self

    def put(self, path: Path, uri: str) -> None:
        """Copy a file, or a folder to where nothing is yet, by Hadoop's own client."""
        self._run("fs.FsShell", "-put", "-f", str(path), uri)

    def stop(self) -> None:
        """End both at once."""
        for process in self._processes.values():
            process.stop(signal.SIGKILL)

    def close(self, keep: bool = False) -> None:
        self.stop()
        if not keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _works(self) -> bool:
        table = f"{self.url}/ready"
        state = f"http://127.0.0.1:{self._pages}/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState"
        try:
            if not httpx.get(state, trust_env=False).json()["beans"][0]["NumLiveDataNodes"]:
                return False
            write_deltalake(table, pa.table({"x": [1]}), mode="overwrite")
            return bool(DeltaTable(table).to_pyarrow_table().num_rows == 1)
        except (OSError, DeltaError, httpx.HTTPError, LookupError):
            return False

    def _process(self, name: str) -> JavaProcess:
        log = self._folder / f"{name.partition('.')[0]}.log"
        return JavaProcess(f"org.apache.hadoop.hdfs.server.{name}", self._jars, self._conf, log, 160)

    def _run(self, main: str, *arguments: str) -> None:
        log = self._folder / "commands.log"
        process = JavaProcess(f"org.apache.hadoop.{main}", self._jars, self._conf, log, 160, *arguments)
        process.start()
        if process.wait():
            raise RuntimeError(f"{main} {' '.join(arguments)} failed:\n{log.read_text()[-2000:]}")

    def _settings(self) -> dict[str, object]:
        free = "127.0.0.1:0"
        return {
            "fs.defaultFS": self.url,
            "dfs.namenode.rpc-address": f"127.0.0.1:{self.port}",
            "dfs.namenode.http-address": f"127.0.0.1:{self._pages}",
            "dfs.namenode.name.dir": f"file://{self._folder}/name",
            "dfs.namenode.safemode.extension": 0,
            "dfs.heartbeat.interval": 1,
            "dfs.datanode.data.dir": f"file://{self._folder}/data",
            "dfs.datanode.address": free,
            "dfs.datanode.http.address": free,
            "dfs.datanode.ipc.address": free,
            "dfs.permissions.enabled": "false",
            "dfs.replication": 1,
        }
