"""What was found at T, for each row of a spine: the latest row, or windows; over DuckDB.

A latest row is found in three steps: match keys and times alone, name the winners, fetch the values of those. Windows
are read once as events in order of key and time, and answered by `engines.windows` batch by batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_store.engines import facts as reading
from feature_store.engines import windows as events
from feature_store.engines.facts import Facts, batches, conform, event_columns
from feature_store.engines.scans import KNOWN, TIME, listed
from feature_store.engines.windows import Columns, Events
from feature_store.errors import SourceError
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import LatestRow, Window, Windows, reach
from feature_store.expressions.schedules import boundary_array
from feature_store.storage.online import EVENT_TIME, NO_CREATED
from feature_store.types import Schema

Bools = NDArray[np.bool_]

_TAKERS = 4


def latest_as_of(
    session: Any, relation: LatestRow, spine: pa.Table, names: Collection[str], as_known: bool
) -> pa.Table:
    """For each row of `spine` (key columns, EVENT_TIME in microseconds) the latest row at its time: `names`, and as
    EVENT_TIME the time of the row found, all null where there is none, or one that deletes. A ttl is not looked at.

    With `as_known`, of rows created by then; the metadata's `hidden` counts the others."""
    facts = Facts(session, relation.rows, relation.keys, [each.scalar for each in relation.values])
    facts.until = _register_spine(session, relation.keys, spine, spine[EVENT_TIME]) + 1
    facts.restrict_to("spine")
    facts.settle()
    known = as_known and relation.rows.created is not None
    hidden = _match_known(session, facts) if known else _match(session, facts)
    identity = (TIME, KNOWN) if known else (TIME,)
    session.execute(
        f"CREATE TEMP TABLE winners AS SELECT *, row_number() OVER () - 1 AS __w "
        f"FROM (SELECT DISTINCT {listed([facts.keys, *identity])} FROM matched)"
    )
    chosen = {each.name: n for n, each in enumerate(relation.values) if each.name in names}
    deleted = facts.short_values[:1] if relation.deletes else []
    rows = _fetched(session, facts, identity, [TIME, *(facts.short_values[n] for n in chosen.values()), *deleted])
    using = listed([facts.keys, *identity])
    where = session.sql(f"SELECT __pos, __w FROM matched JOIN winners USING ({using})").to_arrow_table()
    places = _Places.of(spine.num_rows, rows["__w"].to_numpy(), where["__pos"].to_numpy(), where["__w"].to_numpy())
    if deleted:
        places = places.without(rows[deleted[0]].to_numpy())
        rows = rows.drop_columns(deleted)
    with ThreadPoolExecutor(_TAKERS) as pool:  # a column is taken on one core
        found = pool.map(lambda column: places.take(rows[column]), rows.column_names[1:])
        out = {EVENT_TIME: next(found)}
        out |= {name: conform(next(found), relation.values[n].type) for name, n in chosen.items()}
    return _ordered(out, names, hidden if as_known else None)


