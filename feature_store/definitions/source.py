"""Where rows come from: files, tables of a metastore, live streams."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from feature_store.definitions.base import Definition, Strict
from feature_store.definitions.mistakes import mistake
from feature_store.errors import SourceError
from feature_store.settings import Brokers
from feature_store.types import Type

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def _topic(value: str) -> str:
    if not _TOPIC.fullmatch(value) or value in (".", ".."):
        raise ValueError(f'"{value}" is not a topic: letters, digits, ".", "_" and "-", at most 249 characters')
    return value


def _avro_schema(value: object) -> object:
    """A schema may be written as YAML: inside it is JSON text."""
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and _is_inline(value):
        try:
            json.loads(value)
        except ValueError as error:
            raise ValueError(f"this is not JSON: {error}") from None
    return value


def _is_inline(schema: str) -> bool:
    return schema.lstrip().startswith(("{", "["))


class SourceColumn(Strict):
    """A declared column of a source."""

    name: str
    type: Type


class Kafka(Strict):
    """A topic, and how its messages are written: JSON objects or Avro records, named as the source's columns.

    Bare Avro records are written with `avro_schema`: an .avsc file of the repository, or the schema itself. Without
    it, or with `schema_registry`, each message begins with the id of its schema in the registry of the settings;
    then `avro_schema`, if there is one, is what they are read as: it has defaults for what older schemas lack.
    Messages that cannot be taken go to the topic `dead_letters`, by default the topic's name with .dead-letters.

    `time_unit` is what a number counts where a TIMESTAMP is wanted. With `envelope` a message is a change of a row, as
    Debezium tells it: the columns are those of the row after it, or, of a row that was deleted, before.
    """

    topic: Annotated[str, AfterValidator(_topic)]
    format: Literal["json", "avro"] = "json"
    avro_schema: Annotated[str | None, BeforeValidator(_avro_schema)] = None
    schema_registry: bool | None = None
    time_unit: Literal["s", "ms", "us"] = "s"
    envelope: Literal["debezium"] | None = None
    brokers: Brokers | None = None
    dead_letters: Annotated[str | None, AfterValidator(lambda value: value and _topic(value))] = None

    @property
    def dead_letter_topic(self) -> str:
        """The topic for messages that cannot be taken."""
        return self.dead_letters or f"{self.topic}.dead-letters"

    @model_validator(mode="after")
    def _schema_is_of_the_format(self) -> Kafka:
        for key in ("avro_schema", "schema_registry"):
            if self.format != "avro" and getattr(self, key):
                raise mistake(f"messages in {self.format} have no {key}; write format: avro", key)
        if self.format == "avro" and self.schema_registry is False and self.avro_schema is None:
            raise mistake("avro without a schema registry needs avro_schema", "schema_registry")
        return self

    @property
    def uses_registry(self) -> bool:
        """Whether messages begin with the id of their schema, as Confluent's serializers write them."""
        return self.format == "avro" and bool(self.schema_registry or self.avro_schema is None)

    def read_avro_schema(self, root: Path) -> str | None:
        """The text of `avro_schema`; a file is relative to `root`. `SourceError` if it cannot be read."""
        if self.avro_schema is None or _is_inline(self.avro_schema):
            return self.avro_schema
        try:
            return (root / self.avro_schema).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(f'avro_schema "{self.avro_schema}" cannot be read: {reason}') from None


class Stream(Strict):
    """Live rows: from Kafka, from POST /push, or both. `engine` reads Kafka: a consumer group here, or Flink."""

    kafka: Kafka | None = None
    push: bool = False
    engine: Literal["kafka", "flink"] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Stream:
        if not self.kafka and not self.push:
            raise mistake("a stream needs kafka, push: true, or both")
        if self.engine and not self.kafka:
            raise mistake("the engine of a stream reads Kafka: it needs kafka, too", "engine")
        return self


class Source(Definition):
    """Rows with an event time: files (Parquet, CSV, Delta) under `path`, a metastore `table`, a stream, or several.

    `columns` declares names and types; without it they are read from the files. `unique` names the columns that
    identify an event: rows equal in them count once, however often they arrive. A row in which the column `deleted`
    is true deletes its key: it is not found from then on, until a later row.
    """

    kind: ClassVar[str] = "source"

    path: str | None = None
    table: str | None = None
    timestamp: str | None = None
    created: str | None = None
    deleted: str | None = None
    columns: tuple[SourceColumn, ...] = ()
    unique: tuple[str, ...] = ()
    stream: Stream | None = None

    @model_validator(mode="after")
    def _has_rows(self) -> Source:
        if self.path and self.table:
            raise mistake("a source has a path or a table, not both", "table")
        if not self.path and not self.table and not self.stream:
            raise mistake("a source needs a path, a table or a stream")
        if not self.path and not self.table and not self.columns:
            raise mistake("a source with only a stream must declare its columns", "stream")
        if self.stream and not self.timestamp:
            raise mistake("a source with a stream needs a timestamp column", "stream")
        names = [column.name for column in self.columns]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise mistake(f'column "{name}" is declared twice', "columns", index, "name")
        return self
