"""Reductions of many ranges [lo, hi) of one array at once, in numpy; no loop over events or ranges.

Shapes: leaves have N elements, `lo` and `hi` are int64 of Q ranges with 0 <= lo <= hi <= N; answers have Q elements.
Ranges may overlap, lie in any order and be as long as the array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Parts = tuple[Array, ...]
"""A state, spread over arrays of equal length."""

_LOW = 0xFFFFFFFF
_WORD = 32


def reduce_ranges(
    leaves: Parts, lo: Ints, hi: Ints, join: Callable[[Parts, Parts], Parts], empty: Sequence[Any]
) -> Parts:
    """Each range's leaves joined: bottom-up through a segment tree of which one level at a time is held.

    `join` is vectorised, associative, commutative, and has `empty` as its identity. 2 log2(hi - lo) joins a range, so
    rounding errors grow with the logarithm of a range's length and no range is the difference of two others.
    """
    answers = tuple(np.full(len(lo), start, part.dtype) for part, start in zip(leaves, empty, strict=True))
    ranges, lo, hi = _nonempty(np.arange(len(lo)), lo, hi)
    while len(ranges):
        _take_in(answers, leaves, ranges, lo, (lo & 1) == 1, join)
        _take_in(answers, leaves, ranges, hi - 1, (hi & 1) == 1, join)
        ranges, lo, hi = _nonempty(ranges, (lo + 1) >> 1, hi >> 1)
        if len(ranges):
            whole = len(leaves[0]) & ~1  # a last leaf without a partner belongs to no node above
            leaves = join(tuple(p[0:whole:2] for p in leaves), tuple(p[1:whole:2] for p in leaves))
    return answers


def _nonempty(ranges: Ints, lo: Ints, hi: Ints) -> tuple[Ints, Ints, Ints]:
    keep = lo < hi
    return (ranges, lo, hi) if keep.all() else (ranges[keep], lo[keep], hi[keep])


def _take_in(
    answers: Parts, leaves: Parts, ranges: Ints, at: Ints, where: Array, join: Callable[[Parts, Parts], Parts]
) -> None:
    """Join the leaf `at` of each range into its answer, `where` that is asked."""
    ranges, at = ranges[where], at[where]
    joined = join(tuple(part[ranges] for part in answers), tuple(part[at] for part in leaves))
    for part, new in zip(answers, joined, strict=True):
        part[ranges] = new


def sum_floats(values: Floats, rests: Floats | None, lo: Ints, hi: Ints) -> tuple[Floats, Floats]:
    """The sums, each as a double and the rest that did not fit into it (double-double arithmetic).

    T. J. Dekker, A floating-point technique for extending the available precision, 1971.
    """
    leaves = (values, np.broadcast_to(np.float64(0), len(values)) if rests is None else rests)
    with np.errstate(all="ignore"):
        total, rest = reduce_ranges(leaves, lo, hi, _add_pairs, (0.0, 0.0))
    return total, rest


def _add_pairs(left: Parts, right: Parts) -> Parts:
    (a, a_rest), (b, b_rest) = left, right
    total = a + b
    b_seen = total - a
    rest = (a - (total - b_seen)) + (b - b_seen) + (a_rest + b_rest)
    whole = total + rest
    rest = rest - (whole - total)
    finite = np.isfinite(whole)
    if finite.all():
        return whole, rest
    return np.where(finite, whole, total), np.where(finite, rest, 0.0)


def moments(values: Floats, rests: Floats | None, lo: Ints, hi: Ints) -> tuple[Ints, Floats, Floats, Floats]:
    """(count, mean, the rest of the mean that did not fit into a double, sum of squared distances from the mean).

    Merged after Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm, 1979; the rest keeps the distance
    of two means as exact as the values are, where the values are large and lie close together.
    """
    ones, zeros = (np.broadcast_to(np.float64(value), len(values)) for value in (1, 0))
    with np.errstate(all="ignore"):
        squares = zeros if np.isfinite(values).all() else values - values  # of an infinity: NaN
        leaves = (ones, values, zeros if rests is None else rests, squares)
        _, mean, rest, squares = reduce_ranges(leaves, lo, hi, _join_moments, (0.0, 0.0, 0.0, 0.0))
    return hi - lo, mean, rest, squares


def _join_moments(left: Parts, right: Parts) -> Parts:
    (n, mean, rest, squares), (m, other, other_rest, more) = left, right
    count = n + m
    share = m / count
    apart = (other - mean) + (other_rest - rest)
    joined, joined_rest = _add_pairs((mean, rest), (apart * share, np.zeros(1)))
    first = n == 0
    return (
        count,
        np.where(first, other, joined),
        np.where(first, other_rest, joined_rest),
        np.where(first, more, squares + more + apart * apart * (n * share)),
    )


def extremes(values: Array, lo: Ints, hi: Ints, greatest: bool) -> Array:
    """The least or greatest value; of an empty range the type's own extreme at the other end."""
    limits = np.finfo(values.dtype) if values.dtype.kind == "f" else np.iinfo(values.dtype)
    ends = (-np.inf, np.inf) if values.dtype.kind == "f" else (limits.min, limits.max)
    pick = np.maximum if greatest else np.minimum
    (found,) = reduce_ranges((values,), lo, hi, lambda a, b: (pick(a[0], b[0]),), (ends[0] if greatest else ends[1],))
    return found


