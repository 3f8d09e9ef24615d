"""The embedded engine: DuckDB in this process, over files.

An answer at T is found in three steps: match only keys and times, name the winners, fetch the values of those alone.
Windows are read once as events in order of key and time, and answered by `engines.windows` batch by batch.
Internal columns: __k0, __k1, ... keys, __t event time, __c created (both microseconds), __v0, ... values.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from feature_store.engines import windows as events
from feature_store.engines.files import find_files
from feature_store.engines.scans import KNOWN, TIME, Scan, listed, quoted, schema_of
from feature_store.engines.windows import Columns, Events, Ints
from feature_store.errors import FeatureStoreError, InvalidInputError, Location, SourceError
from feature_store.expressions.queries import render
from feature_store.expressions.relations import LatestRow, Rows, ScheduledQuery, Window, Windows
from feature_store.expressions.scalars import Scalar, to_sql
from feature_store.expressions.schedules import boundary_array, date_valid_at
from feature_store.storage.online import CREATED, EVENT_TIME, NO_CREATED
from feature_store.types import Schema, Type

_EVENTS_AT_ONCE = 1_000_000
_BATCH = 65_536
_CSV_LINE = re.compile(r"CSV Error on Line: (\d+)")
_CSV_FILE = re.compile(r"^\s*file = (.+)$", re.MULTILINE)

Batches = Iterator[pa.RecordBatch]


class LocalEngine:
    """The port `Engine` on DuckDB. `memory_limit` (such as "1GB"; default: half of what this process may use) is for
    DuckDB alone; what does not fit spills to a temporary folder. Safe to share between threads."""

    def __init__(self, memory_limit: str | None = None, threads: int | None = None) -> None:
        self._spill = tempfile.mkdtemp(prefix="feature_store-")
        config: dict[str, Any] = {
            "memory_limit": memory_limit or f"{_memory() // 2**21}MiB",
            "temp_directory": self._spill,
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "python_enable_replacements": "false",
        }
        if threads is not None:
            config["threads"] = threads
        self._database = duckdb.connect(":memory:", config=config)
        self._clean = weakref.finalize(self, shutil.rmtree, self._spill, ignore_errors=True)

    def close(self) -> None:
        self._database.close()
        self._clean()

    def schema(self, rows: Rows) -> Schema:
        bare = Rows(rows.name, Schema(()), rows.path, rows.table, rows.timestamp, rows.created, (), rows.pushed)
        with self._session(rows.name) as session:
            return schema_of(Scan(session, bare))

    def inputs(self, rows: Rows) -> Mapping[str, str]:
        with _mapped(rows.name):
            return {name: mark for files in find_files(rows) for name, mark in files.fingerprints.items()}

    def latest(
        self, relation: LatestRow, start: int | None, until: int, touched: Collection[str] | None = None
    ) -> pa.RecordBatchReader:
        stamps = [pa.field(EVENT_TIME, pa.int64()), pa.field(CREATED, pa.int64())]
        values = [pa.field(each.name, each.type.arrow) for each in relation.values]
        schema = pa.schema([*relation.keys.arrow, *values, *stamps])

        def rows(session: Any) -> Batches:
            facts = _Facts(session, relation.rows, relation.keys, [each.scalar for each in relation.values])
            facts.since, facts.until = start, until + 1
            if touched is not None:
                facts.restrict_to_inputs(touched)
            facts.settle()
            session.execute(
                f"CREATE TEMP TABLE winners AS SELECT {facts.keys}, max(__t) AS __t "
                f"FROM ({facts.narrow()}) GROUP BY ALL"
            )
            columns = f"{facts.keys}, {facts.values}, __t, coalesce(__c, {NO_CREATED})"
            yield from _batches(session.sql(f"SELECT {columns} FROM ({facts.fetch('__t')})"))

        return self._stream(relation.rows.name, schema, rows)

    def tiles(
        self, relation: Windows, hop: int, start: int | None, until: int, touched: Collection[str] | None = None
    ) -> pa.RecordBatchReader:
        windows = [window for window in relation.windows if window.hop == hop]
        columns = Columns.of(windows)

        def rows(session: Any) -> Batches:
            facts = _Facts.of_windows(session, relation, columns)
            facts.since, facts.until = None if start is None else start // hop * hop, until
            if touched is not None:
                facts.restrict_to_inputs(touched)
            for table, group in self._groups(session, facts, relation.keys, columns):
                yield from events.tiles(
                    relation, windows, relation.keys.names, table, group, columns, until
                ).to_batches()

        return self._stream(relation.rows.name, events.tiles_schema(relation.keys, windows), rows)

    def snapshot(self, relation: Windows | ScheduledQuery, at: int) -> pa.RecordBatchReader:
        if isinstance(relation, ScheduledQuery):
            return self._run(relation, at)
        columns = Columns.of(relation.windows)
        values = [pa.field(window.name, window.type.arrow) for window in relation.windows]
        schema = pa.schema([*relation.keys.arrow, *values])

        def rows(session: Any) -> Batches:
            facts = _Facts.of_windows(session, relation, columns)
            facts.since, facts.until = _reach(relation.windows, at), at
            for table, group in self._groups(session, facts, relation.keys, columns):
                starts = np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
                one = np.full(len(starts), at, np.int64)
                found = events.answers(relation.windows, Events.of(table, group, columns), group[starts], one)
                keys = [table[name].take(pa.array(starts)) for name in relation.keys.names]
                yield from pa.table([*keys, *(found[w.name] for w in relation.windows)], schema=schema).to_batches()

        return self._stream(relation.rows.name, schema, rows)

    def as_of(
        self, relation: LatestRow | Windows, spine: pa.Table, names: Collection[str], as_known: bool = False
    ) -> pa.Table:
        with self._session(relation.rows.name) as session:
            if isinstance(relation, LatestRow):
                return _latest_as_of(session, relation, spine, names, as_known)
            return _windows_as_of(session, relation, spine, names, as_known)

    def compute(self, table: pa.Table, columns: Mapping[str, Scalar]) -> pa.Table:
        if not columns:
            return table
        needed = sorted(frozenset[str]().union(*(scalar.columns for scalar in columns.values())))
        given = {name: table[name] for name in needed} or {"__row": pa.nulls(table.num_rows, pa.bool_())}
        with self._session("computed columns", InvalidInputError) as session:
            session.execute("SET SESSION preserve_insertion_order = true")
            session.register("given", pa.table(given))
            selected = listed(f"{to_sql(scalar)} AS {quoted(name)}" for name, scalar in columns.items())
            found = session.sql(f"SELECT {selected} FROM given").to_arrow_table()
            for name, scalar in columns.items():
                table = table.append_column(name, _conform(found[name], scalar.type))
        return table

    def _run(self, query: ScheduledQuery, at: int) -> pa.RecordBatchReader:
        """The result of a scheduled query."""
        columns = [(key.name, key.name, key.type) for key in query.keys] + list(query.values)
        schema = pa.schema([pa.field(name, type_.arrow) for name, _, type_ in columns])
        where = " and ".join(source.name for source in query.sources) or "a query"

        def rows(session: Any) -> Batches:
            names = {source.name: f"__source_{number}" for number, source in enumerate(query.sources)}
            for source in query.sources:
                select = Scan(session, source).select(source.schema.names, once=True)
                session.execute(f"CREATE TEMP VIEW {quoted(names[source.name])} AS {select}")
            schemas = {source.name: source.schema for source in query.sources}
            sql = render(query.sql, "duckdb", schemas, date_valid_at(query, at), names)
            session.execute(f"CREATE TEMP TABLE result AS {sql}")
            _check_one_row_a_key(session, query.keys)
            found = session.sql("SELECT * FROM result LIMIT 0").to_arrow_table().schema
            selected = listed(f"{_as_type(found, column, type_)} AS {quoted(name)}" for name, column, type_ in columns)
            condition = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in query.keys.names)
            yield from _batches(session.sql(f"SELECT {selected} FROM result WHERE {condition}"))

        return self._stream(where, schema, rows)

    def _groups(self, session: Any, facts: _Facts, keys: Schema, columns: Columns) -> Iterator[tuple[pa.Table, Ints]]:
        """Events in order of key and time, under the keys' own names, in tables of whole keys."""
        facts.settle()
        named = listed(f"{short} AS {quoted(name)}" for short, name in zip(facts.short_keys, keys.names, strict=True))
        order = f"ORDER BY {facts.keys}, __t, __c"
        relation = session.sql(f"SELECT {named}, {_event_columns(columns)} FROM ({facts.wide()}) {order}")
        batches = (_conform_batch(batch, keys) for batch in _batches(relation))
        return events.whole_groups(batches, keys.names, _EVENTS_AT_ONCE)

    def _stream(self, name: str, schema: pa.Schema, rows: Callable[[Any], Batches]) -> pa.RecordBatchReader:
        """A reader over what `rows` yields in a session of its own; the first batch is there when it returns, so that
        what is wrong with the source is raised here."""

        def batches() -> Batches:
            with self._session(name) as session:
                for batch in rows(session):
                    columns = [
                        _conform(column, field.type) for column, field in zip(batch.columns, schema, strict=True)
                    ]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)

        running = batches()
        first = next(running, None)
        ahead: list[pa.RecordBatch] = [] if first is None else [first]
        return pa.RecordBatchReader.from_batches(schema, itertools.chain(ahead, running))

    @contextmanager
    def _session(self, name: str, error: type[FeatureStoreError] = SourceError) -> Iterator[Any]:
        with _mapped(name, error):
            session = self._database.cursor()
            try:
                session.execute("SET SESSION TimeZone = 'UTC'; SET SESSION preserve_insertion_order = false")
                yield session
            finally:
                session.close()


