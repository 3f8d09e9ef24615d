"""What a stream is measured against: an online store that keeps no tiles, and a handler that does nothing.

Both are found by the name that `installed` gives them, as anybody's plug-in is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from feature_store.engines.streams import Messages
from feature_store.storage.online import CREATED, EVENT_TIME, Key, Row, Table

SCHEME = "swallow"


def installed(folder: Path) -> str:
    """A folder for PYTHONPATH that lets `swallow://` name the store."""
    metadata = folder / "swallow-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: swallow\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[feature_store.online_stores]\n{SCHEME} = {__name__}:SwallowStore\n")
    return str(folder)


class SwallowStore:
    """Takes what is written and keeps of it only single rows, which say since when a view is filled."""

    def __init__(self, uri: str, project: str) -> None:
        self._rows: dict[tuple[str, Key], Row] = {}

    def create(self, *tables: Table) -> None:
        """Nothing to do."""

    def drop(self, table: Table) -> None:
        """Nothing to do."""

    def write(self, table: Table, rows: pa.Table, keep_from: bytes | None = None) -> None:
        if table.items:
            return
        for row in rows.to_pylist():
            values = tuple(row[name] for name in table.values.names)
            key = tuple(row[name] for name in table.keys.names)
            self._rows[table.name, key] = Row(row[EVENT_TIME], row[CREATED], values)

    def read(self, requests: Sequence[tuple[Table, Sequence[Key]]]) -> list[list[Row | Mapping[bytes, Row] | None]]:
        return [[{} if table.items else self._rows.get((table.name, key)) for key in keys] for table, keys in requests]

    def scan(self, table: Table) -> Iterator[pa.RecordBatch]:
        return iter(())

    def close(self) -> None:
        """Nothing to do."""


class Nothing:
    """A handler of Flink's that takes every message and looks at none; the file says how many they were."""

    def __init__(self, argument: str, name: str) -> None:
        self._file, self._taken = Path(argument), 0

    def handle(self, messages: Messages) -> None:
        self._taken += len(messages)
        self._file.write_text(str(self._taken))

    def close(self) -> None:
        """Nothing to do."""
