"""Windowed aggregates: their types, the tiles that keep their state, and their answers over history or at a request.

Instants are int64 microseconds. A window at T takes events with floor(T - length, hop) <= event time < T.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, filterfalse
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_store.expressions.algebra import TABLE, Aggregate, Events, make
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import Window
from feature_store.types import INT64, Column, Schema, Type

COVERED = "covered"
FUNCTIONS = tuple(TABLE)
NO_EVENT = 0
"""The event time of an answer over no events."""

_SIGN = 1 << 63
_NO_CREATED = -(2**63)
_TILE = 8
_FRAGMENT = 16
_MOST_TILES = 512

StoredRow = tuple[int, int, tuple[Any, ...]]
"""Event time, created, values: what an online store keeps of a tile or a fragment, and what a read answers."""


def result_type(function: str, value: Type | None) -> Type:
    """The type of the answer; `ExpressionError` where the function does not take such a value."""
    return make(function, value).result


def state_columns(window: Window) -> tuple[Column, ...]:
    """The columns of a window's state, named `<window>.<part>`."""
    return tuple(Column(f"{window.name}.{part}", type_) for part, type_ in aggregate_of(window).parts)


def tile_schema(windows: Sequence[Window]) -> Schema:
    """The value columns of a tile of the windows of one level: their states, then `covered` (INT64). Windows that
    aggregate the same over different lengths share the state of the first of them."""
    columns = tuple(column for window in distinct(windows) for column in state_columns(window))
    return Schema((*columns, Column(COVERED, INT64)))


def distinct(windows: Sequence[Window]) -> list[Window]:
    """The windows whose states a tile holds, in order: the first of those that differ only in name, length and hop."""
    found: dict[Window, Window] = {}
    for window in windows:
        found.setdefault(_state_key(window), window)
    return list(found.values())


def _state_key(window: Window) -> Window:
    return replace(window, name="", length=0, hop=1)


@lru_cache(maxsize=4096)
def aggregate_of(window: Window) -> Aggregate:
    """The aggregate of a window: `lift`, `merge` and `finish` over raw row values."""
    return make(window.function, window.value.type if window.value else None, window.n, window.name)


def tile_item(start: int) -> bytes:
    """The item of a tile: its start, as 8 bytes that sort as the times do."""
    return (start + _SIGN).to_bytes(_TILE, "big")


def fragment_item(time: int, digest: bytes) -> bytes:
    """The item of one pushed event: its time as a tile's start, then the first 8 bytes of its identity's digest."""
    return tile_item(time) + digest[:8]


def stream_item(start: int, partition: int) -> bytes:
    """The item of a tile over the events of one partition of a topic: 12 bytes. Nothing covers it."""
    return tile_item(start) + partition.to_bytes(4, "big")


def stream_items(starts: Ints, partitions: Ints) -> list[bytes]:
    """`stream_item` of many."""
    packed = np.empty(len(starts), [("start", ">i8"), ("partition", ">u4")])
    packed["start"], packed["partition"] = starts + np.int64(-_SIGN), partitions
    raw, step = packed.tobytes(), packed.itemsize
    return [raw[at : at + step] for at in range(0, len(raw), step)]


def ahead_item(time: int, partition: int, offset: int) -> bytes:
    """The item of one event of a topic that happens later than now: 20 bytes. Nothing covers it."""
    return stream_item(time, partition) + offset.to_bytes(8, "big")


def item_time(item: bytes) -> int:
    """The start of a tile, or the time of an event."""
    return int.from_bytes(item[:_TILE], "big") - _SIGN


def valid(values: Any, passes: NDArray[np.bool_] | None = None) -> NDArray[np.bool_] | None:
    """Which events count in a window: those that pass its `where` and whose value is neither null nor NaN.

    `values` (an Arrow array) is None for count of rows; the answer is None where all events count.
    """
    if values is None:
        return passes
    bad = pc.is_null(values, nan_is_null=pa.types.is_floating(values.type))
    if not pc.any(bad).as_py():
        return passes
    good: NDArray[np.bool_] = ~bad.to_numpy(zero_copy_only=False)
    return good if passes is None else good & passes


