"""Windows over events in order of (key, time, created): answers at instants, and tiles. Arrow and numpy, no engine.

G   groups: runs of events of one key
E   events of a batch of whole groups
Q   queries: a group and an instant T each
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_store.engines.scans import KNOWN, TIME, WITHDRAWN, may_withdraw
from feature_store.expressions.aggregates import COVERED, aggregate_ranges, tile_item, tile_schema, tile_states, valid
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import Window, Windows
from feature_store.expressions.scalars import Scalar, bind, call
from feature_store.storage.online import CREATED, EVENT_TIME, ITEM, NO_CREATED
from feature_store.types import BOOL, Schema

_PAIRS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Columns:
    """The computed columns that windows need: one a distinct value, one a distinct condition."""

    values: Mapping[Scalar, str]
    conditions: Mapping[Scalar, str]

    @classmethod
    def of(cls, windows: Sequence[Window]) -> Columns:
        values = dict.fromkeys(window.value for window in windows if window.value is not None)
        conditions = dict.fromkeys(window.where for window in windows if window.where is not None)
        return cls(
            {scalar: f"__v{number}" for number, scalar in enumerate(values)},
            {scalar: f"__p{number}" for number, scalar in enumerate(conditions)},
        )


@dataclass(frozen=True)
class Events:
    """E events of whole groups; `group` (E, ascending) says of which."""

    group: Ints
    times: Ints
    created: Ints
    columns: Columns
    computed: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, rows: pa.Table, group: Ints, columns: Columns) -> Events:
        names = (*columns.values.values(), *columns.conditions.values())
        computed = {name: _one_chunk(rows[name]) for name in names}
        return cls(group, _ints(rows[TIME]), _ints(rows[KNOWN]), columns, computed)

    def value(self, window: Window) -> Any:
        return None if window.value is None else self.computed[self.columns.values[window.value]]

    def passes(self, window: Window) -> NDArray[np.bool_] | None:
        if window.where is None:
            return None
        column = pc.fill_null(self.computed[self.columns.conditions[window.where]], False)
        answer: NDArray[np.bool_] = column.to_numpy(zero_copy_only=False)
        return answer

    @cached_property
    def _instants(self) -> Ints:
        return np.unique(self.times)

    @cached_property
    def _places(self) -> Ints:
        """(group, rank of time) as one number, so that one search finds both: the product of counts fits 63 bits."""
        return self.group * (len(self._instants) + 1) + np.searchsorted(self._instants, self.times)

    def before(self, group: Ints, at: Ints) -> Ints:
        """For each query the number of events of smaller groups, and of its own before its instant."""
        rank = np.searchsorted(self._instants, at, side="left")
        found: Ints = np.searchsorted(self._places, group * (len(self._instants) + 1) + rank, side="left")
        return found

    def take(self, index: Ints, group: Ints) -> Events:
        """Some of the events, now of other groups."""
        at = pa.array(index)
        computed = {name: column.take(at) for name, column in self.computed.items()}
        return Events(group, self.times[index], self.created[index], self.columns, computed)


def answers(windows: Sequence[Window], events: Events, group: Ints, at: Ints) -> dict[str, Any]:
    """The answer of each window to each of Q queries, by its name, and EVENT_TIME: the latest event's in reach."""
    until = events.before(group, at)
    reach = {(w.length, w.hop): events.before(group, _floor(at - w.length, w.hop)) for w in windows}
    out: dict[str, Any] = {}
    kept: dict[tuple[Scalar | None, Scalar | None], _Valid] = {}
    for window in windows:
        key = (window.value, window.where)
        if key not in kept:
            kept[key] = _Valid.of(events, window)
        part, lo = kept[key], reach[window.length, window.hop]
        out[window.name] = aggregate_ranges(
            window, part.values, part.times, part.created, part.place(lo), part.place(until)
        )
    first = np.minimum.reduce(list(reach.values())) if reach else until
    last = events.times[np.maximum(until, 1) - 1] if len(events.times) else np.zeros(len(at), np.int64)
    out[EVENT_TIME] = pa.array(last, pa.int64(), mask=until <= first)
    return out


@dataclass(frozen=True)
class _Valid:
    """The events that count for a value under a condition, and where each of all events would be among them."""

    values: Any
    times: Ints
    created: Ints
    counts: Ints | None

    @classmethod
    def of(cls, events: Events, window: Window) -> _Valid:
        values = events.value(window)
        keep = valid(values, events.passes(window))
        if keep is None:
            return cls(values, events.times, events.created, None)
        counts = np.concatenate(([0], np.cumsum(keep))).astype(np.int64)
        values = None if values is None else values.filter(pa.array(keep))
        return cls(values, events.times[keep], events.created[keep], counts)

    def place(self, position: Ints) -> Ints:
        return position if self.counts is None else self.counts[position]


