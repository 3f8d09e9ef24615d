"""A backfill as data: the chunks that together write a range of a view's time. Pure.

Chunks begin and end at the same instants however the range is given, whole days at least, so that a backfill that is
run again, up to a later now, finds what it did before; and days are what sources are parted by.
"""

from __future__ import annotations

from itertools import pairwise

from feature_store.definitions.catalog import BoundView
from feature_store.expressions.instants import DAY
from feature_store.expressions.relations import LatestRow
from feature_store.materialization.steps import LatestStep, Past, Step, edges, parts, whole_between

MOST_CHUNKS = 64


def chunks_between(bound: BoundView, start: int, end: int, past: Past | None = None) -> tuple[Step, ...]:
    """The steps of a backfill of [start, end], which may be done in any order, or at the same time: rows by time, tiles
    by where they begin, snapshots by boundary."""
    if isinstance(bound.relation, LatestRow):
        at = edges(start, end, DAY, DAY, MOST_CHUNKS)
        inner = [LatestStep(since, until - 1) for since, until in pairwise(at[:-1])]
        return (*inner, LatestStep(at[-2], end))
    steps = whole_between(bound, start, end, past)
    return tuple(part for step in steps for part in parts(step, DAY, MOST_CHUNKS))
