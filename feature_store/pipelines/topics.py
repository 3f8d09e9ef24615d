"""The topics of a store's sources, as its settings say where they are, and what reads their messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feature_store.definitions.source import Kafka, Source
from feature_store.errors import InvalidInputError
from feature_store.materialization.messages import Decoder
from feature_store.materialization.schema_registry import SchemaRegistry
from feature_store.store import FeatureStore

if TYPE_CHECKING:
    from feature_store.engines.kafka import Topic


def kafka_of(store: FeatureStore, source: str) -> Kafka:
    """The `stream.kafka` of an applied source; `InvalidInputError` if it has none."""
    stream = store.catalog.definition(Source, source).stream
    if stream is None or stream.kafka is None:
        raise InvalidInputError(
            f'source "{source}" reads no topic', hint="Write in its definition stream: {kafka: {topic: NAME}}"
        )
    return stream.kafka


def topic_of(store: FeatureStore, source: str) -> Topic:
    """The topic of a source."""
    return _topic(store, source, kafka_of(store, source).topic)


def dead_letters_of(store: FeatureStore, source: str) -> Topic:
    """The topic for messages of a source that cannot be taken."""
    return _topic(store, source, kafka_of(store, source).dead_letter_topic)


def group_of(store: FeatureStore, source: str) -> str:
    """The consumer group of a source's stream."""
    return f"feature_store.{store.project}.{source}"


def decoder_of(store: FeatureStore, source: str) -> Decoder:
    """What reads the messages of a source."""
    kafka, catalog = kafka_of(store, source), store.catalog
    address = store.settings.kafka.schema_registry
    schemas = SchemaRegistry(address).schema if address and kafka.uses_registry else None
    return Decoder(catalog.sources[source], catalog.rows[source], kafka.read_avro_schema(store.root), schemas)


def _topic(store: FeatureStore, source: str, name: str) -> Topic:
    from feature_store.engines.kafka import Topic  # a driver that few repos need

    place = store.settings.kafka_place(source, kafka_of(store, source).brokers)
    assert place.brokers is not None
    return Topic(name, place.brokers, place.conf_texts)