class _Facts:
    """The rows of a source with what a view needs of them: keys, times and computed values; rows without a key or an
    event time are left out."""

    def __init__(self, session: Any, rows: Rows, keys: Schema, scalars: Sequence[Scalar], once: bool = False) -> None:
        self.session, self.rows, self.once = session, rows, once
        self.since: int | None = None
        self.until: int | None = None
        self.short_keys = [f"__k{number}" for number in range(len(keys))]
        self.short_values = [f"__v{number}" for number in range(len(scalars))]
        self.keys, self.values = listed(self.short_keys), listed(self.short_values)
        self._key_columns = [(key.name, key.type.duckdb) for key in keys]
        self._scalars = list(scalars)
        self._semi = ""
        self._settled = ""

    @classmethod
    def of_windows(cls, session: Any, relation: Windows, columns: Columns) -> _Facts:
        facts = cls(session, relation.rows, relation.keys, [*columns.values, *columns.conditions], once=True)
        facts.short_values = [*columns.values.values(), *columns.conditions.values()]
        return facts

    def restrict_to(self, table: str) -> None:
        """Only rows whose key is in a table with columns __k0, ..."""
        self._semi = f" SEMI JOIN {table} USING ({self.keys})"

    def restrict_to_inputs(self, inputs: Collection[str]) -> None:
        """Only rows whose key has a row in one of these inputs."""
        scan = Scan(self.session, self.rows, inputs)
        named = listed(self._named_keys())
        names = [name for name, _ in self._key_columns]
        self.session.execute(f"CREATE TEMP TABLE touched AS SELECT DISTINCT {named} FROM ({scan.select(names)})")
        self.restrict_to("touched")

    def settle(self) -> None:
        """Keeps the rows in a temporary table where reading them twice would cost much."""
        scan = Scan(self.session, self.rows)
        scan.check_time()
        if scan.is_cheap and not (self.once and self.rows.unique):
            return
        self.session.execute(f"CREATE TEMP TABLE settled AS {self._select(scan, self.short_values)}")
        self._settled = "settled"

    def narrow(self) -> str:
        """Keys and times."""
        return self._settled_or([])

    def wide(self) -> str:
        """Keys, times and values."""
        return self._settled_or(self.short_values)

    def _settled_or(self, values: Sequence[str]) -> str:
        if self._settled:
            return f"SELECT {listed([self.keys, TIME, KNOWN, *values])} FROM {self._settled}"
        return self._select(Scan(self.session, self.rows), values)

    def _named_keys(self) -> list[str]:
        pairs = zip(self._key_columns, self.short_keys, strict=True)
        return [f"CAST({quoted(name)} AS {type_}) AS {short}" for (name, type_), short in pairs]

    def _select(self, scan: Scan, values: Sequence[str]) -> str:
        computed = dict(zip(self.short_values, self._scalars, strict=True))
        scalars = {short: computed[short] for short in values}
        names = [name for name, _ in self._key_columns]
        columns = [*names, *sorted(frozenset[str]().union(*(scalar.columns for scalar in scalars.values())))]
        selected = [
            *self._named_keys(),
            TIME,
            KNOWN,
            *(f"{to_sql(each)} AS {short}" for short, each in scalars.items()),
        ]
        present = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in names)
        rows = scan.select(columns, self.since, self.until, self.once, stamped=True)
        return f"SELECT * FROM (SELECT {listed(selected)} FROM ({rows}) WHERE {present}){self._semi}"

    def fetch(self, *identity: str, tag: str = "") -> str:
        """SQL for one row of each of the table `winners` (keys and `identity`, maybe also a column `tag`): of rows
        that are equal in those, the one whose created time, then values, compare greatest."""
        using = listed([self.keys, *identity])
        self.session.execute(
            f"CREATE TEMP TABLE tied AS SELECT winners.* FROM winners SEMI JOIN ("
            f"SELECT {using} FROM ({self._identified(self.narrow(), identity)}) SEMI JOIN winners USING ({using}) "
            f"GROUP BY ALL HAVING count(*) > 1) USING ({using})"
        )
        columns = listed([*([tag] if tag else []), self.keys, TIME, KNOWN, *self.short_values])
        wide = self._identified(self.wide(), identity)
        if not self.session.execute("SELECT count(*) FROM tied").fetchall()[0][0]:
            return f"SELECT {columns} FROM ({wide}) JOIN winners USING ({using})"
        order = listed(f"{name} DESC NULLS LAST" for name in (KNOWN, *self.short_values))
        return (
            f"SELECT {columns} FROM ({wide}) JOIN (FROM winners ANTI JOIN tied USING ({using})) USING ({using}) "
            f"UNION ALL SELECT {columns} FROM ({wide}) JOIN tied USING ({using}) "
            f"QUALIFY row_number() OVER (PARTITION BY {using} ORDER BY {order}) = 1"
        )

    def _identified(self, rows: str, identity: Sequence[str]) -> str:
        """With created unknown as a number, where rows are told apart by it: NULL equals nothing."""
        return f"SELECT * REPLACE (coalesce(__c, {NO_CREATED}) AS __c) FROM ({rows})" if KNOWN in identity else rows


