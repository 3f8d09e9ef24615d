"""What on-demand features are computed by, row by row, and why one cannot be: the same words online and in history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from feature_store.definitions.catalog import BoundOnDemand, FeatureRef
from feature_store.errors import InvalidInputError
from feature_store.expressions.relations import Computed
from feature_store.expressions.scalars import compile_rows

Columns = Sequence[Sequence[Any]]
"""Raw row values: the view's request values, then its needs."""

Evaluate = Callable[[Columns], list[Any]]


def evaluator(bound: BoundOnDemand, feature: Computed) -> Evaluate:
    """A function from the columns of a view to a feature of it."""
    names = (*bound.request.names, *(ref.feature for ref in bound.needs))
    return compile_rows(feature.scalar, names or ("",))


def failure(ref: FeatureRef, evaluate: Evaluate, columns: Columns) -> InvalidInputError | None:
    """The error of the first row that a feature cannot be computed for, which it names; None if there is none."""
    for row, values in enumerate(zip(*columns, strict=True)):
        try:
            evaluate([[value] for value in values])
        except InvalidInputError as error:
            what, colon, why = error.message.partition(":")
            return InvalidInputError(f"{what} in {ref}, row {row}{colon}{why}", hint=error.hint)
    return None
