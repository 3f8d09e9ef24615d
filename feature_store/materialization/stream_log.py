"""The log of a stream: every row that was read from the topic of a source, in a Delta table, each once.

Rows and the position behind them are one commit, so what is read again after a crash is seen to be there. History reads
the log beside the other rows of the source, and batch what lies before the offset from which a stream fills a view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
        """How far the log has come in each partition that it has met."""
        return self.position_of(range(self._offline.positions(self.table, [_COUNT]).get(_COUNT, 0)))

    def position_of(self, partitions: Iterable[int]) -> dict[int, int]:
        """How far the log has come in some partitions; one that it has never met is left out."""
        named = {_position(partition): partition for partition in partitions}
        return {named[name]: at for name, at in self._offline.positions(self.table, named).items()}

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
        """Say where the log begins in partitions that it has not met; `ConflictError` where it has, or where another
        writer says so of others at the same time."""
        moves: dict[str, tuple[int | None, int]] = {_position(part): (None, at) for part, at in positions.items()}
        known = self._offline.positions(self.table, [_COUNT]).get(_COUNT)
        if max(positions) >= (known or 0):
            moves[_COUNT] = (known, max(positions) + 1)
        self._offline.move(self.table, schema.arrow.empty_table(), moves)

    def compact(self) -> int:
        """Put small files together; how many."""
        return self._offline.compact(self.table, KEEP_HOURS)


_COUNT = "partitions"
"""One more than the greatest partition that the log has met."""


def _position(partition: int) -> str:
    return f"partition {partition}"