def _latest_as_of(
    session: Any, relation: LatestRow, spine: pa.Table, names: Collection[str], as_known: bool
) -> pa.Table:
    facts = _Facts(session, relation.rows, relation.keys, [each.scalar for each in relation.values])
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
    columns = listed(["__w", TIME, *(facts.short_values[n] for n in chosen.values())])
    rows = session.sql(f"SELECT {columns} FROM ({facts.fetch(*identity, tag='__w')})").to_arrow_table()
    using = listed([facts.keys, *identity])
    where = session.sql(f"SELECT __pos, __w FROM matched JOIN winners USING ({using})").to_arrow_table()
    index = _index(spine.num_rows, rows["__w"].to_numpy(), where["__pos"].to_numpy(), where["__w"].to_numpy())
    out = {}
    for name, n in chosen.items():
        out[name] = _conform(rows[facts.short_values[n]].combine_chunks().take(index), relation.values[n].type)
    out[EVENT_TIME] = rows[TIME].combine_chunks().take(index)
    return _ordered(out, names, hidden if as_known else None)


def _match(session: Any, facts: _Facts) -> int:
    """For each row of the spine the time of the row found: table `matched` (__pos, keys, __t)."""
    session.execute(
        f"CREATE TEMP TABLE matched AS SELECT spine.__pos, {_of('spine', facts.short_keys)}, found.__t "
        f"FROM spine ASOF JOIN ({facts.narrow()}) found ON {_equal(facts.short_keys)} AND spine.__t >= found.__t"
    )
    return 0


