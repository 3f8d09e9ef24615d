"""The store as Feast's users know it, entity tables in SQL, and what `plan` refuses or warns of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_store import Entity, FeatureService, FeatureStore, FeatureView, Field, OnDemandFeatureView, Source
from feature_store.cli import run
from feature_store.errors import DefinitionError, NotFoundError, SettingsError

AT = "2026-01-02T00:00:00Z"
USER = Entity(name="user", join_key="user_id", type="INT64")
USERS = Source(name="users", path="users.csv", timestamp="at")
PROFILE = FeatureView(
    name="profile",
    entities=[USER],
    source=USERS,
    features=[Field(name="age", type="INT64"), Field(name="city", type="STRING")],
    tags={"team": "a"},
)
DOUBLE = OnDemandFeatureView(
    name="double",
    inputs=[PROFILE],
    features=[
        Field(name="twice", type="INT64", expression="age * 2"),
        Field(name="next", type="INT64", expression="age + 1"),
    ],
)
MODEL = FeatureService(name="model", features=[PROFILE[["age", "city"]], DOUBLE[["next"]]])
ALL = [USER, USERS, PROFILE, DOUBLE, MODEL]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    (tmp_path / "feature_store.yaml").write_text("project: p\n")
    (tmp_path / "users.csv").write_text(f"user_id,age,city,at\n1,10,Rome,{AT}\n2,20,Wien,{AT}\n3,30,Linz,{AT}\n")
    store = FeatureStore(tmp_path)
    store.apply(ALL)
    store.materialize_incremental("2026-01-03")
    yield store
    store.close()


def test_definitions_come_back_as_they_were_applied(store: FeatureStore) -> None:
    assert store.get_entity("user") == USER
    assert store.get_data_source("users") == USERS
    assert store.get_feature_view("profile") == PROFILE
    assert store.get_on_demand_feature_view("double") == DOUBLE
    assert store.get_feature_service("model") == MODEL
    assert store.list_entities() == [USER]
    assert store.list_data_sources() == [USERS]
    assert store.list_feature_views(allow_cache=True) == [PROFILE]
    assert store.list_on_demand_feature_views() == [DOUBLE]
    assert store.list_feature_services() == [MODEL]
    assert store.list_feature_views(tags={"team": "a"}) == [PROFILE]
    assert store.list_feature_views(tags={"team": "b"}) == []


def test_what_others_apply_is_seen(store: FeatureStore) -> None:
    shop = Entity(name="shop")
    FeatureStore(store.root).apply(shop)
    assert store.list_entities(allow_cache=True) == [USER]
    assert store.get_entity("shop") == shop
    FeatureStore(store.root).apply(Entity(name="ad"))
    store.refresh_registry()
    assert [entity.name for entity in store.list_entities(allow_cache=True)] == ["ad", "shop", "user"]


def test_what_is_not_there(store: FeatureStore) -> None:
    with pytest.raises(NotFoundError, match=r'no feature view "profil"\. Did you mean "profile"') as caught:
        store.get_feature_view("profil")
    assert caught.value.code == "VIEW_NOT_FOUND"
    with pytest.raises(NotFoundError, match='no feature view "double"'):
        store.get_feature_view("double")
    with pytest.raises(NotFoundError, match='no entity "users"'):
        store.get_entity("users")


def test_services_by_name_or_as_they_are(store: FeatureStore) -> None:
    assert MODEL.features == ("profile:age", "profile:city", "double:next")
    service = store.get_feature_service("model")
    online = store.get_online_features(features=service, entity_rows=[{"user_id": 1}]).to_dict()
    assert online == {"user_id": [1], "age": [10], "city": ["Rome"], "next": [11]}
    rows = {"user_id": [1], "event_timestamp": ["2026-01-03"]}
    assert store.get_historical_features(rows, features=service).to_arrow().to_pydict() == rows | online


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT user_id, at AS event_timestamp FROM users ORDER BY user_id",
        "-- who\nSELECT user_id, at AS event_timestamp FROM users ORDER BY user_id",
        "/* who; not (a path) */ (SELECT user_id, at AS event_timestamp FROM users ORDER BY user_id)",
        "\n  -- who\n  /* and\n when */\n select`user_id`, at AS event_timestamp FROM users ORDER BY user_id\n",
        "with u as (select * from users) select user_id, at AS event_timestamp from u order by user_id",
    ],
)
def test_entities_in_sql(store: FeatureStore, sql: str) -> None:
    found = store.get_historical_features(sql, ["profile:age"]).to_arrow()
    assert found.column_names == ["user_id", "event_timestamp", "age"]
    assert found["age"].to_pylist() == [10, 20, 30]


def test_any_few_entities_will_do(store: FeatureStore) -> None:
    sql = "SELECT user_id, at AS event_timestamp FROM users LIMIT 2"
    found = store.get_historical_features(sql, ["profile:age"]).to_arrow()
    assert found.num_rows == 2
    assert found["age"].to_pylist() == [user * 10 for user in found["user_id"].to_pylist()]


def test_a_file_called_as_a_query_is_a_file(store: FeatureStore) -> None:
    for name in ("select.csv", "with users.csv", "(select) users.csv"):
        (store.root / name).write_text("user_id,event_timestamp\n2,2026-01-03\n")
        path = str(store.root / name)
        assert store.get_historical_features(path, ["profile:age"]).to_arrow()["age"].to_pylist() == [20]


def test_an_unknown_scheme_is_refused_at_plan(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    (store.root / "feature_store.yaml").write_text("project: p\nonline_store: cassandra://x:9042\n")
    with pytest.raises(SettingsError, match="cassandra://x:9042"):
        FeatureStore(store.root).plan(ALL)
    for command in ("plan", "apply"):
        assert run(["-c", str(store.root), command]) == 2
        assert 'no online store opens "cassandra://x:9042"' in capsys.readouterr().err


def test_logging_is_announced_as_not_there(store: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'feature service "s": logging is not written by this release'
    assert store.plan([USER]).warnings == ()
    (store.root / "s.yaml").write_text("feature_service: {name: s, features: [profile], logging: {sample_rate: 0.5}}\n")
    (store.root / "rest.py").write_text(
        "from feature_store import Entity, FeatureView, Field, Source\n"
        "user = Entity(name='user', join_key='user_id')\n"
        "users = Source(name='users', path='users.csv', timestamp='at')\n"
        "age = Field(name='age', type='INT64')\n"
        "profile = FeatureView(name='profile', entities=[user], source=users, features=[age])\n"
    )
    assert run(["-c", str(store.root), "apply", "--allow-destructive"]) == 0
    assert f"warning: {text}" in capsys.readouterr().err
    assert run(["-c", str(store.root), "apply"]) == 0
    assert text in capsys.readouterr().err


def test_what_an_engine_cannot_do_is_refused_at_apply(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text('project: p\nengines: {flink: "http://flink:8081"}\n')
    (tmp_path / "users.csv").write_text(f"user_id,age,city,at\n1,10,Rome,{AT}\n")
    store = FeatureStore(tmp_path)
    with pytest.raises(DefinitionError, match='engine "flink" at "http://flink:8081" computes no views from files'):
        store.apply([USER, USERS, PROFILE.model_copy(update={"engine": "flink"})])
    assert store.list_feature_views() == []
    store.close()


def test_a_place_for_offline_rows_that_is_not_used_is_warned_of(tmp_path: Path) -> None:
    def view(name: str, offline: str, rest: str) -> str:
        return (
            f"---\nfeature_view:\n  name: {name}\n  entities: [user]\n  features: [{{name: age, type: INT64}}]\n"
            f"  storage:\n    offline: {offline}\n{rest}"
        )

    sql = "  schedule: daily\n  sql: SELECT user_id, MAX(age) AS age FROM users GROUP BY user_id\n"
    (tmp_path / "feature_store.yaml").write_text("project: p\naliases: {cold: 'hbase://h:9090', warm: 's3://lake/p'}\n")
    (tmp_path / "users.csv").write_text(f"user_id,age,city,at\n1,10,Rome,{AT}\n")
    (tmp_path / "views.yaml").write_text(
        "entity: {name: user, join_key: user_id}\n---\nsource: {name: users, path: users.csv, timestamp: at}\n"
        + view("kept", "hbase://cold/ages", sql)
        + view("latest", "hbase://cold/ages", "  source: users\n")
        + view("lake", "s3://lake.example/ages", sql)
        + view("aliased", "s3://warm", sql)
    )
    store = FeatureStore(tmp_path)
    names = "which storage: offline names"
    lake = "a single view's snapshots go to HBase only. Set offline_store in feature_store.yaml, for all views"
    assert sorted(store.apply().warnings) == [
        f'feature view "aliased": nothing is kept at s3://warm, {names}: {lake} (views.yaml:36)',
        f'feature view "lake": nothing is kept at s3://lake.example/ages, {names}: {lake} (views.yaml:27)',
        f'feature view "latest": nothing is kept at hbase://cold/ages, {names}: only snapshots of sql are kept '
        "offline. Remove it: pushed rows rest in offline_store of feature_store.yaml (views.yaml:19)",
    ]
    store.close()
