"""The typed tree of a scalar expression: names and types settled, constants in place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from feature_store.expressions.operators import Operator
from feature_store.types import Type


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
    """A column by name; in queries, of a table by its alias."""

    name: str
    table: str = ""

    @cached_property
    def columns(self) -> frozenset[str]:
        return frozenset({self.name})


@dataclass(frozen=True)
class Literal(Scalar):
    """A constant, as a raw row value; None is NULL."""

    value: Any

    def __eq__(self, other: object) -> bool:
        # 1, 1.0 and True are equal in Python, and so are 0.0 and -0.0; here they are not.
        return isinstance(other, Literal) and (self.type, repr(self.value)) == (other.type, repr(other.value))

    def __hash__(self) -> int:
        return hash((self.type, repr(self.value)))


@dataclass(frozen=True)
class Call(Scalar):
    """An operator of the table on operands of exactly the types it takes."""

    operator: Operator
    operands: tuple[Scalar, ...]

    @property
    def children(self) -> tuple[Scalar, ...]:
        return self.operands


@dataclass(frozen=True)
class Cast(Scalar):
    """The operand as another type; NULL where it does not fit."""

    operand: Scalar

    @property
    def children(self) -> tuple[Scalar, ...]:
        return (self.operand,)


@dataclass(frozen=True)
class Case(Scalar):
    """The value of the first branch whose condition is true, else the default."""

    branches: tuple[tuple[Scalar, Scalar], ...]
    default: Scalar

    @property
    def children(self) -> tuple[Scalar, ...]:
        return (*(side for branch in self.branches for side in branch), self.default)


@dataclass(frozen=True)
class Text(Scalar):
    """SQL that is written already, in queries only: an aggregate, a subquery. `reads` are the columns in it."""

    text: str
    reads: tuple[Ref, ...] = ()
