"""Processes of servers, the ports they listen to, and the files they are set up by."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

import psutil

from tests.jars import java

SMALL = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"


class JavaProcess:
    """A program in a JVM of its own, with a folder for its settings; what it prints goes to a file."""

    def __init__(self, main: str, jars: Path, conf: Path, log: Path, heap: int, *arguments: str) -> None:
        memory = ["-Xms32m", f"-Xmx{heap}m", *SMALL.split()]
        self.program = [main, *arguments]
        self._command = [java(), *memory, "-cp", f"{conf}:{jars}/*", *self.program]
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


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended meanwhile
        return []


def family(pid: int) -> list[psutil.Process]:
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


def write_conf(folder: Path, settings: dict[str, object], *names: str) -> None:
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


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
