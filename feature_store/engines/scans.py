"""Rows as DuckDB SQL: files read with the columns and types that the source had at `apply`, or refused.

Nothing here runs SQL but `DESCRIBE`-like look-ups through the connection it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import pyarrow as pa

from feature_store.engines.files import Files, find_files
from feature_store.errors import DefinitionError, SourceError, nearest
from feature_store.expressions.relations import Rows
from feature_store.expressions.sql_writer import duckdb_order
from feature_store.storage.offline import FILE_NAME, delta_dataset, delta_parquet
from feature_store.storage.remote import is_uri
from feature_store.types import BOOL, Schema, Type

EVENT_ID = "__event_id"
"""The column of the log of pushed rows that identifies an event: rows equal in it count once."""

PARTITION, OFFSET = "__partition", "__offset"
"""The columns of the log of streamed rows that say where in the topic a row was."""

OF_STREAM = "__of_stream"
"""Whether a row is one that a stream counts."""

WITHDRAWN = "__withdrawn"
"""Whether a row that is not the stream's is the same event as one that is: batch may have counted it before."""

TIME, KNOWN = "__t", "__c"
"""Event time and created time (null where unknown) as they are read, in microseconds."""

_NANOSECOND_LIMIT = 2**63 // 1000 - 1  # microseconds beyond which a column of nanoseconds cannot be compared
_numbers = count()