def aggregate_ranges(window: Window, values: Any, times: Ints, created: Ints, lo: Ints, hi: Ints) -> Any:
    """The answers of a window, an Arrow array of its type: the i-th over the events lo[i]:hi[i].

    Events are valid ones (see `valid`), in order of (key, time, created); ties are settled here. `values` is an Arrow
    array, None for count of rows. Ranges may be many and long; `InvalidInputError` where an exact sum overflows.
    """
    found = aggregate_of(window).answers(_events(window, values, times, created), lo, hi)
    return found if found.type == window.type.arrow else found.cast(window.type.arrow)


def tile_states(
    windows: Sequence[Window],
    values: Mapping[str, Any],
    passes: Mapping[str, NDArray[np.bool_]],
    times: Ints,
    created: Ints,
    starts: Ints,
) -> dict[str, Any]:
    """The state columns of `tile_schema(windows)` but `covered`, one row a segment of events.

    `values` has the Arrow array of a window's values by the window's name (none for count of rows), `passes` its
    `where` where it has one. Events are in order of (segment, time, created); segment i is starts[i]:starts[i + 1].
    """
    columns: dict[str, Any] = {}
    ends = np.append(starts[1:], len(times)).astype(np.int64)
    for window in distinct(windows):
        of_window = values.get(window.name)
        keep = valid(of_window, passes.get(window.name))
        lo, hi, kept_times, kept_created = starts, ends, times, created
        if keep is not None:
            before = np.concatenate(([0], np.cumsum(keep)))
            lo, hi, kept_times, kept_created = before[starts], before[ends], times[keep], created[keep]
            of_window = None if of_window is None else of_window.filter(pa.array(keep))
        states = aggregate_of(window).states(_events(window, of_window, kept_times, kept_created), lo, hi)
        columns.update(zip((column.name for column in state_columns(window)), states, strict=True))
    return columns


def lift_row(
    windows: Sequence[Window], values: Sequence[Any], passes: Sequence[bool | None], time: int, created: int
) -> tuple[Any, ...]:
    """The state of one event in the order of `tile_schema(windows)` but `covered`, as raw row values.

    `values` and `passes` have the value (None for count of rows) and the `where` of each of `windows`, in order.
    """
    place = {window.name: n for n, window in enumerate(windows)}
    state: list[Any] = []
    for window in distinct(windows):
        aggregate, n = aggregate_of(window), place[window.name]
        state.extend(aggregate.lift(values[n], time, created) if passes[n] else aggregate.identity)
    return tuple(state)


def _events(window: Window, values: Any, times: Ints, created: Ints) -> Events:
    type_ = window.value.type if window.value else INT64
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if values is not None and values.type != type_.arrow:
        values = values.cast(type_.arrow)
    return Events(type_, values, times, created)


