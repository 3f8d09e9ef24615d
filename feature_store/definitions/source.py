"""Where rows come from: files, tables of a metastore, live streams."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from feature_store.definitions.base import Definition, Strict
from feature_store.definitions.mistakes import mistake
from feature_store.types import Type


class SourceColumn(Strict):
    """A declared column of a source."""

    name: str
    type: Type


class Kafka(Strict):
    """A topic, and how its messages are written."""

    topic: str
    format: Literal["json", "avro"] = "json"
    brokers: str | None = None


class Stream(Strict):
    """Live rows: from Kafka, from POST /push, or both."""

    kafka: Kafka | None = None
    push: bool = False

    @model_validator(mode="after")
    def _has_one(self) -> Stream:
        if not self.kafka and not self.push:
            raise mistake("a stream needs kafka, push: true, or both")
        return self


class Source(Definition):
    """Rows with an event time: files (Parquet, CSV, Delta) under `path`, a metastore `table`, a stream, or several.

    `columns` declares names and types; without it they are read from the files. `unique` names the columns that
    identify an event: rows equal in them count once, however often they arrive.
    """

    kind: ClassVar[str] = "source"

    path: str | None = None
    table: str | None = None
    timestamp: str | None = None
    created: str | None = None
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
