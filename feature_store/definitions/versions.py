"""Versions: digests of what determines the stored values of a view."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from feature_store.definitions.feature_view import FeatureView
from feature_store.definitions.source import Source
from feature_store.expressions.aggregates import aggregate_of
from feature_store.expressions.relations import LatestRow, Relation, ScheduledQuery, Window, Windows
from feature_store.types import Schema


def version(
    view: FeatureView, relation: Relation, keys: Schema, features: Schema, sources: Mapping[str, Source]
) -> str:
    """12 hexadecimal digits over what determines the stored values, as it was written down, with the settled types."""
    written: dict[str, Any] = {"keys": _pairs(keys), "features": _pairs(features)}
    if isinstance(relation, LatestRow):
        written["values"] = [(field.column, field.expression) for field in view.features]
        if deleted := sources[relation.rows.name].deleted:
            written["deleted"] = deleted
    elif isinstance(relation, Windows):
        written["windows"] = [
            (window.function, window.n, window.length, window.hop, item.column, item.where, _state(window))
            for window, item in zip(relation.windows, view.aggregations, strict=True)
        ]
        written["schedule"] = relation.schedule and (relation.schedule.every, relation.schedule.timezone)
    else:
        written["sql"], written["delay"] = relation.sql, relation.delay
        written["columns"] = [column for _, column, _ in relation.values]
        written["schedule"] = (relation.schedule.every, relation.schedule.timezone)
    inputs = relation.sources if isinstance(relation, ScheduledQuery) else (relation.rows,)
    written["sources"] = [_source(sources[rows.name]) for rows in inputs]
    text = json.dumps(written, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _state(window: Window) -> tuple[Any, ...]:
    """The type of what is aggregated, and what the state looks like: one of another form must not be read as it."""
    parts = [(name, str(type_)) for name, type_ in aggregate_of(window).parts]
    return (str(window.value.type) if window.value else "", parts)


def _source(source: Source) -> tuple[Any, ...]:
    return (source.name, source.path, source.table, source.timestamp, source.created, source.unique)


def _pairs(columns: Schema) -> list[tuple[str, str]]:
    return [(column.name, str(column.type)) for column in columns]