class WindowReader:
    """Merges the tiles and fragments of one key into the answers of its windows at T, in the order of `windows`.

    A window reads the longest tiles that lie within it, and at both of its ends shorter ones up to those: a week by the
    hour takes hours up to a midnight, days, and the hours of today.
    """

    def __init__(self, windows: Sequence[Window]) -> None:
        self._levels = tuple(sorted({level for window in windows for level in window.levels}))
        slices = [_slices([window for window in windows if level in window.levels]) for level in self._levels]
        groups: dict[tuple[int, tuple[int, ...]], dict[Window, list[int]]] = {}
        for place, window in enumerate(windows):
            of_reach = groups.setdefault((window.length, window.levels), {})
            of_reach.setdefault(_state_key(window), []).append(place)
        self._groups = tuple(
            _Group(
                length,
                tuple(self._levels.index(level) for level in levels),
                levels,
                tuple(
                    _Answer(aggregate_of(windows[places[0]]), tuple(each.get(key) for each in slices), tuple(places))
                    for key, places in by_key.items()
                ),
            )
            for (length, levels), by_key in groups.items()
        )
        self._nothing = tuple(aggregate_of(window).answer([()] * len(state_columns(window))) for window in windows)
        self._step = math.gcd(*self._levels, *(window.length for window in windows))
        self._reach: _Reach | None = None

    def read(self, items: Sequence[Mapping[bytes, StoredRow]], at: int) -> StoredRow:
        """The answers at T = `at` as a row: the time of the latest event used (`NO_EVENT` if none), no created, the
        answers as raw row values. `items`: what is stored of the key, one mapping a level, shortest level first."""
        if not any(items):
            return (NO_EVENT, _NO_CREATED, self._nothing)
        reach, end = self._reach_at(at), tile_item(at)
        parts = [
            _Part.of(of_level, wanted, end) if of_level and wanted.spans else None
            for of_level, wanted in zip(items, reach.of_levels, strict=True)
        ]
        answers = list(self._nothing)
        for group, of_group in zip(self._groups, reach.of_groups, strict=True):
            group.answer([(place, parts[place], spans) for place, spans in of_group], answers)
        return (max((part.newest for part in parts if part), default=NO_EVENT), _NO_CREATED, tuple(answers))

    def _reach_at(self, at: int) -> _Reach:
        """The spans at T = `at`. They are the same for all T of one step, so the last ones are kept."""
        until, reach = _floor(at, self._step) + self._step, self._reach
        if reach is None or reach.until != until:
            of_groups = tuple(group.reach(at, until) for group in self._groups)
            spans: list[list[_Span]] = [[] for _ in self._levels]
            for place, of_level in chain.from_iterable(of_groups):
                spans[place] += of_level
            reach = self._reach = _Reach(until, of_groups, tuple(map(_Wanted.of, spans, self._levels)))
        return reach


_Span = tuple[bytes, bytes]
"""Items from the first on, below the second."""

_Used = tuple[tuple[int, tuple[_Span, ...]], ...]
"""Spans by the place of their level."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is used of the items of one level: those in some spans. `tiles` are all tiles there, None if they are many:
    most items are tiles, and a set tells those that are used faster than comparisons with the ends of spans."""

    level: int
    spans: tuple[_Span, ...]
    tiles: frozenset[bytes] | None

    @classmethod
    def of(cls, spans: Sequence[_Span], level: int) -> _Wanted:
        joined = _joined(spans)
        times = [range(item_time(first), item_time(end), level) for first, end in joined]
        few = sum(map(len, times)) <= _MOST_TILES
        return cls(level, joined, frozenset(map(tile_item, chain.from_iterable(times))) if few else None)

    def visible(self, items: Mapping[bytes, StoredRow], end: bytes) -> list[bytes]:
        """What is used before `end`, in order of time: tiles, and fragments that no tile covers."""
        spans = [(first, min(until, end)) for first, until in self.spans]
        of_tile = self.tiles.__contains__ if self.tiles is not None else _is_tile
        tiles = _within(spans, sorted(filter(of_tile, items)))
        others = _within(spans, sorted([item for item in items if len(item) != _TILE]))
        if not others:
            return tiles
        hidden = _hidden(tiles, others, items, self.level)
        return sorted([*tiles, *(others if not hidden else filterfalse(hidden.__contains__, others))])