def answers_as_known(
    windows: Sequence[Window], events: Events, group: Ints, at: Ints, now: Ints
) -> tuple[dict[str, Any], int]:
    """As `answers`, each query over the events with created <= its `now` only; and how many events that hid."""
    until = events.before(group, at)
    first = np.minimum.reduce([events.before(group, _floor(at - w.length, w.hop)) for w in windows])
    late = np.flatnonzero((events.created > events.times) & (events.created > now.min(initial=2**62)))
    before = np.searchsorted(late, first), np.searchsorted(late, until)
    doubtful = np.flatnonzero(before[1] > before[0])
    plain = np.setdiff1d(np.arange(len(at)), doubtful, assume_unique=True)
    parts = [(plain, answers(windows, events, group[plain], at[plain]))]
    hidden = np.zeros(len(events.times), np.bool_)
    for some in _slices(doubtful, (until - first)[doubtful]):
        lengths = (until - first)[some]
        query = np.repeat(np.arange(len(some)), lengths)
        index = (
            np.arange(len(query)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(first[some], lengths)
        )
        seen = events.created[index] <= now[some][query]
        hidden[index[~seen]] = True
        known = events.take(index[seen], query[seen])
        parts.append((some, answers(windows, known, np.arange(len(some)), at[some])))
    order = pa.array(np.argsort(np.concatenate([which for which, _ in parts])))
    names = parts[0][1].keys()
    joined = {name: pa.chunked_array([part[name] for _, part in parts]).combine_chunks() for name in names}
    return {name: column.take(order) for name, column in joined.items()}, int(hidden.sum())


def _slices(queries: Ints, sizes: Ints) -> Iterator[Ints]:
    """The queries in runs of about `_PAIRS_AT_ONCE` pairs of query and event."""
    if len(queries):
        yield from np.split(queries, np.flatnonzero(np.diff(np.cumsum(sizes) // _PAIRS_AT_ONCE)) + 1)


def of_batch(relation: Windows) -> Windows:
    """Windows as batch computes their tiles beside a stream: an event that turned out to be the stream's does not
    pass, but is there, so that the tile in which it was counted is written anew."""
    if not may_withdraw(relation.rows):
        return relation
    kept = bind(f"NOT {WITHDRAWN}", Schema.of(**{WITHDRAWN: BOOL}))
    passes = [kept if each.where is None else call("and", [each.where, kept]) for each in relation.windows]
    pairs = zip(relation.windows, passes, strict=True)
    return replace(relation, windows=tuple(replace(each, where=where) for each, where in pairs))


def tiles(relation: Windows, level: int, rows: pa.Table, group: Ints, columns: Columns, until: int) -> pa.Table:
    """The tile rows of whole groups of events: as `Engine.tiles` gives them."""
    windows = relation.at_level(level)
    events = Events.of(rows, group, columns)
    tile = _floor(events.times, level)
    starts = np.flatnonzero(np.concatenate(([True], (group[1:] != group[:-1]) | (tile[1:] != tile[:-1]))))
    ends = np.append(starts[1:], len(tile)) - 1
    values = {window.name: events.value(window) for window in windows if window.value is not None}
    passes = {window.name: found for window in windows if (found := events.passes(window)) is not None}
    states = tile_states(windows, values, passes, events.times, events.created, starts)
    states[COVERED] = pa.array(np.minimum(until, tile[starts] + level))
    out = {name: rows[name].take(pa.array(starts)) for name in relation.keys.names}
    out[EVENT_TIME], out[CREATED] = pa.array(events.times[ends]), pa.array(events.created[ends])
    out[ITEM] = pa.array([tile_item(start) for start in tile[starts].tolist()], pa.binary())
    out |= {name: states[name] for name in tile_schema(windows).names}
    return pa.table(out, schema=tiles_schema(relation.keys, windows))


def tiles_schema(keys: Schema, windows: Sequence[Window]) -> pa.Schema:
    """The columns of `Engine.tiles`."""
    stamps = [pa.field(EVENT_TIME, pa.int64()), pa.field(CREATED, pa.int64()), pa.field(ITEM, pa.binary())]
    return pa.schema([*keys.arrow, *stamps, *tile_schema(windows).arrow])


def whole_groups(batches: Iterator[pa.RecordBatch], names: Sequence[str], size: int) -> Iterator[tuple[pa.Table, Ints]]:
    """Rows sorted by `names` in tables of at least `size` rows, no group parted; with each row's group, from 0."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        held.append(batch)
        rows += batch.num_rows
        if rows < size:
            continue
        table = pa.Table.from_batches(held)
        group = _group_ids(table, names)
        cut = int(np.searchsorted(group, group[-1]))
        if cut:
            yield table.slice(0, cut), group[:cut]
        held = table.slice(cut).combine_chunks().to_batches()
        rows = table.num_rows - cut if cut else 0
    if held:
        table = pa.Table.from_batches(held)
        yield table, _group_ids(table, names)


def _group_ids(table: pa.Table, names: Sequence[str]) -> Ints:
    change = np.zeros(table.num_rows, np.bool_)
    for name in names:
        column = _one_chunk(table[name])
        differs = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))
        change[1:] |= differs.to_numpy(zero_copy_only=False)
    return np.cumsum(change).astype(np.int64)


def _floor(at: Ints, hop: int) -> Ints:
    return at // hop * hop


def _one_chunk(column: Any) -> Any:
    found = column.combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)


def _ints(column: Any) -> Ints:
    answer: Ints = pc.fill_null(column, NO_CREATED).to_numpy().astype(np.int64, copy=False)
    return answer
