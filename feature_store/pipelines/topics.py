"""What belongs to the topic of a source: its dead letters, its consumer group, what reads its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feature_store.materialization.messages import Decoder
from feature_store.materialization.schema_registry import SchemaRegistry
from feature_store.store import FeatureStore

if TYPE_CHECKING:
    from feature_store.engines.kafka import Topic


def dead_letters_of(store: FeatureStore, source: str) -> Topic:
    """The topic for messages of a source that cannot be taken."""
    return store.topic(source, store.catalog.kafka(source).dead_letter_topic)


def group_of(store: FeatureStore, source: str) -> str:
    """The consumer group of a source's stream."""
    return f"feature_store.{store.project}.{source}"


def decoder_of(store: FeatureStore, source: str) -> Decoder:
    """What reads the messages of a source."""
    catalog, address = store.catalog, store.settings.kafka.schema_registry
    kafka = catalog.kafka(source)
    schemas = SchemaRegistry(address).schema if address and kafka.uses_registry else None
    return Decoder(catalog.sources[source], catalog.rows[source], kafka.read_avro_schema(store.root), schemas)
