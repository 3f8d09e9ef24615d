"""The laws of mergeable aggregates, one suite over every function and every type that it takes.

A state of events is the same whatever the order and the grouping in which they were merged; ranges, tiles and
request-time reads all give what the contract says, worked out by `tests.oracle`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from feature_store.errors import ExpressionError, InvalidInputError
from feature_store.expressions.aggregates import (
    FUNCTIONS,
    WindowReader,
    aggregate_of,
    aggregate_ranges,
    distinct,
    fragment_item,
    item_time,
    lift_row,
    result_type,
    state_columns,
    tile_item,
    tile_schema,
    tile_states,
    valid,
)
from feature_store.expressions.algebra import TABLE
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import Window
from feature_store.expressions.scalars import Ref
from feature_store.storage.rows import to_arrow
from feature_store.types import BOOL, FLOAT64, INT64, STRING, Type
from tests.oracle import NO_CREATED, OVERFLOW, Event, aggregate, agrees, hop_of, slack, windowed

MINUTE = 60_000_000
HOUR, DAY = 60 * MINUTE, 24 * 60 * MINUTE
EDGE = 2**63

_FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, 0.2, -0.3, 1e9, 1e9 + 1, 1e9 - 1, float("nan"), 1e16, -1e16]),
    st.floats(-1e100, 1e100, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-100),
)
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "INT32": st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 2),
    "INT64": st.integers(-EDGE, EDGE - 1) | st.integers(-2, 2) | st.sampled_from([EDGE - 1, -EDGE]),
    "FLOAT32": st.floats(-1e6, 1e6, width=32, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-6),
    "FLOAT64": _FLOATS,
    "DECIMAL(10,2)": st.integers(-(10**9), 10**9).map(lambda n: Decimal(n).scaleb(-2)),
    "DECIMAL(38,0)": st.integers(-5, 5).map(Decimal) | st.sampled_from([Decimal(6 * 10**37), Decimal(-6 * 10**37)]),
    "STRING": st.sampled_from(["", "a", "ab", "é", "z", "\uffff", "😀", "B"]),
    "BYTES": st.sampled_from([b"", b"\x00", b"\xff", b"ab"]),
    "BOOL": st.booleans(),
    "TIMESTAMP": st.integers(-(10**15), 10**15),
    "DATE": st.integers(-10_000, 40_000),
}
_CASES = [
    (function, name)
    for function, kinds in TABLE.items()
    for name in _VALUES
    if Type.parse(name).kind.rstrip("3264") in kinds
]
case = pytest.mark.parametrize(("function", "name"), _CASES)


def window(function: str, of: str | None, length: int = HOUR, n: int = 3, **changes: Any) -> Window:
    value = Ref(Type.parse(of), "x") if of else None
    settled: dict[str, Any] = {
        "name": "w",
        "type": result_type(function, value.type if value else None),
        "hop": hop_of(length),
        "n": n if function == "last_n" else None,
        **changes,
    }
    return Window(function=function, length=length, value=value, **settled)


@dataclass(frozen=True)
class Drawn:
    """Events of a case, and the case's window."""

    window: Window
    events: list[Event]


def events_of(name: str, times: st.SearchStrategy[int], most: int = 12) -> st.SearchStrategy[list[Event]]:
    event = st.builds(
        Event,
        time=times,
        value=st.none() | _VALUES[name],
        created=st.sampled_from([NO_CREATED, 0, 5]),
        passes=st.sampled_from([True, True, True, False]),
    )
    return st.lists(event, max_size=most)


def clean(events: Sequence[Event]) -> list[Any]:
    return [e.value for e in events if e.passes and e.value is not None and e.value == e.value]


def lifted(made: Window, event: Event) -> tuple[Any, ...]:
    aggregate = aggregate_of(made)
    return aggregate.lift(event.value, event.time, event.created) if event.passes else aggregate.identity


def finished(made: Window, state: tuple[Any, ...]) -> Any:
    try:
        return aggregate_of(made).finish(state)
    except InvalidInputError:
        return OVERFLOW


