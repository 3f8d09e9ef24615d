"""Windowed aggregates: their types, the tiles that keep their state, and their answers over history or at a request.

Instants are int64 microseconds. A window at T takes events with floor(T - length, hop) <= event time < T.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress
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

StoredRow = tuple[int, int, tuple[Any, ...]]
"""Event time, created, values: what an online store keeps of a tile or a fragment, and what a read answers."""


def result_type(function: str, value: Type | None) -> Type:
    """The type of the answer; `ExpressionError` where the function does not take such a value."""
    return make(function, value).result


def state_columns(window: Window) -> tuple[Column, ...]:
    """The columns of a window's state, named `<window>.<part>`."""
    return tuple(Column(f"{window.name}.{part}", type_) for part, type_ in aggregate_of(window).parts)


def tile_schema(windows: Sequence[Window]) -> Schema:
    """The value columns of a tile of the windows of one hop: their states, then `covered` (INT64). Windows that
    aggregate the same over different lengths share the state of the first of them."""
    columns = tuple(column for window in distinct(windows) for column in state_columns(window))
    return Schema((*columns, Column(COVERED, INT64)))


def distinct(windows: Sequence[Window]) -> list[Window]:
    """The windows whose states a tile holds, in order: the first of those that differ in name and length only."""
    found: dict[Window, Window] = {}
    for window in windows:
        found.setdefault(_state_key(window), window)
    return list(found.values())


def _state_key(window: Window) -> Window:
    return replace(window, name="", length=0)


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


def item_time(item: bytes) -> int:
    """The start of a tile, or the time of a fragment."""
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
    """Merges the tiles and fragments of one key into the answers of its windows at T, in the order of `windows`."""

    def __init__(self, windows: Sequence[Window]) -> None:
        hops = sorted({window.hop for window in windows})
        self._hops = tuple(_Hop.of(hop, windows) for hop in hops)
        self._nothing = tuple(aggregate_of(window).answer([()] * len(state_columns(window))) for window in windows)

    def read(self, items: Sequence[Mapping[bytes, StoredRow]], at: int) -> StoredRow:
        """The answers at T = `at` as a row: the time of the latest event used (`NO_EVENT` if none), no created, the
        answers as raw row values. `items`: what is stored of the key, one mapping a hop, shortest hop first."""
        answers = list(self._nothing)
        newest = [hop.read(of_hop, at, answers) for hop, of_hop in zip(self._hops, items, strict=True) if of_hop]
        known = [time for time in newest if time is not None]
        return (max(known, default=NO_EVENT), _NO_CREATED, tuple(answers))


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer to make: of `aggregate` over the columns `state`, put at `places`."""

    aggregate: Aggregate
    state: slice
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Hop:
    """The answers of the windows of one hop, by length of window, longest first."""

    hop: int
    lengths: tuple[tuple[int, tuple[_Answer, ...]], ...]

    @classmethod
    def of(cls, hop: int, windows: Sequence[Window]) -> _Hop:
        mine = [window for window in windows if window.hop == hop]
        slices, at = {}, 0
        for window in distinct(mine):
            width = len(state_columns(window))
            slices[_state_key(window)] = slice(at, at + width)
            at += width
        places: dict[int, dict[Window, list[int]]] = {}
        for place, window in enumerate(windows):
            if window.hop == hop:
                places.setdefault(window.length, {}).setdefault(_state_key(window), []).append(place)
        made = {
            length: tuple(_Answer(aggregate_of(windows[at[0]]), slices[key], tuple(at)) for key, at in by_key.items())
            for length, by_key in places.items()
        }
        return cls(hop, tuple(sorted(made.items(), key=lambda item: -item[0])))

    def read(self, items: Mapping[bytes, StoredRow], at: int, answers: list[Any]) -> int | None:
        """Put the answers at T = `at` into their places; the time of the latest event used, None if there is none."""
        order = self._visible(items, at)
        if not order:
            return None
        times, columns = _columns(items, order)
        for length, of_length in self.lengths:
            first = bisect_left(order, tile_item(_floor(at - length, self.hop)))
            cut = columns if not first else [column[first:] for column in columns]
            for answer in of_length:
                found = answer.aggregate.answer(cut[answer.state])
                for place in answer.places:
                    answers[place] = found
        return int(max(times))

    def _visible(self, items: Mapping[bytes, StoredRow], at: int) -> list[bytes]:
        """The items that the longest window uses, in order of time: tiles, and fragments that no tile covers."""
        order = sorted(items)
        since = tile_item(_floor(at - self.lengths[0][0], self.hop))
        order = order[bisect_left(order, since) : bisect_left(order, tile_item(at))]
        sizes = [*map(len, order)]
        if sum(sizes) == _TILE * len(order):
            return order
        hidden = self._hidden([*compress(order, map(_TILE.__ne__, sizes))], items)
        return [item for item in order if item not in hidden] if hidden else order

    def _hidden(self, fragments: list[bytes], items: Mapping[bytes, StoredRow]) -> set[bytes]:
        """Of fragments in order of time those that the tile they fall into covers. Items sort as their times do."""
        hidden: set[bytes] = set()
        at = 0
        while at < len(fragments):
            start = _floor(item_time(fragments[at]), self.hop)
            tile, first = items.get(tile_item(start)), at
            at = bisect_left(fragments, tile_item(start + self.hop), first)
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
