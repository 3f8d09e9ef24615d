"""Messages of a topic as rows of its source: JSON objects, or Avro records, bare or behind the id of their schema.

A message is read as POST /push reads a row. What cannot be read is told with its reason and spoils nothing else: whole
columns are converted at once, and only a column that holds something odd is gone through value by value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from io import BytesIO
from itertools import chain
from typing import Any, Protocol
from uuid import UUID

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.definitions.source import Source
from feature_store.errors import InvalidInputError, MissingExtraError, NotFoundError, SourceError
from feature_store.expressions.instants import DAY, SECOND
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import Rows
from feature_store.materialization.events import micros
from feature_store.materialization.push import odd_times
from feature_store.storage.rows import to_arrow
from feature_store.types import FLOAT64, TIMESTAMP, Column, Type
from feature_store.values import EARLIEST, LATEST, read_value

_ID = 5
"""Bytes before a record in the format of Confluent's serializers: a zero, and the id of its schema."""

_NONE = {type(None)}
_PLAIN: dict[str, set[type]] = {
    "INT32": {int}, "INT64": {int}, "FLOAT32": {int, float}, "FLOAT64": {int, float}, "STRING": {str}, "BYTES": {bytes},
    "BOOL": {bool}, "TIMESTAMP": {datetime}, "DATE": {date}, "DECIMAL": {Decimal},
}  # fmt: skip
"""What needs no more than a look at its range, which Arrow has."""

_NOT_PLAIN = (pa.ArrowException, ValueError, TypeError, OverflowError)


@dataclass(frozen=True)
class Decoded:
    """Rows in the schema of their source, and the messages that cannot be taken."""

    rows: pa.Table
    places: Ints
    """For each row the index of its message."""
    bad: tuple[tuple[int, str], ...]
    """The index of a message and in one line what is wrong with it, in order."""


class _Reader(Protocol):
    """Reads one message: what it holds, of any type; `InvalidInputError` if it cannot be read."""

    def read(self, message: bytes) -> Any: ...


class Decoder:
    """Reads the messages of a source's topic.

    `avro_schema` is the text of the schema, as `Kafka.read_avro_schema` gives it. `schemas` gives the text of the
    schema of an id, or raises `NotFoundError`: then a message is bad. Whatever else it raises (the schema registry is
    down) comes out of `decode`, which may be called again.
    """

    def __init__(
        self, source: Source, rows: Rows, avro_schema: str | None, schemas: Callable[[int], str] | None
    ) -> None:
        assert source.stream and source.stream.kafka and rows.timestamp
        kafka = source.stream.kafka
        self._rows, self._timestamp = rows, rows.timestamp
        self._json = kafka.format == "json"
        self._reader = _JsonReader() if self._json else _avro_reader(source, avro_schema, schemas)

    def decode(self, values: Sequence[bytes | None], produced: Ints, now: int) -> Decoded:
        """The rows of messages; one without a value (a tombstone) has none. `produced` says when each came into the
        topic, which is when the platform learnt of it; times are in microseconds."""
        found: list[dict[str, Any]] = []
        places: list[int] = []
        bad: dict[int, str] = {}
        read = self._reader.read
        for place, value in enumerate(values):
            if value is None:
                continue
            try:
                row = read(value)
            except InvalidInputError as error:
                bad[place] = _one_line(error)
                continue
            if type(row) is dict:
                found.append(row)
                places.append(place)
            else:
                bad[place] = f"it is {_A.get(type(row), type(row).__name__)}, not an object with a value a column"
        return self._table(found, np.array(places, np.int64), bad, produced, now)

    def _table(
        self, found: Sequence[dict[str, Any]], places: Ints, bad: dict[int, str], produced: Ints, now: int
    ) -> Decoded:
        faults: dict[int, str] = {}
        arrays = []
        for column in self._rows.schema:
            array, misfits = self._column(column, [row.get(column.name) for row in found])
            arrays.append(array)
            faults = misfits | faults
        table = pa.table(arrays, schema=self._rows.schema.arrow)
        faults = self._time_faults(table, np.minimum(produced[places], now)) | faults
        table = _filled(table, self._rows.created, produced[places])
        if faults:
            bad |= {int(places[row]): fault for row, fault in faults.items()}
            good = np.setdiff1d(np.arange(len(places)), list(faults))
            table, places = table.take(pa.array(good)), places[good]
        return Decoded(table, places, tuple(sorted(bad.items())))

    def _column(self, column: Column, values: list[Any]) -> tuple[pa.Array, dict[int, str]]:
        """The values of a column, null where one is not of its type, and which those are and why."""
        try:
            return _plain(column.type, values), {}
        except _NOT_PLAIN:
            pass
        read, faults = [], {}
        for row, value in enumerate(values):
            try:
                read.append(self._value(column.type, value))
            except InvalidInputError as error:
                read.append(None)
                faults[row] = _one_line(error, column)
        return to_arrow(read, column.type), faults

    def _value(self, type_: Type, value: Any) -> Any:
        """A raw row value."""
        if type_.item is not None and isinstance(value, list):
            return [self._value(type_.item, item) for item in value]
        if isinstance(value, UUID) and type_.kind == "STRING":
            return str(value)
        if isinstance(value, str) and not self._json and (type_.kind == "BYTES" or type_.is_float):
            # Text stands for bytes and NaN where JSON has no other way to write them; Avro has.
            raise InvalidInputError(f"a string is not a {type_}")
        return read_value(type_, value)

    def _time_faults(self, table: pa.Table, now: Ints) -> dict[int, str]:
        name = self._timestamp
        missing = pc.is_null(table[name]).to_numpy()
        times = micros(pc.fill_null(table[name].cast(TIMESTAMP.arrow), pa.scalar(0).cast(TIMESTAMP.arrow)))
        faults = dict.fromkeys(np.flatnonzero(missing).tolist(), f'column "{name}" is null: an event has a time')
        for row, fault, hint in odd_times(times, now):
            faults[row] = f'column "{name}": {fault}' + (f". {hint}" if hint else "")
        return faults