def assert_agrees(made: Window, found: Any, events: Sequence[Event]) -> None:
    expected = aggregate(made.function, events, made.n, rows=made.value is None)
    assert agrees(found, expected, _slack(made, events)), (found, expected, events)


def _slack(made: Window, events: Sequence[Event]) -> float:
    return slack(made.function, made.type == FLOAT64, clean(events))


def arrow(values: Sequence[Any], type_: Type) -> Any:
    if type_.kind in ("TIMESTAMP", "DATE"):
        return pa.array(values, pa.int64() if type_.kind == "TIMESTAMP" else pa.int32()).cast(type_.arrow)
    return pa.array(values, type_.arrow)


def raw(column: Any, type_: Type) -> list[Any]:
    assert column.type == type_.arrow
    numbers = {"TIMESTAMP": pa.int64(), "DATE": pa.int32()}
    if type_.kind in numbers:
        column = column.cast(numbers[type_.kind])
    if type_.item and type_.item.kind in numbers:
        column = column.cast(pa.list_(numbers[type_.item.kind]))
    return list(column.to_pylist())


def columns(events: Sequence[Event], type_: Type) -> tuple[Any, Ints, Ints, NDArray[np.bool_]]:
    times, created = (np.array([getattr(e, n) for e in events], np.int64) for n in ("time", "created"))
    return arrow([e.value for e in events], type_), times, created, np.array([e.passes for e in events], bool)


@case
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_order_and_grouping_gives_the_answer(function: str, name: str, data: st.DataObject) -> None:
    made = window(function, name)
    merge, identity = aggregate_of(made).merge, aggregate_of(made).identity
    events = data.draw(events_of(name, st.integers(0, 4)))
    states = [lifted(made, event) for event in events]
    whole = reduce(merge, states, identity)
    assert_agrees(made, finished(made, whole), events)
    assert merge(whole, identity) == whole == merge(identity, whole)

    data.draw(st.randoms(use_true_random=False)).shuffle(states)
    while len(states) > 1:
        at = data.draw(st.integers(0, len(states) - 2))
        states[at : at + 2] = [merge(states[at], states[at + 1])]
    assert_agrees(made, finished(made, states[0] if states else identity), events)


@case
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_states_merge_all_at_once_as_one_by_one(function: str, name: str, data: st.DataObject) -> None:
    made = window(function, name)
    merge, merge_all = aggregate_of(made).merge, aggregate_of(made).merge_all
    states = [lifted(made, event) for event in data.draw(events_of(name, st.integers(0, 4)))]
    a, b = [aggregate_of(made).identity, *states], [*states, aggregate_of(made).identity]
    for one, other in ((a, b), (states, states[::-1])):
        if one:
            found = merge_all(list(zip(*one, strict=True)), list(zip(*other, strict=True)))
            expected = [merge(x, y) for x, y in zip(one, other, strict=True)]
            assert repr([tuple(state) for state in zip(*found, strict=True)]) == repr(expected)  # NaN, -0.0


@case
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_states_of_any_split_answer_as_all_events_do(function: str, name: str, data: st.DataObject) -> None:
    made = window(function, name)
    events = data.draw(events_of(name, st.integers(0, 9)))
    labels = [data.draw(st.integers(0, 3)) for _ in events]
    tiles = [[e for e, label in zip(events, labels, strict=True) if label == n] for n in range(4)]
    states = [reduce(aggregate_of(made).merge, (lifted(made, e) for e in tile), aggregate_of(made).identity)
              for tile in tiles]  # fmt: skip
    try:
        found = aggregate_of(made).answer(list(zip(*states, strict=True)))
    except InvalidInputError:
        found = OVERFLOW
    assert_agrees(made, found, events)


