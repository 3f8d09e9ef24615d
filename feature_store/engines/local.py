"""The embedded engine: DuckDB in this process, over files.

files    what lies under a path
scans    its columns as SQL, with the types they had at `apply`
facts    keys, times and values of a view, as SQL
asof     what was found at T
windows  aggregates over sorted events
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from feature_store.engines import facts as reading
from feature_store.engines import windows as events
from feature_store.engines.asof import latest_as_of, windows_as_of
from feature_store.engines.engine import METASTORE_TABLES, Computed, Sink
from feature_store.engines.facts import (
    Batches,
    Facts,
    batches,
    conform,
    event_columns,
    snapshot_rows,
    snapshot_schema,
)
from feature_store.engines.files import csv_misfit, find_files
from feature_store.engines.scans import TIME, Scan, listed, quoted, schema_of
from feature_store.engines.windows import Columns
from feature_store.errors import FeatureStoreError, InvalidInputError, Location, SourceError, StoreUnavailableError
from feature_store.expressions.queries import bind_query, render
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import LatestRow, Rows, ScheduledQuery, Windows, reach
from feature_store.expressions.scalars import Scalar, to_sql
from feature_store.expressions.schedules import date_valid_at
from feature_store.storage.online import CREATED, EVENT_TIME, NO_CREATED
from feature_store.types import Schema, Type

if TYPE_CHECKING:
    from feature_store.storage.offline import OfflineStore

_SETTINGS = (  # no bar on the standard output, which DuckDB shows in an interpreter that runs no file
    "SET SESSION TimeZone = 'UTC'; SET SESSION preserve_insertion_order = false; SET enable_progress_bar = false"
)
_SPARING = {"allocator_flush_threshold": "1MiB", "allocator_bulk_deallocation_flush_threshold": "1MiB"}

_UNREACHABLE = re.compile(r"^[\w.]*StoreUnavailableError: (.+)$", re.MULTILINE)
_CSV_LINE = re.compile(r"CSV Error on Line: (\d+)")
_CSV_SNIFFED = re.compile(r'Error when sniffing file "(.+?)"')
_CSV_FILE = re.compile(r"^\s*file = (.+)$", re.MULTILINE)


class LocalRows:
    """The port `Computed` on rows that are made in this process, as one part."""

    def __init__(self, read: Callable[[], pa.RecordBatchReader]) -> None:
        self.read = read

    def write(self, sink: Sink) -> int:
        return sink(batch for batch in self.read() if batch.num_rows)

    def save(self, store: OfflineStore, table: str, where: Mapping[str, str]) -> LocalRows:
        store.replace(table, _partitioned(self.read(), where), where)
        return LocalRows(lambda: store.read(table, where).drop_columns([*where]).to_reader(reading.BATCH))

    def count(self) -> int:
        return sum(batch.num_rows for batch in self.read())


class LocalEngine:
    """The port `Engine` on DuckDB. `memory_limit` (such as "1GB"; default: half of what this process may use) is for
    DuckDB alone; what does not fit spills to a temporary folder. Safe to share between threads."""

    gaps = frozenset({METASTORE_TABLES})
    distributed = False

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
        self._config = config
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
        with mapped(rows.name):
            return {name: mark for files in find_files(rows) for name, mark in files.fingerprints.items()}

    def earliest(self, rows: Rows) -> int | None:
        with self._session(rows.name) as session:
            scan = Scan(session, rows)
            scan.check_time()
            found = session.execute(f"SELECT min({TIME}) FROM ({scan.select([], stamped=True)})").fetchall()[0][0]
            return None if found is None else int(found)

    def latest(
        self, relation: LatestRow, start: int | None, until: int, touched: Collection[str] | None = None
    ) -> Computed:
        stamps = [pa.field(EVENT_TIME, pa.int64()), pa.field(CREATED, pa.int64())]
        values = [pa.field(each.name, each.type.arrow) for each in relation.values]
        schema = pa.schema([*relation.keys.arrow, *values, *stamps])

        def rows(session: Any) -> Batches:
            facts = Facts(session, relation.rows, relation.keys, [each.scalar for each in relation.values])
            facts.since, facts.until = start, until + 1
            if touched is not None:
                facts.restrict_to_inputs(touched)
            facts.settle()
            session.execute(
                f"CREATE TEMP TABLE winners AS SELECT {facts.keys}, max(__t) AS __t "
                f"FROM ({facts.narrow()}) GROUP BY ALL"
            )
            columns = f"{facts.keys}, {facts.values}, __t, coalesce(__c, {NO_CREATED})"
            yield from batches(session.sql(f"SELECT {columns} FROM ({facts.fetch('__t')})"))

        return LocalRows(lambda: self._stream(relation.rows.name, schema, rows, alone=True))

    def tiles(
        self, relation: Windows, level: int, start: int | None, until: int, touched: Collection[str] | None = None
    ) -> Computed:
        relation = events.of_batch(relation)
        windows = relation.at_level(level)
        columns = Columns.of(windows)

        def rows(session: Any) -> Batches:
            facts = Facts.of_windows(session, relation, columns)
            facts.since, facts.until = None if start is None else start // level * level, until
            if touched is not None:
                facts.restrict_to_inputs(touched)
            for table, group in self._groups(session, facts, relation.keys, columns):
                yield from events.tiles(relation, level, table, group, columns, until).to_batches()

        return self._computed(relation.rows.name, events.tiles_schema(relation.keys, windows), rows)

    def snapshot(self, relation: Windows | ScheduledQuery, at: int, *, as_known: bool = False) -> Computed:
        if isinstance(relation, ScheduledQuery):
            return self._run(relation, at, as_known)
        columns = Columns.of(relation.windows)

        def rows(session: Any) -> Batches:
            facts = Facts.of_windows(session, relation, columns)
            facts.since, facts.until = reach(relation.windows, at), at
            facts.known_by = at if as_known else None
            for table, group in self._groups(session, facts, relation.keys, columns):
                yield from snapshot_rows(relation, table, group, columns, at).to_batches()

        return self._computed(relation.rows.name, snapshot_schema(relation), rows)

    def as_of(
        self, relation: LatestRow | Windows, spine: pa.Table, names: Collection[str], as_known: bool = False
    ) -> pa.Table:
        with self._session(relation.rows.name) as session:
            if isinstance(relation, LatestRow):
                return latest_as_of(session, relation, spine, names, as_known)
            return windows_as_of(session, relation, spine, names, as_known)

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
                table = table.append_column(name, conform(found[name], scalar.type))
        return table

    def select(self, sql: str, sources: Collection[Rows]) -> pa.Table:
        used = bind_query(sql, {source.name: source.schema for source in sources}, sample=True).tables
        with self._session(" and ".join(used) or "the SELECT") as session:
            session.execute("SET SESSION preserve_insertion_order = true")
            among = [source for source in sources if source.name in used]
            sql = _rendered(session, sql, among, datetime.now(UTC).date(), sample=True)
            return session.sql(sql).to_arrow_table()

    def _run(self, query: ScheduledQuery, at: int, as_known: bool) -> Computed:
        """The result of a scheduled query."""
        columns = [(key.name, key.name, key.type) for key in query.keys] + list(query.values)
        schema = pa.schema([pa.field(name, type_.arrow) for name, _, type_ in columns])
        where = " and ".join(source.name for source in query.sources) or "a query"
        told: dict[str, str] = {}

        def rows(session: Any) -> Batches:
            sql = _rendered(session, query.sql, query.sources, date_valid_at(query, at), at if as_known else None)
            session.execute(f"CREATE TEMP TABLE result AS {sql}")
            if as_known:
                told["hidden"] = str(sum(_hidden(session, source, at) for source in query.sources))
            _check_one_row_a_key(session, query.keys)
            found = session.sql("SELECT * FROM result LIMIT 0").to_arrow_table().schema
            selected = listed(f"{_as_type(found, column, type_)} AS {quoted(name)}" for name, column, type_ in columns)
            condition = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in query.keys.names)
            yield from batches(session.sql(f"SELECT {selected} FROM result WHERE {condition}"))

        return self._computed(where, schema, rows, told)

    def _groups(self, session: Any, facts: Facts, keys: Schema, columns: Columns) -> Iterator[tuple[pa.Table, Ints]]:
        """Events in order of key and time, under the keys' own names, in tables of whole keys."""
        facts.settle()
        named = listed(f"{short} AS {quoted(name)}" for short, name in zip(facts.short_keys, keys.names, strict=True))
        order = f"ORDER BY {facts.keys}, __t, __c"
        relation = session.sql(f"SELECT {named}, {event_columns(columns)} FROM ({facts.wide()}) {order}")
        conformed = (_conform_batch(batch, keys) for batch in batches(relation))
        return events.whole_groups(conformed, keys.names, reading.EVENTS_AT_ONCE)

    def _computed(
        self, name: str, schema: pa.Schema, rows: Callable[[Any], Batches], told: Mapping[str, str] | None = None
    ) -> Computed:
        return LocalRows(lambda: self._stream(name, schema, rows, told))

    def _stream(
        self,
        name: str,
        schema: pa.Schema,
        rows: Callable[[Any], Batches],
        told: Mapping[str, str] | None = None,
        alone: bool = False,
    ) -> pa.RecordBatchReader:
        """A reader over what `rows` yields in a session of its own, or `alone` in a database of its own; the first
        batch is there when it returns, so that what is wrong with the source is raised here. `told`, which `rows` may
        fill before that, is the metadata."""

        def conformed() -> Batches:
            with self._alone(name) if alone else self._session(name) as session:
                for batch in rows(session):
                    columns = [conform(column, field.type) for column, field in zip(batch.columns, schema, strict=True)]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)

        running = conformed()
        first = next(running, None)
        ahead: list[pa.RecordBatch] = [] if first is None else [first]
        described = schema.with_metadata(told) if told else schema
        return pa.RecordBatchReader.from_batches(described, itertools.chain(ahead, running))

    @contextmanager
    def _session(self, name: str, error: type[FeatureStoreError] = SourceError) -> Iterator[Any]:
        with mapped(name, error), closing(self._database.cursor()) as session:
            session.execute(_SETTINGS)
            yield session

    @contextmanager
    def _alone(self, name: str) -> Iterator[Any]:
        """A session whose memory stays small beside what writes its rows, which takes longer than to read them: on one
        core, that has one part of a file at hand, and with little kept that is not in use."""
        spill = tempfile.mkdtemp(dir=self._spill)  # two databases in one would write over each other's files
        config = self._config | {"temp_directory": spill, "threads": 1, **_SPARING}
        try:
            with mapped(name, SourceError), closing(duckdb.connect(":memory:", config=config)) as session:
                session.execute(_SETTINGS)
                yield session
        finally:
            shutil.rmtree(spill, ignore_errors=True)


