"""Definitions and the schemas of their sources, bound to a catalog: names and types are settled once, here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from feature_store.definitions.base import Definition
from feature_store.definitions.bind_on_demand import bind_on_demand
from feature_store.definitions.bind_view import bind_view
from feature_store.definitions.catalog import BoundOnDemand, BoundView, Catalog, FeatureRef
from feature_store.definitions.checks import Declared, check, in_order
from feature_store.definitions.conversions import some
from feature_store.definitions.places import Locations, locate
from feature_store.definitions.source import Source
from feature_store.definitions.tables import push_log, stream_log
from feature_store.errors import SourceError, nearest
from feature_store.expressions.relations import Rows
from feature_store.types import Column, Schema

__all__ = ["BoundOnDemand", "BoundView", "Catalog", "FeatureRef", "Locations", "bind", "rows_of"]

_WORD = re.compile(r"\w+")


def rows_of(source: Source, root: Path, offline: Callable[[str], str], schema: Schema) -> Rows:
    """The rows of a source; a relative path is below `root`, and `offline` tells where an offline table lies."""
    path = source.path
    if path and "://" not in path:
        path = str(root.absolute() / Path(path).expanduser())
    return Rows(
        name=source.name,
        schema=schema,
        path=path,
        table=source.table,
        timestamp=source.timestamp,
        created=source.created,
        unique=source.unique,
        pushed=offline(push_log(source.name)),
        streamed=offline(stream_log(source.name)) if source.stream and source.stream.kafka else None,
    )


def bind(
    project: str,
    definitions: Sequence[Definition],
    *,
    root: Path,
    offline: Callable[[str], str],
    timezone: str,
    schema_of: Callable[[Rows], Schema],
    locations: Locations | None = None,
) -> Catalog:
    """The catalog of a project's definitions; `DefinitionError`, with its place, for the first one that is wrong, and
    `SourceError` for a source that cannot be read. A source that no view uses need not exist yet: its rows
    have only the columns that it declares."""
    declared = check(definitions, locations)
    rows = _SourceReader(declared, root, offline, schema_of).rows()
    views = {name: bind_view(declared, view, rows, timezone) for name, view in declared.views.items()}
    on_demand: dict[str, BoundOnDemand] = {}
    for item in in_order(declared):
        on_demand[item.name] = bind_on_demand(declared, item, views, on_demand)
    return Catalog(project, declared.entities, declared.sources, views, on_demand, declared.services, rows)


@dataclass(frozen=True)
class _SourceReader:
    """Reads the schema of each source, once."""

    declared: Declared
    root: Path
    offline: Callable[[str], str]
    schema_of: Callable[[Rows], Schema]

    def rows(self) -> dict[str, Rows]:
        views = self.declared.views.values()
        used = {view.source for view in views}
        words = {word for view in views if view.sql for word in _WORD.findall(view.sql)}
        found = {}
        for name, source in self.declared.sources.items():
            try:
                found[name] = self._rows(source)
            except SourceError as error:
                if name in used or name in words:
                    key = "path" if source.path else "table"
                    raise error.at(locate(self.declared.locations, source, key)) from None
                found[name] = rows_of(source, self.root, self.offline, _declared_columns(source))
        return found

    def _rows(self, source: Source) -> Rows:
        columns = source.columns
        rows = rows_of(source, self.root, self.offline, _declared_columns(source))
        if columns:
            self._check_columns(source, rows.schema)
        if columns and not (rows.path or rows.table):
            return rows
        try:
            actual = self.schema_of(rows)
        except SourceError:
            if columns and source.stream:
                return rows
            raise
        if not actual.columns:
            return rows  # as it was recorded: not there when it was applied
        if not columns:
            rows = rows_of(source, self.root, self.offline, actual)
            self._check_columns(source, actual)
        for index, column in enumerate(columns):
            if column.name not in actual:
                self._missing(source, column.name, actual, "columns", index, "name")
        return rows

    def _check_columns(self, source: Source, schema: Schema) -> None:
        times = ("TIMESTAMP", "DATE")
        for key, kinds in (("timestamp", times), ("created", times), ("deleted", ("BOOL",))):
            column = getattr(source, key)
            if column is None:
                continue
            type_ = schema.get(column)
            if type_ is None:
                self._missing(source, column, schema, key)
            elif type_.kind not in kinds:
                message = f'column "{column}" is {type_}, not {" or ".join(kinds)}'
                raise self.declared.error(source, message, key, hint="Declare its type under columns:, or convert it")
        for index, column in enumerate(source.unique):
            if column not in schema:
                self._missing(source, column, schema, "unique", index)

    def _missing(self, source: Source, column: str, schema: Schema, *path: str | int) -> None:
        hint = nearest(column, schema.names) or f"It has {some(schema.names)}"
        raise self.declared.error(source, f'no column "{column}"', *path, hint=hint)


def _declared_columns(source: Source) -> Schema:
    return Schema(tuple(Column(column.name, column.type) for column in source.columns))