def sum_integers(values: Ints, lo: Ints, hi: Ints) -> tuple[Ints, Ints]:
    """The exact sums as (sum, carry), which stand for sum + carry * 2**64: carry is 0 where the sum fits 64 bits."""
    if not len(values):
        return np.zeros(len(lo), np.int64), np.zeros(len(lo), np.int64)
    if max(abs(int(values.min())), abs(int(values.max()))) * len(values) < 2**63:
        return _between(values, lo, hi), np.zeros(len(lo), np.int64)
    high, low = _between(values >> _WORD, lo, hi), _between(values & _LOW, lo, hi)
    high, low = high + (low >> _WORD), low & _LOW
    carry = (high + (1 << 31)) >> _WORD
    return ((high - (carry << _WORD)) << _WORD) | low, carry


def _between(values: Ints, lo: Ints, hi: Ints) -> Ints:
    before = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=before[1:])
    return before[hi] - before[lo]


def sum_wide(words: NDArray[np.uint64], lo: Ints, hi: Ints, limit: int) -> tuple[NDArray[np.uint64], Ints]:
    """The exact sums of 128-bit integers, rows of (low, high) words, as (sum, carry), which stand for
    sum + carry * limit, both of one sign: carry is 0 where the sum is below `limit` in size. Others are seldom: they
    are divided one by one."""
    low, high = words[:, 0], words[:, 1]
    limbs = [low & _LOW, low >> _WORD, high & _LOW]
    sums = [_between(limb.astype(np.int64), lo, hi) for limb in limbs]
    sums.append(_between(high.view(np.int64) >> _WORD, lo, hi))
    for n in range(3):
        sums[n + 1] += sums[n] >> _WORD
        sums[n] &= _LOW
    top = sums[3]
    out = np.empty((len(lo), 2), np.uint64)
    out[:, 0] = sums[0].astype(np.uint64) | (sums[1].astype(np.uint64) << np.uint64(_WORD))
    out[:, 1] = ((top << _WORD) | sums[2]).view(np.uint64)
    carries = np.zeros(len(lo), np.int64)
    fits = (top >= -(1 << 31)) & (top < 1 << 31) & _are_below(out, limit)
    for at in np.flatnonzero(~fits).tolist():
        total = (int(top[at]) << 3 * _WORD) + (int(sums[2][at]) << 2 * _WORD) + int(out[at, 0])
        carry, rest = divmod(abs(total), limit)
        carries[at], rest = (carry, rest) if total > 0 else (-carry, -rest)
        out[at] = rest & (2**64 - 1), (rest >> 64) & (2**64 - 1)
    return out, carries


