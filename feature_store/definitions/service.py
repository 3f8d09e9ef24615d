"""The features that one model reads, by reference."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, model_validator
from pydantic import Field as Bound

from feature_store.definitions.base import Definition, Strict, names_of
from feature_store.definitions.mistakes import mistake


class Logging(Strict):
    """What part of the served answers is kept for training: a rate from 0 to 1."""

    sample_rate: float = Bound(default=1.0, ge=0.0, le=1.0)


class FeatureService(Definition):
    """The features of one model: references `view`, `view:feature`, or a bare feature name that one view has."""

    kind: ClassVar[str] = "feature_service"

    features: Annotated[tuple[str, ...], BeforeValidator(names_of)]
    logging: Logging | None = None

    @model_validator(mode="after")
    def _has_features(self) -> FeatureService:
        if not self.features:
            raise mistake("a feature service needs features", "features")
        return self
