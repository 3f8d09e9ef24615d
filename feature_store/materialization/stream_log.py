"""The log of a stream: every row that was read from the topic of a source, in a Delta table, each once.

Rows and the position behind them are one commit, so what is read again after a crash is seen to be there. History reads
the log beside the other rows of the source, and batch what lies before the offset from which a stream fills a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feature_store.definitions.tables import stream_log
from feature_store.engines.scans import OFFSET, PARTITION
from feature_store.expressions.ranges import Ints
from feature_store.types import Schema

if TYPE_CHECKING:
    from feature_store.storage.offline import OfflineStore

KEEP_HOURS = 24 * 7
"""Files that compaction replaced stay for so long, for those who still read them."""


class StreamLog:
    """The log of one source. `positions` are offsets by partition: those before them are in the log."""

    def __init__(self, offline: OfflineStore, source: str) -> None:
        self._offline = offline
        self.table = stream_log(source)

    def positions(self) -> dict[int, int]:
        """How far the log has come in each partition that it has rows of."""
        last = self._offline.greatest(self.table, PARTITION)
        return {} if last is None else self.position_of(range(last + 1))

    def position_of(self, partitions: range | list[int]) -> dict[int, int]:
        """How far the log has come in some partitions; one that it has never met is left out."""
        found = self._offline.positions(self.table, map(_position, partitions))
        return {partition: found[_position(partition)] for partition in partitions if _position(partition) in found}

    def append(
        self, rows: pa.Table, partitions: Ints, offsets: Ints, moves: Mapping[int, tuple[int | None, int]]
    ) -> None:
        """Add rows and move positions, from where to where, in one commit. `ConflictError` where another writer has
        moved them: then nothing is added."""
        places = {PARTITION: pa.array(partitions.astype(np.int32)), OFFSET: pa.array(offsets)}
        for name, column in places.items():
            rows = rows.append_column(name, column)
        self._offline.move(self.table, rows, {_position(part): move for part, move in moves.items()})

    def begin(self, schema: Schema, positions: Mapping[int, int]) -> None:
        """Say where the log begins in partitions that it has not met; `ConflictError` where it has."""
        nothing = np.empty(0, np.int64)
        self.append(schema.arrow.empty_table(), nothing, nothing, {part: (None, at) for part, at in positions.items()})

    def compact(self) -> int:
        """Put small files together; how many."""
        return self._offline.compact(self.table, KEEP_HOURS)


def _position(partition: int) -> str:
    return f"partition {partition}"
