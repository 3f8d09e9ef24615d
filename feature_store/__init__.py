"""Feature definitions to point-in-time-correct training data and online features.

The public names load when first used, so that `import feature_store` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feature_store.definitions import (
        Aggregation,
        Entity,
        FeatureService,
        FeatureView,
        Field,
        Kafka,
        Logging,
        OnDemandFeatureView,
        RequestInput,
        Source,
        Storage,
        Stream,
    )
    from feature_store.errors import FeatureStoreError
    from feature_store.store import FeatureStore

__version__ = "0.1.0"

_HOMES = {
    "Aggregation": "definitions",
    "Entity": "definitions",
    "FeatureService": "definitions",
    "FeatureStore": "store",
    "FeatureStoreError": "errors",
    "FeatureView": "definitions",
    "Field": "definitions",
    "Kafka": "definitions",
    "Logging": "definitions",
    "OnDemandFeatureView": "definitions",
    "RequestInput": "definitions",
    "Source": "definitions",
    "Storage": "definitions",
    "Stream": "definitions",
}

__all__ = [
    "Aggregation",
    "Entity",
    "FeatureService",
    "FeatureStore",
    "FeatureStoreError",
    "FeatureView",
    "Field",
    "Kafka",
    "Logging",
    "OnDemandFeatureView",
    "RequestInput",
    "Source",
    "Storage",
    "Stream",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
