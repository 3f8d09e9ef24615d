"""Events of a topic into the online tables of the views of one source, each counted once whatever is repeated.

A view over columns has the event as a row; the store keeps the latest. For windows the store keeps, beside the tiles
that batch writes, one tile a partition of the topic: its state is that of all events of the partition up to an offset,
which is kept with it as `CREATED`. Events at or before that offset are in it and are passed over, so that what is read
again after a crash changes nothing; a writer that was taken for dead and still writes has a smaller offset and loses.
The first event of a version of a view that a stream applies is settled in the registry (`Streams.claim`): what is
before it in the topic, batch reads from the log of the stream. Where the online store has lost its rows, that is
settled anew.

    item of 12 bytes    a tile of one partition
    item of 20 bytes    one event that happens later than now, in no tile yet
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_store.definitions.catalog import BoundView
from feature_store.definitions.tables import is_snapshot, latest_table, seen_table, tile_table
from feature_store.expressions.aggregates import (
    StoredRow,
    aggregate_of,
    ahead_item,
    distinct,
    state_columns,
    stream_item,
    stream_items,
    tile_item,
    tile_states,
)
from feature_store.expressions.algebra import Aggregate
from feature_store.expressions.instants import MINUTE
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import LatestRow, Window, Windows, reach
from feature_store.expressions.scalars import Scalar
from feature_store.materialization.epochs import begin_epoch, epoch_of, epoch_read
from feature_store.materialization.events import Events, identities
from feature_store.materialization.kept import Kept, KeyItems
from feature_store.registry.records import Claim
from feature_store.storage.online import CREATED, EVENT_TIME, ITEM, Key, OnlineStore, Table
from feature_store.storage.rows import cast, raw_type, to_arrow
from feature_store.types import Column

SEEN = 5 * MINUTE
"""Identities of events are kept together by this much of event time."""

_TILE, _AHEAD = 12, 20
_NO_OFFSET = -1
_DIGEST = 8


class Claims(Protocol):
    """Where versions of views begin in a topic, as `registry.streams` keeps it."""

    def claims(self, view: str, version: str) -> dict[int, Claim]: ...

    def claim(self, view: str, version: str, begins: Mapping[int, int], epoch: str) -> dict[int, Claim]: ...


@dataclass(frozen=True)
class StreamEvents:
    """Events of one source and where each was in its topic: in order of offset within each partition."""

    events: Events
    partitions: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.events)


class StreamWriter:
    """Applies events to views. It keeps the tiles that it wrote last; `forget` them when partitions come or go."""

    def __init__(self, online: OnlineStore, claims: Claims) -> None:
        self._online = online
        self._kept = Kept()
        self._begins = _Begins(online, claims, self._lost)
        self._views: dict[str, _WindowsWriter] = {}
        self._created: set[str] = set()

    def forget(self) -> None:
        """Read from the stores again: another worker may have gone on with what was kept."""
        self._kept.clear()
        self._begins.clear()

    def settle(self, views: Sequence[BoundView], positions: Mapping[int, int]) -> bool:
        """Settle where views begin, if that is open: at these offsets, by partition. Whether any of them does."""
        return self._begins.settle([bound for bound in views if not is_snapshot(bound)], positions)

    def apply(self, views: Sequence[BoundView], given: StreamEvents, now: int) -> int:
        """Write events to the online tables of views; acknowledged when it returns. `now` is in microseconds. The
        number of late events: those in no tile that is kept any more."""
        late = 0
        for bound in views if len(given) else ():
            if isinstance(bound.relation, LatestRow):
                self._online.write(self._latest(bound), given.events.latest(bound.keys, bound.relation.values))
            elif isinstance(bound.relation, Windows) and not is_snapshot(bound):
                late = max(late, self._windows(bound).apply(given, now))
        return late

    def _lost(self, bound: BoundView, epoch: int | None) -> None:
        """The store has lost the rows of a view, and is in this epoch now: what was kept of them goes, too, and what
        was just written."""
        self._kept.clear()
        if bound.table in self._views:
            self._views[bound.table].take_back(epoch)

    def _latest(self, bound: BoundView) -> Table:
        table = latest_table(bound)
        if table.name not in self._created:
            self._online.create(table)
            self._created.add(table.name)
        return table

    def _windows(self, bound: BoundView) -> _WindowsWriter:
        if bound.table not in self._views:
            self._views[bound.table] = _WindowsWriter(bound, self._online, self._begins, self._kept)
        return self._views[bound.table]


class _Begins:
    """Where views begin, as the registry has it for the present epoch of the online store."""

    def __init__(self, online: OnlineStore, claims: Claims, lost: Callable[[BoundView, int | None], None]) -> None:
        self._online, self._claims, self._lost = online, claims, lost
        self._known: dict[str, dict[int, Claim]] = {}

    def clear(self) -> None:
        self._known.clear()

    def settle(self, views: Sequence[BoundView], positions: Mapping[int, int]) -> bool:
        """As `StreamWriter.settle`."""
        epochs = self._online.read([epoch_read(bound) for bound in views]) if views else []
        found = [
            self._settle(bound, positions, epoch_of(answer[0])) for bound, answer in zip(views, epochs, strict=True)
        ]
        return any(found)

    def _settle(self, bound: BoundView, positions: Mapping[int, int], epoch: int | None) -> bool:
        known = self._known.get(bound.table)
        if known is None:
            known = self._known[bound.table] = self._claims.claims(bound.name, bound.version)
        if not self._is_open(known, positions, epoch):
            return False
        if any(not known[part].holds(epoch) for part in positions if part in known):
            self._lost(bound, epoch)  # before it begins again: batch waits for that
        began = begin_epoch(self._online, bound, known.values()) if epoch is None else epoch
        self._known[bound.table] = self._claims.claim(bound.name, bound.version, positions, str(began))
        return True

    def _is_open(self, known: Mapping[int, Claim], partitions: Iterable[int], epoch: int | None) -> bool:
        return any(part not in known or not known[part].holds(epoch) for part in partitions)

    def of(self, bound: BoundView, positions: Mapping[int, int]) -> dict[int, Claim]:
        """Where a view begins in partitions; where that is open, at these positions."""
        if positions.keys() - self._known.get(bound.table, {}).keys():
            self.settle([bound], positions)
        return self._known[bound.table]

    def hold(self, bound: BoundView, partitions: Iterable[int], epoch: int | None) -> bool:
        """Whether the store has kept what was written of a view since it began in these partitions."""
        return not self._is_open(self._known[bound.table], partitions, epoch)


class _WindowsWriter:
    """Writes the tiles of one version of a temporal view."""

    def __init__(self, bound: BoundView, online: OnlineStore, begins: _Begins, kept: Kept) -> None:
        assert isinstance(bound.relation, Windows)
        self._bound, self._online, self._begins, self._kept = bound, online, begins, kept
        self._windows = bound.relation.windows
        self._levels = [_Level(bound, bound.relation, level) for level in bound.relation.levels]
        self._seen = seen_table(bound) if bound.relation.rows.unique else None
        self._epoch: int | None = None  # in which was written what was written last
        self._written: list[tuple[Table, _Batch, _Rows]] = []
        self._met_ahead = False  # whether there may be events after now among what is kept
        for table in self._tables:
            online.create(table)

    @property
    def _tables(self) -> list[Table]:
        return [*(level.table for level in self._levels), *([self._seen] if self._seen else [])]

    def apply(self, given: StreamEvents, now: int) -> int:
        """Write events; how many were late."""
        partitions, first = np.unique(given.partitions, return_index=True)
        here = {int(p): int(given.offsets[at]) for p, at in zip(partitions, first, strict=True)}
        while True:
            begins = self._begins.of(self._bound, here)
            begin = np.array([begins[partition].begin for partition in given.partitions.tolist()], np.int64)
            oldest = reach(self._windows, now)
            batch = _Batch(
                self._bound, given, np.flatnonzero((given.offsets >= begin) & (given.events.times >= oldest))
            )
            late = int((given.events.times < oldest).sum())
            if not len(batch.index):
                return late
            if self._load(batch.keys, here):
                break
            self._begins.settle([self._bound], here)  # the store has lost its rows: the view begins anew
        self._written.clear()
        if self._seen is not None:
            batch = batch.take(self._first_seen(self._seen, batch, oldest))
        for level in self._levels:
            self._write_level(level, batch, now, oldest // level.level * level.level)
        self._kept.shrink()
        return late

    def take_back(self, epoch: int | None) -> None:
        """Empty the rows that were written last, unless that was in this epoch already: the store may have lost all
        others before it took these, which hold events from before the view begins anew."""
        if epoch == self._epoch:
            return
        empty = {level.table.name: level.empty for level in self._levels}
        for table, batch, rows in self._written:
            blank = empty.get(table.name, (b"",))
            columns = [[value] * len(rows) for value in blank]
            self._online.write(table, _table(table, batch, replace(rows, columns=columns)))
        self._written.clear()

    def _load(self, keys: Sequence[Key], partitions: Iterable[int]) -> bool:
        """Have what is stored of keys at hand, in one round trip; False where the store has lost it."""
        wanted = [(table, self._kept.missing(table, keys)) for table in self._tables]
        answers = self._online.read([*wanted, epoch_read(self._bound)])
        epoch = epoch_of(answers[-1][0])
        if not self._begins.hold(self._bound, partitions, epoch):
            return False
        self._epoch = epoch
        for (table, missing), found in zip(wanted, answers, strict=False):
            for key, items in zip(missing, found, strict=True):
                assert isinstance(items, Mapping)
                ours: KeyItems = {item: items[item] for item in items if len(item) in (_TILE, _AHEAD)}
                self._met_ahead |= any(len(item) == _AHEAD for item in ours)
                self._kept.put(table, key, ours)
        return True

    def _first_seen(self, table: Table, batch: _Batch, oldest: int) -> Ints:
        """Which events of a batch are the first of their identity; the identities are stored."""
        kept = self._kept.get(table, batch.keys)
        ids = [each[:_DIGEST] for each in identities(batch.given.events, batch.index)]
        known: dict[tuple[int, bytes], dict[bytes, int]] = {}
        rows: dict[tuple[int, bytes], tuple[int, int]] = {}
        first = []
        buckets = batch.times // SEEN * SEEN
        for place in np.argsort(batch.offsets, kind="stable").tolist():
            code, offset = int(batch.codes[place]), int(batch.offsets[place])
            item = stream_item(int(buckets[place]), int(batch.partitions[place]))
            at = (code, item)
            if at not in known:
                known[at] = _unpacked(kept[code].get(item))
            there = known[at].setdefault(ids[place], offset)
            if there != offset:
                continue
            first.append(place)
            old = rows.get(at) or _stamp(kept[code].get(item))
            rows[at] = (max(old[0], int(batch.times[place])), max(old[1], offset))
        stamps = np.array(list(rows.values()), np.int64).reshape(-1, 2)
        packed = [_packed(known[at]) for at in rows]
        new = _Rows([code for code, _ in rows], [item for _, item in rows], stamps[:, 0], stamps[:, 1], [packed])
        is_known = np.array([item in kept[code] for code, item in rows], bool)
        self._write(table, batch, new, is_known, kept, tile_item(oldest // SEEN * SEEN))
        return np.sort(np.array(first, np.int64))

    def _write_level(self, level: _Level, batch: _Batch, now: int, oldest: int) -> None:
        kept = self._kept.get(level.table, batch.keys)
        batch = batch.take(np.flatnonzero(batch.times // level.level * level.level >= oldest))
        segments = _Segments(batch, kept, level.level)
        new = self._not_applied(segments, kept)
        if len(new) < len(batch.index) or (batch.times >= now).any():
            segments = _Segments(batch.take(new), kept, level.level, now)
        if len(segments.starts):
            known = np.array([row is not None for row in segments.stored], bool)
            rows = level.rows(segments, known)
            self._write(level.table, batch, rows, known, kept, tile_item(oldest))

    def _not_applied(self, segments: _Segments, kept: Sequence[KeyItems]) -> Ints:
        """Which events are not in the store: of an offset after that of their tile, and not there as one after now."""
        batch = segments.batch
        applied = np.array([_NO_OFFSET if row is None else row[1] for row in segments.stored], np.int64)
        new: Ints = np.flatnonzero(batch.offsets > applied[segments.of_event]) if len(applied) else segments.starts
        if not self._met_ahead or not len(new):
            return new
        stored = [ahead_item(*at) in kept[code] for code, *at in batch.positions(new)]
        return np.compress(~np.array(stored, bool), new)

    def _write(
        self,
        table: Table,
        batch: _Batch,
        rows: _Rows,
        known: NDArray[np.bool_],
        kept: Sequence[KeyItems],
        keep_from: bytes,
    ) -> None:
        """Write rows, those that are `known` in place of what is kept of them. Events after now come first: once the
        tile they fall into has a greater offset, they count as written. A tile that is new to its key also ends what is
        too old of it, so that this is looked at once a tile and not with every event."""
        ahead = np.array([len(item) == _AHEAD for item in rows.items], bool)
        fresh = rows.take(np.flatnonzero(~known & ~ahead))
        parts = ((rows.take(np.flatnonzero(ahead)), None), (fresh, keep_from), (rows.take(np.flatnonzero(known)), None))
        for some, cut in parts:
            if len(some):
                self._written.append((table, batch, some))
                self._online.write(table, _table(table, batch, some), cut)
        self._met_ahead |= bool(ahead.any())
        self._kept.set(((kept[code], item, row) for code, item, row in rows.stored()), int((~known).sum()))
        for code in set(fresh.codes):
            self._kept.cut(kept[code], keep_from)


class _Batch:
    """Events of one view, in order of (key, partition, time, created); `index` says where each is among those given."""

    def __init__(self, bound: BoundView, given: StreamEvents, index: Ints) -> None:
        keys = given.events.keys(bound.keys)
        for column in keys.values():
            if column.null_count:
                index = index[column.is_valid().to_numpy(zero_copy_only=False)[index]]
        codes, first = _codes([column.take(pa.array(index)) for column in keys.values()])
        at = pa.array(index[first])
        self.given, self.bound = given, bound
        self.key_columns = {name: column.take(at) for name, column in keys.items()}
        typed = zip(bound.keys, self.key_columns.values(), strict=True)
        raw = [cast(column, raw_type(key.type)).to_pylist() for key, column in typed]
        self.keys: list[Key] = list(zip(*raw, strict=True))
        events = given.events
        order = np.lexsort((events.created[index], events.times[index], given.partitions[index], codes))
        self._place(codes[order], index[order])

    def _place(self, codes: Ints, index: Ints) -> None:
        self.codes, self.index = codes, index
        self.times, self.created = self.given.events.times[index], self.given.events.created[index]
        self.partitions, self.offsets = self.given.partitions[index], self.given.offsets[index]

    def take(self, some: Ints) -> _Batch:
        """Some of the events, in the order they are in."""
        if len(some) == len(self.index):
            return self
        part = object.__new__(_Batch)
        part.given, part.bound, part.key_columns, part.keys = self.given, self.bound, self.key_columns, self.keys
        part._place(self.codes[some], self.index[some])
        return part

    def positions(self, some: Ints) -> Iterator[tuple[int, int, int, int]]:
        """Of some events the key's code, the time, the partition and the offset."""
        return zip(*(of[some].tolist() for of in (self.codes, self.times, self.partitions, self.offsets)), strict=True)

    def computed(self, scalar: Scalar) -> pa.Array:
        """An expression over the events."""
        return self.given.events.computed(scalar).take(pa.array(self.index))


