"""Windowed aggregates: their types, the tiles that keep their state, and their answers over history or at a request.

Instants are int64 microseconds. A window at T takes events with floor(T - length, hop) <= event time < T.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, compress
from typing import Any

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

    def read(self, items: Sequence[Mapping[bytes, StoredRow]], at: int) -> StoredRow:
        """The answers at T = `at` as a row: the time of the latest event used (`NO_EVENT` if none), no created, the
        answers as raw row values. `items`: what is stored of the key, one mapping a level, shortest level first."""
        if not any(items):
            return (NO_EVENT, _NO_CREATED, self._nothing)
        spans = [group.spans(at) for group in self._groups]
        wanted: list[list[_Span]] = [[] for _ in self._levels]
        for of_group in spans:
            for place, span in of_group:
                wanted[place].append(span)
        parts = [
            _Part.of(of_level, _joined(of_spans), level) if of_level and of_spans else None
            for level, of_level, of_spans in zip(self._levels, items, wanted, strict=True)
        ]
        answers = list(self._nothing)
        for group, of_group in zip(self._groups, spans, strict=True):
            group.answer([(place, parts[place], span) for place, span in of_group], answers)
        return (max((part.newest for part in parts if part), default=NO_EVENT), _NO_CREATED, tuple(answers))


_Span = tuple[bytes, bytes]
"""Items from the first on, below the second."""


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

    def spans(self, at: int) -> list[tuple[int, _Span]]:
        """What is used at T = `at`, each span with the place of its level."""
        since, until = _floor(at - self.length, self.levels[0]), at
        first, end, found = tile_item(since), tile_item(until), []
        for place, longer in zip(self.places, self.levels[1:], strict=False):
            since, until = -(-since // longer) * longer, _floor(until, longer)
            found += [(place, (first, first := tile_item(since))), (place, (tile_item(until), end))]
            end = found[-1][1][0]
        return [*found, (self.places[-1], (first, end))]

    def answer(self, used: Sequence[tuple[int, _Part | None, _Span]], answers: list[Any]) -> None:
        """Put the answers into their places; those over nothing are there already."""
        cuts = [(place, cut) for place, part, span in used if part is not None and (cut := part.cut(span)) is not None]
        for answer in self.answers if cuts else ():
            states = [cut[answer.state[place]] for place, cut in cuts]  # type: ignore[index]
            columns = states[0] if len(states) == 1 else [[*chain(*parts)] for parts in zip(*states, strict=True)]
            found = answer.aggregate.answer(columns)
            for place in answer.places:
                answers[place] = found


@dataclass(frozen=True, slots=True)
class _Part:
    """What is visible of the items of one level, in order of time: the items, and the columns of their values."""

    order: list[bytes]
    columns: Sequence[Sequence[Any]]
    newest: int

    @classmethod
    def of(cls, items: Mapping[bytes, StoredRow], spans: Sequence[_Span], level: int) -> _Part | None:
        """Tiles, and fragments that no tile covers; None if there is none."""
        order = sorted([item for first, end in spans for item in items if first <= item < end])
        sizes = [*map(len, order)]
        if sum(sizes) != _TILE * len(order):
            hidden = _hidden([*compress(order, map(_FRAGMENT.__eq__, sizes))], items, level)
            order = [item for item in order if item not in hidden] if hidden else order
        if not order:
            return None
        times, columns = _columns(items, order)
        return cls(order, columns, int(max(times)))

    def cut(self, span: _Span) -> Sequence[Sequence[Any]] | None:
        """The columns of the items of a span; None if there is none."""
        first, end = bisect_left(self.order, span[0]), bisect_left(self.order, span[1])
        if first >= end:
            return None
        if end - first == len(self.order):
            return self.columns
        return [column[first:end] for column in self.columns]


def _slices(windows: Sequence[Window]) -> dict[Window, slice]:
    """Where each state is among the columns of a tile of some windows."""
    found, at = {}, 0
    for window in distinct(windows):
        width = len(state_columns(window))
        found[_state_key(window)] = slice(at, at + width)
        at += width
    return found


def _joined(spans: Sequence[_Span]) -> Sequence[_Span]:
    """Spans that touch or overlap as one."""
    if len(spans) == 1:
        return spans
    found: list[_Span] = []
    for first, end in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return found


def _hidden(fragments: list[bytes], items: Mapping[bytes, StoredRow], level: int) -> set[bytes]:
    """Of fragments in order of time those that the tile they fall into covers. Items sort as their times do."""
    hidden: set[bytes] = set()
    at = 0
    while at < len(fragments):
        start = _floor(item_time(fragments[at]), level)
        tile, first = items.get(tile_item(start)), at
        at = bisect_left(fragments, tile_item(start + level), first)
        if tile is not None:
            hidden.update(fragments[first : bisect_left(fragments, tile_item(tile[2][-1]), first, at)])
    return hidden


def _columns(items: Mapping[bytes, StoredRow], order: list[bytes]) -> tuple[Sequence[int], Sequence[Sequence[Any]]]:
    """The event times and the columns of values of some items, from the mapping itself where it can tell them fast."""
    at_once = getattr(items, "columns", None)
    if at_once is not None:
        return at_once(order)  # type: ignore[no-any-return]
    times, _, rows = zip(*map(items.__getitem__, order), strict=True)
    return times, tuple(zip(*rows, strict=True))


def _floor(at: int, hop: int) -> int:
    return at - at % hop
