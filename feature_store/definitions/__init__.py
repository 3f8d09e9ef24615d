"""What users declare: entities, sources, feature views and services, frozen and named by their content."""

from feature_store.definitions.base import Definition, Field
from feature_store.definitions.entity import Entity
from feature_store.definitions.feature_view import Aggregation, FeatureView, Storage
from feature_store.definitions.on_demand import OnDemandFeatureView, RequestInput
from feature_store.definitions.service import FeatureService, Logging
from feature_store.definitions.source import Kafka, Source, Stream

__all__ = [
    "Aggregation",
    "Definition",
    "Entity",
    "FeatureService",
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