def _are_below(words: NDArray[np.uint64], limit: int) -> NDArray[np.bool_]:
    """Which are below a limit in size."""
    low, high = words[:, 0], words[:, 1].view(np.int64)
    too_large = (high > limit >> 64) | ((high == limit >> 64) & (low >= np.uint64(limit & (2**64 - 1))))
    lowest = -limit
    too_small = (high < lowest >> 64) | ((high == lowest >> 64) & (low <= np.uint64(lowest & (2**64 - 1))))
    below: NDArray[np.bool_] = ~(too_large | too_small)
    return below


def count_distinct(codes: Array, lo: Ints, hi: Ints) -> Ints:
    """How many different codes each range has: those whose previous occurrence lies before the range."""
    order = np.argsort(codes, kind="stable")
    same = codes[order[1:]] == codes[order[:-1]]
    previous = np.zeros(len(codes), np.int64)  # 1-based, 0 where there is none
    previous[order[1:][same]] = order[:-1][same] + 1
    return count_below(previous, lo, hi, lo + 1)


def count_below(values: Ints, lo: Ints, hi: Ints, limits: Ints) -> Ints:
    """How many values of each range are below its limit, by a wavelet matrix of which one level at a time is held.

    F. Claude, G. Navarro, A. Ordonez, The wavelet matrix, 2015. Values lie in 0..N, limits in 0..N+1.
    """
    counts = np.zeros(len(lo), np.int64)
    ranges, lo, hi = _nonempty(np.arange(len(lo)), lo, hi)
    size: Any = np.int32 if len(values) < 2**31 - 1 else np.int64
    level: Array = values.astype(size)
    left: Array = lo.astype(size)
    right: Array = hi.astype(size)
    below: Array = limits[ranges].astype(size)
    zeros_before = np.zeros(len(values) + 1, size)
    for bit in reversed(range((len(values) + 1).bit_length())):
        ones = level & size(1 << bit) != 0
        np.cumsum(~ones, out=zeros_before[1:])
        zeros, left_zeros, right_zeros = zeros_before[-1], zeros_before[left], zeros_before[right]
        up = below & size(1 << bit) != 0
        counts[ranges[up]] += (right_zeros - left_zeros)[up]
        left = np.where(up, zeros + left - left_zeros, left_zeros)
        right = np.where(up, zeros + right - right_zeros, right_zeros)
        keep = left < right
        ranges, left, right, below = ranges[keep], left[keep], right[keep], below[keep]
        if not len(ranges):
            break
        level = np.concatenate((level[~ones], level[ones]))
    return counts


def settle_ties(times: Ints, created: Ints, codes: Array, lo: Ints, hi: Ints) -> Ints:
    """The order of events by (time, created, code), for events already in order of (time, created) within each range.

    A range's ends are never within a run of ties, but runs of neighbouring ranges may touch: there they are parted.
    """
    order = np.arange(len(times))
    same = np.zeros(len(times) + 1, bool)
    same[1:-1] = (times[1:] == times[:-1]) & (created[1:] == created[:-1])
    same[lo] = same[hi] = False
    if not same.any():
        return order
    runs = np.cumsum(~same[:-1])
    tied = np.flatnonzero(same[:-1] | same[1:])
    order[tied] = tied[np.lexsort((codes[tied], runs[tied]))]
    return order


def indices(lo: Ints, hi: Ints) -> tuple[Ints, Ints]:
    """All indices of all ranges, one range after another, and the Q + 1 offsets at which they begin."""
    offsets = np.zeros(len(lo) + 1, np.int64)
    np.cumsum(hi - lo, out=offsets[1:])
    return np.arange(offsets[-1]) + np.repeat(lo - offsets[:-1], hi - lo), offsets