class _Segments:
    """The runs of a batch's events that share a row: a key's tile of one partition, or alone an event after `now`.
    `codes` and `items` say which row that is, `stored` has what is kept of it."""

    def __init__(self, batch: _Batch, kept: Sequence[KeyItems], level: int, now: int | None = None) -> None:
        self.batch = batch
        tiles = batch.times // level * level
        ahead = np.zeros(len(tiles), bool) if now is None else batch.times >= now
        begins = np.ones(len(tiles), bool)
        begins[1:] = ahead[1:]
        for of in (batch.codes, batch.partitions, tiles):
            begins[1:] |= of[1:] != of[:-1]
        self.starts: Ints = np.flatnonzero(begins)
        self.of_event = np.cumsum(begins) - 1
        self.items = stream_items(tiles[self.starts], batch.partitions[self.starts])
        alone = np.flatnonzero(ahead[self.starts])
        for at, (_, *place) in zip(alone.tolist(), batch.positions(self.starts[alone]), strict=True):
            self.items[at] = ahead_item(*place)
        self.codes: list[int] = batch.codes[self.starts].tolist()
        self.stored = [kept[code].get(item) for code, item in zip(self.codes, self.items, strict=True)]


@dataclass(frozen=True)
class _Rows:
    """Rows of a table with items: the codes of their keys, items, event times, offsets, and the columns of values."""

    codes: list[int]
    items: list[bytes]
    times: Ints
    offsets: Ints
    columns: Sequence[Sequence[Any]]

    def __len__(self) -> int:
        return len(self.items)

    def take(self, index: Ints) -> _Rows:
        """Some of them, in order."""
        if len(index) == len(self):
            return self
        some = index.tolist()
        codes, items = [self.codes[at] for at in some], [self.items[at] for at in some]
        columns = [[column[at] for at in some] for column in self.columns]
        return _Rows(codes, items, self.times[index], self.offsets[index], columns)

    def stored(self) -> Iterator[tuple[int, bytes, StoredRow]]:
        """Of each the key's code, the item, and the row as it is read of a store."""
        rows = zip(self.times.tolist(), self.offsets.tolist(), zip(*self.columns, strict=True), strict=True)
        return zip(self.codes, self.items, rows, strict=True)


