"""The algebra of aggregates, lift, merge, finish over mergeable state: one class a function, one table of them.

A state is a tuple of raw row values, one per part. Any order of merging gives the same answer, to the last bit but for
rounding of floats (sums and means carry the rest that does not fit a double, so they hardly round either).
Null and NaN do not count; -0.0 is 0.0. Ties of `first`, `last` and `last_n` in event time are settled by created,
then by the value, so that no order of arrival shows.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, reduce
from itertools import chain
from operator import add
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_store.errors import ExpressionError, InvalidInputError, nearest
from feature_store.expressions import ranges
from feature_store.expressions.ranges import Array, Ints
from feature_store.types import FLOAT64, INT64, Type, array
from feature_store.types import decimal as decimal_type

State = tuple[Any, ...]
Parts = tuple[tuple[str, Type], ...]

_WRAP = 1 << 64
_EXACT = decimal.Context(prec=100)
_WIDEST = 10**38


class Aggregate:
    """One aggregate function over values of one type: the algebra of its state."""

    identity: ClassVar[State]

    def __init__(self, value: Type | None, n: int | None = None, name: str = "") -> None:
        self.value = value or INT64
        self.counts_rows = value is None
        self.n = n or 1
        self.name = name
        self.result, self.parts = self._types()

    def _types(self) -> tuple[Type, Parts]:
        """The type of the answer, and the names and types of the state's columns."""
        raise NotImplementedError

    def lift(self, value: Any, time: int, created: int) -> State:
        """The state of one event."""
        value = _clean(value)
        return self.identity if value is None else self._lift(value, time, created)

    def _lift(self, value: Any, time: int, created: int) -> State:
        raise NotImplementedError

    def merge(self, a: State, b: State) -> State:
        """The state of two sets of events together."""
        raise NotImplementedError

    def merge_all(self, a: Sequence[Sequence[Any]], b: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """`merge` of many states, one or more, each of `a` with that of `b`, given and told part by part."""
        merged = map(self.merge, zip(*a, strict=True), zip(*b, strict=True))
        return [list(part) for part in zip(*merged, strict=True)]

    def finish(self, state: State) -> Any:
        """The answer, a raw row value; None where nothing counted."""
        raise NotImplementedError

    def answer(self, parts: Sequence[Sequence[Any]]) -> Any:
        """`finish` of many states merged, given part by part: what a request-time read asks for."""
        return self.finish(reduce(self.merge, zip(*parts, strict=True), self.identity))

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        """The state of each range of events, part by part, as Arrow arrays."""
        raise NotImplementedError

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        """The answer for each range of events, as an Arrow array of the answer's type."""
        raise NotImplementedError

    def _overflow(self) -> InvalidInputError:
        return InvalidInputError(
            f'the sum of "{self.name}" does not fit {self.result}', hint="Cast the column to DOUBLE to sum it"
        )


@dataclass(frozen=True)
class Events:
    """Valid events as arrays: values of one type, event times and created times (int64 microseconds), in order of
    (key, time, created)."""

    type: Type
    values: Any
    times: Ints
    created: Ints

    @cached_property
    def _ranked(self) -> tuple[Array, Any]:
        """Numbers that order as the values do, and, for types that have no such numbers, the values in order."""
        if self.type.kind in ("STRING", "BYTES", "DECIMAL"):
            encoded = self.values.dictionary_encode()
            order = pc.sort_indices(encoded.dictionary)
            rank = np.empty(len(order), np.int64)
            rank[order.to_numpy()] = np.arange(len(order))
            return rank[encoded.indices.to_numpy()], encoded.dictionary.take(order)
        if self.type.is_float:
            return self.floats, None
        narrow = {"DATE": pa.int32(), "BOOL": pa.int8()}.get(self.type.kind)
        values = self.values.cast(narrow) if narrow else self.values
        return values.cast(pa.int64()).to_numpy(zero_copy_only=False), None

    @property
    def codes(self) -> Array:
        """int64 or float64 that order as the values do."""
        return self._ranked[0]

    @cached_property
    def floats(self) -> NDArray[np.float64]:
        """The values as doubles, -0.0 as 0.0."""
        floats: NDArray[np.float64] = self.values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return floats + 0.0

    @cached_property
    def rests(self) -> NDArray[np.float64] | None:
        """What of the values did not fit into `floats`, where they are integers."""
        if not self.type.is_integer:
            return None
        half = np.minimum(self.floats, 2.0**62).astype(np.int64)  # 2**63 is a double, but no int64
        rests: NDArray[np.float64] = (self.codes - half - (self.floats - half).astype(np.int64)).astype(np.float64)
        return rests

    def decode(self, codes: Array, null: NDArray[np.bool_] | None = None) -> Any:
        """Values from codes, null where told: the code there may be any number."""
        dictionary = self._ranked[1]
        if dictionary is not None:
            return dictionary.take(pa.array(codes, mask=null))
        narrow = {"DATE": pa.int32(), "BOOL": pa.int8()}.get(self.type.kind)
        safe = codes if null is None else np.where(null, codes.dtype.type(0), codes)
        found = pa.array(safe, mask=null)
        return (found.cast(narrow) if narrow else found).cast(self.type.arrow)

    def in_order(self, lo: Ints, hi: Ints) -> Ints:
        """The order by (time, created, value)."""
        return ranges.settle_ties(self.times, self.created, self.codes, lo, hi)


class Count(Aggregate):
    """Events, or values that are not null."""

    identity = (0,)

    def _types(self) -> tuple[Type, Parts]:
        return INT64, (("count", INT64),)

    def lift(self, value: Any, time: int, created: int) -> State:
        return (1,) if self.counts_rows or _clean(value) is not None else (0,)

    def merge(self, a: State, b: State) -> State:
        return (a[0] + b[0],)

    def merge_all(self, a: Sequence[Sequence[Any]], b: Sequence[Sequence[Any]]) -> list[list[Any]]:
        return [list(map(add, a[0], b[0]))]

    def finish(self, state: State) -> int:
        return int(state[0])

    def answer(self, parts: Sequence[Sequence[Any]]) -> int:
        return sum(parts[0])

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        return [pa.array(hi - lo)]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        return pa.array(hi - lo)


class IntegerSum(Aggregate):
    """Exact sum of integers, as sum + carry * 2**64: only an answer can overflow, no order of merging can."""

    identity = (None, None)

    def _types(self) -> tuple[Type, Parts]:
        return INT64, (("sum", INT64), ("carry", INT64))

    def _lift(self, value: Any, time: int, created: int) -> State:
        return (value, 0)

    def merge(self, a: State, b: State) -> State:
        if a[0] is None or b[0] is None:
            return b if a[0] is None else a
        return _carried(a[0] + b[0] + (a[1] + b[1]) * _WRAP)

    def finish(self, state: State) -> int | None:
        if state[1]:
            raise self._overflow()
        return state[0]  # type: ignore[no-any-return]

    def answer(self, parts: Sequence[Sequence[Any]]) -> int | None:
        sums, carries = parts
        try:
            return self.finish(_carried(sum(sums) + sum(carries) * _WRAP)) if sums else None
        except TypeError:  # a null: sums find it faster than a comparison with each does
            return self.answer((_present(sums), _present(carries)))

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        sums, carries = ranges.sum_integers(events.codes, lo, hi)
        return [pa.array(sums, mask=lo == hi), pa.array(carries, mask=lo == hi)]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        sums, carries = ranges.sum_integers(events.codes, lo, hi)
        if carries.any():
            raise self._overflow()
        return pa.array(sums, mask=lo == hi)


class FloatSum(Aggregate):
    """Sum of doubles in double-double arithmetic."""

    identity = (None, None)

    def _types(self) -> tuple[Type, Parts]:
        return FLOAT64, (("sum", FLOAT64), ("rest", FLOAT64))

    def _lift(self, value: Any, time: int, created: int) -> State:
        return (float(value) + 0.0, 0.0)

    def merge(self, a: State, b: State) -> State:
        if a[0] is None or b[0] is None:
            return b if a[0] is None else a
        return _add(a, b)

    def merge_all(self, a: Sequence[Sequence[Any]], b: Sequence[Sequence[Any]]) -> list[list[Any]]:
        if None in a[0] or None in b[0]:
            return super().merge_all(a, b)
        return _add_all(a, b)

    def finish(self, state: State) -> float | None:
        return None if state[0] is None else state[0] + state[1]

    def answer(self, parts: Sequence[Sequence[Any]]) -> float | None:
        sums, rests = parts
        try:
            return _sum_pairs(sums, rests) if sums else None
        except TypeError:  # a null, found as above
            return self.answer((_present(sums), _present(rests)))

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        sums, rests = ranges.sum_floats(events.floats, None, lo, hi)
        return [pa.array(sums, mask=lo == hi), pa.array(rests, mask=lo == hi)]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        sums, rests = ranges.sum_floats(events.floats, None, lo, hi)
        return pa.array(sums + rests, mask=lo == hi)


class DecimalSum(Aggregate):
    """Exact sum of decimals, of 38 digits and the scale of the value, as sum + carry * 10**38 of its last digits, both
    of one sign: as above, only an answer can overflow."""

    identity = (None, None)

    def _types(self) -> tuple[Type, Parts]:
        wide = decimal_type(38, self.value.scale)
        self._unit = decimal.Decimal((0, (1,), -self.value.scale))
        self._wrap = decimal.Decimal((0, (1,), 38 - self.value.scale))
        return wide, (("sum", wide), ("carry", INT64))

    def _lift(self, value: Any, time: int, created: int) -> State:
        return (_EXACT.quantize(decimal.Decimal(value), self._unit), 0)

    def merge(self, a: State, b: State) -> State:
        if a[0] is None or b[0] is None:
            return b if a[0] is None else a
        return self._carried(_EXACT.add(a[0], b[0]), a[1] + b[1])

    def _carried(self, total: decimal.Decimal, carry: int) -> State:
        carried, rest = _EXACT.divmod(_EXACT.fma(self._wrap, carry, total), self._wrap)
        return (rest, int(carried))

    def finish(self, state: State) -> decimal.Decimal | None:
        if state[1]:
            raise self._overflow()
        return state[0]  # type: ignore[no-any-return]

    def answer(self, parts: Sequence[Sequence[Any]]) -> decimal.Decimal | None:
        sums, carries = map(_present, parts)
        return self.finish(self._carried(reduce(_EXACT.add, sums), sum(carries))) if sums else None

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        sums, carries = self._sums(events, lo, hi)
        return [sums, pa.array(carries, mask=lo == hi)]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        sums, carries = self._sums(events, lo, hi)
        if carries.any():
            raise self._overflow()
        return sums

    def _sums(self, events: Events, lo: Ints, hi: Ints) -> tuple[Any, Ints]:
        wide = events.values.cast(self.result.arrow)
        words = np.zeros((0, 2), np.uint64)
        if len(wide):
            words = np.frombuffer(wide.buffers()[1], "<u8", 2 * (wide.offset + len(wide))).reshape(-1, 2)[wide.offset :]
        sums, carries = ranges.sum_wide(words, lo, hi, _WIDEST)
        validity = pa.py_buffer(np.packbits(lo < hi, bitorder="little"))
        return pa.Array.from_buffers(self.result.arrow, len(lo), [validity, pa.py_buffer(sums)]), carries


class Mean(Aggregate):
    """Mean of integers (exact to the last division) or doubles, in double-double arithmetic."""

    identity = (0.0, 0.0, 0)

    def _types(self) -> tuple[Type, Parts]:
        return FLOAT64, (("sum", FLOAT64), ("rest", FLOAT64), ("count", INT64))

    def _lift(self, value: Any, time: int, created: int) -> State:
        return (*_pair(value), 1)

    def merge(self, a: State, b: State) -> State:
        return (*_add(a, b), a[2] + b[2])

    def merge_all(self, a: Sequence[Sequence[Any]], b: Sequence[Sequence[Any]]) -> list[list[Any]]:
        return [*_add_all(a[:2], b[:2]), list(map(add, a[2], b[2]))]

    def finish(self, state: State) -> float | None:
        return (state[0] + state[1]) / state[2] if state[2] else None

    def answer(self, parts: Sequence[Sequence[Any]]) -> float | None:
        count = sum(parts[2])
        return _sum_pairs(parts[0], parts[1]) / count if count else None

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        sums, rests = ranges.sum_floats(events.floats, events.rests, lo, hi)
        return [pa.array(sums), pa.array(rests), pa.array(hi - lo)]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        sums, rests, counts = (part.to_numpy() for part in self.states(events, lo, hi))
        with np.errstate(all="ignore"):
            return pa.array((sums + rests) / counts, mask=lo == hi)


class DecimalMean(Aggregate):
    """Mean of decimals from their exact sum."""

    identity = (None, None, 0)

    def _types(self) -> tuple[Type, Parts]:
        self._sum = DecimalSum(self.value, name=self.name)
        return FLOAT64, (*self._sum.parts, ("count", INT64))

    def _lift(self, value: Any, time: int, created: int) -> State:
        return (*self._sum._lift(value, time, created), 1)

    def merge(self, a: State, b: State) -> State:
        return (*self._sum.merge(a[:2], b[:2]), a[2] + b[2])

    def finish(self, state: State) -> float | None:
        total = self._sum.finish(state[:2])
        return float(Fraction(total) / state[2]) if total is not None else None

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        return [*self._sum.states(events, lo, hi), pa.array(hi - lo)]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        return pc.divide(
            self._sum.answers(events, lo, hi).cast(pa.float64()), pa.array(np.maximum(hi - lo, 1).astype(float))
        )


class Variance(Aggregate):
    """Population variance from count, mean (a double and its rest) and the sum of squared distances from it, merged
    after Chan, Golub and LeVeque."""

    identity = (0, 0.0, 0.0, 0.0)

    def _types(self) -> tuple[Type, Parts]:
        return FLOAT64, (("count", INT64), ("mean", FLOAT64), ("rest", FLOAT64), ("squares", FLOAT64))

    def _lift(self, value: Any, time: int, created: int) -> State:
        whole, rest = _pair(value)
        return (1, whole, rest, whole - whole)  # of an infinity: NaN

    def merge(self, a: State, b: State) -> State:
        if not a[0] or not b[0]:
            return a if a[0] else b
        count = a[0] + b[0]
        apart, share = (b[1] - a[1]) + (b[2] - a[2]), b[0] / count
        mean, rest = _add(a[1:3], (apart * share, 0.0))
        return (count, mean, rest, a[3] + b[3] + apart * apart * (a[0] * share))

    def finish(self, state: State) -> float | None:
        return state[3] / state[0] if state[0] else None

    def answer(self, parts: Sequence[Sequence[Any]]) -> float | None:
        known = [state for state in zip(*parts, strict=True) if state[0]]
        count = sum(state[0] for state in known)
        if not known:
            return None
        base = known[0][1]
        apart = [(state[1] - base) + state[2] for state in known]
        try:
            mean = math.fsum([state[0] * x for state, x in zip(known, apart, strict=True)]) / count
            between = [state[0] * (x - mean) ** 2 for state, x in zip(known, apart, strict=True)]
            return self.finish((count, base, mean, math.fsum([*between, *parts[3]])))
        except (OverflowError, ValueError):  # infinities
            return self.finish(reduce(self.merge, zip(*parts, strict=True), self.identity))

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        return [pa.array(part) for part in ranges.moments(events.floats, events.rests, lo, hi)]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        counts, *_, squares = ranges.moments(events.floats, events.rests, lo, hi)
        return pa.array(self._root(squares / np.maximum(counts, 1)), mask=lo == hi)

    def _root(self, variances: Any) -> Any:
        return variances


class Stddev(Variance):
    """The square root of the population variance."""

    def finish(self, state: State) -> float | None:
        variance = super().finish(state)
        return None if variance is None else math.sqrt(variance)

    def _root(self, variances: Any) -> Any:
        return np.sqrt(variances)


class Max(Aggregate):
    """The greatest value; text by its bytes."""

    identity = (None,)
    greatest = True

    def _types(self) -> tuple[Type, Parts]:
        return self.value, (("value", self.value),)

    def _lift(self, value: Any, time: int, created: int) -> State:
        return (value,)

    def merge(self, a: State, b: State) -> State:
        return (self.answer((_present((*a, *b)),)),)

    def finish(self, state: State) -> Any:
        return state[0]

    def answer(self, parts: Sequence[Sequence[Any]]) -> Any:
        (values,) = parts
        pick = max if self.greatest else min
        try:
            return pick(values, default=None)
        except TypeError:  # a null
            return pick(_present(values), default=None)

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        return [self.answers(events, lo, hi)]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        return events.decode(ranges.extremes(events.codes, lo, hi, self.greatest), lo == hi)


class Min(Max):
    """The least value; text by its bytes."""

    greatest = False


class Last(Aggregate):
    """The value of the event with the greatest (time, created, value)."""

    identity = (None, None, None)
    greatest = True

    def _types(self) -> tuple[Type, Parts]:
        return self.value, (("value", self.value), ("time", INT64), ("created", INT64))

    def _lift(self, value: Any, time: int, created: int) -> State:
        return (value, time, created)

    def merge(self, a: State, b: State) -> State:
        if a[1] is None or b[1] is None:
            return b if a[1] is None else a
        a_later = (a[1], a[2], a[0]) > (b[1], b[2], b[0])
        return a if a_later == self.greatest else b

    def finish(self, state: State) -> Any:
        return state[0]

    def answer(self, parts: Sequence[Sequence[Any]]) -> Any:
        values, times, _ = parts
        known = times if None not in times else _present(times)
        if not known:
            return None
        at = (max if self.greatest else min)(known)
        return values[times.index(at)] if times.count(at) == 1 else super().answer(parts)

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        at, none = self._found(events, lo, hi)
        found = events.decode(_take(events.codes, at), none)
        return [found, *(pa.array(_take(part, at), mask=none) for part in (events.times, events.created))]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        at, none = self._found(events, lo, hi)
        return events.decode(_take(events.codes, at), none)

    def _found(self, events: Events, lo: Ints, hi: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        none = lo == hi
        at = hi - 1 if self.greatest else lo
        return _take(events.in_order(lo, hi), np.where(none, 0, at)), none


class First(Last):
    """The value of the event with the least (time, created, value)."""

    greatest = False


class LastN(Aggregate):
    """The values of the n events with the greatest (time, created, value), oldest first."""

    identity = (None, None, None)

    def _types(self) -> tuple[Type, Parts]:
        values, times = array(self.value), array(INT64)
        return values, (("values", values), ("times", times), ("created", times))

    def _lift(self, value: Any, time: int, created: int) -> State:
        return ([value], [time], [created])

    def merge(self, a: State, b: State) -> State:
        if a[0] is None or b[0] is None:
            return b if a[0] is None else a
        both = sorted((*zip(a[1], a[2], a[0], strict=True), *zip(b[1], b[2], b[0], strict=True)))
        times, created, values = zip(*both[-self.n :], strict=True)
        return (list(values), list(times), list(created))

    def finish(self, state: State) -> Any:
        return state[0]

    def answer(self, parts: Sequence[Sequence[Any]]) -> Any:
        states = [state for state in zip(*parts, strict=True) if state[0] is not None]
        if not states:
            return None
        times = sorted(chain.from_iterable(state[1] for state in states))
        since = times[-self.n :][0]
        late = (zip(state[1], state[2], state[0], strict=True) for state in states if state[1][-1] >= since)
        return [value for _, _, value in sorted(chain.from_iterable(late))[-self.n :]]

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        at, offsets = self._found(events, lo, hi)
        columns = (events.decode(events.codes[at]), pa.array(events.times[at]), pa.array(events.created[at]))
        return [_lists(offsets, column) for column in columns]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        at, offsets = self._found(events, lo, hi)
        return _lists(offsets, events.decode(events.codes[at]))

    def _found(self, events: Events, lo: Ints, hi: Ints) -> tuple[Ints, Ints]:
        at, offsets = ranges.indices(np.maximum(lo, hi - self.n), hi)
        return events.in_order(lo, hi)[at], offsets


class CountDistinct(Aggregate):
    """How many different values, exactly: the state is the values in order."""

    identity = (None,)

    def _types(self) -> tuple[Type, Parts]:
        return INT64, (("values", array(self.value)),)

    def _lift(self, value: Any, time: int, created: int) -> State:
        return ([value],)

    def merge(self, a: State, b: State) -> State:
        if a[0] is None or b[0] is None:
            return b if a[0] is None else a
        return (sorted({*a[0], *b[0]}),)

    def finish(self, state: State) -> int:
        return len(state[0] or ())

    def answer(self, parts: Sequence[Sequence[Any]]) -> int:
        return len(set().union(*_present(parts[0])))

    def states(self, events: Events, lo: Ints, hi: Ints) -> list[Any]:
        at, offsets = ranges.indices(lo, hi)
        codes, owner = events.codes[at], np.repeat(np.arange(len(lo)), hi - lo)
        order = np.lexsort((codes, owner))
        codes, owner = codes[order], owner[order]
        new = np.ones(len(codes), bool)
        new[1:] = (codes[1:] != codes[:-1]) | (owner[1:] != owner[:-1])
        offsets[1:] = np.cumsum(np.bincount(owner[new], minlength=len(lo)))
        return [_lists(offsets, events.decode(codes[new]))]

    def answers(self, events: Events, lo: Ints, hi: Ints) -> Any:
        return pa.array(ranges.count_distinct(events.codes, lo, hi))


def _scalars(kind: type[Aggregate]) -> dict[str, type[Aggregate]]:
    return dict.fromkeys(("INT", "FLOAT", "DECIMAL", "STRING", "BYTES", "BOOL", "TIMESTAMP", "DATE"), kind)


def _numbers(integer: type[Aggregate], real: type[Aggregate], exact: type[Aggregate]) -> dict[str, type[Aggregate]]:
    return {"INT": integer, "FLOAT": real, "DECIMAL": exact}


TABLE: dict[str, dict[str, type[Aggregate]]] = {
    "count": {**_scalars(Count), "ARRAY": Count},
    "sum": _numbers(IntegerSum, FloatSum, DecimalSum),
    "mean": _numbers(Mean, Mean, DecimalMean),
    "min": _scalars(Min),
    "max": _scalars(Max),
    "variance": _numbers(Variance, Variance, Variance),
    "stddev": _numbers(Stddev, Stddev, Stddev),
    "first": _scalars(First),
    "last": _scalars(Last),
    "last_n": _scalars(LastN),
    "count_distinct": _scalars(CountDistinct),
}
"""By function, then by the kind of value that it takes."""


def make(function: str, value: Type | None, n: int | None = None, name: str = "") -> Aggregate:
    """The aggregate of a function over values of a type; `ExpressionError` where it does not take them."""
    kinds = TABLE.get(function)
    if kinds is None:
        hint = nearest(function, TABLE) or f"They are {', '.join(TABLE)}"
        raise ExpressionError(f'"{function}" is not an aggregate function', hint=hint)
    if value is None and function != "count":
        raise ExpressionError(f"{function} needs a column")
    kind = kinds.get((value or INT64).kind.rstrip("3264"))
    if kind is None:
        raise ExpressionError(f"{function} does not take {value}", hint=f"It takes {', '.join(kinds)}")
    return kind(value, n, name)


def _clean(value: Any) -> Any:
    """The value as it counts: NaN as null, -0.0 as 0.0."""
    if isinstance(value, float):
        return None if value != value else value + 0.0
    return value


def _pair(value: Any) -> tuple[float, float]:
    """A number as a double and the rest that did not fit into it."""
    whole = float(value) + 0.0
    return (whole, float(value - int(whole)) if isinstance(value, int) else 0.0)


def _present(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _carried(total: int) -> State:
    carry = (total + _WRAP // 2) // _WRAP
    return (total - carry * _WRAP, carry)


def _add(a: State, b: State) -> State:
    """Two doubles with their rests (double-double addition)."""
    total = a[0] + b[0]
    b_seen = total - a[0]
    rest = (a[0] - (total - b_seen)) + (b[0] - b_seen) + (a[1] + b[1])
    whole = total + rest
    if not math.isfinite(whole):
        return (total, 0.0)
    return (whole, rest - (whole - total))


def _add_all(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> list[list[float]]:
    """`_add` of many."""
    (a0, a1), (b0, b1) = np.array(a, np.float64), np.array(b, np.float64)
    with np.errstate(all="ignore"):
        total = a0 + b0
        b_seen = total - a0
        rest = (a0 - (total - b_seen)) + (b0 - b_seen) + (a1 + b1)
        whole = total + rest
        finite = np.isfinite(whole)
        return [np.where(finite, whole, total).tolist(), np.where(finite, rest - (whole - total), 0.0).tolist()]


def _sum_pairs(sums: Sequence[float], rests: Sequence[float]) -> float:
    try:
        return math.fsum((*sums, *rests))
    except (OverflowError, ValueError):  # infinities of both signs, or a sum beyond the doubles
        return sum(sums)


def _take(values: Array, at: Ints) -> Array:
    """Elements by index; zeros where there is nothing to take from."""
    return values[at] if len(values) else np.zeros(len(at), values.dtype)


def _lists(offsets: Ints, values: Any) -> Any:
    """Lists of values, null where empty."""
    if offsets[-1] >= 2**31:
        raise InvalidInputError(f"{offsets[-1]} values in lists are too many for one batch", hint="Ask for fewer rows")
    empty = pa.array(offsets[1:] == offsets[:-1])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=empty)