def _match_known(session: Any, facts: _Facts) -> int:
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


def _windows_as_of(
    session: Any, relation: Windows, spine: pa.Table, names: Collection[str], as_known: bool
) -> pa.Table:
    windows = [window for window in relation.windows if window.name in names]
    columns = Columns.of(windows)
    now = spine[EVENT_TIME].to_numpy().astype(np.int64, copy=False)
    at = now if relation.schedule is None else boundary_array(relation.schedule, now)
    facts = _Facts.of_windows(session, relation, columns)
    facts.until = _register_spine(session, relation.keys, spine, pa.array(at))
    facts.since = _reach(windows, int(at.min(initial=facts.until)))
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
        f"SELECT __key, {_event_columns(columns)} FROM ({facts.wide()}) JOIN numbered USING ({facts.keys}) "
        "ORDER BY __key, __t, __c"
    )
    for table, _ in events.whole_groups(_batches(rows), ["__key"], _EVENTS_AT_ONCE):
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


def _index(size: int, rows: Ints, position: Ints, wanted: Ints) -> Any:
    """Which fetched row stands at each position of the spine, null where none does: `rows` are the numbers of the
    winners fetched, `wanted` the numbers of those at `position`."""
    place = np.empty(len(rows), np.int64)
    place[rows] = np.arange(len(rows))
    index = np.full(size, -1, np.int64)
    index[position] = place[wanted]
    return pa.array(index, mask=index < 0)