class _JsonReader:
    def read(self, message: bytes) -> Any:
        try:
            return orjson.loads(message)
        except orjson.JSONDecodeError as error:
            raise InvalidInputError(f"it is not JSON: {error}" if message else "it is empty") from None


def _avro_reader(source: Source, avro_schema: str | None, schemas: Callable[[int], str] | None) -> _Reader:
    assert source.stream and source.stream.kafka
    schema = None
    if avro_schema is not None:
        try:
            schema = _avro_schema(avro_schema)
        except InvalidInputError as error:
            raise SourceError(f'source "{source.name}": avro_schema: {error}') from None
    if not source.stream.kafka.uses_registry:
        return _AvroReader(schema, None)
    if schemas is None:
        raise SourceError(
            f'source "{source.name}": its messages begin with the id of a schema, and no schema registry is known',
            hint="Write in feature_store.yaml kafka: {schema_registry: http://host:8081}",
        )
    return _AvroReader(schema, schemas)


class _AvroReader:
    """Records of one schema or, with `schemas`, behind the id of that which each is written with; these are read as
    `schema` where there is one."""

    def __init__(self, schema: Any | None, schemas: Callable[[int], str] | None) -> None:
        fastavro = _fastavro()
        self._schema, self._schemas = schema, schemas
        self._written: dict[int, Any] = {}
        self._record, self._unresolved = fastavro.schemaless_reader, fastavro.read.SchemaResolutionError

    def read(self, message: bytes) -> Any:
        stream = BytesIO(message)
        if self._schemas is None:
            return self._read(stream, len(message), self._schema, None)
        head = stream.read(_ID)
        if len(head) < _ID or head[0] != 0:
            raise InvalidInputError("it does not begin with a zero and 4 bytes with the id of its schema")
        id_ = int.from_bytes(head[1:], "big")
        written = self._written.get(id_) or self._fetched(id_, self._schemas)
        try:
            return self._read(stream, len(message), written, self._schema)
        except InvalidInputError as error:
            raise InvalidInputError(f"schema {id_}: {error}") from None

    def _read(self, stream: BytesIO, end: int, written: Any, schema: Any | None) -> Any:
        try:
            record = self._record(stream, written, schema)
        except self._unresolved as error:
            raise InvalidInputError(f"it cannot be read as avro_schema: {_reason(error)}") from None
        except Exception as error:  # damaged bytes raise whatever they lead to: EOFError, KeyError, OverflowError
            raise InvalidInputError(f"it is no record of its schema: {_reason(error)}") from None
        if stream.tell() != end:
            raise InvalidInputError(f"{end - stream.tell()} bytes follow the record: it is of another schema")
        return record

    def _fetched(self, id_: int, schemas: Callable[[int], str]) -> Any:
        try:
            written = _avro_schema(schemas(id_))
        except NotFoundError as error:  # not kept: the registry may learn of it
            raise InvalidInputError(str(error)) from None
        except InvalidInputError as error:
            raise InvalidInputError(f"schema {id_}: {error}") from None
        self._written[id_] = written
        return written


