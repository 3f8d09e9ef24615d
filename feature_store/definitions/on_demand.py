"""Features computed when they are asked for, from request values and other features."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Discriminator, Tag, model_validator

from feature_store.definitions.base import Field, Strict, View, check_names, names_of
from feature_store.definitions.mistakes import mistake


class RequestInput(Strict):
    """Values that the caller sends with the request (online) or has as columns (historical)."""

    request: tuple[Field, ...]


def _input_form(value: object) -> str:
    return "reference" if isinstance(value, str) else "values"


_Input = Annotated[
    Annotated[RequestInput, Tag("values")] | Annotated[str, Tag("reference")], Discriminator(_input_form)
]


class OnDemandFeatureView(View):
    """Features computed at request time and in training sets by the same expressions.

    `inputs` are request values, feature references (`view`, `view:feature`) and other on-demand views;
    `features` are fields with an `expression` over the names these bring.
    """

    kind: ClassVar[str] = "on_demand_feature_view"

    inputs: Annotated[tuple[_Input, ...], BeforeValidator(names_of)]
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
            raise mistake("an on-demand feature view needs inputs", "inputs")
        if not self.features:
            raise mistake("an on-demand feature view needs features", "features")
        for index, field in enumerate(self.features):
            if not field.expression:
                raise mistake(f'feature "{field.name}" needs an expression', "features", index)
        check_names(self.feature_names, "features")
        self._check_request()
        return self

    def _check_request(self) -> None:
        seen: set[str] = set()
        for index, item in enumerate(self.inputs):
            for position, field in enumerate(item.request if isinstance(item, RequestInput) else ()):
                path = ("inputs", index, "request", position)
                if field.expression or field.column:
                    raise mistake(f'request value "{field.name}" has a name and a type, no column or expression', *path)
                if field.name in seen:
                    raise mistake(f'request value "{field.name}" is defined twice', *path, "name")
                seen.add(field.name)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.features)

    @property
    def request_fields(self) -> tuple[Field, ...]:
        return tuple(field for item in self.inputs if isinstance(item, RequestInput) for field in item.request)

    @property
    def references(self) -> tuple[str, ...]:
        return tuple(item for item in self.inputs if isinstance(item, str))