def _ordered(columns: Mapping[str, Any], names: Collection[str], hidden: int | None) -> pa.Table:
    table = pa.table({name: columns[name] for name in (*names, EVENT_TIME)})
    return table if hidden is None else table.replace_schema_metadata({"hidden": str(hidden)})


def _event_columns(columns: Columns) -> str:
    """Of facts, what `Events` take."""
    return listed([TIME, f"coalesce(__c, {NO_CREATED}) AS __c", *columns.values.values(), *columns.conditions.values()])


def _reach(windows: Sequence[Window], at: int) -> int:
    """The earliest event time that counts in a window at an instant."""
    return min(((at - window.length) // window.hop * window.hop for window in windows), default=at)


def _of(table: str, names: Sequence[str]) -> str:
    return listed(f"{table}.{name}" for name in names)


def _equal(names: Sequence[str]) -> str:
    return " AND ".join(f"spine.{name} = found.{name}" for name in names)


def _check_one_row_a_key(session: Any, keys: Schema) -> None:
    named = listed(map(quoted, keys.names))
    present = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in keys.names)
    twice = session.execute(
        f"SELECT {named} FROM result WHERE {present} GROUP BY ALL HAVING count(*) > 1 LIMIT 1"
    ).fetchall()
    if twice:
        key = ", ".join(f"{name}={value!r}" for name, value in zip(keys.names, twice[0], strict=True))
        raise SourceError(f"the query has more than one row for {key}", hint="Group by the entity's key, or aggregate")


def _as_type(found: pa.Schema, name: str, type_: Type) -> str:
    """A column of a query's result as a type, by the rules of casts: towards zero, NULL where it fails."""
    index = found.get_field_index(name)
    if index < 0:
        raise SourceError(f'the query has no column "{name}"', hint=f"Its columns are {', '.join(found.names)}")
    arrow = found.field(index).type
    if type_.is_integer and (pa.types.is_floating(arrow) or pa.types.is_decimal(arrow)):
        return f"TRY_CAST(trunc({quoted(name)}) AS {type_.duckdb})"
    return f"TRY_CAST({quoted(name)} AS {type_.duckdb})"


def _batches(relation: Any) -> Batches:
    yield from relation.to_arrow_reader(_BATCH)


def _conform_batch(batch: pa.RecordBatch, keys: Schema) -> pa.RecordBatch:
    """With the key columns in their Arrow types."""
    columns = [
        _conform(c, t) if (t := keys.get(n)) else c for n, c in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _conform(column: Any, type_: Type | pa.DataType) -> Any:
    arrow = type_.arrow if isinstance(type_, Type) else type_
    return column if column.type == arrow else column.cast(arrow)


def _memory() -> int:
    """Bytes that this process may use: the machine's, or its control group's if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


@contextmanager
def _mapped(name: str, error: type[FeatureStoreError] = SourceError) -> Iterator[None]:
    """Turns errors of DuckDB, Arrow and the disk into ours, a line of a CSV file with its place."""
    try:
        yield
    except duckdb.Error as raised:
        message = str(raised)
        line, file = _CSV_LINE.search(message), _CSV_FILE.search(message)
        what = [part.strip() for part in message.splitlines() if part.strip()]
        if line and file:
            reason = next((part for part in what if part.startswith(("Error when", "Expected"))), what[-1])
            hint = "Correct the line, or declare the column's type in the source"
            raise error(f"{name}: {reason}", location=Location(file[1].strip(), int(line[1])), hint=hint) from raised
        raise error(f"{name} cannot be read: {what[0] if what else message}", hint=_hint(raised)) from raised
    except (OSError, pa.ArrowException) as raised:
        raise error(f"{name} cannot be read: {str(raised).splitlines()[0]}") from raised


def _hint(raised: duckdb.Error) -> str | None:
    if isinstance(raised, duckdb.OutOfMemoryException):
        return "Give the engine more memory, or ask for less at once"
    return None
