"""Messages become the rows that they tell of; those that cannot be read are told one by one, and spoil nothing."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from io import BytesIO
from typing import Any
from uuid import UUID

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.definitions import Kafka, Source, Stream
from feature_store.definitions.source import SourceColumn
from feature_store.errors import NotFoundError, SourceError, StoreUnavailableError
from feature_store.expressions.instants import DAY, MINUTE, instant
from feature_store.expressions.relations import Rows
from feature_store.materialization.messages import Decoded, Decoder
from feature_store.materialization.schema_registry import SchemaRegistry
from feature_store.storage.rows import to_arrow
from feature_store.types import (
    BOOL,
    BYTES,
    DATE,
    FLOAT32,
    FLOAT64,
    INT32,
    INT64,
    STRING,
    TIMESTAMP,
    Column,
    Schema,
    Type,
    array,
    decimal,
)
from feature_store.values import json_value, read_value
from tests import strategies
from tests.messages import record, record_schema
from tests.servers import SchemaServer, free_port

NOW = instant("2026-03-01T12:00:00Z")
AT = "2026-03-01T11:00:00Z"
AVRO = {
    "INT32": "int", "INT64": "long", "FLOAT32": "float", "FLOAT64": "double", "STRING": "string", "BYTES": "bytes",
    "BOOL": "boolean", "TIMESTAMP": {"type": "long", "logicalType": "timestamp-micros"},
    "DATE": {"type": "int", "logicalType": "date"},
}  # fmt: skip


def decoder(
    schema: Schema,
    avro: Any = None,
    schemas: Callable[[int], str] | None = None,
    created: str | None = None,
    deleted: str | None = None,
    **kafka: Any,
) -> Decoder:
    columns = [SourceColumn(name=column.name, type=column.type) for column in schema]
    if avro is not None or schemas is not None:
        kafka |= {"format": "avro", "avro_schema": avro, "schema_registry": schemas is not None}
    stream = Stream(kafka=Kafka(topic="t", **kafka))
    source = Source(name="s", timestamp="at", created=created, deleted=deleted, columns=columns, stream=stream)
    rows = Rows("s", schema, timestamp="at", created=created, streamed="stream/s")
    return Decoder(source, rows, None if avro is None else json.dumps(avro), schemas)


def decode(decoder: Decoder, messages: Sequence[bytes | None], now: int = NOW) -> Decoded:
    return decoder.decode(messages, np.full(len(messages), NOW), now)


def text(**values: Any) -> bytes:
    return json.dumps({"at": AT} | values).encode()


def avro_type(type_: Type) -> Any:
    if type_.item is not None:
        return {"type": "array", "items": avro_type(type_.item)}
    if type_.kind == "DECIMAL":
        return {"type": "bytes", "logicalType": "decimal", "precision": type_.precision, "scale": type_.scale}
    return AVRO[type_.kind]


def avro_value(type_: Type, value: Any) -> Any:
    if type_.item is not None:
        return [avro_value(type_.item, item) for item in value]
    if type_.kind == "DECIMAL":
        return read_value(type_, value)
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value


@st.composite
def tables(draw: st.DrawFn) -> tuple[Schema, list[dict[str, Any] | None]]:
    """A schema, and rows of values that it takes; None in place of a row stands for a message that is spoilt."""
    types = draw(st.lists(strategies.types, min_size=1, max_size=4))
    schema = Schema((*(Column(f"c{n}", type_) for n, type_ in enumerate(types)), Column("at", TIMESTAMP)))
    row: dict[str, Any] = {column.name: st.none() | strategies.values(column.type) for column in schema}
    row["at"] = st.datetimes(datetime(1970, 1, 1), datetime(2026, 3, 1))
    rows: Any = st.lists(st.fixed_dictionaries(row) | st.none(), max_size=12)
    return schema, draw(rows)


def assert_decoded(found: Decoded, schema: Schema, rows: Sequence[dict[str, Any] | None]) -> None:
    assert [place for place, _ in found.bad] == [place for place, row in enumerate(rows) if row is None]
    assert found.places.tolist() == [place for place, row in enumerate(rows) if row is not None]
    assert found.rows.schema == schema.arrow
    for column in schema:
        expected = to_arrow([read_value(column.type, row[column.name]) for row in rows if row], column.type)
        assert repr(found.rows[column.name].to_pylist()) == repr(expected.to_pylist())


@settings(deadline=None, max_examples=200)
@given(tables(), st.data())
def test_json_objects_are_the_rows_that_they_tell_of(
    given_: tuple[Schema, list[dict[str, Any] | None]], data: st.DataObject
) -> None:
    schema, rows = given_
    messages = []
    for row in rows:
        told = {c.name: json_value(c.type, read_value(c.type, row[c.name])) for c in schema} if row else {}
        told = {name: value for name, value in told.items() if value is not None or data.draw(st.booleans())}
        spoilt = [b"", b"{", b"[]", b"1", b'"', b"\xff", b"\0\0\0\0\1", b"{}", b'{"at": null}', b'{"at": "soon"}']
        whole = json.dumps(told | {"unknown": [1, {}]}, ensure_ascii=False).encode()
        messages.append(whole if row else data.draw(st.sampled_from([*spoilt, b'{"c0": {"a": 1}, "at": 0}'])))
    assert_decoded(decode(decoder(schema), messages), schema, rows)


@settings(deadline=None, max_examples=200)
@given(tables(), st.data())
def test_avro_records_are_the_rows_that_they_tell_of(
    given_: tuple[Schema, list[dict[str, Any] | None]], data: st.DataObject
) -> None:
    schema, rows = given_
    written = record_schema(**{column.name: ["null", avro_type(column.type)] for column in schema})
    head = data.draw(st.sampled_from([b"", b"\0\0\0\0\7"]))
    messages = []
    for row in rows:
        values = (
            {c.name: None if row[c.name] is None else avro_value(c.type, row[c.name]) for c in schema} if row else {}
        )
        if row:
            messages.append(record(written, values, head))
        else:
            whole = record(written, {"at": datetime(2026, 1, 1, tzinfo=UTC)}, head)
            messages.append(data.draw(st.sampled_from([whole[:-1], whole + b"\0", b"\1", whole[:7]])))
    made = decoder(schema, None, {7: json.dumps(written)}.__getitem__) if head else decoder(schema, written)
    assert_decoded(decode(made, messages), schema, rows)


@given(st.binary(max_size=40))
def test_damaged_bytes_do_no_more_than_to_be_bad(damaged: bytes) -> None:
    schema = Schema.of(a=array(STRING), b=BYTES, c=decimal(4, 1), at=TIMESTAMP)
    written = record_schema(**{column.name: ["null", avro_type(column.type)] for column in schema})
    for made in (decoder(schema, written), decoder(schema, None, lambda _: json.dumps(written)), decoder(schema)):
        found = decode(made, [damaged])
        assert len(found.bad) + found.rows.num_rows == 1


_zones = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))])


@settings(deadline=None)
@given(st.lists(st.datetimes(datetime(1970, 1, 3), datetime(2026, 2, 1), timezones=_zones), min_size=1), st.data())
def test_times_as_text_mean_what_they_mean_elsewhere(times: list[datetime], data: st.DataObject) -> None:
    forms = st.sampled_from(["hours", "minutes", "seconds", "milliseconds", "microseconds"])
    texts = [time.isoformat(data.draw(st.sampled_from("T ")), data.draw(forms)) for time in times]
    texts = [each.replace("+00:00", "Z") if data.draw(st.booleans()) else each for each in texts]
    found = decode(decoder(Schema.of(at=TIMESTAMP)), [text(at=each) for each in texts])
    assert found.bad == ()
    assert found.rows["at"].to_pylist() == to_arrow([instant(each) for each in texts], TIMESTAMP).to_pylist()


@pytest.mark.parametrize(
    ("type_", "value", "reason"),
    [
        (INT64, 1.5, "1.5 is not an INT64"),
        (INT64, 2.0, "2.0 is not an INT64"),
        (INT64, "1", '"1" is not an INT64'),
        (INT64, True, "True is not an INT64"),
        (INT64, 2**63, "9223372036854775808 is not an INT64"),
        (INT32, 2**31, "2147483648 is not an INT32"),
        (FLOAT64, "1.5", '"1.5" is not a FLOAT64'),
        (FLOAT32, 1e39, "1e+39 is not a FLOAT32"),
        (STRING, 1, "1 is not a STRING"),
        (STRING, {"a": 1}, "{'a': 1} is not a STRING"),
        (BYTES, "a", '"a" is not a BYTES'),
        (BOOL, 1, "1 is not a BOOL"),
        (BOOL, "true", '"true" is not a BOOL'),
        (DATE, "2026-13-01", '"2026-13-01" is not a DATE'),
        (DATE, "two\nlines", '"two lines" is not a DATE'),
        (TIMESTAMP, 1_772_366_400_000, "1772366400000 is not a TIMESTAMP. Give seconds since the epoch, or ISO 8601"),
        (decimal(3, 1), "1.25", '"1.25" is not a DECIMAL(3,1)'),
        (array(INT64), [1, "2"], '"2" is not an INT64'),
        (array(INT64), 1, "1 is not an ARRAY<INT64>"),
    ],
)
def test_a_value_of_another_type_is_bad(type_: Type, value: Any, reason: str) -> None:
    found = decode(decoder(Schema.of(c=type_, at=TIMESTAMP)), [text(c=None), text(c=value), text()])
    [(place, told)] = found.bad
    assert place == 1
    assert told.startswith(f'column "c": {reason}')
    assert found.rows["c"].to_pylist() == [None, None]


DEEP = [b"[" * 1000 + b"]" * 1000, b'{"a":' * 1000 + b"1" + b"}" * 1000]
"""As deeply nested as JSON is read."""


@pytest.mark.parametrize(
    "type_",
    [INT32, INT64, FLOAT32, FLOAT64, STRING, BYTES, BOOL, TIMESTAMP, DATE, decimal(3, 1), array(INT64), array(DATE)],
)
def test_a_value_of_any_depth_is_bad(type_: Type) -> None:
    deep = [text(c="deep").replace(b'"deep"', value) for value in DEEP]
    for kafka in ({}, {"time_unit": "ms"}):
        found = decode(decoder(Schema.of(c=type_, at=TIMESTAMP), **kafka), [text(), *deep, text(c=None)])
        assert (found.places.tolist(), [place for place, _ in found.bad]) == ([0, 3], [1, 2])
        for _, told in found.bad:
            assert told.startswith('column "c": a value of the type ')
            assert ", too large to show, is not " in told


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (None, 'column "at" is null: an event has a time'),
        ("1969-12-31T23:59:59Z", 'column "at": 1969-12-31T23:59:59Z is outside the years 1970 to 2199'),
        ("2200-01-01T00:00:00Z", 'column "at": 2200-01-01T00:00:00Z is outside the years 1970 to 2199'),
        ("2026-03-01T12:11:00Z", 'column "at": 2026-03-01T12:11:00Z lies in the future. Check the sender\'s clock'),
        ("noon", 'column "at": "noon" is not a TIMESTAMP. Give seconds'),
    ],
)
def test_an_event_has_a_time_that_can_be(at: str | None, reason: str) -> None:
    made = decoder(Schema.of(at=TIMESTAMP))
    for now in (NOW, NOW + 30 * DAY):  # read again, it is as bad
        [(place, told)] = decode(made, [text(), text(at=at)], now).bad
        assert place == 1
        assert told.startswith(reason)
    early = decode(made, [text(at="2026-03-01T12:09:00Z")], NOW - MINUTE).bad  # a broker's clock may be ahead, too
    assert len(early) == 0
    assert len(decode(made, [text(at="2026-03-01T12:09:01Z")], NOW - MINUTE).bad) == 1


@pytest.mark.parametrize("type_", [TIMESTAMP, DATE])
def test_a_row_was_created_when_its_message_came_into_the_topic(type_: Type) -> None:
    made = decoder(Schema.of(seen=type_, at=TIMESTAMP), created="seen")
    produced = np.array([NOW - DAY, NOW - 2 * DAY, NOW])
    messages = [text(at=0), text(at=0, seen="2026-01-02"), b"{}"]
    for now in (NOW, NOW + DAY):
        found = made.decode(messages, produced, now).rows["seen"].to_pylist()
        expected = [datetime(2026, 2, 28, 12, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)]
        assert found == (expected if type_ == TIMESTAMP else [each.date() for each in expected])


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1000), ("us", 1_000_000)])
def test_numbers_are_times_in_a_unit(unit: str, factor: int) -> None:
    schema = Schema.of(at=TIMESTAMP, seen=array(TIMESTAMP), day=DATE)
    made, seconds = decoder(schema, time_unit=unit), 1_771_934_400
    good = text(at=seconds * factor, seen=[factor, 2 * factor, AT], day=20_000)
    found = decode(made, [good, text(at=seconds * factor, day=None)])
    assert found.bad == ()
    row = {
        "at": datetime(2026, 2, 24, 12, tzinfo=UTC),
        "seen": [datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC), instant_of(AT)],
        "day": date(2024, 10, 4),
    }
    assert found.rows.to_pylist() == [row, row | {"seen": None, "day": None}]
    name = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}[unit]
    bad = decode(made, [text(seen=[10**12 * factor]), text(seen=["soon"]), text(seen=[True]), text(day=10**8), good])
    reasons = [told for _, told in bad.bad]
    for reason, value in zip(reasons, (10**12 * factor, '"soon"', "True"), strict=False):
        assert reason.startswith(f'column "seen": {value} is not a TIMESTAMP. Give {name} since the epoch, or ISO 8601')
    assert reasons[3].startswith('column "day": 100000000 is not a DATE')
    assert bad.rows.to_pylist() == [row]
    if unit != "s":  # a fraction would be one of a second
        assert decode(made, [text(at=1.5)]).bad[0][1].startswith('column "at": 1.5 is not a TIMESTAMP')


@pytest.mark.parametrize("odd", [None, "no", 1])
def test_what_deletes_may_be_text(odd: Any) -> None:
    schema = Schema.of(gone=BOOL, other=BOOL, at=TIMESTAMP)
    made = decoder(schema, deleted="gone")
    found = decode(made, [text(gone=gone) for gone in ("true", True, "false", False, None, odd)])
    assert found.rows["gone"].to_pylist() == [True, True, False, False, None] + ([None] if odd is None else [])
    assert [place for place, _ in found.bad] == ([] if odd is None else [5])
    assert len(decode(made, [text(other="true")]).bad) == 1


MADE_MS = 1_771_934_400_123


def change(op: str, before: Any, after: Any, **changes: Any) -> dict[str, Any]:
    source = {"connector": "postgresql", "ts_ms": MADE_MS, "table": "users"}
    return {"before": before, "after": after, "source": source, "op": op, "ts_ms": MADE_MS + 9} | changes


def test_changes_of_rows_as_debezium_tells_them() -> None:
    schema = Schema.of(id=INT64, at=TIMESTAMP, born=TIMESTAMP, __op=STRING, __deleted=BOOL)
    schema = Schema((*schema, Column("__source_ts_ms", TIMESTAMP)))
    old, new = {"id": 1, "at": 5, "born": 7}, {"id": 1, "at": 6, "born": 7_000_000, "new": "x"}
    changes = [change("c", None, old), change("u", old, new), change("r", None, new), change("d", new, None)]
    messages = [json.dumps(each).encode() for each in changes]
    messages += [json.dumps({"schema": {"type": "struct"}, "payload": each}).encode() for each in changes]
    odd = [
        change("t", None, None), change("m", None, None), {"id": 1}, change("d", None, None), change("u", old, None),
        {"schema": {}, "payload": [1]},
    ]  # fmt: skip
    messages += [*(json.dumps(each).encode() for each in odd), b"[]", None, b'{"schema": null, "payload": null}']
    found = decode(decoder(schema, envelope="debezium", time_unit="us"), messages)
    made = datetime(2026, 2, 24, 12, 0, 0, 123_000, tzinfo=UTC)

    def row(op: str, at: int, born: int) -> dict[str, Any]:
        times = {"at": datetime.fromtimestamp(at / 1e6, UTC), "born": datetime.fromtimestamp(born / 1e6, UTC)}
        return {"id": 1, **times, "__op": op, "__deleted": op == "d", "__source_ts_ms": made}

    rows = [row("c", 5, 7), row("u", 6, 7_000_000), row("r", 6, 7_000_000), row("d", 6, 7_000_000)]
    assert found.rows.to_pylist() == rows * 2
    assert found.places.tolist() == [*range(8)]
    assert [told for _, told in found.bad] == [
        "the table was truncated: no keys are told, so none can be deleted",
        'it is no change of a row: its op is "m", not one of c, r, u, d',
        "it is no change of a row: its op is None, not one of c, r, u, d",
        'its op is "d", and there is no row before it. Let the database tell rows before a change (REPLICA IDENTITY)',
        'its op is "u", and there is no row after it',
        "it is no change of a row: its op is None, not one of c, r, u, d",
        "it is a list, not an object with a value a column",
    ]
    assert [place for place, _ in found.bad] == [*range(8, 15)]


def test_an_op_of_any_size_is_told_in_a_line() -> None:
    row = {"id": 1, "at": 5}
    sent = [json.dumps(change(op, None, row)).encode() for op in ("c", "x" * 100_000, "deep")]
    sent += [sent[2].replace(b'"deep"', value) for value in DEEP]
    found = decode(decoder(Schema.of(id=INT64, at=TIMESTAMP), envelope="debezium"), sent)
    assert found.places.tolist() == [0]
    assert [place for place, _ in found.bad] == [1, 2, 3, 4]
    for _, told in found.bad:
        assert told.startswith("it is no change of a row: its op is ")
        assert len(told) < 200


def test_changes_of_rows_in_avro() -> None:
    fields = [{"name": "id", "type": "long"}, {"name": "at", "type": {"type": "long", "connect.version": 1}}]
    row = {"type": "record", "name": "Value", "fields": fields}
    written = {
        "type": "record", "name": "Envelope", "namespace": "shop.users", "fields": [
            {"name": "before", "type": ["null", row]},
            {"name": "after", "type": ["null", "Value"]},
            {"name": "source", "type": record_schema(ts_ms="long")},
            {"name": "op", "type": "string"},
        ],
    }  # fmt: skip
    schema = Schema((*Schema.of(id=INT64, at=TIMESTAMP, __deleted=BOOL), Column("__source_ts_ms", TIMESTAMP)))
    values = [change("c", None, {"id": 1, "at": 5_000}), change("d", {"id": 1, "at": 5_000}, None)]
    messages = [record(written, each, b"\0\0\0\0\1") for each in values]
    made = decoder(schema, None, lambda _: json.dumps(written), envelope="debezium", time_unit="ms")
    found = decode(made, messages)
    times = {"at": datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC), "__source_ts_ms": instant_of("2026-02-24T12:00:00.123Z")}
    assert found.rows.to_pylist() == [{"id": 1, **times, "__deleted": gone} for gone in (False, True)]


def instant_of(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_tombstone_is_no_row_and_not_bad() -> None:
    found = decode(decoder(Schema.of(at=TIMESTAMP)), [None, text(), None])
    assert (found.bad, found.places.tolist()) == ((), [1])
    nothing = decode(decoder(Schema.of(at=TIMESTAMP)), [])
    assert (nothing.rows.num_rows, nothing.bad) == (0, ())


def test_logical_types_are_what_they_say() -> None:
    millis, local = ({"type": "long", "logicalType": f"{kind}timestamp-millis"} for kind in ("", "local-"))
    fixed = {"type": "fixed", "name": "f", "size": 4, "logicalType": "decimal", "precision": 6, "scale": 2}
    uuid = {"type": "string", "logicalType": "uuid"}
    written = record_schema(
        at=millis, local=local, day={"type": "int", "logicalType": "date"}, price=fixed, id=uuid,
        ids={"type": "array", "items": uuid}, colour={"type": "enum", "name": "e", "symbols": ["RED"]},
        raw=["null", {"type": "fixed", "name": "g", "size": 2}], seconds="long",
        labels={"type": "map", "values": "string"},
    )  # fmt: skip
    schema = Schema.of(
        at=TIMESTAMP, local=TIMESTAMP, day=DATE, price=decimal(8, 3), id=STRING, ids=array(STRING), colour=STRING,
        raw=BYTES, seconds=TIMESTAMP,
    )  # fmt: skip
    noon = datetime(2026, 2, 1, 12, 0, 0, 5000)
    id_ = UUID("7f3b5a4e-0000-4000-8000-000000000001")
    row = {
        "at": noon.replace(tzinfo=UTC), "local": noon, "day": date(2026, 2, 1), "price": Decimal("12.34"), "id": id_,
        "ids": [id_, id_], "colour": "RED", "raw": b"ab", "seconds": 5, "labels": {},
    }  # fmt: skip
    found = decode(decoder(schema, written), [record(written, row), record(written, row | {"raw": None, "ids": []})])
    assert found.bad == ()
    expected = {
        **{name: row[name] for name in ("at", "day", "colour", "raw")}, "local": row["at"], "price": Decimal("12.340"),
        "id": str(id_), "ids": [str(id_)] * 2, "seconds": datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC),
    }  # fmt: skip
    assert found.rows.to_pylist() == [expected, expected | {"raw": None, "ids": []}]
    for column, reason in (
        (Column("labels", STRING), 'column "labels": {} is not a STRING'),
        (Column("colour", BYTES), 'column "colour": a string is not a BYTES'),
        (Column("colour", FLOAT64), 'column "colour": a string is not a FLOAT64'),
        (Column("day", INT64), 'column "day": datetime.date(2026, 2, 1) is not an INT64'),
    ):
        made = decoder(Schema((Column("at", TIMESTAMP), column)), written)
        [(_, told)] = decode(made, [record(written, row)]).bad
        assert told.startswith(reason)


def test_a_record_may_hold_its_own_kind_at_no_depth_that_ends_the_process() -> None:
    written = record_schema(at={"type": "long", "logicalType": "timestamp-millis"}, next=["null", "r"])
    schema, messages = Schema.of(at=TIMESTAMP), [b"\2\2" * depth + b"\2\0" for depth in (0, 20, 1_000, 100_000)]
    bare = decode(decoder(schema, written), messages)
    behind_ids = [b"\0\0\0\0\7" + message for message in messages]
    for found in (bare, decode(decoder(schema, written, lambda _: json.dumps(written)), behind_ids)):
        assert found.rows["at"].to_pylist() == [datetime(1970, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)] * 2
        assert [place for place, _ in found.bad] == [2, 3]
        assert all("it is no record of its schema: RecursionError" in told for _, told in found.bad)


def test_a_schema_of_any_depth_is_no_more_than_bad() -> None:
    made = decoder(Schema.of(at=TIMESTAMP), None, lambda _: '{"type": "array", "items": ' * 100_000)
    [(_, told)] = decode(made, [b"\0\0\0\0\7\2"]).bad
    assert told.startswith("schema 7: it is no Avro schema: RecursionError")


MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
OLD = record_schema(at=MILLIS, gone="string")
NEW = record_schema(at=MILLIS, price="int", more=["null", "string"])
READ = record_schema(at=MILLIS, price="long")
READ["fields"][1]["default"] = -1
TIME = datetime(2026, 2, 1, tzinfo=UTC)


def test_records_of_any_schema_are_read_as_the_one_there_is(schema_server: SchemaServer) -> None:
    """Each schema is asked for once; what is not there is asked for again, in the next batch too."""
    schema_server.schemas = {f"/schemas/ids/{n}": {"schema": json.dumps(each)} for n, each in ((1, OLD), (2, NEW))}
    schema_server.schemas["/schemas/ids/3"] = {"schema": "{}", "schemaType": "PROTOBUF"}
    schema_server.schemas["/schemas/ids/4"] = {"schema": json.dumps(record_schema(at="string"))}
    schema_server.schemas["/schemas/ids/5"] = {"schema": '"long"'}
    schema_server.schemas["/schemas/ids/6"] = {"schema": '{"type": "record"}'}
    client = SchemaRegistry(f"http://{schema_server.address}/")
    schema = Schema.of(at=TIMESTAMP, price=INT64)
    old = record(OLD, {"at": TIME, "gone": "x"}, b"\0\0\0\0\1")
    new = record(NEW, {"at": TIME, "price": 5, "more": None}, b"\0\0\0\0\2")
    others = [bytes([0, 0, 0, 0, n]) + b"\2" for n in (3, 4, 5, 6, 9)]
    for read, missing in ((READ, -1), (None, None)):
        schema_server.asked.clear()
        made = decoder(schema, read, client.schema)
        found = decode(made, [old, *others, new, old, new[:5], b"\1\2", b""])
        assert found.rows["price"].to_pylist() == [missing, 5, missing]
        reasons = dict(found.bad)
        assert list(reasons) == [1, 2, 3, 4, 5, 8, 9, 10]
        assert reasons[1] == "schema 3 is of the type PROTOBUF, not AVRO"
        if read:
            assert reasons[2].startswith("schema 4: it cannot be read as avro_schema: ")
            assert reasons[3].startswith("schema 5: it cannot be read as avro_schema: ")
        else:
            assert reasons[3] == "it is a number, not an object with a value a column"
        assert reasons[4].startswith("schema 6: it is no Avro schema: ")
        assert reasons[5] == f"the schema registry at http://{schema_server.address} has no /schemas/ids/9"
        assert reasons[8] == "schema 2: it is no record of its schema: it ends too early"
        assert reasons[9] == reasons[10] == "it does not begin with a zero and 4 bytes with the id of its schema"
        assert schema_server.asked.count("/schemas/ids/1") == schema_server.asked.count("/schemas/ids/2") == 1
        schema_server.schemas["/schemas/ids/9"] = {"schema": '"long"'}
        assert dict(decode(made, [others[-1]]).bad)[0] != reasons[5]
        del schema_server.schemas["/schemas/ids/9"]


def test_types_of_other_schemas_are_found(schema_server: SchemaServer) -> None:
    price = {"type": "record", "name": "Price", "namespace": "a.b", "fields": [{"name": "amount", "type": "Amount"}]}
    amount = {"type": "enum", "name": "Amount", "namespace": "a.b", "symbols": ["LOW", "HIGH"]}
    plain = {"type": "record", "name": "Plain", "fields": [{"name": "x", "type": "int"}]}
    whole: dict[str, Any] = record_schema(
        at=MILLIS, price="a.b.Price", again=["null", "a.b.Price"], amount="a.b.Amount", plain=["Plain", "null"]
    )
    refers = {"name": "a.b.Amount", "subject": "amounts/v", "version": 2}
    schema_server.schemas = {
        "/schemas/ids/1": {
            "schema": json.dumps(whole),
            "references": [
                {"name": "a.b.Price", "subject": "prices", "version": 1},
                refers,
                {"name": "Plain", "subject": "plain", "version": 1},
            ],
        },
        "/subjects/prices/versions/1": {"schema": json.dumps(price), "references": [refers]},
        "/subjects/amounts%2Fv/versions/2": {"schema": json.dumps(amount)},
        "/subjects/plain/versions/1": {"schema": json.dumps(plain)},
    }
    named: dict[str, Any] = {}
    for each in (amount, price, plain):
        fastavro.parse_schema(each, named)
    high = {"amount": "HIGH"}
    out = BytesIO(b"\0\0\0\0\1")
    out.seek(5)
    values = {"at": TIME, "price": high, "again": high, "amount": "LOW", "plain": {"x": 1}}
    fastavro.schemaless_writer(out, fastavro.parse_schema(whole, named), values)
    client = SchemaRegistry(f"http://{schema_server.address}")
    found = decode(decoder(Schema.of(at=TIMESTAMP, amount=STRING), None, client.schema), [out.getvalue()])
    assert found.rows.to_pylist() == [{"at": TIME, "amount": "LOW"}]


def test_a_registry_that_does_not_answer_makes_no_message_bad(schema_server: SchemaServer) -> None:
    schema_server.schemas["/schemas/ids/1"] = {"schema": json.dumps(OLD)}
    message = record(OLD, {"at": TIME, "gone": "x"}, b"\0\0\0\0\1")
    made = decoder(Schema.of(at=TIMESTAMP), None, SchemaRegistry(f"http://{schema_server.address}").schema)
    for status, error, said in (
        (503, StoreUnavailableError, "answers 503 Service Unavailable"),
        (429, StoreUnavailableError, "answers 429 Too Many Requests"),
        (404, SourceError, "does not answer /schemas/ids/1 as a schema registry does: 404 Not Found"),
        (200, SourceError, "does not answer /schemas/ids/1 as a schema registry does. Check"),
    ):
        schema_server.broken = (status, b"<html>")
        with pytest.raises(error, match=said):
            decode(made, [message])
    schema_server.broken = None
    assert decode(made, [message]).rows.num_rows == 1


def test_a_registry_that_is_not_there() -> None:
    url = f"http://a:secret@127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailableError, match=r"does not answer: .*refused") as error:
        SchemaRegistry(url).schema(1)
    assert "secret" not in str(error.value)


def test_a_registry_with_a_password(schema_server: SchemaServer) -> None:
    schema_server.user = "Basic " + b64encode(b"me:p@ss:word").decode()
    schema_server.schemas["/schemas/ids/1"] = {"schema": '"long"'}
    assert SchemaRegistry(f"http://me:p%40ss%3Aword@{schema_server.address}").schema(1) == '"long"'
    with pytest.raises(SourceError, match=r"answers 401 Unauthorized\. Write the user and the password"):
        SchemaRegistry(f"http://{schema_server.address}").schema(1)
    with pytest.raises(NotFoundError):
        SchemaRegistry(f"http://me:p%40ss%3Aword@{schema_server.address}").schema(2)


def test_what_is_no_schema_is_said_at_once() -> None:
    schema = Schema.of(at=TIMESTAMP)
    with pytest.raises(SourceError, match=r'source "s": avro_schema: it is no Avro schema: UnknownType: .*lang'):
        decoder(schema, {"type": "lang"})
    source = Source(
        name="s", timestamp="at", columns=[SourceColumn(name="at", type=TIMESTAMP)],
        stream=Stream(kafka=Kafka(topic="t", format="avro")),
    )  # fmt: skip
    with pytest.raises(SourceError, match=r"no schema registry is known\. Write in feature_store\.yaml kafka:"):
        Decoder(source, Rows("s", schema, timestamp="at"), None, None)
