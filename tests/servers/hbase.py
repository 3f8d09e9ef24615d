"""An HBase of its own, with its Thrift gateways."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import happybase
from thriftpy2.thrift import TException

from tests.jars import jars
from tests.servers.processes import JavaProcess, free_port, listens, write_conf


class HBaseServer:
    """An HBase master with its region server and ZooKeeper in one process, and a Thrift gateway in another; both can be
    stopped, killed and started again at the same ports with the same data. `start_admin` adds a Thrift 2 gateway.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fs-hbase-"))
        self.port, self.admin_port, self._zookeeper = free_port(), free_port(), free_port()
        folder, thrift = jars("hbase"), "org.apache.hadoop.hbase.thrift"
        self._confs = {
            "master": self._master(),
            "thrift": self._gateway(self.port),
            "admin": self._gateway(self.admin_port),
        }
        for name, settings in self._confs.items():
            write_conf(self._folder / name, settings, "hbase-site.xml")
        self._processes = {
            name: JavaProcess(main, folder, self._folder / name, self._folder / f"{name}.log", heap, "start")
            for name, main, heap in (
                ("master", "org.apache.hadoop.hbase.master.HMaster", 320),
                ("thrift", f"{thrift}.ThriftServer", 128),
                ("admin", f"{thrift}2.ThriftServer", 96),
            )
        }

    @property
    def url(self) -> str:
        return f"hbase://127.0.0.1:{self.port}"

    def settings(self, name: str) -> dict[str, object]:
        """What "master", "thrift" or "admin" runs with."""
        return self._confs[name]

    def program(self, name: str) -> list[str]:
        """The class that "master", "thrift" or "admin" runs, and what it is told."""
        return self._processes[name].program

    @property
    def admin(self) -> str:
        """Where the Thrift 2 gateway is, for a URI's `admin`."""
        return f"127.0.0.1:{self.admin_port}"

    def connection(self) -> happybase.Connection:
        """A connection around the store."""
        return happybase.Connection("127.0.0.1", self.port, timeout=30_000)

    def start(self) -> HBaseServer:
        """Start what is not running; returns when a put and a get succeed."""
        for name in ("master", "thrift"):
            self.start_one(name)
        self.wait()
        return self

    def start_one(self, name: str) -> None:
        """Start "master", "thrift" or "admin" and wait for nothing."""
        if not self._processes[name].alive:
            self._processes[name].start()

    def start_admin(self) -> str:
        """Start the Thrift 2 gateway and wait for its port; where it is."""
        self.start_one("admin")
        self._until(lambda: listens(self.admin_port), "the Thrift 2 gateway")
        return self.admin

    def stop(self, name: str, number: int = signal.SIGKILL) -> None:
        """End "master" (region server and ZooKeeper with it), "thrift" or "admin", by default at once."""
        self._processes[name].stop(number)

    def pause(self, name: str, paused: bool) -> None:
        """Let "master", "thrift" or "admin" hang, or go on."""
        self._processes[name].pause(paused)

    def close(self, keep: bool = False) -> None:
        """End everything; `keep` leaves logs and data where they are."""
        for process in self._processes.values():
            process.stop(signal.SIGKILL)
        if not keep:
            shutil.rmtree(self._folder, ignore_errors=True)

    def wait(self) -> None:
        """Until a put and a get succeed."""
        self._until(self._works, "HBase")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 90
        while not condition():
            if time.monotonic() > deadline:
                self.close(keep=True)
                raise RuntimeError(f"{what} did not answer within 90 s. Its logs are in {self._folder}")
            time.sleep(0.05)

    def _works(self) -> bool:
        try:
            with closing(happybase.Connection("127.0.0.1", self.port, timeout=5_000)) as connection:
                if b"fs-ready" not in connection.tables():
                    connection.create_table("fs-ready", {"f": {}})
                value = str(time.monotonic()).encode()
                connection.table("fs-ready").put(b"row", {b"f:": value})
                return bool(connection.table("fs-ready").row(b"row")[b"f:"] == value)
        except (OSError, TException, KeyError):
            return False

    def _master(self) -> dict[str, object]:
        return self._common() | {
            "hbase.cluster.distributed": "false",
            "hbase.rootdir": f"file://{self._folder}/data",
            "hbase.tmp.dir": f"{self._folder}/tmp",
            "hbase.zookeeper.property.dataDir": f"{self._folder}/zookeeper",
            "hbase.unsafe.stream.capability.enforce": "false",
            "hbase.hregion.memstore.mslab.enabled": "false",
            "hbase.master.ipc.address": "127.0.0.1",
            "hbase.regionserver.ipc.address": "127.0.0.1",
            "hbase.master.hostname": "localhost",
            "hbase.regionserver.hostname": "localhost",
            "hbase.master.port": 0,
            "hbase.regionserver.port": 0,
            "hbase.master.info.port": -1,
            "hbase.regionserver.info.port": -1,
            "hbase.regionserver.handler.count": 10,
            "hbase.regionserver.msginterval": 200,
            "hbase.master.wait.on.regionservers.maxtostart": 1,
            "hbase.master.wait.on.regionservers.interval": 100,
            "hbase.master.wait.on.regionservers.timeout": 500,
        }

    def _gateway(self, port: int) -> dict[str, object]:
        return self._common() | {
            "hbase.regionserver.thrift.port": port,
            "hbase.regionserver.thrift.ipaddress": "127.0.0.1",
            "hbase.thrift.info.port": -1,
            "hbase.client.retries.number": 6,
            "hbase.client.pause": 100,
            "hbase.rpc.timeout": 5_000,
            "hbase.client.operation.timeout": 10_000,
            "hbase.client.meta.operation.timeout": 10_000,
            "hbase.thrift.server.socket.read.timeout": 3_600_000,
        }

    def _common(self) -> dict[str, object]:
        return {
            "hbase.zookeeper.quorum": "127.0.0.1",
            "hbase.zookeeper.property.clientPort": self._zookeeper,
            "zookeeper.recovery.retry": 1,
            "zookeeper.recovery.retry.intervalmill": 200,
        }