@case
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_ranges_answer_as_brute_force_does(function: str, name: str, data: st.DataObject) -> None:
    made = window(function, name)
    type_ = Type.parse(name)
    keys = [sorted(data.draw(events_of(name, st.integers(0, 5))), key=lambda e: (e.time, e.created)) for _ in range(3)]
    events = [event for key in keys for event in key if clean([event])]
    bounds: list[tuple[int, int]] = []
    start = 0
    for key in keys:
        own = [event.time for event in key if clean([event])]
        for _ in range(data.draw(st.integers(0, 3))):
            since, until = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 6))
            first, end = np.searchsorted(own, sorted((since, until))).tolist()
            bounds.append((start + first, start + end))
        start += len(own)
    values, times, created, _ = columns(events, type_)
    expected = [aggregate(function, events[a:b], made.n) for a, b in bounds]
    lo, hi = np.array(bounds, np.int64).reshape(-1, 2).T
    if OVERFLOW in expected:
        with pytest.raises(InvalidInputError, match="does not fit"):
            aggregate_ranges(made, values, times, created, lo, hi)
        return
    found = raw(aggregate_ranges(made, values, times, created, lo, hi), made.type)
    for answer, (a, b) in zip(found, bounds, strict=True):
        assert_agrees(made, answer, events[a:b])


@case
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_vectorised_tiles_hold_the_state_that_merging_gives(function: str, name: str, data: st.DataObject) -> None:
    made = window(function, name, where=Ref(BOOL, "y"))
    tiles = data.draw(st.lists(events_of(name, st.integers(0, 5), 8).filter(bool), min_size=1, max_size=4))
    tiles = [sorted(tile, key=lambda e: (e.time, e.created)) for tile in tiles]
    starts = np.cumsum([0, *map(len, tiles)])[:-1]
    values, times, created, passes = columns([event for tile in tiles for event in tile], Type.parse(name))
    found = tile_states([made], {"w": values}, {"w": passes}, times, created, starts)
    schema = state_columns(made)
    assert list(found) == [column.name for column in schema]
    states = list(zip(*(raw(found[column.name], column.type) for column in schema), strict=True))
    for state, tile in zip(states, tiles, strict=True):
        assert_agrees(made, finished(made, state), tile)
        if made.type != FLOAT64:
            merged = reduce(aggregate_of(made).merge, (lifted(made, e) for e in tile), aggregate_of(made).identity)
            assert state == merged


