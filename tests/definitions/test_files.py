"""YAML files: what they make, that they survive a round trip, and where each mistake is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
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
from feature_store.definitions.files import dump, load_file, load_text, loads
from feature_store.errors import DefinitionError, SourceError
from feature_store.types import INT64
from tests.strategies import definitions

WORD_FOR_WORD = """\
feature:
  name: user_click_cnt_7d
  description: "用户最近7天点击广告次数"
  type: INT
  entity: user_id
  source: dwd_ad_click
  compute:
    engine: spark
    sql: |
      SELECT user_id, COUNT(*) as value
      FROM dwd_ad_click
      WHERE dt >= date_sub('${date}', 7)
      GROUP BY user_id
  storage:
    offline: hbase://feature_store/user_features
    online: redis://feature_cache
  schedule: daily
  owner: data-team
  tags: [user, behavior, click]
"""


@settings(max_examples=100, deadline=None)
@given(st.lists(definitions, max_size=3))
def test_what_is_dumped_loads_back_equal(several: list[Definition]) -> None:
    text = dump(several)
    assert loads(text) == several
    assert [item.content_hash() for item in loads(text)] == [item.content_hash() for item in several]
    assert dump(loads(text)) == text


@settings(max_examples=100, deadline=None)
@given(definitions)
def test_the_registrys_json_builds_the_same_definition(definition: Definition) -> None:
    text = json.dumps(definition.to_dict(), allow_nan=False)
    assert type(definition).model_validate(json.loads(text)) == definition


def test_the_contracts_feature_is_a_view_over_the_value_column() -> None:
    assert loads(WORD_FOR_WORD) == [
        FeatureView(
            name="user_click_cnt_7d",
            description="用户最近7天点击广告次数",
            entities=["user_id"],
            source="dwd_ad_click",
            features=[Field(name="user_click_cnt_7d", type="INT64", column="value")],
            sql=(
                "SELECT user_id, COUNT(*) as value\nFROM dwd_ad_click\n"
                "WHERE dt >= date_sub('${date}', 7)\nGROUP BY user_id\n"
            ),
            schedule="daily",
            engine="spark",
            storage=Storage(offline="hbase://feature_store/user_features", online="redis://feature_cache"),
            owner="data-team",
            tags=["user", "behavior", "click"],
        )
    ]


def test_the_contracts_yaml_builds_what_python_builds() -> None:
    text = """
entity: {name: user, join_key: user_id, type: INT64}
---
source:
  name: dwd_ad_click
  path: data/dwd_ad_click           # Parquet
  timestamp: event_time
  created: ingested_at
  stream: {kafka: {topic: ad_click, format: json}, push: true}
---
feature_view:
  name: user_profile
  entities: [user]
  source: dim_user
  features: [{name: user_age, type: INT64}, {name: user_gender, type: INT64}]
  ttl: 90d
---
feature_view:
  name: user_clicks
  entities: [user]
  source: dwd_ad_click
  aggregations:
    - {name: user_click_cnt_1h, function: count, window: 1h}
    - {name: user_spend_7d, function: sum, column: price, window: 7d, where: "price > 0"}
  schedule: daily
---
on_demand_feature_view:
  name: context
  inputs: [{request: [{name: request_time, type: TIMESTAMP}]}, user_clicks, ad_stats]
  features:
    - {name: context_hour, type: INT64, expression: "hour(request_time)"}
    - {name: ctr_7d, type: FLOAT64, expression: "user_click_cnt_7d / user_imp_cnt_7d", default: 0.0}
---
feature_service:
  name: ctr_v1
  features: [user_profile, "user_clicks:user_click_cnt_7d", context]
  logging: {sample_rate: 1.0}
"""
    user = Entity(name="user", join_key="user_id", type=INT64)
    clicks = Source(
        name="dwd_ad_click",
        path="data/dwd_ad_click",
        timestamp="event_time",
        created="ingested_at",
        stream=Stream(kafka=Kafka(topic="ad_click"), push=True),
    )
    profile = FeatureView(
        name="user_profile",
        entities=[user],
        source="dim_user",
        features=[Field(name="user_age", type="bigint"), Field(name="user_gender", type="INT")],
        ttl="90d",
    )
    user_clicks = FeatureView(
        name="user_clicks",
        entities=[user],
        source=clicks,
        aggregations=[
            Aggregation(name="user_click_cnt_1h", function="count", window="1h"),
            Aggregation(name="user_spend_7d", function="SUM", column="price", window="7d", where="price > 0"),
        ],
        schedule="daily",
    )
    context = OnDemandFeatureView(
        name="context",
        inputs=[RequestInput(request=[Field(name="request_time", type="timestamp")]), user_clicks, "ad_stats"],
        features=[
            Field(name="context_hour", type="INT64", expression="hour(request_time)"),
            Field(name="ctr_7d", type="FLOAT64", expression="user_click_cnt_7d / user_imp_cnt_7d", default=0),
        ],
    )
    service = FeatureService(
        name="ctr_v1", features=[profile, "user_clicks:user_click_cnt_7d", context], logging=Logging()
    )
    assert loads(text) == [user, clicks, profile, user_clicks, context, service]


def test_a_document_may_hold_several_kinds_and_lists() -> None:
    text = """
