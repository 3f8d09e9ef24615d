"""Avro records, bare or behind the id of the schema that they are written with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from feature_store.definitions.source import Source
from feature_store.errors import InvalidInputError, MissingExtraError, NotFoundError, SourceError

_ID = 5
"""Bytes before a record in the format of Confluent's serializers: a zero, and the id of its schema."""


def avro_reader(source: Source, avro_schema: str | None, schemas: Callable[[int], str] | None) -> AvroReader:
    """What reads the messages of a source; `SourceError` if it has no schema to read them by."""
    assert source.stream and source.stream.kafka
    schema = None
    if avro_schema is not None:
        try:
            schema = _avro_schema(avro_schema)
        except InvalidInputError as error:
            raise SourceError(f'source "{source.name}": avro_schema: {error}') from None
    if not source.stream.kafka.uses_registry:
        return AvroReader(schema, None)
    if schemas is None:
        raise SourceError(
            f'source "{source.name}": its messages begin with the id of a schema, and no schema registry is known',
            hint="Write in feature_store.yaml kafka: {schema_registry: http://host:8081}",
        )
    return AvroReader(schema, schemas)


class AvroReader:
    """Records of one schema or, with `schemas`, behind the id of that which each is written with; these are read as
    `schema` where there is one."""

    def __init__(self, schema: Any | None, schemas: Callable[[int], str] | None) -> None:
        self._schema, self._schemas = schema, schemas
        self._bare = None if schemas else _Written.with_schema(schema)
        self._written: dict[int, _Written] = {}
        self._unresolved = _fastavro().read.SchemaResolutionError

    def read(self, message: bytes) -> Any:
        stream = BytesIO(message)
        if self._schemas is None:
            assert self._bare is not None
            return self._read(stream, len(message), self._bare, None)
        head = stream.read(_ID)
        if len(head) < _ID or head[0] != 0:
            raise InvalidInputError("it does not begin with a zero and 4 bytes with the id of its schema")
        id_ = int.from_bytes(head[1:], "big")
        written = self._written.get(id_) or self._fetched(id_, self._schemas)
        try:
            return self._read(stream, len(message), written, self._schema)
        except InvalidInputError as error:
            raise InvalidInputError(f"schema {id_}: {error}") from None

    def _read(self, stream: BytesIO, end: int, written: _Written, schema: Any | None) -> Any:
        try:
            record = written.read(stream, written.schema, schema)
        except self._unresolved as error:
            raise InvalidInputError(f"it cannot be read as avro_schema: {_reason(error)}") from None
        except Exception as error:  # damaged bytes raise whatever they lead to: EOFError, KeyError, RecursionError
            raise InvalidInputError(f"it is no record of its schema: {_reason(error)}") from None
        if stream.tell() != end:
            raise InvalidInputError(f"{end - stream.tell()} bytes follow the record: it is of another schema")
        return record

    def _fetched(self, id_: int, schemas: Callable[[int], str]) -> _Written:
        try:
            written = _Written.with_schema(_avro_schema(schemas(id_)))
        except NotFoundError as error:  # not kept: the registry may learn of it
            raise InvalidInputError(str(error)) from None
        except InvalidInputError as error:
            raise InvalidInputError(f"schema {id_}: {error}") from None
        self._written[id_] = written
        return written


@dataclass(frozen=True)
class _Written:
    """The schema that records are written with, and what reads them."""

    schema: Any
    read: Callable[[BytesIO, Any, Any | None], Any]

    @classmethod
    def with_schema(cls, schema: Any) -> _Written:
        """Records that hold records of their own kind may be nested as deeply as a message is long: compiled code then
        runs out of the stack, which ends the process; in Python that is an error."""
        fastavro = _fastavro()
        return cls(schema, (fastavro._read_py if _holds_itself(schema) else fastavro).schemaless_reader)


def _holds_itself(schema: Any, within: frozenset[str] = frozenset()) -> bool:
    """Whether a part of a parsed schema is named inside itself."""
    if isinstance(schema, str):
        return schema in within
    if isinstance(schema, list):
        return any(_holds_itself(each, within) for each in schema)
    if "name" in schema:
        within |= {schema["name"]}
    parts = [schema.get(key) for key in ("items", "values")] + [each["type"] for each in schema.get("fields", ())]
    return any(_holds_itself(part, within) for part in parts if part is not None)


def _avro_schema(text: str) -> Any:
    """A parsed schema; `InvalidInputError` if it is none."""
    fastavro = _fastavro()
    wrong = (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType)
    try:
        return fastavro.parse_schema(json.loads(text))
    except (*wrong, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise InvalidInputError(f"it is no Avro schema: {_reason(error)}") from None


def _fastavro() -> Any:
    try:
        import fastavro._read_py
        import fastavro.read
        import fastavro.schema
    except ImportError:
        raise MissingExtraError("kafka", "reading Avro") from None
    return fastavro


def _reason(error: Exception) -> str:
    """What a library says, short; a message that ends too early it does not put in words."""
    if isinstance(error, (EOFError, IndexError)):
        return "it ends too early"
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
