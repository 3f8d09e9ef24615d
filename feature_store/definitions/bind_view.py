"""Feature views as relations over the rows of their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feature_store.definitions.base import Field
from feature_store.definitions.catalog import BoundView
from feature_store.definitions.checks import Declared
from feature_store.definitions.conversions import converted, converts, expression, placed, some
from feature_store.definitions.defaults import raw_default
from feature_store.definitions.feature_view import Aggregation, FeatureView
from feature_store.definitions.source import Source
from feature_store.definitions.versions import version
from feature_store.errors import DefinitionError, FeatureStoreError, nearest
from feature_store.expressions.aggregates import result_type
from feature_store.expressions.queries import BoundQuery, bind_query
from feature_store.expressions.relations import (
    DELETED,
    Computed,
    LatestRow,
    Relation,
    Rows,
    Schedule,
    ScheduledQuery,
    Window,
    Windows,
)
from feature_store.expressions.scalars import Literal, Ref, Scalar, call
from feature_store.types import BOOL, Column, Schema, Type


@dataclass(frozen=True)
class _ViewBinder:
    """One feature view over the rows of its source."""

    declared: Declared
    view: FeatureView
    rows: Rows
    keys: Schema

    def scalar(self, text: str, *path: str | int) -> Scalar:
        """A column of the source by name, or an expression over its columns."""
        type_ = self.rows.schema.get(text)
        if type_ is not None:
            return Ref(type_, text)
        try:
            return expression(text, self.rows.schema)
        except FeatureStoreError as error:
            if text.isidentifier():
                raise self.no_column(text, *path) from None
            raise placed(self.declared, self.view, error, *path) from None

    def value(self, field: Field, index: int) -> Computed:
        key = "expression" if field.expression else "column" if field.column else "name"
        path = ("features", index, key)
        name = field.column or field.name
        if field.expression:
            scalar = self.scalar(field.expression, *path)
        elif (type_ := self.rows.schema.get(name)) is not None:
            scalar = Ref(type_, name)
        else:
            raise self.no_column(name, *path)
        return Computed(field.name, converted(self.declared, self.view, field, scalar, index))

    def window(self, aggregation: Aggregation, index: int) -> Window:
        path = ("aggregations", index)
        value = self.scalar(aggregation.column, *path, "column") if aggregation.column else None
        where = self.scalar(aggregation.where, *path, "where") if aggregation.where else None
        if where is not None and where.type != BOOL:
            message = f'feature "{aggregation.name}": where: "{aggregation.where}" is {where.type}, not BOOL'
            raise self.declared.error(self.view, message, *path, "where")
        try:
            type_ = result_type(aggregation.function, value.type if value else None)
        except FeatureStoreError as error:
            raise placed(self.declared, self.view, error, *path, "function") from None
        return Window(
            aggregation.name,
            aggregation.function,
            type_,
            int(aggregation.window),
            aggregation.effective_hop,
            value,
            where,
            aggregation.n,
        )

    def check_keys(self) -> None:
        for index, key in enumerate(self.keys):
            type_ = self.rows.schema.get(key.name)
            if type_ is None:
                raise self.no_column(key.name, "entities", index)
            if type_ != key.type and not (type_.is_integer and key.type.is_integer):
                entity = self.declared.keys(self.view)[index].name
                message = f'join key "{key.name}" of entity "{entity}" is {key.type}, but in source '
                message += f'"{self.rows.name}" the column is {type_}'
                raise self.declared.error(self.view, message, "entities", index, hint="Give both the same type")

    def no_column(self, name: str, *path: str | int) -> DefinitionError:
        names = self.rows.schema.names
        hint = nearest(name, names) or f"It has {some(names)}"
        return self.declared.error(self.view, f'source "{self.rows.name}" has no column "{name}"', *path, hint=hint)


def bind_view(declared: Declared, view: FeatureView, rows: Mapping[str, Rows], timezone: str) -> BoundView:
    """A checked view over the rows of the sources by name; `DefinitionError` for what their schemas do not hold."""
    keys = Schema(tuple(Column(entity.join_key, entity.type) for entity in declared.keys(view)))
    if view.sql:
        relation: Relation = _bind_sql(declared, view, rows, keys, timezone)
    else:
        assert view.source
        binder = _ViewBinder(declared, view, rows[view.source], keys)
        binder.check_keys()
        relation = _bind_rows(binder, declared.sources[view.source], timezone)
    features = _outputs(view, relation)
    digest = version(view, relation, keys, features, declared.sources)
    return BoundView(view, relation, keys, features, _defaults(declared, view, features), digest)


def _outputs(view: FeatureView, relation: Relation) -> Schema:
    """The features, in declared order: of the declared types, or of those that the aggregates give."""
    if isinstance(relation, Windows):
        return Schema(tuple(Column(window.name, window.type) for window in relation.windows))
    return Schema(tuple(Column(field.name, field.type) for field in view.features))


def _bind_rows(binder: _ViewBinder, source: Source, timezone: str) -> LatestRow | Windows:
    view = binder.view
    if view.aggregations and source.deleted:
        message = f'it cannot aggregate source "{source.name}", whose rows may be deleted (deleted: {source.deleted})'
        hint = "Aggregate a source of events, which happen once; of a source with deletes the latest row can be read"
        raise binder.declared.error(view, message, "source", hint=hint)
    if view.aggregations:
        windows = tuple(binder.window(item, index) for index, item in enumerate(view.aggregations))
        schedule = None if source.stream else Schedule(view.schedule or "daily", timezone)
        return Windows(binder.rows, binder.keys, windows, schedule)
    values = tuple(binder.value(field, index) for index, field in enumerate(view.features))
    if source.deleted:
        values = (Computed(DELETED, call("coalesce", [Ref(BOOL, source.deleted), Literal(BOOL, False)])), *values)
    return LatestRow(binder.rows, binder.keys, values, int(view.ttl) if view.ttl else None)


def _bind_sql(
    declared: Declared, view: FeatureView, rows: Mapping[str, Rows], keys: Schema, timezone: str
) -> ScheduledQuery:
    assert view.sql
    try:
        query = bind_query(view.sql, {name: item.schema for name, item in rows.items()})
    except FeatureStoreError as error:
        raise placed(declared, view, error, "sql") from None
    if view.source and view.source not in query.tables:
        message = f'source "{view.source}" is not read by the sql, which reads {", ".join(query.tables) or "nothing"}'
        raise declared.error(view, message, "source")
    for index, key in enumerate(keys):
        _query_column(declared, view, query, key.name, key.type, "join key", "entities", index)
    values = []
    for index, field in enumerate(view.features):
        column = field.column or field.name
        path = ("features", index, "column" if field.column else "name")
        _query_column(declared, view, query, column, field.type, f'feature "{field.name}"', *path)
        values.append((field.name, column, field.type))
    schedule = Schedule(view.schedule or "daily", timezone)
    sources = tuple(rows[name] for name in query.tables)
    return ScheduledQuery(view.sql, sources, keys, tuple(values), schedule, int(view.delay or 0))


def _query_column(
    declared: Declared, view: FeatureView, query: BoundQuery, name: str, wanted: Type, what: str, *path: str | int
) -> None:
    """Checks that the query has a column, of a type that converts to the declared one."""
    if name not in query.columns:
        hint = nearest(name, query.columns.names) or f"It has {some(query.columns.names)}"
        raise declared.error(view, f'the sql has no column "{name}" for the {what}', *path, hint=hint)
    actual = query.columns.get(name)
    if actual is not None and not converts(actual, wanted):
        hint = f"Write CAST(... AS {wanted.spark}) AS {name} in the sql"
        raise declared.error(view, f'{what} is {wanted}, but the sql\'s column "{name}" is {actual}', *path, hint=hint)


def _defaults(declared: Declared, view: FeatureView, features: Schema) -> dict[str, Any]:
    key = "features" if view.features else "aggregations"
    found = {}
    items: tuple[Field | Aggregation, ...] = view.features or view.aggregations
    for index, item in enumerate(items):
        type_ = features.get(item.name)
        if item.default is None or type_ is None:
            continue
        try:
            found[item.name] = raw_default(item.default, type_)
        except DefinitionError as error:
            raise placed(declared, view, error, key, index, "default") from None
    return found
