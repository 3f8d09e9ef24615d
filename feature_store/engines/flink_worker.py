"""What runs in the Python workers of Flink's task managers."""

from __future__ import annotations

import os
import socket
import time
from functools import cache
from importlib import import_module
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
from pyflink.table.udf import ScalarFunction

from feature_store.engines.streams import Messages

_instances = count()


class Handle(ScalarFunction):  # type: ignore[misc]
    """Hands batches of messages to a handler that it makes where it runs. Not a function of its arguments: Flink must
    neither leave a call out nor call again.
    """

    def __init__(self, handler: str, argument: str) -> None:
        self._name, self._argument = handler, argument

    def open(self, function_context: Any) -> None:
        _leave_with_the_jvm()
        module, _, name = self._name.partition(":")
        make = getattr(import_module(module), name)
        self._handler = make(self._argument, f"{socket.gethostname()}-{os.getpid()}-{next(_instances)}")

    def eval(
        self, partitions: pd.Series, offsets: pd.Series, timestamps: pd.Series, keys: pd.Series, values: pd.Series
    ) -> pd.Series:
        """Zeros: what was taken is stored, and what was not is among the dead letters."""
        order = np.argsort(partitions.to_numpy("int64"), kind="stable")
        messages = Messages(
            partitions.to_numpy("int64"),
            offsets.to_numpy("int64"),
            Messages.written(timestamps.to_numpy("int64")),
            keys.tolist(),
            values.tolist(),
        )
        self._handler.handle(messages.take(order))
        return pd.Series(np.zeros(len(messages), "int32"))

    def close(self) -> None:
        """Closes the handler."""
        self._handler.close()

    def is_deterministic(self) -> bool:
        """No: each call writes."""
        return False


@cache
def _leave_with_the_jvm() -> None:
    """Sees to it that this process ends with the task manager. One that is killed leaves its workers behind, where they
    would keep their memory for good, and might go on writing beside those that follow them.
    """
    runner = Path(f"/proc/{os.getppid()}/stat")  # a shell, which outlives the JVM as well
    if runner.exists():
        Thread(target=_leave_with, args=(runner, _parent(runner)), daemon=True).start()


def _leave_with(runner: Path, jvm: str | None) -> None:
    while _parent(runner) == jvm:
        time.sleep(0.5)
    os._exit(1)


def _parent(process: Path) -> str | None:
    """The id of a process's parent; None when the process is gone."""
    try:
        return process.read_text().rpartition(")")[2].split()[1]
    except OSError:
        return None
