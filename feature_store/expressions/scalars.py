"""Scalar expressions: text in Spark's dialect, bound once to a typed tree of our own, then lowered.

    bind(text, schema) -> Scalar        names and types settled, or ExpressionError
    to_sql(scalar, dialect)             SQL of an engine, every identifier quoted
    compile_rows(scalar, names)         a Python function over columns of raw row values
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from feature_store.errors import ExpressionError, nearest
from feature_store.types import BOOL, FLOAT64, INT64, STRING, Schema, Type


@dataclass(frozen=True)
class Scalar:
    """An expression over the columns of one row, of a settled type. Equal by content, hashable."""

    type: Type

    @property
    def children(self) -> tuple[Scalar, ...]:
        return ()

    @cached_property
    def columns(self) -> frozenset[str]:
        """The names of the columns it reads."""
        return frozenset[str]().union(*(child.columns for child in self.children))


@dataclass(frozen=True)
class Ref(Scalar):
    """A column by name."""

    name: str

    @cached_property
    def columns(self) -> frozenset[str]:
        return frozenset({self.name})


@dataclass(frozen=True)
class Literal(Scalar):
    """A constant, as a raw row value; None is NULL."""

    value: Any


def bind(text: str, schema: Schema) -> Scalar:
    import sqlglot
    from sqlglot import exp

    tree = sqlglot.parse_one(text, read="spark")
    if isinstance(tree, exp.Column):
        type_ = schema.get(tree.name)
        if type_ is None:
            raise ExpressionError(f'no column "{tree.name}"', hint=nearest(tree.name, schema.names))
        return Ref(type_, tree.name)
    if isinstance(tree, exp.Literal):
        if tree.is_string:
            return Literal(STRING, tree.this)
        return Literal(INT64, int(tree.this)) if tree.is_int else Literal(FLOAT64, float(tree.this))
    if isinstance(tree, exp.Boolean):
        return Literal(BOOL, tree.this)
    raise ExpressionError(f'"{text}" is not supported yet')


def to_sql(scalar: Scalar, dialect: str = "duckdb") -> str:
    if isinstance(scalar, Ref):
        return '"' + scalar.name.replace('"', '""') + '"' if dialect == "duckdb" else f"`{scalar.name}`"
    assert isinstance(scalar, Literal)
    return "'" + scalar.value.replace("'", "''") + "'" if isinstance(scalar.value, str) else str(scalar.value)


def compile_rows(scalar: Scalar, names: Sequence[str]) -> Callable[[Sequence[Sequence[Any]]], list[Any]]:
    if isinstance(scalar, Ref):
        index = list(names).index(scalar.name)
        return lambda columns: list(columns[index])
    assert isinstance(scalar, Literal)
    return lambda columns: [scalar.value] * (len(columns[0]) if columns else 1)


def cast(scalar: Scalar, type: Type) -> Scalar:
    return scalar