class _Level:
    """The tiles of one length of a view: their table, and how states are made and merged."""

    def __init__(self, bound: BoundView, relation: Windows, level: int) -> None:
        self.level, self.table = level, tile_table(bound, level)
        self.windows = relation.at_level(level)
        self._columns: list[Column] = []
        self._merges: list[tuple[Aggregate, slice]] = []
        for window in distinct(self.windows):
            begin = len(self._columns)
            self._columns += state_columns(window)
            self._merges.append((aggregate_of(window), slice(begin, len(self._columns))))

    def rows(self, segments: _Segments, known: NDArray[np.bool_]) -> _Rows:
        """The row of each run of events, together with what is stored where that is known. Nothing is said of what is
        covered."""
        times = np.maximum.reduceat(segments.batch.times, segments.starts)
        offsets = np.maximum.reduceat(segments.batch.offsets, segments.starts)
        states = self._states(segments)
        if known.any():
            before, _, values = zip(*(row for row in segments.stored if row is not None), strict=True)
            times[known] = np.maximum(times[known], before)
            states = self._merged(states, np.flatnonzero(known), list(zip(*values, strict=True)))
        return _Rows(segments.codes, segments.items, times, offsets, [*states, [0] * len(times)])

    def _states(self, segments: _Segments) -> list[list[Any]]:
        """The state of each run of events, part by part, as raw row values."""
        batch = segments.batch
        values = {window.name: batch.computed(window.value) for window in self.windows if window.value}
        passes = {window.name: _passes(batch, window) for window in self.windows if window.where}
        found = tile_states(self.windows, values, passes, batch.times, batch.created, segments.starts)
        return [cast(found[column.name], raw_type(column.type)).to_pylist() for column in self._columns]

    @property
    def empty(self) -> tuple[Any, ...]:
        """The state of no events."""
        return (*(part for window in distinct(self.windows) for part in aggregate_of(window).identity), 0)

    def _merged(self, states: list[list[Any]], known: Ints, old: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """States, part by part, those at `known` merged with old ones."""
        all_known = len(known) == len(states[0])
        places = known.tolist()
        new = states if all_known else [[part[at] for at in places] for part in states]
        merged = [part for of, at in self._merges for part in of.merge_all(old[at], new[at])]
        if all_known:
            return merged
        for part, of_known in zip(states, merged, strict=True):
            for at, value in zip(places, of_known, strict=True):
                part[at] = value
        return states


def _passes(batch: _Batch, window: Window) -> NDArray[np.bool_]:
    assert window.where is not None
    passes: NDArray[np.bool_] = pc.fill_null(batch.computed(window.where), False).to_numpy(zero_copy_only=False)
    return passes


def _table(table: Table, batch: _Batch, rows: _Rows) -> pa.Table:
    codes = pa.array(rows.codes)
    out = {name: column.take(codes) for name, column in batch.key_columns.items()}
    for column, values in zip(table.values, rows.columns, strict=True):
        out[column.name] = to_arrow(values, column.type)
    stamps = {EVENT_TIME: pa.array(rows.times), CREATED: pa.array(rows.offsets)}
    return pa.table(out | stamps | {ITEM: pa.array(rows.items, pa.binary())})


def _codes(columns: Sequence[pa.Array]) -> tuple[Ints, Ints]:
    """A number for each row, equal where all columns are, and the first row of each number, from 0 on."""
    codes = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        encoded = column.dictionary_encode()
        codes = codes * (len(encoded.dictionary) + 1) + encoded.indices.to_numpy(zero_copy_only=False)
        _, codes = np.unique(codes, return_inverse=True)
    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    return codes.astype(np.int64), first


def _stamp(row: Any) -> tuple[int, int]:
    return (-(2**63), _NO_OFFSET) if row is None else (row[0], row[1])


def _unpacked(row: Any) -> dict[bytes, int]:
    """Identities and the offset at which each was first, from 16 bytes each."""
    packed = b"" if row is None else row[2][0]
    edges = pairwise(range(0, len(packed) + 1, 16))
    return {packed[a : a + 8]: int.from_bytes(packed[a + 8 : b], "big") for a, b in edges}


def _packed(seen: Mapping[bytes, int]) -> bytes:
    return b"".join([digest + offset.to_bytes(8, "big") for digest, offset in seen.items()])
