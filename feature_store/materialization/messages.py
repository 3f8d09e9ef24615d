"""Messages of a topic as rows of its source: JSON objects or Avro records, or changes of rows that Debezium tells in
either.

A message is read as POST /push reads a row. What cannot be read is told with its reason and spoils nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.definitions.source import Source
from feature_store.errors import InvalidInputError
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import Rows
from feature_store.materialization.avro import avro_reader
from feature_store.materialization.events import micros
from feature_store.materialization.message_values import UNITS, ValueReader
from feature_store.materialization.push import odd_times
from feature_store.types import TIMESTAMP
from feature_store.values import shown

_OP, _DELETED, _SOURCE_TIME = "__op", "__deleted", "__source_ts_ms"
"""Columns that a source may have of a change that Debezium tells: what it is, whether it deletes, and when it was made
in the database, in milliseconds."""


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
        of_json = kafka.format == "json"
        self._reader: _Reader = _JsonReader() if of_json else avro_reader(source, avro_schema, schemas)
        self._change = _changed if kafka.envelope else None
        self._columns = []
        for column in rows.schema:
            unit = "ms" if kafka.envelope and column.name == _SOURCE_TIME else kafka.time_unit
            as_text = column.name == source.deleted
            self._columns.append(ValueReader(column, of_json, UNITS[unit], as_text))

    def decode(self, values: Sequence[bytes | None], produced: Ints, now: int) -> Decoded:
        """The rows of messages; one without a value (a tombstone) has none. `produced` says when each came into the
        topic, which is when the platform learnt of it; times are in microseconds."""
        found: list[dict[str, Any]] = []
        places: list[int] = []
        bad: dict[int, str] = {}
        read, change = self._reader.read, self._change
        for place, value in enumerate(values):
            if value is None:
                continue
            try:
                row = read(value)
                if change and type(row) is dict:
                    row = change(row)
                    if row is None:
                        continue
            except InvalidInputError as error:
                bad[place] = " ".join(str(error).split())
                continue
            if type(row) is dict:
                found.append(row)
                places.append(place)
            else:
                bad[place] = f"it is {_SHOWN.get(type(row), type(row).__name__)}, not an object with a value a column"
        return self._table(found, np.array(places, np.int64), bad, produced, now)

    def _table(
        self, found: Sequence[dict[str, Any]], places: Ints, bad: dict[int, str], produced: Ints, now: int
    ) -> Decoded:
        faults: dict[int, str] = {}
        arrays = []
        for reader in self._columns:
            name = reader.column.name
            array, misfits = reader.read([row.get(name) for row in found])
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


def _changed(change: dict[str, Any]) -> dict[str, Any] | None:
    """The row that a change leaves, or takes away; None where there is only a tombstone in a wrapper."""
    if "payload" in change and "schema" in change:
        if change["payload"] is None:
            return None
        change = change["payload"]
    op = change.get("op") if type(change) is dict else None
    if op == "t":
        raise InvalidInputError("the table was truncated: no keys are told, so none can be deleted")
    if op not in ("c", "r", "u", "d"):
        raise InvalidInputError(f"it is no change of a row: its op is {shown(op)}, not one of c, r, u, d")
    side = "before" if op == "d" else "after"
    row, source = change.get(side), change.get("source")
    if type(row) is not dict:
        hint = "Let the database tell rows before a change (REPLICA IDENTITY)" if op == "d" else None
        raise InvalidInputError(f'its op is "{op}", and there is no row {side} it', hint=hint)
    at = source.get("ts_ms") if type(source) is dict else None
    return {**row, _OP: op, _DELETED: op == "d", _SOURCE_TIME: at}


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


_SHOWN = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a bool", type(None): "null"}
