"""Binding: relations and types out of definitions and schemas, and each mistake at its line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from feature_store.definitions import Definition, Entity, FeatureView, Field, Source
from feature_store.definitions.bind import Catalog, bind
from feature_store.definitions.catalog import FeatureRef
from feature_store.definitions.files import load_text
from feature_store.definitions.lineage import lineage
from feature_store.definitions.tables import latest_table
from feature_store.errors import DefinitionError, Location, SourceError
from feature_store.expressions.instants import DAY, HOUR, MINUTE
from feature_store.expressions.relations import DELETED, LatestRow, Rows, Schedule, ScheduledQuery, Windows
from feature_store.expressions.scalars import Ref
from feature_store.types import (
    BOOL,
    BYTES,
    DATE,
    FLOAT32,
    FLOAT64,
    INT32,
    INT64,
    STRING,
    TIMESTAMP,
    Schema,
    Type,
    array,
    decimal,
)

SCHEMAS = {
    "dim_user": Schema.of(user_id=INT64, at=TIMESTAMP, age=INT32, price=FLOAT32, name=STRING, paid=decimal(10, 2)),
    "clicks": Schema.of(user_id=INT64, ad_id=STRING, at=TIMESTAMP, price=FLOAT64, dt=DATE),
    "live": Schema.of(user_id=INT64, at=TIMESTAMP, price=FLOAT64),
    "dims": Schema.of(user_id=INT64, at=TIMESTAMP, price=FLOAT64, gone=BOOL),
}
BASE = """\
entities: [{name: user, join_key: user_id}, {name: ad, join_key: ad_id, type: STRING}]
sources:
- {name: dim_user, path: data/users, timestamp: at}
- {name: clicks, path: data/clicks, timestamp: at}
- {name: live, path: data/live, timestamp: at, stream: {push: true}}
---
"""
VIEWS = """\
feature_views:
- name: profile
  entities: [user]
  source: dim_user
  features:
  - {name: age, type: INT64, default: -1}
  - {name: cents, type: 'DECIMAL(12,3)', column: paid}
  - {name: adult, type: BOOL, expression: "age >= 18"}
  ttl: 90d
- name: spend
  entities: [user, ad]
  source: clicks
  aggregations:
  - {name: clicks_1h, function: count, window: 1h, default: 0}
  - {name: spend_7d, function: sum, column: price, window: 7d, where: "price > 0"}
  - {name: last_ads, function: last_n(3), column: price, window: 30d, hop: 1h}
- name: moving
  entities: [user_id]
  source: live
  schedule: daily
  aggregations: [{name: n, function: count, window: 1d}]
---
on_demand_feature_views:
- name: second
  inputs: ["first:double"]
  features: [{name: quadruple, type: FLOAT64, expression: "double * 2"}]
- name: first
  inputs: [profile, {request: [{name: now, type: TIMESTAMP, default: 2026-01-01}]}]
  features: [{name: double, type: FLOAT64, expression: "age * 2", default: 0}]