def _fetched(session: Any, facts: Facts, identity: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """__w and these columns of one row of each winner."""
    selected = listed(["__w", *columns])
    if not facts.may_tie(*identity):
        # More rows than winners, and some are tied: it costs nothing to see that from the answer.
        count = session.execute("SELECT count(*) FROM winners").fetchall()[0][0]
        candidates = f"SELECT {selected} FROM ({facts.candidates(*identity, tag='__w')}) LIMIT {count + 1}"
        rows = session.sql(candidates).to_arrow_table()
        if rows.num_rows <= count:
            return rows
    return session.sql(f"SELECT {selected} FROM ({facts.fetch(*identity, tag='__w')})").to_arrow_table()


def _match(session: Any, facts: Facts) -> int:
    """For each row of the spine the time of the row found: table `matched` (__pos, keys, __t)."""
    session.execute(
        f"CREATE TEMP TABLE matched AS SELECT spine.__pos, {_of('spine', facts.short_keys)}, found.__t "
        f"FROM spine ASOF JOIN ({facts.narrow()}) found ON {_equal(facts.short_keys)} AND spine.__t >= found.__t"
    )
    return 0


def _match_known(session: Any, facts: Facts) -> int:
    """As `_match`, over rows with created <= T: of the rows in order of when they could be seen, the running greatest
    (event time, created). Returns how many rows were not seen by a row of the spine that they precede."""
    keys = facts.keys
    session.execute(
        f"CREATE TEMP TABLE known AS SELECT {keys}, __t, coalesce(__c, {NO_CREATED}) AS __c FROM ({facts.narrow()})"
    )
    greatest = f"max(row(__t, __c)) OVER (PARTITION BY {keys} ORDER BY __seen RANGE UNBOUNDED PRECEDING)"
    running = f"SELECT {keys}, __seen, {greatest} AS best FROM (SELECT *, greatest(__t, __c) AS __seen FROM known)"
    session.execute(
        f"CREATE TEMP TABLE matched AS SELECT spine.__pos, {_of('spine', facts.short_keys)}, "
        f"found.best[1] AS __t, found.best[2] AS __c "
        f"FROM spine ASOF JOIN ({running}) found ON {_equal(facts.short_keys)} AND spine.__t >= found.__seen"
    )
    hidden = session.execute(
        f"SELECT count(*) FROM (SELECT {keys}, __t, __c FROM known WHERE __c > __t) found ASOF JOIN spine "
        f"ON {_equal(facts.short_keys)} AND found.__t <= spine.__t WHERE spine.__t < found.__c"
    ).fetchall()[0][0]
    return int(hidden)


def windows_as_of(session: Any, relation: Windows, spine: pa.Table, names: Collection[str], as_known: bool) -> pa.Table:
    """For each row of `spine` (as for `latest_as_of`) the windows in `names` at its time, or with a schedule at the
    boundary before it, and as EVENT_TIME the time of the latest event in reach. Over no event a count is 0, the rest
    null.

    With `as_known`, over events created by then; the metadata's `hidden` counts the others."""
    windows = [window for window in relation.windows if window.name in names]
    columns = Columns.of(windows)
    now = spine[EVENT_TIME].to_numpy().astype(np.int64, copy=False)
    at = now if relation.schedule is None else boundary_array(relation.schedule, now)
    facts = Facts.of_windows(session, relation, columns)
    facts.until = _register_spine(session, relation.keys, spine, pa.array(at))
    facts.since = reach(windows, int(at.min(initial=facts.until)))
    session.execute(
        f"CREATE TEMP TABLE numbered AS SELECT {facts.keys}, row_number() OVER () - 1 AS __key "
        f"FROM (SELECT DISTINCT {facts.keys} FROM spine)"
    )
    facts.restrict_to("numbered")
    facts.settle()
    numbered = session.sql(f"SELECT __key, __pos FROM spine JOIN numbered USING ({facts.keys})").to_arrow_table()
    key, position = (numbered[name].to_numpy() for name in ("__key", "__pos"))
    order = np.argsort(key, kind="stable")
    queries = _Queries(key[order], position[order], at, now if as_known and relation.rows.created else None)
    rows = session.sql(
        f"SELECT __key, {event_columns(columns)} FROM ({facts.wide()}) JOIN numbered USING ({facts.keys}) "
        "ORDER BY __key, __t, __c"
    )
    for table, _ in events.whole_groups(batches(rows), ["__key"], reading.EVENTS_AT_ONCE):
        queries.answer(windows, Events.of(table, table["__key"].to_numpy(), columns))
    out = queries.joined(windows, columns)
    return _ordered(out, names, queries.hidden if as_known else None)


class _Queries:
    """The rows of a spine in order of the number of their key (`key`, `position` of the row), and their answers."""

    def __init__(self, key: Ints, position: Ints, at: Ints, now: Ints | None) -> None:
        self._key, self._position, self._at, self._now = key, position, at, now
        self._parts: list[tuple[Ints, dict[str, Any]]] = []
        self.hidden = 0

    def answer(self, windows: Sequence[Window], found: Events) -> None:
        """Answers the queries about the keys of these events."""
        first, last = np.searchsorted(self._key, [found.group[0], found.group[-1] + 1])
        where, key = self._position[first:last], self._key[first:last]
        # Numbered anew from 0: places in `Events` are products of the group's number.
        shifted = Events(found.group - found.group[0], found.times, found.created, found.columns, found.computed)
        key = key - found.group[0]
        if self._now is None:
            self._parts.append((where, events.answers(windows, shifted, key, self._at[where])))
            return
        part, hidden = events.answers_as_known(windows, shifted, key, self._at[where], self._now[where])
        self._parts.append((where, part))
        self.hidden += hidden

    def joined(self, windows: Sequence[Window], columns: Columns) -> dict[str, Any]:
        """The answers in order of the spine; those of keys without events, or null, are over no event."""
        seen = np.concatenate([where for where, _ in self._parts] or [np.zeros(0, np.int64)])
        rest = np.setdiff1d(np.arange(len(self._at)), seen, assume_unique=True)
        names = [*columns.values.items(), *((scalar, name) for scalar, name in columns.conditions.items())]
        empty = {name: pa.nulls(0, scalar.type.arrow) for scalar, name in names}
        none = np.zeros(0, np.int64)
        nothing = events.answers(windows, Events(none, none, none, columns, empty), np.zeros_like(rest), self._at[rest])
        parts = [*(part for _, part in self._parts), nothing]
        order = pa.array(np.argsort(np.concatenate([seen, rest])))
        return {name: pa.chunked_array([part[name] for part in parts]).combine_chunks().take(order) for name in nothing}


def _register_spine(session: Any, keys: Schema, spine: pa.Table, at: Any) -> int:
    """Makes the table `spine` (keys, __t, __pos) of the rows without a null key; returns the greatest time."""
    columns = {f"__k{n}": spine[key.name] for n, key in enumerate(keys)}
    session.register("given", pa.table({**columns, TIME: at, "__pos": pa.array(np.arange(spine.num_rows))}))
    typed = listed(f"CAST(__k{n} AS {key.type.duckdb}) AS __k{n}" for n, key in enumerate(keys))
    present = " AND ".join(f"{name} IS NOT NULL" for name in (*columns, TIME))
    session.execute(f"CREATE TEMP TABLE spine AS SELECT {typed}, __t, __pos FROM given WHERE {present}")
    session.unregister("given")
    return int(session.execute("SELECT coalesce(max(__t), 0) FROM spine").fetchall()[0][0])


class _Places:
    """Which fetched row stands at each position of a spine, if one does."""

    def __init__(self, rows: Ints, found: Bools) -> None:
        self._rows, self._found = rows, found
        self._nullable = pa.array(rows, mask=~found)
        self._bitmap = pa.py_buffer(np.packbits(found, bitorder="little"))

    @classmethod
    def of(cls, size: int, rows: Ints, position: Ints, wanted: Ints) -> _Places:
        """`rows` are the numbers of the winners fetched, `wanted` the numbers of those at `position`."""
        if len(wanted) and wanted.max() >= len(rows):
            raise SourceError("the source's files changed while they were read", hint="Run it again")
        place = np.empty(len(rows), np.int64)
        place[rows] = np.arange(len(rows))
        index, found = np.zeros(size, np.int64), np.zeros(size, np.bool_)
        index[position], found[position] = place[wanted], True
        return cls(index, found)

    def without(self, rows: Bools) -> _Places:
        """The places where none of these rows stand."""
        return _Places(self._rows, self._found & ~rows[self._rows]) if len(rows) else self

    def take(self, column: pa.ChunkedArray) -> pa.Array:
        """The values of a fetched column, null where no row stands."""
        values = column.combine_chunks()
        if not pa.types.is_primitive(values.type) or values.type.bit_width < 8 or not len(values):
            return values.take(self._nullable)
        # Numpy takes numbers in a fraction of the time that Arrow needs for an index with nulls.
        raw = np.frombuffer(values.buffers()[1], f"i{values.type.bit_width // 8}", len(values), _start(values))
        bitmap = self._bitmap
        if values.null_count:
            valid = values.is_valid().to_numpy(zero_copy_only=False)
            bitmap = pa.py_buffer(np.packbits(valid[self._rows] & self._found, bitorder="little"))
        return pa.Array.from_buffers(values.type, len(self._rows), [bitmap, pa.py_buffer(raw.take(self._rows))])


def _start(values: pa.Array) -> int:
    """Where the numbers begin in their buffer."""
    return int(values.offset * values.type.bit_width // 8)


def _ordered(columns: Mapping[str, Any], names: Collection[str], hidden: int | None) -> pa.Table:
    table = pa.table({name: columns[name] for name in (*names, EVENT_TIME)})
    return table if hidden is None else table.replace_schema_metadata({"hidden": str(hidden)})


def _of(table: str, names: Sequence[str]) -> str:
    return listed(f"{table}.{name}" for name in names)


def _equal(names: Sequence[str]) -> str:
    return " AND ".join(f"spine.{name} = found.{name}" for name in names)
