"""Rows of a stream on their way into its log: gathered for seconds, landed in one commit with the positions behind."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa

from feature_store.errors import ConflictError, InvalidInputError
from feature_store.expressions.ranges import Ints
from feature_store.materialization.stream_log import StreamLog
from feature_store.types import Schema


class Landing:
    """What one worker took of partitions and what of it is landed. Threads may share it.

    Of each partition it knows the position in the log and the one behind the last row that was taken.
    """

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._taken: dict[int, int] = {}
        self._landed: dict[int, int] = {}
        self._waiting: list[tuple[pa.Table, Ints, Ints]] = []
        self._rows = 0
        self.bytes = 0
        """How much memory is taken by rows that wait."""
        self._changing = threading.Lock()
        self._committing = threading.Lock()

    @property
    def positions(self) -> dict[int, int]:
        """The next offset to take, by partition."""
        return dict(self._taken)

    @property
    def rows(self) -> int:
        """How many rows wait to be landed."""
        return self._rows

    def begin(self, schema: Schema, starts: Mapping[int, int]) -> dict[int, int]:
        """Take up partitions: where the log ends in each, or at these offsets where it has not met one."""
        while True:
            found = self._log.position_of(starts)
            unmet = {partition: at for partition, at in starts.items() if partition not in found}
            if not unmet:
                break
            try:
                self._log.begin(schema, unmet)
            except ConflictError:
                continue  # another worker met it, or made the table, at the same time
        with self._changing:
            self._taken |= found
            self._landed |= found
        return found

    def skip(self, positions: Mapping[int, int]) -> None:
        """Go on at later offsets: what lies before them is not in the topic any more."""
        with self._changing:
            self._taken |= positions

    def add(self, rows: pa.Table, partitions: Ints, offsets: Ints, positions: Mapping[int, int]) -> None:
        """Take rows, in the schema of the source, and with them move to these positions."""
        with self._changing:
            self._taken |= positions
            if len(offsets):
                self._waiting.append((rows, partitions, offsets))
                self.bytes += rows.nbytes
                self._rows += len(offsets)

    def land(self) -> int:
        """Commit what waits; how many rows. `ConflictError` where another worker has moved the positions: then nothing
        is landed, and nothing waits any more. What else fails can be tried again."""
        with self._committing:
            with self._changing:
                moves = {p: (self._landed[p], at) for p, at in self._taken.items() if at != self._landed[p]}
                waiting, self._waiting = self._waiting, []
                self._rows = self.bytes = 0
            if not moves:
                return 0
            try:
                rows, partitions, offsets = _joined(waiting) if waiting else self._nothing
                self._log.append(rows, partitions, offsets, moves)
            except ConflictError:
                raise
            except BaseException:
                with self._changing:
                    self._waiting[:0] = waiting
                    self._count()
                raise
            with self._changing:
                self._landed |= {p: after for p, (_, after) in moves.items() if p in self._landed}
            return len(offsets)

    def drop(self, partitions: Collection[int]) -> None:
        """Let go of partitions, and of what waits of them."""
        with self._committing, self._changing:
            for partition in partitions:
                self._taken.pop(partition, None)
                self._landed.pop(partition, None)
            kept = []
            for rows, of, offsets in self._waiting:
                here = np.flatnonzero(~np.isin(of, list(partitions)))
                kept.append((rows.take(pa.array(here)), of[here], offsets[here]))
            self._waiting = [each for each in kept if len(each[2])]
            self._count()

    def _count(self) -> None:
        self._rows = sum(len(offsets) for _, _, offsets in self._waiting)
        self.bytes = sum(rows.nbytes for rows, _, _ in self._waiting)

    @property
    def _nothing(self) -> tuple[pa.Table, Ints, Ints]:
        return pa.table({}), np.empty(0, np.int64), np.empty(0, np.int64)


def _joined(waiting: list[tuple[pa.Table, Ints, Ints]]) -> tuple[pa.Table, Ints, Ints]:
    rows, partitions, offsets = zip(*waiting, strict=True)
    try:
        joined = pa.concat_tables(rows, promote_options="permissive")
    except pa.ArrowException as error:
        raise InvalidInputError(f"rows of a stream do not fit together, since its source changed: {error}") from error
    return joined, np.concatenate(partitions), np.concatenate(offsets)