def _avro_schema(text: str) -> Any:
    """A parsed schema; `InvalidInputError` if it is none."""
    fastavro = _fastavro()
    wrong = (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType)
    try:
        return fastavro.parse_schema(json.loads(text))
    except (*wrong, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InvalidInputError(f"it is no Avro schema: {_reason(error)}") from None


def _fastavro() -> Any:
    try:
        import fastavro.read
        import fastavro.schema
    except ImportError:
        raise MissingExtraError("kafka", "reading Avro") from None
    return fastavro


def _plain(type_: Type, values: list[Any]) -> pa.Array:
    """A column of values that are what they should be, without a look at each; one of `_NOT_PLAIN` if some may not be.
    What it gives is what `read_value` gives."""
    kinds = set(map(type, values)) - _NONE
    if not kinds:
        return pa.nulls(len(values), type_.arrow)
    if type_.item is not None:
        return _plain_lists(type_, values, kinds)
    if kinds == {UUID} and type_.kind == "STRING":
        return pa.array([None if value is None else str(value) for value in values], type_.arrow)
    if kinds <= _PLAIN[type_.kind]:
        return _float32(pa.array(values, FLOAT64.arrow)) if type_.kind == "FLOAT32" else pa.array(values, type_.arrow)
    if type_ == TIMESTAMP and kinds == {str}:
        return _within(_times(pa.array(values, pa.string())), EARLIEST, LATEST)
    if type_ == TIMESTAMP and kinds == {int}:
        times = pc.multiply_checked(pa.array(values, pa.int64()), SECOND)
        return _within(times.cast(type_.arrow), EARLIEST, LATEST)
    if type_.kind == "DATE" and kinds == {str}:
        return _within(pa.array(values, pa.string()).cast(type_.arrow), EARLIEST // DAY, LATEST // DAY)
    raise TypeError


def _plain_lists(type_: Type, values: list[Any], kinds: set[type]) -> pa.Array:
    if kinds != {list}:
        raise TypeError
    assert type_.item is not None
    items = _plain(type_.item, list(chain.from_iterable(filter(None, values))))
    ends = np.cumsum([0, *(len(value or ()) for value in values)])
    nulls = pa.array([value is None for value in values])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), items, mask=nulls)


def _times(texts: pa.Array) -> pa.Array:
    """Texts that all tell their zone, or none does: they are UTC."""
    try:
        return texts.cast(TIMESTAMP.arrow)
    except pa.ArrowInvalid:
        return pc.assume_timezone(texts.cast(pa.timestamp("us")), "UTC")


def _float32(values: pa.Array) -> pa.Array:
    """The nearest numbers of 32 bits; `OverflowError` beyond them."""
    rounded = values.cast(pa.float32(), safe=False)
    if not pc.is_inf(rounded).equals(pc.is_inf(values)):
        raise OverflowError
    return rounded


def _within(values: pa.Array, first: int, last: int) -> pa.Array:
    """Dates and times of the years 1 to 9999; `OverflowError` beyond them."""
    bounds = pc.min_max(values.view(pa.int32() if pa.types.is_date32(values.type) else pa.int64()))
    if bounds["min"].as_py() < first or bounds["max"].as_py() > last:
        raise OverflowError
    return values


def _filled(table: pa.Table, created: str | None, produced: Ints) -> pa.Table:
    """The platform learnt of a row when its message came into the topic, where nobody says: so it is whenever it is
    read again."""
    if created is None or not table[created].null_count:
        return table
    at = table.schema.get_field_index(created)
    field = table.schema.field(at)
    times = pa.array(produced, pa.int64()).cast(TIMESTAMP.arrow)
    # Where created is a date, its day is what is left of the time: that loss is the declared one.
    return table.set_column(at, field, pc.coalesce(table[created], times.cast(field.type, safe=False)))


_A = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a bool", type(None): "null"}


def _one_line(error: InvalidInputError, column: Column | None = None) -> str:
    text = f'column "{column.name}": {error}' if column else str(error)
    return " ".join(text.split())


def _reason(error: Exception) -> str:
    """What a library says, short; a message that ends too early it does not put in words."""
    if isinstance(error, (EOFError, IndexError)):
        return "it ends too early"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