entities:
- {name: user}
- {name: ad}
sources: [{name: s, path: data, timestamp: t}]
feature_services:
---
# nothing here
---
entity: {name: shop}
"""
    assert [item.name for item in loads(text)] == ["user", "ad", "s", "shop"]
    assert loads("") == loads("---\n---\n") == []


def test_words_that_yaml_takes_for_booleans_are_names() -> None:
    entity = loads("entity: {name: on, join_key: off, owner: yes, tags: {no: y}}")[0]
    assert entity == Entity(name="on", join_key="off", owner="yes", tags={"no": "y"})


def test_dates_and_times_are_text_and_defaults_take_them() -> None:
    text = """
feature_view:
  name: v
  entities: [u]
  source: s
  features:
  - {name: at, type: TIMESTAMP, default: 2026-01-01T01:00:00+01:00}
  - {name: day, type: DATE, default: 2026-01-01}
  owner: 2026-01-01
"""
    (view,) = loads(text)
    assert isinstance(view, FeatureView)
    assert [field.default for field in view.features] == ["2026-01-01T00:00:00Z", "2026-01-01"]
    assert [field.raw_default for field in view.features] == [1767225600000000, 20454]
    assert view.owner == "2026-01-01"


def test_anchors_aliases_and_merges() -> None:
    entities = loads("entities:\n- &a {name: user, owner: me, type: STRING}\n- {<<: *a, name: ad}\n")
    assert entities == [Entity(name="user", owner="me", type="STRING"), Entity(name="ad", owner="me", type="STRING")]


STREAM = "source:\n  name: s\n  path: p\n  timestamp: t\n  stream:\n"
MISTAKES = {
    "unknown kind": (
        "entity: {name: u}\nfeature_vew: {}",
        'unknown kind "feature_vew". Did you mean "feature_view"? (f.yaml:2)',
    ),
    "settings": (
        "project: ads",
        'unknown kind "project". This looks like settings: name the file in .featureignore (f.yaml:1)',
    ),
    "a list under a kind": (
        "feature_view: []",
        "feature_view takes one definition. For a list write feature_views: (f.yaml:1)",
    ),
    "one under a plural": (
        "entities: {name: u}",
        "entities takes a list of definitions. For one definition write entity: (f.yaml:1)",
    ),
    "no mapping": (
        "---\n- entity",
        "a document maps kinds to definitions, and this one is not a mapping. Kinds are entity, source, feature, "
        "feature_view, on_demand_feature_view, feature_service (f.yaml:2)",
    ),
    "a scalar for a definition": ("entity: u", "entity: this is not a mapping of keys to values (f.yaml:1)"),
    "nothing for a definition": ("entity:", "entity: this is not a mapping of keys to values (f.yaml:1)"),
    "unknown key": (
        "entity:\n  name: u\n  joinkey: x",
        'entity "u": unknown key "joinkey". Did you mean "join_key"? (f.yaml:3)',
    ),
    "unknown key, none near": (
        "feature_service:\n  name: s\n  features: [a]\n  zzz: 1",
        'feature service "s": unknown key "zzz". Keys are name, description, owner, tags, features, logging (f.yaml:4)',
    ),
    "unknown key inside": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  features:\n  - name: a\n    typ: INT",
        'feature view "v": features[0]: unknown key "typ". Did you mean "type"? (f.yaml:7)',
    ),
    "a comma in a value": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  features: [{name: a, type: DECIMAL(4,2)}]",
        'feature view "v": features[0]: unknown key "2)". Inside { } and [ ] a comma ends a value: put the value in '
        "quotes (f.yaml:5)",
    ),
    "missing key": ("entity:\n  owner: me", 'entity: "name" is missing (f.yaml:2)'),
    "missing key inside": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  features:\n  - name: a",
        'feature view "v": features[0]: "type" is missing (f.yaml:6)',
    ),
    "not a name": (
        "entity:\n  name: a b",
        'entity "a b": name: "a b" is not a name: letters, digits and single underscores, not starting with a digit, '
        "at most 128 characters (f.yaml:2)",
    ),
    "a number as a name": ("entity:\n  name: 12", "entity: name: 12 is not text. Put it in quotes (f.yaml:2)"),
    "null as a name": ("entity:\n  name:", "entity: name: null is not text (f.yaml:2)"),
    "not a type": (
        "entity:\n  name: u\n  type: IN64",
        'entity "u": type: "IN64" is not a type. Did you mean "INT64"? (f.yaml:3)',
    ),
    "a type that is no key": (
        "entity:\n  name: u\n  type: FLOAT",
        'entity "u": a join key cannot be FLOAT32. It can be INT32, INT64, STRING, BYTES, BOOL, TIMESTAMP, DATE '
        "(f.yaml:3)",
    ),
    "not a list": (
        "feature_service:\n  name: s\n  features: a",
        'feature service "s": features: "a" is not a list (f.yaml:3)',
    ),
    "not a boolean": (
        "source:\n  name: s\n  path: p\n  timestamp: t\n  stream:\n    push: maybe",
        'source "s": stream.push: "maybe" is not true or false (f.yaml:6)',
    ),
    "not one of": (
        "source:\n  name: s\n  timestamp: t\n  path: p\n  stream:\n    kafka:\n      topic: x\n      format: xml",
        "source \"s\": stream.kafka.format: \"xml\" is not one of 'json', 'avro' (f.yaml:8)",
    ),
    "a stream without a time": (
        "source:\n  name: s\n  path: p\n  stream:\n    kafka: {topic: x}",
        'source "s": a source with a stream needs a timestamp column (f.yaml:4)',
    ),
    "an engine with nothing to read": (
        f"{STREAM}    push: true\n    engine: flink",
        'source "s": stream: the engine of a stream reads Kafka: it needs kafka, too (f.yaml:7)',
    ),
    "no such engine of a stream": (
        f"{STREAM}    kafka: {{topic: x}}\n    engine: spark",
        "source \"s\": stream.engine: \"spark\" is not one of 'kafka', 'flink' (f.yaml:7)",
    ),
    "not a topic": (
        f"{STREAM}    kafka: {{topic: ad click}}",
        'source "s": stream.kafka.topic: "ad click" is not a topic: letters, digits, ".", "_" and "-", at most 249 '
        "characters (f.yaml:6)",
    ),
    "not a broker": (
        f"{STREAM}    kafka:\n      topic: x\n      brokers: a:1, b",
        'source "s": stream.kafka.brokers: "b" is not a broker; write host:port, with commas between several '
        "(f.yaml:8)",
    ),
    "a schema of JSON messages": (
        f"{STREAM}    kafka:\n      topic: x\n      avro_schema: a.avsc",
        'source "s": stream.kafka: messages in json have no avro_schema; write format: avro (f.yaml:8)',
    ),
    "avro and no schema": (
        f"{STREAM}    kafka:\n      topic: x\n      format: avro\n      schema_registry: false",
        'source "s": stream.kafka: avro without a schema registry needs avro_schema (f.yaml:9)',
    ),
    "a schema that is not JSON": (
        f"{STREAM}    kafka:\n      topic: x\n      format: avro\n      avro_schema: '{{type: record}}'",
        'source "s": stream.kafka.avro_schema: this is not JSON: Expecting property name enclosed in double quotes: '
        "line 1 column 2 (char 1) (f.yaml:9)",
    ),
    "out of range": (
        "feature_service:\n  name: s\n  features: [a]\n  logging:\n    sample_rate: 2",
        'feature service "s": logging.sample_rate: 2 should be less than or equal to 1 (f.yaml:5)',
    ),
    "not a duration": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  features: [{name: a, type: INT}]\n  ttl: 7 days",
        "feature view \"v\": ttl: '7 days' is not a duration. Write for example 30s, 5m, 1h, 7d or 1h30m (f.yaml:6)",
    ),
    "a number for a duration": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  features: [{name: a, type: INT}]\n  ttl: 7",
        'feature view "v": ttl: 7 is not a duration. Write for example 30s, 5m, 1h, 7d or 1h30m (f.yaml:6)',
    ),
    "not a function": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  aggregations:\n"
        "  - {name: a, function: cont, window: 1h}",
        'feature view "v": aggregations[0]: "cont" is not an aggregate function. Did you mean "count"? (f.yaml:6)',
    ),
    "a hop that divides nothing": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  aggregations:\n"
        "  - name: a\n    function: count\n    window: 1d\n    hop: 7m",
        'feature view "v": aggregations[0]: hop 7m must divide a day, or be whole days (f.yaml:9)',
    ),
    "a hop longer than its window": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  aggregations:\n"
        "  - name: a\n    function: count\n    window: 1h\n    hop: 1d",
        'feature view "v": aggregations[0]: hop 1d is longer than window 1h (f.yaml:9)',
    ),
    "a feature twice": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  features:\n  - {name: a, type: INT}\n"
        "  - {name: a, type: INT}",
        'feature view "v": feature "a" is defined twice (f.yaml:7)',
    ),
    "ttl of windows": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  ttl: 1d\n"
        "  aggregations: [{name: a, function: count, window: 1h}]",
        'feature view "v": ttl is for views over columns; windows and snapshots say themselves how far they look '
        "(f.yaml:5)",
    ),
    "a default of another type": (
        "feature_view:\n  name: v\n  entities: [u]\n  source: s\n  features:\n  - {name: a, type: INT32, default: 3e9}",
        'feature view "v": features[0].default: default 3000000000.0 is not an INT32. '
        "Give an integer from -2147483648 to 2147483647 (f.yaml:6)",
    ),
    "an expression missing": (
        "on_demand_feature_view:\n  name: v\n  inputs: [a]\n  features:\n  - {name: b, type: INT}",
        'on-demand feature view "v": feature "b" needs an expression (f.yaml:5)',
    ),
    "an unknown key of a request value": (
        "on_demand_feature_view:\n  name: v\n  inputs:\n  - request:\n    - {name: b, typ: INT}\n"
        "  features: [{name: c, type: INT, expression: b}]",
        'on-demand feature view "v": inputs[0].request[0]: unknown key "typ". Did you mean "type"? (f.yaml:5)',
    ),
    "a short form with a typo": (
        "feature:\n  name: f\n  type: INT\n  entity: u\n  compute:\n    sq: select 1",
        'feature "f": compute: unknown key "sq". Did you mean "sql"? (f.yaml:6)',
    ),
    "a short form without a schedule": (
        "feature:\n  name: f\n  type: INT\n  entity: u\n  compute:\n    sql: select 1",
        'feature view "f": a feature view with sql needs a schedule. Write schedule: daily (f.yaml:6)',
    ),
    "a short form with a wrong schedule": (
        "feature:\n  name: f\n  type: INT\n  entity: u\n  compute:\n    sql: select 1\n  schedule: dayly",
        'feature view "f": schedule "dayly" is not daily, hourly or a cron line of five fields (f.yaml:7)',
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_at_its_line(case: str) -> None:
    text, message = MISTAKES[case]
    with pytest.raises(DefinitionError) as caught:
        load_text(text, "f.yaml")
    assert str(caught.value) == message


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"entity:\n  name: u\n  owner: \xe9\n")
    with pytest.raises(DefinitionError) as caught:
        load_file(tmp_path / "f.yaml", "f.yaml")
    assert str(caught.value) == "the file is not UTF-8: byte 0xe9. Save it as UTF-8 (f.yaml:3)"


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfentity: {name: u}\r\n")
    assert [item.name for item, _ in load_file(tmp_path / "f.yaml")] == ["u"]


def test_a_place_knows_the_lines_of_its_parts() -> None:
    ((_, view),) = load_text(WORD_FOR_WORD, "f.yaml")
    assert (str(view), str(view.inside("sql")), str(view.inside("features", 0, "type"))) == (
        "f.yaml:2",
        "f.yaml:9",
        "f.yaml:4",
    )
    assert str(view.inside("storage", "online")) == "f.yaml:16"
    assert str(view.inside("entities", 0)) == "f.yaml:5"
    assert str(view.inside("features", 0, "column")) == "f.yaml:9"


def test_an_avro_schema_is_a_file_json_or_yaml(tmp_path: Path) -> None:
    (tmp_path / "click.avsc").write_text('{"type": "record"}')
    for written in ("click.avsc", '{"type": "record"}', "{type: record}"):
        kafka = Kafka(topic="t", format="avro", avro_schema=yaml.safe_load(written) if "{t" in written else written)
        assert kafka.read_avro_schema(tmp_path) == '{"type": "record"}'
        assert not kafka.uses_registry
    assert Kafka(topic="t", format="avro").uses_registry
    assert Kafka(topic="t", format="avro", avro_schema="click.avsc", schema_registry=True).uses_registry
    assert not Kafka(topic="t").uses_registry
    with pytest.raises(SourceError, match=r'^avro_schema "none\.avsc" cannot be read: No such file or directory$'):
        Kafka(topic="t", format="avro", avro_schema="none.avsc").read_avro_schema(tmp_path)
