"""Generated definitions: every kind, every key, each valid by itself. References point nowhere."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from feature_store.definitions import (
    Aggregation,
    Definition,
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
from feature_store.definitions.entity import KEY_KINDS
from feature_store.definitions.feature_view import FUNCTIONS
from feature_store.definitions.source import SourceColumn
from feature_store.expressions.instants import DAY, MINUTE, Duration
from feature_store.types import Type, array, decimal

_TRICKY = ("on", "off", "yes", "no", "null", "true", "nan", "y", "n", "e1", "_1")
names = st.sampled_from(_TRICKY) | st.from_regex(r"[A-Za-z](_?[A-Za-z0-9]){0,12}", fullmatch=True)
_TEXTS = (
    "", "~", "12", "1e3", "0x1f", "012", "1_000", "12:30", "2026-01-01", "- a", "a: b", "# a", "'", '"', " a ", "\ta",
    "a\n", "\na", " \n a\n\n", "a\r\nb", "用户", "🙂", "\x85", "\ufeff", "\u2028", "<<", "=", "*a", "&a", "!a", "%a",
    "@a", "`a", "|", "${date}", "---", "...\n", "select 1\nfrom t\n", "  select\n 1  \n", "true", ".inf", "1.", "+1",
)  # fmt: skip
texts = st.sampled_from(_TEXTS) | st.text(max_size=30)
_filled = texts.filter(bool)
durations = st.integers(1, 36_500 * DAY).map(Duration) | st.integers(1, 100).map(lambda n: timedelta(minutes=n))
_simple_types = st.sampled_from(
    [Type(kind) for kind in ("INT32", "INT64", "FLOAT32", "FLOAT64", "STRING", "BYTES", "BOOL", "TIMESTAMP", "DATE")]
) | st.integers(1, 38).flatmap(lambda p: st.integers(0, p).map(lambda s: decimal(p, s)))
types = st.recursive(_simple_types, lambda inner: inner.map(array), max_leaves=3)


def defaults(type_: Type) -> st.SearchStrategy[Any]:
    """Python values that a type takes as a default, or None."""
    return st.none() | values(type_)


def values(type_: Type) -> st.SearchStrategy[Any]:
    if type_.item:
        return st.lists(values(type_.item), max_size=3)
    if type_.kind == "DECIMAL":
        limit = 10**type_.precision - 1
        return st.integers(-limit, limit).map(lambda whole: f"{whole}e-{type_.scale}")
    simple: dict[str, st.SearchStrategy[Any]] = {
        "INT32": st.integers(-(2**31), 2**31 - 1),
        "INT64": st.integers(-(2**63), 2**63 - 1),
        "FLOAT32": st.floats(width=32),
        "FLOAT64": st.floats() | st.integers(-9, 9),
        "STRING": texts,
        "BYTES": st.binary(max_size=20),
        "BOOL": st.booleans(),
        "TIMESTAMP": st.datetimes(),
        "DATE": st.dates(),
    }
    return simple[type_.kind]


_tags = st.dictionaries(texts, texts, max_size=3) | st.lists(texts, max_size=3)


def _common() -> dict[str, st.SearchStrategy[Any]]:
    return {"name": names, "description": texts, "owner": texts, "tags": _tags}


@st.composite
def fields(draw: st.DrawFn, form: str = "column") -> Field:
    type_ = draw(types)
    extra: dict[str, Any] = {}
    if form == "expression" or (form == "any" and draw(st.booleans())):
        extra["expression"] = draw(_filled)
    elif form in ("column", "any"):
        extra["column"] = draw(st.none() | _filled)
    return Field(name=draw(names), type=type_, default=draw(defaults(type_)), description=draw(texts), **extra)


def _unique(items: st.SearchStrategy[Any], least: int = 1) -> st.SearchStrategy[list[Any]]:
    return st.lists(items, min_size=least, max_size=4, unique_by=lambda item: item.name)


@st.composite
def aggregations(draw: st.DrawFn) -> Aggregation:
    function = draw(st.sampled_from(FUNCTIONS))
    count = draw(st.integers(1, 1000)) if function == "last_n" else None
    hop = draw(st.none() | st.sampled_from([MINUTE, 5 * MINUTE, DAY]).map(Duration))
    return Aggregation(
        name=draw(names),
        function=f"last_n({count})" if count else function,
        column=draw(_filled if function != "count" else st.none() | _filled),
        window=draw(st.integers(hop or 1, 3650 * DAY).map(Duration)),
        hop=hop,
        where=draw(st.none() | _filled),
        default=draw(st.none() | st.integers() | st.floats() | texts | st.dates() | st.datetimes() | st.binary()),
        description=draw(texts),
    )


entities = st.builds(Entity, join_key=names, type=st.sampled_from([Type(kind) for kind in KEY_KINDS]), **_common())
_brokers = st.sampled_from([None, "localhost:9092", "SASL_SSL://a.b:1, [::1]:65535"])
_topic_names = st.from_regex(r"[A-Za-z0-9._-]{3,12}", fullmatch=True)
_topics = st.builds(
    Kafka,
    topic=_topic_names,
    format=st.just("avro"),
    avro_schema=st.sampled_from([None, {"type": "record", "name": "\u7528"}, "schemas/a.avsc", '["null"]']),
    schema_registry=st.sampled_from([None, True]),
    time_unit=st.sampled_from(["s", "ms", "us"]),
    envelope=st.sampled_from([None, "debezium"]),
    brokers=_brokers,
    dead_letters=st.none() | _topic_names,
)
_kafka = _topics | st.builds(
    Kafka, topic=names, format=st.just("json"), brokers=_brokers, dead_letters=st.none() | _topic_names
)
_streams = st.builds(Stream, push=st.just(True)) | st.builds(
    Stream, kafka=_kafka, push=st.booleans(), engine=st.sampled_from([None, "kafka", "flink"])
)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    """From files, a table or a stream alone, which must say what its columns are."""
    rests = draw(st.sampled_from(["path", "table", None]))
    where = {rests: draw(_filled)} if rests else {}
    stream = draw(_streams if rests is None else st.none() | _streams)
    return Source(
        **where,
        timestamp=draw(st.none() | _filled if stream is None else _filled),
        created=draw(st.none() | _filled),
        deleted=draw(st.none() | _filled),
        columns=draw(_unique(st.builds(SourceColumn, name=texts, type=types), least=0 if rests else 1)),
        unique=draw(st.lists(texts, max_size=2)),
        stream=stream,
        **{key: draw(values) for key, values in _common().items()},
    )


_view_keys = {
    **_common(),
    "entities": st.lists(names, min_size=1, max_size=3),
    "engine": st.none() | texts,
    "online": st.booleans(),
    "storage": st.none() | st.builds(Storage, offline=st.none() | texts, online=st.none() | texts),
}
_due = st.sampled_from(["daily", "hourly", "30 2 * * *", "0 */6 * * 1-5"])
latest_row_views = st.builds(
    FeatureView,
    source=names,
    features=_unique(fields("any")),
    ttl=st.none() | durations,
    schedule=st.none() | _due,
    **_view_keys,
)
windowed_views = st.builds(
    FeatureView, source=names, aggregations=_unique(aggregations()), schedule=st.none() | _due, **_view_keys
)
sql_views = st.builds(
    FeatureView,
    source=st.none() | names,
    sql=_filled,
    features=_unique(fields("column")),
    schedule=_due,
    delay=st.none() | durations,
    **_view_keys,
)
on_demand_views = st.builds(
    OnDemandFeatureView,
    inputs=st.tuples(st.builds(RequestInput, request=_unique(fields("request"))), st.lists(names, max_size=2)).map(
        lambda pair: [pair[0], *pair[1]]
    ),
    features=_unique(fields("expression")),
    **_common(),
)
services = st.builds(
    FeatureService,
    features=st.lists(names, min_size=1, max_size=3),
    logging=st.none() | st.builds(Logging, sample_rate=st.floats(0, 1)),
    **_common(),
)
definitions: st.SearchStrategy[Definition] = st.one_of(
    entities, sources(), latest_row_views, windowed_views, sql_views, on_demand_views, services
)