def stored(
    windows: Sequence[Window], events: Sequence[tuple[Event, str]], covered: dict[int, int]
) -> list[dict[bytes, Any]]:
    """What is stored of one key, by level: "batch" events in tiles (`covered` by start of day), pushed ones as
    fragments, "both" as both (a row pushed, then loaded by a batch)."""
    stores = []
    for level in sorted({level for made in windows for level in made.levels}):
        mine = [made for made in windows if level in made.levels]
        tiles: dict[int, list[Event]] = {}
        items: dict[bytes, Any] = {}
        for number, (event, how) in enumerate(events):
            if how == "batch":
                tiles.setdefault(event.time // level * level, []).append(event)
            else:
                state = lift_row(mine, [event.value] * len(mine), [event.passes] * len(mine), event.time, event.created)
                item = fragment_item(event.time, number.to_bytes(8, "big"))
                items[item] = (event.time, event.created, (*state, 0))
        for start, tile in tiles.items():
            whole: list[Any] = []
            for made in distinct(mine):
                merge, identity = aggregate_of(made).merge, aggregate_of(made).identity
                state = reduce(merge, (lifted(made, event) for event in tile), identity)
                whole.extend(state)
            cover = covered.get(start, start + level)
            items[tile_item(start)] = (max(e.time for e in tile), NO_CREATED, (*whole, cover))
        stores.append(dict(random.Random(0).sample(list(items.items()), len(items))))
    return stores


@case
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_reads_answer_as_the_contract_says(function: str, name: str, data: st.DataObject) -> None:
    lengths = {f"w{length}": length for length in (HOUR, 2 * HOUR, 5 * HOUR, 13 * HOUR, 6 * DAY, 20 * DAY)}
    windows = [window(function, name, length, name=label) for label, length in lengths.items()]
    at = data.draw(st.sampled_from([30 * DAY, 30 * DAY + 7 * HOUR + 3 * MINUTE + 1, 30 * DAY + 59 * MINUTE]))
    ago = st.one_of(
        st.integers(1, 3 * HOUR), st.integers(1, 22 * DAY), st.sampled_from([1, HOUR, 2 * HOUR, 2 * DAY, 20 * DAY])
    )
    events = data.draw(events_of(name, ago.map(lambda span: at - span), 10))
    # A tile of the longest hop has events of one kind only: a batch that loaded some of a tile loaded all of it.
    days = {event.time // DAY: data.draw(st.sampled_from(["batch", "push"])) for event in events}
    stores = stored(windows, [(event, days[event.time // DAY]) for event in events], {})
    expected = [windowed(function, events, at, made.length, made.hop, made.n) for made in windows]
    reader = WindowReader(windows)
    if OVERFLOW in expected:
        with pytest.raises(InvalidInputError, match="does not fit"):
            reader.read(stores, at)
        return
    newest, _, found = reader.read(stores, at)
    for made, answer in zip(windows, found, strict=True):
        used = [e for e in events if (at - made.length) // made.hop * made.hop <= e.time < at]
        assert_agrees(made, answer, used)
    since = (at - 20 * DAY) // DAY * DAY
    assert newest == max((e.time for e in events if since <= e.time), default=0)


def test_a_fragment_counts_until_its_tile_covers_it() -> None:
    made = window("count", None)
    reader = WindowReader([made])
    tile, fragment = tile_item(0), fragment_item(2 * MINUTE, b"\xffdigest!")
    late = fragment_item(4 * MINUTE, b"digest!!")
    items = {fragment: (2 * MINUTE, 0, (1, 0)), late: (4 * MINUTE, 0, (1, 0))}
    assert reader.read([items], HOUR)[2] == (2,)
    covered = {**items, tile: (1, 0, (5, 3 * MINUTE))}
    assert reader.read([covered], HOUR)[2] == (6,), "the tile covers the first fragment, not the second"
    assert reader.read([{**items, tile: (1, 0, (5, 2 * MINUTE))}], HOUR)[2] == (7,), "covered is exclusive"
    assert reader.read([covered], 4 * MINUTE)[2] == (5,), "an event at T has not been seen at T"
    assert reader.read([covered], 4 * MINUTE + 1)[2] == (6,)


@pytest.mark.parametrize("hop", [MINUTE // 60, 5 * MINUTE, HOUR])
def test_one_reader_answers_at_any_instant(hop: int) -> None:
    windows = [window("count", None, length, hop=hop) for length in (HOUR, 5 * HOUR, 5 * DAY)]
    tiles = {tile_item(start): start for start in range(0, 6 * DAY, hop)} if hop >= 5 * MINUTE else {}
    level = {item: (start, 0, (1, start + hop)) for item, start in tiles.items()}
    pushed = {fragment_item(time, b"%08d" % time): time for time in range(DAY, 6 * DAY, HOUR + MINUTE)}
    level |= {item: (time, 0, (1, 0)) for item, time in pushed.items()}
    stores = [level, *({} for _ in windows[-1].levels[1:])]
    chance = random.Random(1)
    reader = WindowReader(windows)
    for at in [chance.randrange(5 * DAY, 6 * DAY) // step * step for step in (1, MINUTE, HOUR) for _ in range(20)]:
        assert reader.read(stores, at) == WindowReader(windows).read(stores, at)
        since = (at - HOUR) // hop * hop
        seen = [time for time in pushed.values() if since <= time < at and tile_item(time // hop * hop) not in tiles]
        assert reader.read(stores, at)[2][0] == len(seen) + sum(since <= start < at for start in tiles.values())


@pytest.mark.parametrize("more", [4, 12])
def test_an_item_that_is_neither_tile_nor_fragment_counts_beside_its_tile(more: int) -> None:
    tile, beside = tile_item(0), tile_item(0) + b"x" * more
    items = {beside: (7, 0, (1, 0)), tile: (1, 0, (5, 5 * MINUTE))}
    assert WindowReader([window("count", None)]).read([items], HOUR)[:3:2] == (7, (6,))


def test_windows_over_the_same_values_share_a_state() -> None:
    short, long = window("sum", "INT64", HOUR, name="a"), window("sum", "INT64", 2 * HOUR, name="b")
    other = window("sum", "INT64", 2 * HOUR, name="c", where=Ref(BOOL, "y"))
    assert tile_schema([short, long, other]).names == ("a.sum", "a.carry", "c.sum", "c.carry", "covered")
    items = {tile_item(n * 5 * MINUTE): (n, 0, (1, 0, None, None, DAY)) for n in range(100)}
    assert WindowReader([long, short, other]).read([items], 100 * 5 * MINUTE)[2] == (24, 12, None)


def test_no_event_is_zero_for_counts_and_null_for_the_rest() -> None:
    windows = [window(function, "INT64", name=function) for function in FUNCTIONS]
    expected = [0 if function in ("count", "count_distinct") else None for function in FUNCTIONS]
    assert WindowReader(windows).read([{}], DAY)[2] == tuple(expected)
    none = np.zeros(0, np.int64)
    for made, answer in zip(windows, expected, strict=True):
        zero = np.zeros(2, np.int64)
        assert aggregate_ranges(made, pa.array([], pa.int64()), none, none, zero, zero).to_pylist() == [answer] * 2


def test_a_sum_overflows_only_in_its_answer() -> None:
    made = window("sum", "INT64")
    values = pa.array([EDGE - 1, EDGE - 1, -EDGE, -EDGE], pa.int64())
    at = np.arange(4)
    ends = np.array([4, 1, 3], np.int64), np.array([0, 0, 0], np.int64)
    found = aggregate_ranges(made, values, at, at, ends[1], ends[0])
    assert found.to_pylist() == [-2, EDGE - 1, EDGE - 2]
    with pytest.raises(InvalidInputError, match='"w" does not fit INT64'):
        aggregate_ranges(made, values, at, at, np.array([0]), np.array([2]))
    states = tile_states([made], {"w": values}, {}, at, at, np.array([0, 2]))
    assert aggregate_of(made).answer([column.to_pylist() for column in states.values()]) == -2


@pytest.mark.parametrize("type_", ["DECIMAL(38,0)", "DECIMAL(38,18)", "DECIMAL(38,38)"])
@pytest.mark.parametrize("function", ["sum", "mean"])
def test_a_sum_of_decimals_overflows_only_in_its_answer(function: str, type_: str) -> None:
    """Of a thousand events, too, whose states are as wide as others."""
    made, scale = window(function, type_), Type.parse(type_).scale
    most, count = 10**38 - 1, 1000
    units = [most] * count + [-most] * (count - 1) + [1 - most, -1, -most, -most]
    values = [Decimal(unit).scaleb(-scale, Context(prec=38)) for unit in units]
    at = np.arange(len(values))
    array = pa.array(values, Type.parse(type_).arrow)
    ends = np.array([2 * count, 2 * count + 1, 1])
    found = aggregate_ranges(made, array, at, at, np.zeros(3, np.int64), ends).to_pylist()
    expected = [aggregate(function, [Event(0, value) for value in values[:end]]) for end in ends.tolist()]
    assert all(map(agrees, found, expected))
    for first, end in ((0, 2), (2 * count, len(values))):
        with pytest.raises(InvalidInputError, match='"w" does not fit DECIMAL'):
            aggregate_ranges(made, array, at, at, np.array([first]), np.array([end]))
    starts = np.array([0, 2, count, 2 * count + 1])
    tiles = tile_states([made], {"w": array}, {}, at, at, starts)
    states = list(zip(*(raw(tiles[each.name], each.type) for each in state_columns(made)), strict=True))
    merge, lifts = aggregate_of(made).merge, [lifted(made, Event(0, value)) for value in values]
    for state, first, end in zip(states, starts.tolist(), [*starts.tolist()[1:], len(values)], strict=True):
        assert state == reduce(merge, lifts[first:end])
        assert all(to_arrow([part], each.type) for part, each in zip(state, state_columns(made), strict=True))
    assert agrees(finished(made, reduce(merge, states[:3])), expected[1])
    assert finished(made, reduce(merge, states)) == OVERFLOW
    assert finished(made, states[0]) == finished(made, states[3]) == OVERFLOW


def test_variance_of_large_values_that_lie_close() -> None:
    rng = np.random.default_rng(3)
    values = 1e9 + rng.normal(size=1000)
    events = [Event(n, value) for n, value in enumerate(values.tolist())]
    made = window("variance", "FLOAT64")
    at = np.arange(1000)
    (found,) = aggregate_ranges(made, pa.array(values), at, at, np.array([0]), np.array([1000])).to_pylist()
    assert agrees(found, aggregate("variance", events))
    assert agrees(aggregate_of(made).answer(list(zip(*(lifted(made, e) for e in events), strict=True))), found)
    ones = pa.array([1e9 - 1, 1e9, 1e9 + 1])
    assert aggregate_ranges(made, ones, at[:3], at[:3], np.array([0]), np.array([3])).to_pylist() == [2 / 3]


def test_infinities_are_values_and_nan_is_null() -> None:
    infinity = float("inf")
    events = [Event(0, infinity), Event(1, float("nan")), Event(2, 1.0)]
    assert finished(window("count", "FLOAT64"), lifted(window("count", "FLOAT64"), events[1])) == 0
    for function, expected in (("sum", infinity), ("mean", infinity), ("max", infinity), ("last", 1.0), ("count", 2)):
        made = window(function, "FLOAT64")
        assert aggregate_of(made).answer(list(zip(*(lifted(made, e) for e in events), strict=True))) == expected
        values, times, created, _ = columns([events[0], events[2]], FLOAT64)
        assert aggregate_ranges(made, values, times, created, np.array([0]), np.array([2])).to_pylist() == [expected]
    good = valid(pa.array([1.0, float("nan"), None]), np.array([True, True, True]))
    assert good is not None
    assert good.tolist() == [True, False, False]
    assert valid(None) is None


def test_long_and_many_ranges_agree_with_numpy() -> None:
    rng = np.random.default_rng(5)
    values, size = rng.integers(-50, 50, 20_000), 20_000
    lo = rng.integers(0, size, 3_000)
    hi = np.minimum(size, lo + rng.integers(0, size, 3_000))
    at = np.arange(size)
    events = pa.array(values)
    sums = aggregate_ranges(window("sum", "INT64"), events, at, at, lo, hi).to_numpy(zero_copy_only=False)
    most = aggregate_ranges(window("max", "INT64"), events, at, at, lo, hi).to_numpy(zero_copy_only=False)
    kinds = aggregate_ranges(window("count_distinct", "INT64"), events, at, at, lo, hi).to_numpy()
    for n in range(0, 3_000, 100):
        part = values[lo[n] : hi[n]]
        assert len(np.unique(part)) == kinds[n]
        if len(part):
            assert (sums[n], most[n]) == (part.sum(), part.max())


def test_functions_refuse_what_they_do_not_take() -> None:
    with pytest.raises(ExpressionError, match="sum does not take STRING"):
        result_type("sum", STRING)
    with pytest.raises(ExpressionError, match="last does not take ARRAY<INT64>"):
        result_type("last", Type.parse("ARRAY<INT64>"))
    with pytest.raises(ExpressionError, match='"median" is not an aggregate function'):
        result_type("median", INT64)
    with pytest.raises(ExpressionError, match="mean needs a column"):
        result_type("mean", None)
    assert str(result_type("sum", Type.parse("DECIMAL(10,2)"))) == "DECIMAL(38,2)"
    assert str(result_type("last_n", Type.parse("DATE"))) == "ARRAY<DATE>"


@given(st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=5))
def test_items_sort_as_times(times: list[int]) -> None:
    assert [item_time(item) for item in sorted(map(tile_item, times))] == sorted(times)
    assert all(tile_item(t) < fragment_item(t, b"12345678") < tile_item(t + 1) for t in times)
    assert len(fragment_item(times[0], b"123456789")) == 16
