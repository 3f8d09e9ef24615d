"""A handler of streams that keeps what it is handed in a file, for tests to read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from feature_store.engines.streams import Messages


class Keeper:
    """Takes every message; while the folder has a file `broken`, it fails."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._folder, self._worker = folder, worker
        self._file = os.open(folder / "messages", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def handle(self, messages: Messages) -> None:
        if (self._folder / "broken").exists():
            raise RuntimeError("the store is away")
        places = zip(messages.partitions.tolist(), messages.offsets.tolist(), messages.produced.tolist(), strict=True)
        lines = [
            json.dumps([self._worker, partition, offset, produced // 1000, _text(key), _text(value)])
            for (partition, offset, produced), key, value in zip(places, messages.keys, messages.values, strict=True)
        ]
        os.write(self._file, "".join(line + "\n" for line in lines).encode())

    def close(self) -> None:
        os.close(self._file)
        (self._folder / "closed").touch()


def keeper(argument: str, worker: str) -> Keeper:
    return Keeper(Path(json.loads(argument)["folder"]), worker)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
