"""Conversions: which types become the declared type of a feature by themselves, and errors about parts of views."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from feature_store.definitions.base import Definition, Field
from feature_store.definitions.checks import Declared
from feature_store.definitions.places import locate
from feature_store.errors import DefinitionError, ExpressionError, FeatureStoreError
from feature_store.expressions import scalars
from feature_store.expressions.scalars import Scalar
from feature_store.types import Schema, Type


@lru_cache(maxsize=16_384)
def expression(text: str, schema: Schema) -> Scalar:
    """`scalars.bind`, remembered: an `apply` binds what was there before and what is there now."""
    return scalars.bind(text, schema)


def converts(actual: Type, wanted: Type) -> bool:
    """Whether a value becomes one of the declared type by itself: the same type, between integers, between floats,
    from integers to floats, to decimals with more digits on both sides. Anything else is a cast to write down."""
    if actual == wanted or (actual.is_integer and (wanted.is_integer or wanted.is_float)):
        return True
    if actual.kind == wanted.kind == "DECIMAL":
        more_scale = wanted.scale >= actual.scale
        return more_scale and wanted.precision - wanted.scale >= actual.precision - actual.scale
    if actual.item and wanted.item:
        return converts(actual.item, wanted.item)
    return actual.is_float and wanted.is_float


def converted(declared: Declared, view: Definition, field: Field, scalar: Scalar, index: int) -> Scalar:
    """The scalar of feature `index`, cast to its declared type; `DefinitionError` names both types otherwise."""
    if scalar.type == field.type:
        return scalar
    text = field.expression or field.column or field.name
    if not converts(scalar.type, field.type):
        raise declared.error(
            view,
            f'feature "{field.name}" is {field.type}, but "{text}" is {scalar.type}',
            "features",
            index,
            "type",
            hint=f"Declare {scalar.type}, or write expression: cast({text} as {field.type.spark.lower()})",
        )
    return scalars.cast(scalar, field.type)


def placed(declared: Declared, view: Definition, error: FeatureStoreError, *path: str | int) -> DefinitionError:
    """The same error about a part of a view, naming the view and the part, at its place."""
    kind = type(error) if isinstance(error, DefinitionError) else ExpressionError
    subject = "".join(f"{part}: " for part in (_feature_at(view, path), path[-1]) if part)
    location = locate(declared.locations, view, *path)
    return kind(f"{view.title}: {subject}{error.message}", location=location, hint=error.hint)


def some(names: Sequence[str]) -> str:
    """A list of names for a hint, not longer than a line."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "no columns"


def _feature_at(view: Definition, path: Sequence[str | int]) -> str | None:
    """feature "x", where a path leads into one."""
    if len(path) < 2 or not isinstance(path[1], int):
        return None
    return f'feature "{getattr(view, str(path[0]))[path[1]].name}"'
