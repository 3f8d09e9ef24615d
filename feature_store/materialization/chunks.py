"""A backfill as data: the chunks that together write a range of a view's time. Pure.

Chunks begin and end at the same instants however the range is given, whole days at least, so that a backfill that is
run again, up to a later now, finds what it did before; and days are what sources are parted by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from feature_store.definitions.catalog import BoundView
from feature_store.expressions.instants import DAY
from feature_store.expressions.relations import LatestRow
from feature_store.materialization.steps import LatestStep, Past, SnapshotStep, Step, TileStep, steps_between
from feature_store.registry.records import Chunk

MOST_CHUNKS = 64


def chunks_between(bound: BoundView, start: int, end: int, past: Past | None = None) -> tuple[Step, ...]:
    """The steps of a backfill of [start, end], which may be done in any order, or at the same time: rows by time, tiles
    by where they begin, snapshots by boundary."""
    if isinstance(bound.relation, LatestRow):
        edges = _edges(start, end, DAY)
        inner = [LatestStep(since, until - 1) for since, until in pairwise(edges[:-1])]
        return (*inner, LatestStep(edges[-2], end))
    steps = steps_between(bound, start, end, past)
    return tuple(part for step in steps for part in _parts(step))


def chunk_of(step: Step) -> Chunk:
    """What identifies a chunk. A snapshot that is kept is not yet one that is published, too."""
    match step:
        case LatestStep(start, until):
            return (0, -(2**62) if start is None else start, until)
        case TileStep(level, start, until):
            return (level, -(2**62) if start is None else start, until)
        case SnapshotStep(at, publish):
            return (-1, at, at + publish)


def _parts(step: Step) -> Iterator[Step]:
    if not isinstance(step, TileStep) or step.start is None or step.start >= step.until:
        yield step
        return
    for start, until in pairwise(_edges(step.start, step.until, step.level)):
        yield replace(step, start=start, until=until)


def _edges(start: int, end: int, unit: int) -> list[int]:
    """`start`, then the multiples of a length that lie between, then `end`: at most `MOST_CHUNKS` pieces or so, of
    whole units and, where these are shorter, of whole days."""
    length = unit * -(-DAY // unit)
    while (end - start) // length >= MOST_CHUNKS:
        length *= 2
    first = (start // length + 1) * length
    return [start, *range(first, end, length), end]
