"""On-demand feature views as scalars over request values and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from feature_store.definitions.base import Field
from feature_store.definitions.catalog import BoundOnDemand, BoundView, FeatureRef
from feature_store.definitions.checks import Declared, names_at
from feature_store.definitions.conversions import converted, expression, placed
from feature_store.definitions.on_demand import OnDemandFeatureView
from feature_store.errors import FeatureStoreError
from feature_store.expressions.relations import Computed
from feature_store.types import Column, Schema, Type


def bind_on_demand(
    declared: Declared,
    view: OnDemandFeatureView,
    views: Mapping[str, BoundView],
    on_demand: Mapping[str, BoundOnDemand],
) -> BoundOnDemand:
    """A checked view over the views bound before it."""
    brought = names_at(
        pair
        for index, reference in enumerate(view.inputs)
        if isinstance(reference, str)
        for pair in declared.expand(view, reference, "inputs", index)
    )
    request = Schema(tuple(Column(field.name, field.type) for field in view.request_fields))
    columns = tuple(Column(name, _type_of(pairs[0], views, on_demand)) for name, pairs in brought.items())
    scope = Schema((*request, *columns))
    computed = tuple(
        _computed(declared, view, field, index, scope, brought) for index, field in enumerate(view.features)
    )
    read = frozenset[str]().union(*(item.scalar.columns for item in computed))
    return BoundOnDemand(
        view=view,
        request=request,
        needs=tuple(FeatureRef(*pairs[0]) for name, pairs in brought.items() if name in read),
        features=computed,
        defaults={field.name: field.raw_default for field in view.features if field.default is not None},
        request_defaults={field.name: field.raw_default for field in view.request_fields if field.default is not None},
    )


def _computed(
    declared: Declared,
    view: OnDemandFeatureView,
    field: Field,
    index: int,
    scope: Schema,
    brought: Mapping[str, Sequence[tuple[str, str]]],
) -> Computed:
    """A feature of an on-demand view, over the names in its scope."""
    path = ("features", index, "expression")
    try:
        scalar = expression(field.expression or "", scope)
    except FeatureStoreError as error:
        raise placed(declared, view, error, *path) from None
    for name in sorted(scalar.columns):
        owners = [":".join(pair) for pair in brought.get(name, ())]
        if len(owners) > 1:
            message = f'"{name}" in feature "{field.name}" is ambiguous: {" or ".join(owners)}'
            raise declared.error(
                view, message, *path, hint=f'Write one of them under inputs, for example "{owners[0]}"'
            )
    return Computed(field.name, converted(declared, view, field, scalar, index))


def _type_of(pair: tuple[str, str], views: Mapping[str, BoundView], on_demand: Mapping[str, BoundOnDemand]) -> Type:
    features = views[pair[0]].features if pair[0] in views else on_demand[pair[0]].features
    return next(feature.type for feature in features if feature.name == pair[1])