---
feature_service: {name: all, features: [profile, "spend:spend_7d", n, second, "profile:age"]}
"""


def bound(
    text: str, schemas: Mapping[str, Schema] | None = None, timezone: str = "UTC", root: Path = Path("/repo")
) -> Catalog:
    located = load_text(text, "f.yaml")
    locations: Mapping[tuple[str, str], Location] = {(item.kind, item.name): place for item, place in located}
    return bound_to([item for item, _ in located], schemas, timezone, root, locations)


def bound_to(
    definitions: list[Definition],
    schemas: Mapping[str, Schema] | None = None,
    timezone: str = "UTC",
    root: Path = Path("/repo"),
    locations: Any = None,
) -> Catalog:
    def schema_of(rows: Rows) -> Schema:
        found = {**SCHEMAS, **(schemas or {})}
        if rows.name not in found:
            raise SourceError(f'source "{rows.name}": nothing at {rows.path}')
        return found[rows.name]

    return bind(
        "p",
        definitions,
        root=root,
        offline=lambda table: f"/offline/{table}",
        timezone=timezone,
        schema_of=schema_of,
        locations=locations,
    )


def test_a_view_over_columns_is_a_latest_row() -> None:
    view = bound(BASE + VIEWS).views["profile"]
    relation = view.relation
    assert isinstance(relation, LatestRow)
    assert relation.rows == Rows(
        "dim_user", SCHEMAS["dim_user"], path="/repo/data/users", timestamp="at", pushed="/offline/push/dim_user"
    )
    assert relation.keys == view.keys == Schema.of(user_id=INT64)
    assert [(value.name, value.type) for value in relation.values] == [
        ("age", INT64),
        ("cents", decimal(12, 3)),
        ("adult", BOOL),
    ]
    assert view.features == Schema.of(age=INT64, cents=decimal(12, 3), adult=BOOL)
    assert relation.ttl == 90 * DAY
    assert view.defaults == {"age": -1}


def test_rows_may_delete_their_key() -> None:
    """The value that says so is the first of the relation, the last of the online table, and no feature."""
    text = BASE + (
        "source: {name: dims, path: p, timestamp: at%s}\n"
        "feature_view: {name: v, entities: [user], source: dims, features: [{name: price, type: FLOAT64}]}\n"
        "---\nfeature_view: {name: q, entities: [user], features: [{name: n, type: INT64}], schedule: daily, "
        "sql: 'SELECT user_id, COUNT(*) AS n FROM dims GROUP BY user_id'}"
    )
    plain, deletes = bound(text % ""), bound(text % ", deleted: gone")
    view = deletes.views["v"]
    assert isinstance(view.relation, LatestRow)
    assert [value.name for value in view.relation.values] == [DELETED, "price"]
    assert (view.relation.values[0].type, view.relation.values[0].scalar.columns) == (BOOL, {"gone"})
    assert view.features == Schema.of(price=FLOAT64)
    assert latest_table(view).values.names == ("price", DELETED)
    assert latest_table(plain.views["v"]).values.names == ("price",)
    assert view.version != plain.views["v"].version
    assert deletes.views["q"].version == plain.views["q"].version
    roles = {(edge.source.column, edge.role) for edge in lineage(deletes, "v")}
    assert roles == {("price", "value"), ("user_id", "key"), ("at", "timestamp"), ("gone", "deleted")}


def test_aggregations_are_windows() -> None:
    catalog = bound(BASE + VIEWS, timezone="Asia/Shanghai")
    relation = catalog.views["spend"].relation
    assert isinstance(relation, Windows)
    assert relation.keys == Schema.of(user_id=INT64, ad_id=STRING)
    assert relation.schedule == Schedule("daily", "Asia/Shanghai")
    count, spend, last = relation.windows
    assert (count.type, count.value, count.length, count.hop) == (INT64, None, HOUR, 5 * MINUTE)
    assert (spend.type, spend.value, spend.hop) == (FLOAT64, Ref(FLOAT64, "price"), HOUR)
    assert spend.where is not None
    assert (spend.where.type, spend.where.columns) == (BOOL, {"price"})
    assert (last.type, last.n, last.function, last.hop) == (array(FLOAT64), 3, "last_n", HOUR)
    assert catalog.views["spend"].defaults == {"clicks_1h": 0}


def test_windows_over_a_stream_move_with_time_whatever_their_schedule() -> None:
    relation = bound(BASE + VIEWS).views["moving"].relation
    assert isinstance(relation, Windows)
    assert relation.schedule is None
    assert relation.keys == Schema.of(user_id=INT64)  # the entity was named by its join key


def test_on_demand_views_come_after_those_they_need_and_read_only_what_they_use() -> None:
    catalog = bound(BASE + VIEWS)
    assert list(catalog.on_demand) == ["first", "second"]
    first, second = catalog.on_demand.values()
    assert first.needs == (FeatureRef("profile", "age"),)
    assert second.needs == (FeatureRef("first", "double"),)
    assert first.request == Schema.of(now=TIMESTAMP)
    assert (first.defaults, first.request_defaults) == ({"double": 0.0}, {"now": 1767225600000000})
    assert [(item.name, item.type) for item in first.features] == [("double", FLOAT64)]


def test_a_service_resolves_to_each_feature_once_in_order() -> None:
    catalog = bound(BASE + VIEWS)
    assert [str(ref) for ref in catalog.resolve("all")] == [
        "profile:age",
        "profile:cents",
        "profile:adult",
        "spend:spend_7d",
        "moving:n",
        "second:quadruple",
    ]
    assert catalog.feature_type(FeatureRef("spend", "spend_7d")) == FLOAT64
    assert catalog.feature_type(FeatureRef("second", "quadruple")) == FLOAT64
    assert catalog.default(FeatureRef("profile", "age")) == -1
    assert catalog.default(FeatureRef("spend", "spend_7d")) is None


SQL = """\
feature:
  name: clicks_yesterday
  type: INT
  entity: user_id
  source: clicks
  compute: {sql: "SELECT user_id, COUNT(*) AS value FROM clicks WHERE dt = '${date}' GROUP BY user_id"}
  schedule: daily
  delay: 2h
  default: 0