def _rendered(
    session: Any, sql: str, sources: Collection[Rows], day: date, known_by: int | None = None, sample: bool = False
) -> str:
    """Spark SQL over sources as DuckDB SQL over views of them, which the session has now; `known_by`: of the rows
    created by then."""
    names = {source.name: f"__source_{number}" for number, source in enumerate(sources)}
    for source in sources:
        select = Scan(session, source).select(source.schema.names, once=True, opaque=source.schema.names)
        if known_by is not None and source.created:
            select = f"SELECT * FROM ({select}) WHERE coalesce(epoch_us({quoted(source.created)}) <= {known_by}, true)"
        session.execute(f"CREATE TEMP VIEW {quoted(names[source.name])} AS {select}")
    return render(sql, "duckdb", {source.name: source.schema for source in sources}, day, names, sample)


def _hidden(session: Any, source: Rows, at: int) -> int:
    """How many rows of a source had happened before an instant, and were created after it."""
    if not source.created:
        return 0
    names = [name for name in (source.timestamp, source.created) if name]
    terms = [f"epoch_us({quoted(source.created)}) > {at}"]
    terms += [f"epoch_us({quoted(source.timestamp)}) < {at}"] if source.timestamp else []
    select = Scan(session, source).select(names, once=True)
    return int(session.execute(f"SELECT count(*) FROM ({select}) WHERE {' AND '.join(terms)}").fetchall()[0][0])


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