def quoted(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("'", "''") + "'"


def listed(items: Iterable[str]) -> str:
    """SQL items with commas between them."""
    return ", ".join(items)


@dataclass(frozen=True)
class Part:
    """One thing that rows are read from, and the relation that reads it."""

    connection: Any
    rows: Rows
    files: Files

    @property
    def is_log(self) -> bool:
        """Whether these are the rows that came by push."""
        return self.files.path == self.rows.pushed

    @property
    def of_stream(self) -> str | None:
        """A condition for the rows that a stream counts, and batch does not; None where there can be none."""
        return counted_by_stream(self.rows, self.files.path)

    @cached_property
    def relation(self) -> str:
        """The FROM item; types are the files' own, but for CSV those of the schema where it names the column."""
        if is_uri(self.files.path):
            from feature_store.engines import remote  # only whose files are remote needs it

            remote.attach(self.connection, self.files.fingerprints)
        return self._csv(self._csv_types()) if self.files.format == "csv" else self._other()

    @cached_property
    def arrow(self) -> pa.Schema:
        """The columns as they are read."""
        return self._schema_of(self.relation)

    def _schema_of(self, relation: str) -> pa.Schema:
        return self.connection.sql(f"SELECT * FROM {relation} LIMIT 0").to_arrow_table().schema

    def _other(self) -> str:
        if self.files.format == "delta":
            return self._delta(f"delta_{next(_numbers)}")
        return f"read_parquet([{listed(map(text, self.files.fingerprints))}], union_by_name = true{self._hive()})"

    def _delta(self, name: str) -> str:
        """DuckDB reads Parquet faster and in less memory than Arrow's dataset does, where the table allows that. The
        empty table beside it has the columns that no file has."""
        found = delta_parquet(self.files.path)
        if found is None:
            files = self.files.fingerprints.keys() if self.files.partial else None
            self.connection.register(name, delta_dataset(self.files.path, files))
            return name
        self.connection.register(name, found.columns.empty_table())
        paths = listed(map(text, self.files.fingerprints))
        types = {column: Type.from_arrow(found.columns.field(column).type) for column in found.folders}
        read = f"read_parquet([{paths}], union_by_name = true{_folders(found.folders, types)}"
        if found.beside is None:
            columns = listed(map(quoted, found.columns.names))
            return f"(SELECT {columns} FROM (SELECT * FROM {read}) UNION ALL BY NAME SELECT * FROM {name}))"
        self.connection.register(f"{name}_files", found.beside)
        read = f"{read}, filename = {text(FILE_NAME)}) JOIN {name}_files USING ({FILE_NAME})"
        return f"(SELECT * EXCLUDE ({FILE_NAME}) FROM {read} UNION ALL BY NAME SELECT * FROM {name})"

    def _hive(self) -> str:
        types = {name: type_ for name in self.files.partitions if (type_ := self.rows.schema.get(name))}
        return _folders(self.files.partitions, types)

    def _csv(self, types: dict[str, Type]) -> str:
        first = next(iter(self.files.fingerprints))
        declared = listed(f"{text(name)}: {text(type_.duckdb)}" for name, type_ in types.items())
        return (
            f"read_csv([{listed(map(text, self.files.fingerprints))}], union_by_name = true, header = true, skip = 0, "
            f"delim = '{chr(9) if '.tsv' in first.lower() else ','}', quote = '\"', escape = '\"', "
            f"dateformat = '%Y-%m-%d'{self._hive()}{f', types = {{{declared}}}' if declared else ''})"
        )

    def _csv_types(self) -> dict[str, Type]:
        if not len(self.rows.schema):
            return {}
        present = self._schema_of(self._csv({})).names
        return {each.name: each.type for each in self.rows.schema if each.name in present
                and each.name not in self.files.partitions}  # fmt: skip

    def expression(self, name: str, opaque: bool = False) -> str:
        """A column of the schema, cast to its type; `SourceError` if it is gone or is something else now.

        `opaque` hides a column of floats from the optimiser: a file's statistics say nothing of NaN, and it would
        conclude from a greatest value of -1 that no value is > 0, though NaN is."""
        expected, there = check_column(self.rows, name, self.arrow, self.files.path)
        if not there:
            return f"CAST(NULL AS {expected.duckdb})"
        read = f"CAST({quoted(name)} AS {expected.duckdb})"
        if opaque and expected.is_float:
            return f"CASE WHEN isnan({read}) THEN CAST('NaN' AS {expected.duckdb}) ELSE {read} END"
        return read

    def micros(self, name: str) -> str:
        """A column of times as microseconds, from what is in the file: a cast to an instant first costs much more."""
        self.expression(name)
        index = self.arrow.get_field_index(name)
        if index < 0 or pa.types.is_null(self.arrow.field(index).type):
            return "CAST(NULL AS BIGINT)"
        # DuckDB's epoch_us takes no instants in nanoseconds, which pandas writes.
        instants = _is_nanoseconds(self.arrow.field(index).type) and self.arrow.field(index).type.tz is not None
        return f"epoch_us(CAST({quoted(name)} AS TIMESTAMPTZ))" if instants else f"epoch_us({quoted(name)})"

    def within(self, since: int | None, until: int | None) -> str:
        """A condition on the raw event time, since <= time < until, so that files and row groups can be skipped."""
        name = self.rows.timestamp
        assert name is not None
        type_ = self.arrow.field(name).type if name in self.arrow.names else None
        aware = type_ is None or not pa.types.is_timestamp(type_) or type_.tz is not None
        limit = _NANOSECOND_LIMIT if _is_nanoseconds(type_) else None
        cast = "::TIMESTAMPTZ_NS" if limit is not None and aware else ""
        terms = [f"{quoted(name)} IS NOT NULL"]
        for sign, bound in ((">=", since), ("<", until)):
            if bound is not None:
                at = bound if limit is None else max(-limit, min(bound, limit))
                terms.append(f"{quoted(name)} {sign} make_timestamp{'tz' if aware else ''}({at}::BIGINT){cast}")
        return " AND ".join(terms)


def _folders(names: Collection[str], types: Mapping[str, Type]) -> str:
    """The option by which folders named column=value are columns, of these types where they are known."""
    if not names:
        return ", hive_partitioning = false"
    declared = listed(f"{text(name)}: {text(type_.duckdb)}" for name, type_ in types.items())
    return ", hive_partitioning = true" + (f", hive_types = {{{declared}}}" if declared else "")


def _is_nanoseconds(type_: pa.DataType | None) -> bool:
    return type_ is not None and bool(pa.types.is_timestamp(type_)) and type_.unit == "ns"


class Scan:
    """Rows to select from, over a connection. `inputs` limits them to these of their files."""

    def __init__(self, connection: Any, rows: Rows, inputs: Collection[str] | None = None) -> None:
        self.rows = rows
        self._connection = connection
        files = find_files(rows)
        if inputs is not None:
            files = tuple(each.only(frozenset(inputs)) for each in files)
        self.parts = tuple(Part(connection, rows, each) for each in files if each.fingerprints)

    @property
    def is_cheap(self) -> bool:
        """Whether reading a few columns, or reading twice, costs little."""
        return all(part.files.format != "csv" for part in self.parts)

    def check_time(self) -> None:
        """`SourceError` unless the event time, and created where there is one, are timestamps or dates."""
        check_times(self.rows)

    @property
    def _stamps(self) -> dict[str, str]:
        """The columns of time, by the name under which they are read as microseconds."""
        return stamps_of(self.rows)

    def select(
        self,
        columns: Iterable[str],
        since: int | None = None,
        until: int | None = None,
        once: bool = False,
        stamped: bool = False,
        opaque: Collection[str] = (),
    ) -> str:
        """SQL for these columns of the rows with since <= event time < until (no bounds: of all rows).

        `once` keeps one of the rows that are the same event: the one with the least (event time, created, ...).
        `stamped` adds `TIME` and `KNOWN`. `opaque`: columns that are computed with (see `Part.expression`). Of what is
        read `once` beside a stream, `WITHDRAWN` is a column, too.
        """
        names = list(dict.fromkeys(columns))
        if not self.parts:
            return self._nothing(names, stamped)
        if once and self.rows.unique:
            columns = list(self.rows.schema.names)
            every = " UNION ALL ".join(self._typed(part, columns, opaque=opaque, marked=True) for part in self.parts)
            first = _first_of_each(every, self.rows, listed(map(quoted, self.rows.unique)))
            return self._of_typed(first, names, since, until, stamped)
        return " UNION ALL ".join(
            self._of_typed(self._log(part), names, since, until, stamped)
            if once and part.is_log
            else self._typed(part, names, since, until, stamped, opaque)
            for part in self.parts
        )

    def touched(self, names: Sequence[str], inputs: Collection[str]) -> str:
        """SQL for these columns of rows of some of the inputs, the withdrawn ones too."""
        some = Scan(self._connection, self.rows, inputs)
        if not (may_withdraw(self.rows) and some.parts):
            return some.select(names)
        unique = listed(map(quoted, self.rows.unique))
        columns = list(dict.fromkeys([*names, *self.rows.unique]))
        marked = " UNION ALL ".join(some._typed(part, columns, marked=True) for part in some.parts)
        same = " AND ".join(f"given.{name} IS NOT DISTINCT FROM own.{name}" for name in map(quoted, self.rows.unique))
        return (
            f"WITH given AS ({marked}) SELECT {listed(map(quoted, names))} FROM given WHERE NOT {OF_STREAM} "
            f"UNION ALL SELECT {listed(map(quoted, names))} FROM (SELECT * FROM given WHERE {OF_STREAM}) AS given "
            f"SEMI JOIN (SELECT DISTINCT {unique} FROM ({self.select(self.rows.unique)})) AS own ON {same}"
        )

    def _of_typed(self, rows: str, names: list[str], since: int | None, until: int | None, stamped: bool) -> str:
        selected = [quoted(name) for name in names]
        if stamped:
            selected += [f"{self._micros(short)} AS {short}" for short in (TIME, KNOWN)]
        time = quoted(self.rows.timestamp or "")
        terms = [f"{time} >= make_timestamptz({since}::BIGINT)"] if since is not None else []
        terms += [f"{time} < make_timestamptz({until}::BIGINT)"] if until is not None else []
        terms += [f"{time} IS NOT NULL"] if stamped else []
        return f"SELECT {listed(selected)} FROM ({rows}) WHERE {' AND '.join(terms) or 'true'}"

    def _micros(self, short: str) -> str:
        return f"epoch_us({quoted(self._stamps[short])})" if short in self._stamps else "CAST(NULL AS BIGINT)"

    def _log(self, part: Part) -> str:
        typed = listed(f"{part.expression(name, opaque=True)} AS {quoted(name)}" for name in self.rows.schema.names)
        rows = f"SELECT {typed}, {quoted(EVENT_ID)} FROM {part.relation}"
        return _first_of_each(rows, self.rows, quoted(EVENT_ID))

    def _nothing(self, names: list[str], stamped: bool) -> str:
        selected = [f"CAST(NULL AS {self._type(name).duckdb}) AS {quoted(name)}" for name in names]
        selected += [f"CAST(NULL AS BIGINT) AS {short}" for short in ((TIME, KNOWN) if stamped else ())]
        return f"SELECT {listed(selected)} WHERE false"

    def _type(self, name: str) -> Type:
        if name == WITHDRAWN:
            return BOOL
        type_ = self.rows.schema.get(name)
        if type_ is None:
            raise SourceError(f'source "{self.rows.name}" has no column "{name}"')
        return type_

    def _typed(
        self,
        part: Part,
        names: list[str],
        since: int | None = None,
        until: int | None = None,
        stamped: bool = False,
        opaque: Collection[str] = (),
        marked: bool = False,
    ) -> str:
        """SQL for columns of a part. Rows that a stream counts are left out, or `marked` where that can be."""
        selected = [f"{part.expression(name, name in opaque)} AS {quoted(name)}" for name in names]
        if stamped:
            for short in (TIME, KNOWN):
                column = self._stamps.get(short)
                selected.append(f"{part.micros(column) if column else 'CAST(NULL AS BIGINT)'} AS {short}")
        bounded = stamped or since is not None or until is not None
        condition = part.within(since, until) if bounded else "true"
        if marked and self.rows.before is not None:
            selected.append(f"{part.of_stream or 'false'} AS {OF_STREAM}")
        elif part.of_stream:
            condition += f" AND NOT {part.of_stream}"
        return f"SELECT {listed(selected)} FROM {part.relation} WHERE {condition}"


def _first_of_each(relation: str, rows: Rows, identity: str) -> str:
    order = [name for name in (rows.timestamp, rows.created) if name]
    order += [name for name in rows.schema.names if name not in order]
    typed = ((quoted(name), rows.schema.get(name)) for name in order)
    keys = listed(f"{duckdb_order(name, type_) if type_ else name} NULLS FIRST" for name, type_ in typed)
    if not may_withdraw(rows):
        return f"SELECT * FROM ({relation}) QUALIFY row_number() OVER (PARTITION BY {identity} ORDER BY {keys}) = 1"
    # Of an event the same row as before a copy of it came by the stream, so that its tile bears the same stamp.
    return (
        f"SELECT *, bool_or({OF_STREAM}) OVER (PARTITION BY {identity}) AS {WITHDRAWN} FROM ({relation}) "
        f"QUALIFY row_number() OVER (PARTITION BY {identity} ORDER BY {OF_STREAM}, {keys}) = 1 AND NOT {OF_STREAM}"
    )


def may_withdraw(rows: Rows) -> bool:
    """Whether what batch has counted may turn out to be the stream's."""
    return rows.before is not None and bool(rows.unique)


def counted_by_stream(rows: Rows, path: str) -> str | None:
    """A condition for the rows at a path that a stream counts, and batch does not; None where there can be none."""
    if rows.before is None or path != rows.streamed:
        return None
    for_batch = " OR ".join(f"({PARTITION} = {part} AND {OFFSET} < {before})" for part, before in rows.before)
    return f"(NOT ({for_batch or 'false'}))"


def schema_of(scan: Scan) -> Schema:
    """The columns of the files as they are now; those of types that no feature has are left out."""
    if not scan.parts:
        raise SourceError(
            f'source "{scan.rows.name}": {scan.rows.path} has no rows yet, so no columns to read',
            hint="Declare its columns, or add a first file",
        )
    columns = []
    for field in scan.parts[0].arrow:
        try:
            columns.append((field.name, Type.from_arrow(field.type)))
        except DefinitionError:
            continue
    return Schema.of(**dict(columns))


def stamps_of(rows: Rows) -> dict[str, str]:
    """The columns of time, by the name under which they are read as microseconds."""
    named = {TIME: rows.timestamp, KNOWN: rows.created}
    return {name: column for name, column in named.items() if column is not None}


def check_times(rows: Rows) -> None:
    """`SourceError` unless the event time, and created where there is one, are timestamps or dates."""
    if rows.timestamp is None:
        raise SourceError(f'source "{rows.name}" has no timestamp column', hint="Add timestamp: to the source")
    for name in stamps_of(rows).values():
        type_ = rows.schema.get(name)
        if type_ is None:
            raise SourceError(f'source "{rows.name}" has no column "{name}"')
        if type_.kind not in ("TIMESTAMP", "DATE"):
            raise SourceError(
                f'source "{rows.name}": time column "{name}" is {type_}, not a timestamp or date',
                hint="Store it as a timestamp; in CSV write ISO 8601",
            )


def check_column(rows: Rows, name: str, found: pa.Schema, path: str) -> tuple[Type, bool]:
    """The type of a column of the schema, and whether it is among the columns `found` at a path: the logs may lack
    some. `SourceError` if it is gone or is something else now."""
    expected, index = rows.schema.get(name), found.get_field_index(name)
    if expected is None:
        raise SourceError(f'source "{rows.name}" has no column "{name}"', hint=_known(name, found))
    if index < 0:
        if path in (rows.pushed, rows.streamed):
            return expected, False
        raise SourceError(
            f'source "{rows.name}": column "{name}" was {expected} at apply and is gone from {path}',
            hint=_known(name, found),
        )
    if not _fits(found.field(index).type, expected):
        raise SourceError(
            f'source "{rows.name}": column "{name}" was {expected} at apply and is '
            f"{_spelt(found.field(index).type)} in {path}",
            hint="Restore the files, or change the source and run fs apply",
        )
    return expected, True


def _known(name: str, found: pa.Schema) -> str:
    return nearest(name, found.names) or f"It has {', '.join(found.names)}"


def _spelt(arrow: pa.DataType) -> str:
    try:
        return str(Type.from_arrow(arrow))
    except DefinitionError:
        return str(arrow)


def _fits(arrow: pa.DataType, expected: Type) -> bool:
    """Whether values read as one type are, value by value, values of the expected one (or an error, if too large)."""
    if pa.types.is_null(arrow):
        return True
    try:
        found = Type.from_arrow(arrow)
    except DefinitionError:
        return False
    return fits(found, expected)


def fits(found: Type, expected: Type) -> bool:
    """Whether values of a type may stand where another is expected."""
    if found == expected:
        return True
    if found.is_integer:
        return expected.is_numeric
    if found.kind == "DECIMAL":
        return expected.is_float or (expected.kind == "DECIMAL" and found.scale <= expected.scale)
    if found.item and expected.item:
        return fits(found.item, expected.item)
    return (found.is_float and expected.is_float) or (found.kind, expected.kind) == ("DATE", "TIMESTAMP")
