"""The log of a stream: every row that was read from the topic of a source, in a Delta table, each once.

Rows and the position behind them are one commit, so what is read again after a crash is seen to be there. History reads
the log beside the other rows of the source, and batch what lies before the offset from which a stream fills a view.

A source may read another topic later, or one that was made anew: its partitions count on from `SPAN` times the number
of topics that the log has met before, so that offsets of one are never taken for those of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feature_store.definitions.tables import stream_log
from feature_store.engines.scans import OFFSET, PARTITION
from feature_store.engines.streams import TopicId
from feature_store.errors import ConflictError, SourceError
from feature_store.expressions.ranges import Ints
from feature_store.types import Schema

if TYPE_CHECKING:
    from feature_store.storage.offline import OfflineStore

SPAN = 10_000
"""Numbers for the partitions of one topic."""

KEEP_HOURS = 24 * 7
"""Files that compaction replaced stay for so long, for those who still read them."""


class StreamLog:
    """The log of one source. `positions` are offsets by partition, numbered from `base` on: those before them are in
    the log."""

    def __init__(self, offline: OfflineStore, source: str) -> None:
        self._offline = offline
        self._source = source
        self.table = stream_log(source)

    def check(self, schema: Schema) -> None:
        """`SourceError` where rows of a schema do not fit those that are there: they would be cast, and lose."""
        there = self._offline.schema(self.table)
        for column in schema:
            if there is None or column.name not in there.names:
                continue
            if (kept := there.field(column.name).type) != column.type.arrow:
                raise SourceError(
                    f'source "{self._source}": column "{column.name}" is {column.type}, and {kept} in the log of its '
                    "stream",
                    hint="Give it its type back, or the column another name, or read the topic as another source",
                )

    def base(self, topic: TopicId) -> int | None:
        """The number of the first partition of a topic; None where the log has met none of that name. `SourceError`
        where it has met another one of the name."""
        found = self._offline.positions(self.table, [_name(topic), _id(topic)])
        if _id(topic) in found:
            return found[_id(topic)] * SPAN
        if _name(topic) in found:
            raise SourceError(
                f'topic "{topic.name}" is another one than source "{self._source}" has read: it was deleted and made '
                "anew, or is at other brokers",
                hint=f"What was not read of the old one is gone; fs stream start {self._source} --from earliest (or "
                "latest) reads the new one",
            )
        return None

    def meet(self, schema: Schema, topic: TopicId, starts: Mapping[int, int]) -> int:
        """The number of the first partition of a topic. If the log has not met it yet, it begins at these offsets, by
        the topic's partitions."""
        while True:
            found = self._offline.positions(self.table, [_TOPICS, _name(topic), _id(topic)])
            if _id(topic) in found:
                return found[_id(topic)] * SPAN
            number = found.get(_TOPICS, 0)
            moves: dict[str, tuple[int | None, int]] = {
                _position(number * SPAN + partition): (None, at) for partition, at in starts.items()
            }
            moves |= {
                _count(number): (None, max(starts) + 1),
                _TOPICS: (found.get(_TOPICS), number + 1),
                _name(topic): (found.get(_name(topic)), number),
                _id(topic): (None, number),
            }
            try:
                self._offline.move(self.table, schema.arrow.empty_table(), moves)
            except ConflictError:
                continue  # another worker met it, or made the table, at the same time

    def positions(self) -> dict[int, int]:
        """How far the log has come in each partition that it has met."""
        topics = range(self._offline.positions(self.table, [_TOPICS]).get(_TOPICS, 1))
        counts = self._offline.positions(self.table, map(_count, topics))
        return self.position_of(
            topic * SPAN + partition for topic in topics for partition in range(counts.get(_count(topic), 0))
        )

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
        topic, last = divmod(max(positions), SPAN)
        known = self._offline.positions(self.table, [_count(topic)]).get(_count(topic))
        if last >= (known or 0):
            moves[_count(topic)] = (known, last + 1)
        self._offline.move(self.table, schema.arrow.empty_table(), moves)

    def compact(self) -> int:
        """Put small files together; how many."""
        return self._offline.compact(self.table, KEEP_HOURS)


_TOPICS = "topics"
"""How many topics the log has met."""


def _name(topic: TopicId) -> str:
    return f"topic {topic.name}"


def _id(topic: TopicId) -> str:
    return f"topic {topic.name} {topic.id}"


def _count(topic: int) -> str:
    """One more than the greatest partition of a topic that the log has met."""
    return f"partitions of topic {topic}"


def _position(partition: int) -> str:
    return f"partition {partition}"
