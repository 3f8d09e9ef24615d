"""Checked rows of a source on their way into online tables, with what views compute over them."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.definitions.catalog import BoundView
from feature_store.errors import FeatureStoreError, InvalidInputError
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import Computed, LatestRow, Rows, Windows
from feature_store.expressions.scalars import Ref, Scalar, compile_rows
from feature_store.storage.keys import MOST_BYTES
from feature_store.storage.online import CREATED, EVENT_TIME, NO_CREATED
from feature_store.storage.rows import cast, raw_type, to_arrow
from feature_store.types import BYTES, STRING, TIMESTAMP, Schema


class Events:
    """Rows in the schema of a source: none without an event time, `created` filled with the clock where it is null."""

    def __init__(self, rows: Rows, table: pa.Table) -> None:
        assert rows.timestamp is not None
        self.rows, self.table = rows, _with_created(rows, table)
        self._raw: dict[str, list[Any]] = {}
        self._computed: dict[Scalar, pa.Array] = {}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def times(self) -> Ints:
        """Event times in microseconds."""
        return micros(self.table[self.rows.timestamp])

    @cached_property
    def created(self) -> Ints:
        """Created times in microseconds, `NO_CREATED` where the source has none."""
        if self.rows.created is None:
            return np.full(len(self), NO_CREATED)
        return micros(self.table[self.rows.created])

    def raw(self, name: str) -> list[Any]:
        """A column as raw row values."""
        if name not in self._raw:
            column = self.rows.schema.get(name) or TIMESTAMP
            self._raw[name] = self.table[name].cast(raw_type(column)).to_pylist()
        return self._raw[name]

    def evaluate(self, scalar: Scalar) -> list[Any]:
        """An expression over the events, as raw row values; `InvalidInputError` where it cannot be computed."""
        names = sorted(scalar.columns) or [self.rows.schema.names[0]]
        columns = [self.raw(name) for name in names]
        try:
            return compile_rows(scalar, names)(columns)
        except (ArithmeticError, ValueError) as error:  # of Python, over values that nobody thought of
            raise InvalidInputError(f"it cannot be computed: {type(error).__name__}: {error}") from error

    def computed(self, scalar: Scalar) -> pa.Array:
        """An expression over the events, as an Arrow array of its type; computed once."""
        if scalar not in self._computed:
            self._computed[scalar] = self._compute(scalar)
        return self._computed[scalar]

    def _compute(self, scalar: Scalar) -> pa.Array:
        if isinstance(scalar, Ref) and self.rows.schema.get(scalar.name) == scalar.type:
            return _one_chunk(cast(self.table[scalar.name], scalar.type.arrow))
        return to_arrow(self.evaluate(scalar), scalar.type)

    def keys(self, schema: Schema) -> dict[str, pa.Array]:
        """The key columns of a view, in their types; `InvalidInputError` where a value is too large or too long."""
        try:
            keys = {key.name: _one_chunk(cast(self.table[key.name], key.type.arrow)) for key in schema}
        except pa.ArrowInvalid as error:
            raise InvalidInputError(f"its key does not fit: {error}") from error
        longest = _longest([keys[key.name] for key in schema if key.type in (STRING, BYTES)])
        if longest > MOST_BYTES:
            raise InvalidInputError(f"its key has {longest} bytes, and stores take {MOST_BYTES}")
        return keys

    def stamps(self) -> dict[str, pa.Array]:
        """The columns of times that an online table takes."""
        return {EVENT_TIME: pa.array(self.times), CREATED: pa.array(self.created)}

    def latest(self, keys: Schema, values: Sequence[Computed]) -> pa.Table:
        """Each event as a row of a view over columns; one that lacks a key is none."""
        computed = {value.name: self.computed(value.scalar) for value in values}
        of_keys = self.keys(keys)
        table = pa.table(of_keys | computed | self.stamps())
        return table.filter(reduce(pc.and_, map(pc.is_valid, of_keys.values())))


def identities(events: Events, index: Ints | None = None) -> list[bytes]:
    """The identity of each event, or of those at `index`, as 16 bytes: a digest of the columns that are `unique`, or of
    all but `created` (when the platform learnt of an event is no part of what it is)."""
    rows = events.rows
    names = rows.unique or [name for name in rows.schema.names if name != rows.created]
    values = list(zip(*map(events.raw, names), strict=True))
    chosen = values if index is None else [values[at] for at in index.tolist()]
    if rows.unique:
        return [_digest(repr(value)) for value in chosen]
    seen: Counter[str] = Counter()
    ids = []
    for value in chosen:
        text = repr(value)
        seen[text] += 1
        ids.append(_digest(f"{text}#{seen[text]}"))
    return ids


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def scalars_of(view: BoundView) -> list[Scalar]:
    """The expressions over a source's columns that a view computes its features with."""
    relation = view.relation
    if isinstance(relation, LatestRow):
        return [value.scalar for value in relation.features]
    if isinstance(relation, Windows):
        return [scalar for window in relation.windows for scalar in (window.value, window.where) if scalar]
    return []


def not_computable(events: Events, views: Iterable[BoundView]) -> dict[int, str]:
    """The events over which a view's keys and expressions cannot be computed, each with the reason."""
    wrong: dict[int, str] = {}
    for view in views:
        works: list[Callable[[Events], object]] = [partial(Events.keys, schema=view.keys)]
        works += [partial(Events.computed, scalar=scalar) for scalar in scalars_of(view)]
        for work in works:
            try:
                work(events)
            except FeatureStoreError as error:
                reason = f'feature view "{view.name}": {error}'
                wrong |= {at: wrong.get(at, reason) for at in _wrong_ones(events, work)}
    return wrong


def _wrong_ones(events: Events, work: Callable[[Events], object]) -> Iterator[int]:
    """Over which events something cannot be computed: halves that have one are halved again."""
    parts = [(0, len(events))]
    while parts:
        start, end = parts.pop()
        try:
            work(Events(events.rows, events.table.slice(start, end - start)))
        except FeatureStoreError:
            if end - start == 1:
                yield start
            else:
                middle = (start + end) // 2
                parts += [(start, middle), (middle, end)]


def _longest(texts: Sequence[pa.Array]) -> int:
    """The most bytes that these columns have together in a row."""
    lengths = [pc.fill_null(pc.binary_length(each), 0) for each in texts]
    return (pc.max(reduce(pc.add, lengths)).as_py() or 0) if lengths else 0


def columns_of(view: BoundView) -> set[str]:
    """The source columns that a view computes its features with."""
    return {name for scalar in scalars_of(view) for name in scalar.columns}


def _with_created(rows: Rows, table: pa.Table) -> pa.Table:
    """The time at which the platform learnt of a row is now, where nobody says."""
    if rows.created is None or not table[rows.created].null_count:
        return table
    index = table.schema.get_field_index(rows.created)
    now = pa.scalar(time.time_ns() // 1000, pa.int64()).cast(TIMESTAMP.arrow)
    filled = pc.fill_null(table[rows.created].cast(TIMESTAMP.arrow), now).cast(table.schema.field(index).type)
    return table.set_column(index, rows.created, filled)


def micros(column: pa.ChunkedArray) -> Ints:
    """A column of times without nulls, in microseconds."""
    found: Ints = cast(column, TIMESTAMP.arrow).cast(pa.int64()).to_numpy()
    return found


def _one_chunk(column: Any) -> pa.Array:
    found = column.combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)
