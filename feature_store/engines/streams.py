"""The port of what reads streams: messages go to a handler in batches; those that it cannot take, to dead letters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from feature_store.expressions.ranges import Ints
from feature_store.values import LATEST


@dataclass(frozen=True)
class TopicId:
    """A topic: its name, and the id that no other topic ever has, of the same name neither; "" where brokers do not
    tell it."""

    name: str
    id: str = ""


@dataclass(frozen=True)
class Messages:
    """Messages of one topic, those of a partition in the order of their offsets. `produced` is when each was written,
    in microseconds, as the producer or the broker says."""

    partitions: Ints
    offsets: Ints
    produced: Ints
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def written(cls, millis: Ints) -> Ints:
        """Times as Kafka tells them, as `produced` has them. Producers may claim any time of 64 bits: here the years
        end with 9999."""
        return np.clip(millis, 0, LATEST // 1000) * 1000

    @classmethod
    def of(cls, values: Sequence[bytes | None], partition: int = 0, start: int = 0, produced: int = 0) -> Messages:
        """Values without keys, one after the other in a partition, all written at the same time."""
        count = len(values)
        offsets = np.arange(start, start + count)
        return cls(np.full(count, partition), offsets, np.full(count, produced), [None] * count, values)

    def take(self, index: Ints) -> Messages:
        """Some of them, in order."""
        some = index.tolist()
        return Messages(
            self.partitions[index],
            self.offsets[index],
            self.produced[index],
            [self.keys[at] for at in some],
            [self.values[at] for at in some],
        )

    @property
    def firsts(self) -> dict[int, int]:
        """The first offset in each partition."""
        partitions, at = np.unique(self.partitions, return_index=True)
        return dict(zip(partitions.tolist(), self.offsets[at].tolist(), strict=True))

    @property
    def nexts(self) -> dict[int, int]:
        """The offset after the last one in each partition."""
        partitions, at = np.unique(self.partitions[::-1], return_index=True)
        return dict(zip(partitions.tolist(), (self.offsets[::-1][at] + 1).tolist(), strict=True))


Bad = Sequence[tuple[int, str]]
"""Of messages that cannot be taken, which each is, and the reason."""

Reject = Callable[[Messages, Bad], object]
"""Keeps messages that cannot be taken; they are stored when it returns."""


class Handler(Protocol):
    """Takes the messages of some partitions of a topic, one batch after the other. After a failure some come again."""

    def handle(self, messages: Messages) -> object:
        """Take messages; when it returns they are stored. What it raises has the reader begin again."""

    def close(self) -> None:
        """No more will come."""


class Member(Protocol):
    """The handler of a member of a consumer group, which learns what falls to it."""

    def handle(self, messages: Messages, reject: Reject) -> object:
        """Take messages; when it returns they are stored, and those that cannot be taken were given to `reject`."""

    def assigned(
        self, topic: TopicId, ranges: Mapping[int, tuple[int, int]], partitions: Collection[int]
    ) -> dict[int, int]:
        """These partitions are to be read from now on; `ranges` are the offsets that all of the topic hold, from (the
        first) to (behind the last). Where to begin in each."""

    def revoked(self, partitions: Sequence[int], lost: bool) -> None:
        """These are no longer to be read; `lost`: another reads them already."""