@dataclass(frozen=True, slots=True)
class _Reach:
    """What is used at the instants of the step that ends at `until`: by each group, and by all of them at each level.
    Spans that end at T end at `until` here."""

    until: int
    of_groups: tuple[_Used, ...]
    of_levels: tuple[_Wanted, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer to make: of `aggregate` over the columns `state` of the tiles of each level, put at `places`."""

    aggregate: Aggregate
    state: tuple[slice | None, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """The answers of the windows of one length and hop; `levels` and where each is among those of all windows."""

    length: int
    places: tuple[int, ...]
    levels: tuple[int, ...]
    answers: tuple[_Answer, ...]

    def reach(self, at: int, until: int) -> _Used:
        """What is used at T = `at`, up to `until` where it ends at T."""
        since, end, found = _floor(at - self.length, self.levels[0]), until, []
        for place, longer in zip(self.places, self.levels[1:], strict=False):
            first, last = -(-since // longer) * longer, _floor(at, longer)
            found.append((place, (_span(since, first), _span(last, end))))
            since, end = first, last
        return (*found, (self.places[-1], (_span(since, end),)))

    def answer(self, used: Sequence[tuple[int, _Part | None, Sequence[_Span]]], answers: list[Any]) -> None:
        """Put the answers into their places; those over nothing are there already."""
        cuts = [(place, cut) for place, part, spans in used if part is not None for cut in part.cuts(spans)]
        for answer in self.answers if cuts else ():
            states = [cut[answer.state[place]] for place, cut in cuts]  # type: ignore[index]
            columns = states[0] if len(states) == 1 else [[*chain(*parts)] for parts in zip(*states, strict=True)]
            found = answer.aggregate.answer(columns)
            for place in answer.places:
                answers[place] = found


class _Part(NamedTuple):
    """What is visible of the items of one level, in order of time: the items, and the columns of their values."""

    order: list[bytes]
    newest: int
    columns: Sequence[Sequence[Any]]

    @classmethod
    def of(cls, items: Mapping[bytes, StoredRow], wanted: _Wanted, end: bytes) -> _Part | None:
        """What is used before `end`; None if there is none."""
        order = wanted.visible(items, end)
        return cls(order, *_columns(items, order)) if order else None

    def cuts(self, spans: Sequence[_Span]) -> list[Sequence[Sequence[Any]]]:
        """The columns of the items of some spans, in parts; none of those without items."""
        order = self.order
        places = [(bisect_left(order, first), bisect_left(order, end)) for first, end in spans]
        if sum(end - first for first, end in places) == len(order):
            return [self.columns]
        return [[column[first:end] for column in self.columns] for first, end in places if first < end]


def _slices(windows: Sequence[Window]) -> dict[Window, slice]:
    """Where each state is among the columns of a tile of some windows."""
    found, at = {}, 0
    for window in distinct(windows):
        width = len(state_columns(window))
        found[_state_key(window)] = slice(at, at + width)
        at += width
    return found


def _span(since: int, until: int) -> _Span:
    return tile_item(since), tile_item(until)


def _joined(spans: Sequence[_Span]) -> tuple[_Span, ...]:
    """Spans that touch or overlap as one; none of those that hold nothing."""
    found: list[_Span] = []
    for first, end in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif first < end:
            found.append((first, end))
    return tuple(found)


def _is_tile(item: bytes) -> bool:
    return len(item) == _TILE


def _within(spans: Sequence[_Span], order: list[bytes]) -> list[bytes]:
    """Of items in order those in some spans."""
    found = [order[bisect_left(order, first) : bisect_left(order, end)] for first, end in spans] if order else []
    return found[0] if len(found) == 1 else [*chain.from_iterable(found)]


def _hidden(
    tiles: Sequence[bytes], others: Sequence[bytes], items: Mapping[bytes, StoredRow], level: int
) -> set[bytes]:
    """The fragments that the tile they fall into covers; both in order of time, as items sort."""
    fragments = [item for item in others if len(item) == _FRAGMENT]
    hidden: set[bytes] = set()
    at = 0
    while at < len(fragments):
        first, after = at, bisect_left(tiles, fragments[at])
        at = bisect_left(fragments, tiles[after], first) if after < len(tiles) else len(fragments)
        if after:
            tile = tiles[after - 1]
            covered = min(items[tile][2][-1], item_time(tile) + level)
            hidden.update(fragments[first : bisect_left(fragments, tile_item(covered), first, at)])
    return hidden


def _columns(items: Mapping[bytes, StoredRow], order: list[bytes]) -> tuple[int, Sequence[Sequence[Any]]]:
    """The latest event time and the columns of values of some items, from the mapping itself where it can tell them
    fast."""
    at_once = getattr(items, "columns", None)
    if at_once is not None:
        return at_once(order)  # type: ignore[no-any-return]
    times, _, rows = zip(*map(items.__getitem__, order), strict=True)
    return max(times), tuple(zip(*rows, strict=True))


def _floor(at: int, hop: int) -> int:
    return at - at % hop
