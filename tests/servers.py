"""Real servers for tests: started on free ports in folders of their own, stopped at the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import boto3
import happybase
import httpx
import psutil
import psycopg
import pyarrow as pa
import pyspark
import redis
from botocore.exceptions import BotoCoreError, ClientError
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from thriftpy2.thrift import TException

from tests.jars import jars, java

_SMALL = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"


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


class JavaProcess:
    """A program in a JVM of its own, with a folder for its settings; what it prints goes to a file."""

    def __init__(self, main: str, jars: Path, conf: Path, log: Path, heap: int, *arguments: str) -> None:
        memory = ["-Xms32m", f"-Xmx{heap}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        self._command = [java(), *memory, "-cp", f"{conf}:{jars}/*", main, *arguments]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, cwd=self._log.parent)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal, by -9 if it does not heed that, and wait until it is gone."""
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def wait(self) -> int:
        """Until it ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait(60)

    def pause(self, paused: bool) -> None:
        """Let it hang, or go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)


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
            _write_conf(self._folder / name, settings, "hbase-site.xml")
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
        self._until(lambda: _listens(self.admin_port), "the Thrift 2 gateway")
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


class HdfsServer:
    """An HDFS name node and a data node, without permissions; both can be stopped and started again with their data."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fs-hdfs-"))
        self.port, self._pages = free_port(), free_port()
        self._jars, self._conf = jars("hdfs"), self._folder / "conf"
        _write_conf(self._conf, self._settings(), "core-site.xml", "hdfs-site.xml")
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


class S3Server:
    """An S3-compatible server (moto's), which keeps nothing. It lets everyone in until `guard`."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which clients find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A connection around the store."""
        found = self.environment
        return boto3.client(
            "s3",
            endpoint_url=found["AWS_ENDPOINT_URL"],
            region_name=found["AWS_REGION"],
            aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
        )

    def start(self) -> S3Server:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._works():
            if time.monotonic() > deadline:
                self.close()
                raise RuntimeError("moto's server did not answer within 60 s")
            time.sleep(0.05)
        return self

    def guard(self, guarded: bool) -> None:
        """Whether it checks credentials from now on; those that it knows are none."""
        count = "0" if guarded else "1000000000"
        httpx.post(
            f"http://127.0.0.1:{self.port}/moto-api/reset-auth", content=count, trust_env=False
        ).raise_for_status()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _works(self) -> bool:
        try:
            client = self.client()
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="x", Body=b"x")
            return bool(client.get_object(Bucket="ready", Key="x")["Body"].read() == b"x")
        except (BotoCoreError, ClientError):
            return False


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
            work = str(self._folder / f"worker{number}")
            self._run("worker.Worker", "--cores", "1", "--memory", "512m", "--work-dir", work, self.url)
        deadline = time.monotonic() + 90
        while self._state().get("aliveworkers") != self._WORKERS:
            if time.monotonic() > deadline:
                log = (self._folder / "log").read_text(errors="replace")
                self.close()
                raise RuntimeError(f"the Spark cluster at {self.url} did not start: {log[-2000:]}")
            time.sleep(0.1)
        return self

    def kill_executor(self) -> None:
        """kill -9 of one process that computes, on whatever worker; the worker starts another in its place."""
        executor = next(iter(self._executors()))
        executor.kill()
        psutil.wait_procs([executor], timeout=20)

    def close(self) -> None:
        processes = [each for process in self._processes for each in _family(process.pid)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for started in self._processes:
            started.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _executors(self) -> list[psutil.Process]:
        found = [each for process in self._processes for each in _family(process.pid)]
        return [each for each in found if any("CoarseGrainedExecutorBackend" in word for word in _command(each))]

    def _state(self) -> Any:
        try:
            return httpx.get(f"http://127.0.0.1:{self._web}/json/", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return {}

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self._home / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}", "--host", "127.0.0.1"]
        heap = {"SPARK_HOME": str(self._home), "SPARK_DAEMON_MEMORY": "256m", "SPARK_DAEMON_JAVA_OPTS": _SMALL}
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *arguments], env=os.environ | heap, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder
            )
        self._processes.append(process)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended meanwhile
        return []


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _write_conf(folder: Path, settings: dict[str, object], *names: str) -> None:
    folder.mkdir()
    lines = [f"<property><name>{name}</name><value>{value}</value></property>" for name, value in settings.items()]
    for name in names:
        (folder / name).write_text("\n".join(["<configuration>", *lines, "</configuration>"]))
    (folder / "log4j.properties").write_text(
        "log4j.rootLogger=INFO,out\n"
        "log4j.appender.out=org.apache.log4j.ConsoleAppender\n"
        "log4j.appender.out.layout=org.apache.log4j.PatternLayout\n"
        "log4j.appender.out.layout.ConversionPattern=%d{ISO8601} %p [%t] %c{2}: %m%n\n"
    )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
