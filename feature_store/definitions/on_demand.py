from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, model_validator

from feature_store.definitions.base import Definition, Field, Strict, names_of


class RequestInput(Strict):
    """Values that the caller sends with the request (online) or has as columns (historical)."""

    request: tuple[Field, ...]


class OnDemandFeatureView(Definition):
    """Features computed at request time and in training sets by the same expressions.

    `inputs` are request values, feature references (`view`, `view:feature`) and other on-demand views;
    `features` are fields with an `expression` over the names these bring.
    """

    kind: ClassVar[str] = "on_demand_feature_view"

    inputs: Annotated[tuple[RequestInput | str, ...], BeforeValidator(names_of)]
    features: tuple[Field, ...]

    @model_validator(mode="before")
    @classmethod
    def _wrap_fields(cls, data: Any) -> Any:
        """Python users may list request fields directly: inputs=[Field(...), user_clicks]."""
        if isinstance(data, dict) and isinstance(data.get("inputs"), (list, tuple)):
            fields = [item for item in data["inputs"] if isinstance(item, Field)]
            if fields:
                rest = [item for item in data["inputs"] if not isinstance(item, Field)]
                return {**data, "inputs": [RequestInput(request=tuple(fields)), *rest]}
        return data

    @model_validator(mode="after")
    def _every_feature_is_computed(self) -> OnDemandFeatureView:
        if not self.inputs:
            raise ValueError("an on-demand feature view needs inputs")
        if not self.features:
            raise ValueError("an on-demand feature view needs features")
        for field in self.features:
            if not field.expression:
                raise ValueError(f'feature "{field.name}" needs an expression')
        names = self.feature_names
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f'feature "{twice}" is defined twice')
        return self

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.features)

    @property
    def request_fields(self) -> tuple[Field, ...]:
        return tuple(field for item in self.inputs if isinstance(item, RequestInput) for field in item.request)

    @property
    def references(self) -> tuple[str, ...]:
        return tuple(item for item in self.inputs if isinstance(item, str))