"""


def test_sql_with_a_schedule_is_a_query_over_the_sources_it_names() -> None:
    view = bound(BASE + SQL, timezone="Asia/Shanghai").views["clicks_yesterday"]
    relation = view.relation
    assert isinstance(relation, ScheduledQuery)
    assert [rows.name for rows in relation.sources] == ["clicks"]
    assert relation.values == (("clicks_yesterday", "value", INT64),)
    assert (relation.schedule, relation.delay) == (Schedule("daily", "Asia/Shanghai"), 2 * HOUR)
    assert (view.keys, view.features) == (Schema.of(user_id=INT64), Schema.of(clicks_yesterday=INT64))
    assert view.defaults == {"clicks_yesterday": 0}


def test_a_source_with_only_a_stream_has_its_declared_columns() -> None:
    text = BASE + (
        "source: {name: s, timestamp: t, stream: {push: true}, columns: [{name: user_id, type: INT64}, "
        "{name: t, type: TIMESTAMP}, {name: x, type: DOUBLE}]}\n"
        "feature_view: {name: v, entities: [user], source: s, features: [{name: x, type: FLOAT32}]}"
    )
    catalog = bound(text)
    assert catalog.rows["s"].schema == Schema.of(user_id=INT64, t=TIMESTAMP, x=FLOAT64)
    assert catalog.rows["s"].path is None


def test_declared_columns_say_how_files_are_read() -> None:
    text = BASE + (
        "source: {name: s, path: s.csv, timestamp: t, columns: [{name: user_id, type: STRING}, "
        "{name: t, type: TIMESTAMP}]}"
    )
    found = bound(text, {"s": Schema.of(t=STRING, user_id=INT64, other=BOOL)}).rows["s"].schema
    assert found == Schema.of(user_id=STRING, t=TIMESTAMP)


def test_uris_and_absolute_paths_stay() -> None:
    text = "sources: [{name: a, path: 's3://bucket/a', timestamp: at}, {name: b, path: /data/b, timestamp: at}]"
    rows = bound(text, {"a": SCHEMAS["live"], "b": SCHEMAS["live"]}).rows
    assert (rows["a"].path, rows["b"].path) == ("s3://bucket/a", "/data/b")


def test_a_source_that_no_view_uses_need_not_be_there() -> None:
    catalog = bound(BASE + SQL + "---\nsource: {name: later, path: nowhere, timestamp: t}")
    assert "later" in catalog.sources
    assert catalog.rows["later"].schema == Schema(())
    again = bound(BASE + SQL + "---\nsource: {name: later, path: nowhere, timestamp: t}", {"later": Schema(())})
    assert again.rows == catalog.rows  # bound from the registry, where it has no columns


def test_a_source_that_a_view_uses_must_be_there() -> None:
    text = BASE + (
        "source:\n  name: later\n  path: nowhere\n  timestamp: t\n---\n"
        "feature_view: {name: v, entities: [user], source: later, features: [{name: x, type: INT}]}"
    )
    with pytest.raises(SourceError) as caught:
        bound(text)
    assert str(caught.value) == 'source "later": nothing at /repo/nowhere (f.yaml:9)'


def view(body: str) -> str:
    return BASE + f"feature_view:\n  name: v\n{body}"


COLUMNS = "  entities: [user]\n  source: dim_user\n  features:\n"
WINDOWS = "  entities: [user]\n  source: clicks\n  aggregations:\n"
MISTAKES = {
    "an unknown column": (
        view(COLUMNS + "  - {name: ag, type: INT}"),
        'feature view "v": source "dim_user" has no column "ag". Did you mean "age"? (f.yaml:12)',
    ),
    "an unknown column, none near": (
        view(COLUMNS + "  - name: x\n    type: INT\n    column: zzz"),
        'feature view "v": source "dim_user" has no column "zzz". It has user_id, at, age, price, name, paid '
        "(f.yaml:14)",
    ),
    "text for an integer": (
        view(COLUMNS + "  - name: name\n    type: INT64"),
        'feature view "v": feature "name" is INT64, but "name" is STRING. Declare STRING, or write expression: '
        "cast(name as bigint) (f.yaml:13)",
    ),
    "a float for an integer": (
        view(COLUMNS + "  - name: price\n    type: INT64"),
        'feature view "v": feature "price" is INT64, but "price" is FLOAT32. Declare FLOAT32, or write expression: '
        "cast(price as bigint) (f.yaml:13)",
    ),
    "an expression of another type": (
        view(COLUMNS + '  - name: x\n    type: STRING\n    expression: "age >= 18"'),
        'feature view "v": feature "x" is STRING, but "age >= 18" is BOOL. Declare BOOL, or write expression: '
        "cast(age >= 18 as string) (f.yaml:13)",
    ),
    "a join key of another type": (
        BASE + "entity: {name: person, join_key: name}\nfeature_view:\n  name: v\n  entities: [person]\n"
        "  source: dim_user\n  features: [{name: age, type: INT}]",
        'feature view "v": join key "name" of entity "person" is INT64, but in source "dim_user" the column is STRING. '
        "Give both the same type (f.yaml:10)",
    ),
    "a join key that is not there": (
        view("  entities:\n  - user\n  - ad\n  source: dim_user\n  features: [{name: age, type: INT}]"),
        'feature view "v": source "dim_user" has no column "ad_id". Did you mean "paid"? (f.yaml:11)',
    ),
    "a timestamp that is not there": (
        "source:\n  name: live\n  path: p\n  timestamp: att",
        'source "live": no column "att". Did you mean "at"? (f.yaml:4)',
    ),
    "a timestamp that is none": (
        "source:\n  name: live\n  path: p\n  timestamp: price",
        'source "live": column "price" is FLOAT64, not TIMESTAMP or DATE. Declare its type under columns:, or convert '
        "it (f.yaml:4)",
    ),
    "a deleted that is not there": (
        "source:\n  name: live\n  path: p\n  timestamp: at\n  deleted: prize",
        'source "live": no column "prize". Did you mean "price"? (f.yaml:5)',
    ),
    "a deleted that says neither yes nor no": (
        "source:\n  name: live\n  path: p\n  timestamp: at\n  deleted: price",
        'source "live": column "price" is FLOAT64, not BOOL. Declare its type under columns:, or convert it (f.yaml:5)',
    ),
    "a stream without files, of which a column is of a wrong type": (
        "source:\n  name: s\n  timestamp: at\n  stream: {push: true}\n  deleted: gone\n  columns:\n"
        "  - {name: at, type: TIMESTAMP}\n  - {name: gone, type: STRING}",
        'source "s": column "gone" is STRING, not BOOL. Declare its type under columns:, or convert it (f.yaml:5)',
    ),
    "aggregates of rows that may be deleted": (
        "source: {name: dims, path: p, timestamp: at, deleted: gone}\nentity: {name: user, join_key: user_id}\n"
        "feature_view:\n  name: v\n  entities: [user]\n  source: dims\n"
        "  aggregations: [{name: n, function: count, window: 1h}]",
        'feature view "v": it cannot aggregate source "dims", whose rows may be deleted (deleted: gone). Aggregate a '
        "source of events, which happen once; of a source with deletes the latest row can be read (f.yaml:6)",
    ),
    "an unknown unique column": (
        "source:\n  name: live\n  path: p\n  timestamp: at\n  unique: [user_id, prize]",
        'source "live": no column "prize". Did you mean "price"? (f.yaml:5)',
    ),
    "a declared column that the files lack": (
        "source:\n  name: live\n  path: p\n  timestamp: at\n  columns:\n  - {name: at, type: TIMESTAMP}\n"
        "  - {name: prize, type: INT}",
        'source "live": no column "prize". Did you mean "price"? (f.yaml:7)',
    ),
    "an aggregate of an unknown column": (
        view(WINDOWS + "  - name: x\n    function: sum\n    window: 1h\n    column: prize"),
        'feature view "v": source "clicks" has no column "prize". Did you mean "price"? (f.yaml:15)',
    ),
    "a filter that is no condition": (
        view(WINDOWS + "  - name: x\n    function: count\n    window: 1h\n    where: price"),
        'feature view "v": feature "x": where: "price" is FLOAT64, not BOOL (f.yaml:15)',
    ),
    "a default of another type than the aggregate": (
        view(WINDOWS + "  - name: x\n    function: count\n    window: 1h\n    default: none"),
        'feature view "v": feature "x": default: default "none" is not an INT64. '
        "Give an integer of 64 bits, not a string, a bool or a fraction (f.yaml:15)",
    ),
    "a query without the value": (
        BASE + "feature:\n  name: f\n  type: INT\n  entity: user\n  schedule: daily\n  compute:\n"
        "    sql: SELECT user_id, COUNT(*) AS n FROM clicks GROUP BY user_id",
        'feature view "f": the sql has no column "value" for the feature "f". It has user_id, n (f.yaml:13)',
    ),
    "a query without the join key": (
        BASE + "feature:\n  name: f\n  type: INT\n  entity: user\n  schedule: daily\n  compute:\n"
        "    sql: SELECT ad_id, COUNT(*) AS value FROM clicks GROUP BY ad_id",
        'feature view "f": the sql has no column "user_id" for the join key. It has ad_id, value (f.yaml:10)',
    ),
    "a query of another type": (
        BASE + "feature:\n  name: f\n  type: INT\n  entity: user\n  schedule: daily\n  compute:\n"
        "    sql: SELECT user_id, MAX(ad_id) AS value FROM clicks GROUP BY user_id",
        'feature view "f": feature "f" is INT64, but the sql\'s column "value" is STRING. Write CAST(... AS BIGINT) AS '
        "value in the sql (f.yaml:13)",
    ),
    "a query that does not read its source": (
        BASE + "feature:\n  name: f\n  type: INT\n  entity: user\n  source: live\n  schedule: daily\n  compute:\n"
        "    sql: SELECT user_id, COUNT(*) AS value FROM clicks GROUP BY user_id",
        'feature view "f": source "live" is not read by the sql, which reads clicks (f.yaml:11)',
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_at_its_line(case: str) -> None:
    text, message = MISTAKES[case]
    with pytest.raises(DefinitionError) as caught:
        bound(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (view(COLUMNS + '  - name: x\n    type: BOOL\n    expression: "aeg > 1"'), 14),
        (view(COLUMNS + '  - name: x\n    type: BOOL\n    expression: "age >"'), 14),
        (view(WINDOWS + "  - name: x\n    function: sum\n    window: 1h\n    column: ad_id"), 13),
        (view(WINDOWS + "  - name: x\n    function: sum\n    window: 1h\n    column: price + dt"), 15),
        (
            BASE + "on_demand_feature_view:\n  name: o\n  inputs: [{request: [{name: a, type: INT}]}]\n  features:\n"
            "  - name: x\n    type: INT\n    expression: b + 1",
            13,
        ),
        (
            BASE + "feature:\n  name: f\n  type: INT\n  entity: user\n  schedule: daily\n  compute:\n"
            "    sql: SELECT user_id, 1 AS value FROM clikcs",
            13,
        ),
    ],
)
def test_what_expressions_refuse_names_the_view_and_the_line(text: str, line: int) -> None:
    with pytest.raises(DefinitionError) as caught:
        bound(text)
    assert caught.value.location is not None
    assert (caught.value.location.file, caught.value.location.line) == ("f.yaml", line)
    assert '"' in str(caught.value)


def test_an_ambiguous_name_is_an_error_where_it_is_read() -> None:
    text = (
        BASE
        + """\