def _partitioned(rows: pa.RecordBatchReader, partition: Mapping[str, str]) -> pa.RecordBatchReader:
    """The rows with the partition's columns behind them."""
    schema = rows.schema
    for name in partition:
        schema = schema.append(pa.field(name, pa.string()))
    return pa.RecordBatchReader.from_batches(
        schema,
        (
            pa.record_batch(
                [*batch, *(pa.repeat(value, batch.num_rows) for value in partition.values())], schema=schema
            )
            for batch in rows
        ),
    )


def _conform_batch(batch: pa.RecordBatch, keys: Schema) -> pa.RecordBatch:
    """With the key columns in their Arrow types."""
    columns = [
        conform(c, t) if (t := keys.get(n)) else c for n, c in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


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
def mapped(name: str, error: type[FeatureStoreError] = SourceError) -> Iterator[None]:
    """Turns errors of DuckDB, Arrow and the disk into ours, a line of a CSV file with its place."""
    try:
        yield
    except duckdb.Error as raised:
        message = str(raised)
        if unreachable := _UNREACHABLE.search(message):
            raise StoreUnavailableError(f"{name}: {unreachable[1]}") from raised
        line, file = _CSV_LINE.search(message), _CSV_FILE.search(message)
        what = [part.strip() for part in message.splitlines() if part.strip()]
        if line and file:
            reason = next((part for part in what if part.startswith(("Error when", "Expected"))), what[-1])
            hint = "Correct the line, or declare the column's type in the source"
            raise error(f"{name}: {reason}", location=Location(file[1].strip(), int(line[1])), hint=hint) from raised
        if sniffed := _CSV_SNIFFED.search(message):
            raise _odd_line(name, sniffed[1], error) from raised
        raise error(f"{name} cannot be read: {what[0] if what else message}", hint=_hint(raised)) from raised
    except (OSError, pa.ArrowException) as raised:
        raise error(f"{name} cannot be read: {str(raised).splitlines()[0]}") from raised


def _odd_line(name: str, path: str, error: type[FeatureStoreError]) -> FeatureStoreError:
    """What to say of a CSV file that DuckDB makes no sense of: the first line that has not as many values as the
    header, where that is what is wrong."""
    line, wanted, found = csv_misfit(path)
    hint = "Correct the line: a value with a comma in it needs quotes" if line else "Correct it, or write it anew"
    what = f"{found} values in a line, where the header has {wanted}" if line else f"{path} is not a CSV file"
    return error(f"{name} cannot be read: {what}", location=Location(path, line), hint=hint)


def _hint(raised: duckdb.Error) -> str | None:
    if isinstance(raised, duckdb.OutOfMemoryException):
        return "Give the engine more memory, or ask for less at once"
    return None
