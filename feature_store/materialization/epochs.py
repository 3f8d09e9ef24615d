"""Epochs of an online store: since when it has kept all rows of a view that were written to it.

A store that lost its rows, such as a Redis that keeps nothing on disk after a restart, has lost the epoch too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import pyarrow as pa

from feature_store.definitions.catalog import BoundView
from feature_store.definitions.tables import epoch_table, marker_key
from feature_store.materialization.sinks import timed
from feature_store.registry.records import Claim
from feature_store.storage.online import NO_CREATED, Key, OnlineStore, Row, Table


def epoch_read(bound: BoundView) -> tuple[Table, list[Key]]:
    """What to read of a store for a view's epoch: `epoch_of` tells it from the answer."""
    return epoch_table(bound), [marker_key(bound)]


def epoch_of(answer: object) -> int | None:
    """When the epoch began (microseconds); None where the store has none."""
    return int(answer.values[0]) if isinstance(answer, Row) else None


def epoch(online: OnlineStore, bound: BoundView) -> int | None:
    """When the view's epoch began; None where nothing was written yet, or all is lost."""
    return epoch_of(online.read([epoch_read(bound)])[0][0])


def begin_epoch(online: OnlineStore, bound: BoundView, claims: Iterable[Claim] = ()) -> int:
    """The view's epoch, begun now if there is none: later than those of claims, whoever's clock these went by."""
    if (began := epoch(online, bound)) is not None:
        return began
    now = max([time.time_ns() // 1000, *(int(claim.epoch) + 1 for claim in claims)])
    table = epoch_table(bound)
    row = pa.table([[name] for name in marker_key(bound)] + [[now]], schema=table.arrow)
    online.create(table)
    online.write(table, timed(row, -now, NO_CREATED))  # of two at once, the first stays
    found = epoch(online, bound)
    return now if found is None else found