feature_views:
- {name: a, entities: [user], source: dim_user, features: [{name: age, type: INT}, {name: name, type: STRING}]}
- {name: b, entities: [user], source: dim_user, features: [{name: age, type: INT}, {name: price, type: FLOAT64}]}
---
on_demand_feature_view:
  name: o
  inputs: [a, b]
  features:
  - {name: x, type: FLOAT64, expression: price}
"""
    )
    assert bound(text).on_demand["o"].needs == (FeatureRef("b", "price"),)
    with pytest.raises(DefinitionError) as caught:
        bound(text + "  - name: y\n    type: INT\n    expression: age")
    assert str(caught.value) == (
        'on-demand feature view "o": "age" in feature "y" is ambiguous: a:age or b:age. Write one of them under '
        'inputs, for example "a:age" (f.yaml:18)'
    )


CONVERSIONS = [
    (INT32, INT64, True),
    (INT64, INT32, True),
    (INT64, FLOAT64, True),
    (INT64, FLOAT32, True),
    (FLOAT32, FLOAT64, True),
    (FLOAT64, FLOAT32, True),
    (FLOAT64, INT64, False),
    (STRING, INT64, False),
    (INT64, STRING, False),
    (INT64, BOOL, False),
    (DATE, TIMESTAMP, False),
    (BYTES, STRING, False),
    (decimal(10, 2), decimal(12, 2), True),
    (decimal(10, 2), decimal(12, 4), True),
    (decimal(10, 2), decimal(10, 4), False),
    (decimal(10, 2), decimal(12, 1), False),
    (array(INT32), array(INT64), True),
    (array(STRING), array(INT64), False),
]


@pytest.mark.parametrize(("actual", "declared", "allowed"), CONVERSIONS)
def test_columns_become_the_declared_type_only_within_their_kind(actual: Type, declared: Type, allowed: bool) -> None:
    from feature_store.definitions.conversions import converts

    assert converts(actual, declared) is allowed


def version(extra: str = "", base: str = BASE, timezone: str = "UTC", **changes: object) -> str:
    text = base + view("").removeprefix(BASE) + "  entities: [user]\n  source: clicks\n" + extra
    keys = {"name": "x", "function": "sum", "window": "1h", "column": "price", **changes}
    text += f"  aggregations: [{{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}]\n"
    return bound(text, timezone=timezone).views["v"].version


def test_the_version_changes_with_what_is_stored_and_with_nothing_else() -> None:
    first = version()
    assert len(first) == 12
    assert int(first, 16) >= 0
    same = [
        version("  description: other\n  owner: me\n  tags: [a]\n  engine: spark\n  online: false\n"),
        version("  storage: {online: 'redis://x'}\n"),
        version(default=0.0),
        version(description="other"),
        version("  schedule: daily\n"),
        version(base=BASE.replace("name: clicks,", "name: clicks, owner: me,")),
    ]
    assert set(same) == {first}
    others = [
        version(name="y"),
        version(function="max"),
        version(window="2h"),
        version(hop="10m"),
        version(column="price + 1"),
        version(where='"price > 0"'),
        version("  schedule: hourly\n"),
        version(timezone="Asia/Shanghai"),
        version(base=BASE.replace("data/clicks", "data/clicks2")),
        version(base=BASE.replace("path: data/clicks,", "path: data/clicks, stream: {push: true},")),
        version(base=BASE.replace("path: data/clicks,", "path: data/clicks, unique: [ad_id],")),
        version(base=BASE.replace("join_key: user_id", "join_key: user_id, type: INT32")),
    ]
    assert len({first, *others}) == 13


def test_a_ttl_or_a_default_keeps_the_stored_rows() -> None:
    plain = view(COLUMNS + "  - {name: age, type: INT}")
    changed = view(COLUMNS + "  - {name: age, type: INT, default: 1}\n  ttl: 1d")
    assert bound(plain).views["v"].version == bound(changed).views["v"].version


def test_python_and_yaml_bind_alike() -> None:
    user = Entity(name="user", join_key="user_id")
    users = Source(name="dim_user", path="data/users", timestamp="at")
    made = FeatureView(name="v", entities=[user], source=users, features=[Field(name="age", type="INT")])  # type: ignore[arg-type, list-item]
    written = view(COLUMNS + "  - {name: age, type: INT}")
    assert bound_to([user, users, made]).views["v"] == bound(written).views["v"]
