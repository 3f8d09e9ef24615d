"""Catalogs here are bound by hand: what is compared is definitions, settled types and versions, nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.definitions import (
    Aggregation,
    Definition,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    OnDemandFeatureView,
    Source,
    Stream,
)
from feature_store.definitions.catalog import BoundOnDemand, BoundView, Catalog, FeatureRef
from feature_store.definitions.difference import FieldChange, Plan, PlannedChange, Stored, difference
from feature_store.errors import DestructiveChangeError
from feature_store.expressions.relations import Computed, LatestRow, Rows
from feature_store.expressions.scalars import Ref
from feature_store.types import FLOAT64, INT64, STRING, TIMESTAMP, Column, Schema

NO_DATA = ("description", "owner", "tags", "ttl")


def catalog(*definitions: Definition, columns: Schema | None = None) -> Catalog:
    of = {kind: {d.name: d for d in definitions if d.kind == kind} for kind in {d.kind for d in definitions}}
    entities = {d.name: d for d in definitions if isinstance(d, Entity)}
    sources = {d.name: d for d in definitions if isinstance(d, Source)}
    rows = {name: _rows(source, columns) for name, source in sources.items()}
    views = {d.name: _view(d, entities, rows) for d in definitions if isinstance(d, FeatureView)}
    on_demand = {d.name: _on_demand(d, views) for d in definitions if isinstance(d, OnDemandFeatureView)}
    return Catalog("p", entities, sources, views, on_demand, of.get("feature_service", {}), rows)  # type: ignore[arg-type]


def _rows(source: Source, columns: Schema | None) -> Rows:
    declared = Schema(tuple(Column(column.name, column.type) for column in source.columns))
    return Rows(source.name, declared if source.columns else columns or Schema.of(user_id=INT64, ts=TIMESTAMP))


def _view(view: FeatureView, entities: dict[str, Entity], rows: dict[str, Rows]) -> BoundView:
    by_key = entities | {entity.join_key: entity for entity in entities.values()}
    keys = Schema(tuple(Column(by_key[name].join_key, by_key[name].type) for name in view.entities))
    outputs = [(item.name, getattr(item, "type", INT64)) for item in view.aggregations or view.features]
    features = Schema(tuple(Column(name, type_) for name, type_ in outputs))
    stored = {key: value for key, value in view.to_dict().items() if key not in NO_DATA}
    version = hashlib.sha256(repr((stored, keys, features)).encode()).hexdigest()[:12]
    values = tuple(Computed(column.name, Ref(column.type, column.name)) for column in features)
    return BoundView(view, LatestRow(rows[view.source or ""], keys, values), keys, features, {}, version)


def _on_demand(view: OnDemandFeatureView, views: dict[str, BoundView]) -> BoundOnDemand:
    needs = tuple(FeatureRef(name, feature) for name in view.references for feature in views[name].features.names)
    computed = tuple(Computed(field.name, Ref(field.type, field.name)) for field in view.features)
    return BoundOnDemand(view, Schema(()), needs, computed, {}, {})


user = Entity(name="user", join_key="user_id")
dim = Source(name="dim", path="data/dim", timestamp="ts")
age = Field(name="age", type=INT64)
city = Field(name="city", type=STRING)
profile = FeatureView(name="profile", entities=["user"], source="dim", features=[age, city])
ratio = OnDemandFeatureView(
    name="ratio", inputs=["profile"], features=[Field(name="r", type=FLOAT64, expression="age / 2")]
)
service = FeatureService(name="ctr", features=["ratio"])
ALL = (user, dim, profile, ratio, service)
STORED = {("feature_view", "profile"): Stored()}


def changed(*before: Definition, to: Sequence[Definition]) -> Plan:
    return difference(catalog(*before), catalog(*to), stored=STORED)


def only(plan: Plan, name: str) -> PlannedChange:
    (change,) = [change for change in plan.changes if change.name == name]
    return change


def test_the_first_apply_creates_everything_in_order_and_destroys_nothing() -> None:
    plan = difference(None, catalog(*reversed(ALL)))
    assert [(change.action, change.name) for change in plan.changes] == [
        ("create", "user"), ("create", "dim"), ("create", "profile"), ("create", "ratio"), ("create", "ctr"),
    ]  # fmt: skip
    assert plan.destructive == ()
    assert only(plan, "profile").data_changed
    assert only(plan, "user").affects == (
        ("feature_view", "profile"), ("on_demand_feature_view", "ratio"), ("feature_service", "ctr"),
    )  # fmt: skip


def test_nothing_changed_is_an_empty_plan() -> None:
    assert changed(*ALL, to=ALL).is_empty


def test_a_description_or_ttl_keeps_the_stored_rows() -> None:
    after = profile.model_copy(update={"description": "who", "ttl": None, "owner": "me"})
    plan = changed(*ALL, to=(user, dim, after, ratio, service))
    (change,) = plan.changes
    assert (change.action, change.data_changed, change.destructive) == ("update", False, False)
    assert change.fields_changed == (FieldChange("description", None, "who"), FieldChange("owner", None, "me"))
    assert change.affects == (("on_demand_feature_view", "ratio"), ("feature_service", "ctr"))


def test_an_added_feature_is_computed_anew_and_destroys_nothing() -> None:
    wider = FeatureView(
        name="profile", entities=["user"], source="dim", features=[age, city, Field(name="x", type=INT64)]
    )
    change = only(changed(*ALL, to=(user, dim, wider, ratio, service)), "profile")
    assert (change.data_changed, change.destructive) == (True, False)
    assert change.fields_changed == (FieldChange("features.x", None, {"name": "x", "type": "INT64"}),)


@pytest.mark.parametrize(
    ("features", "path"),
    [
        ([age], "features.city"),
        ([Field(name="age", type=STRING), city], "features.age.type"),
    ],
)
def test_removing_or_retyping_a_stored_feature_is_destructive(features: list[Field], path: str) -> None:
    after = FeatureView(name="profile", entities=["user"], source="dim", features=features)
    plan = changed(*ALL, to=(user, dim, after, ratio, service))
    change = only(plan, "profile")
    assert change.destructive
    assert change.data_changed
    assert [field.path for field in change.fields_changed] == [path]
    with pytest.raises(DestructiveChangeError, match=r'change feature view "profile" with stored rows.*--allow-'):
        plan.refuse_destructive()


def test_the_same_change_of_a_view_that_holds_nothing_is_not() -> None:
    after = FeatureView(name="profile", entities=["user"], source="dim", features=[age])
    plan = difference(catalog(*ALL), catalog(user, dim, after, ratio, service), stored={})
    assert plan.destructive == ()
    plan.refuse_destructive()


def test_what_is_not_known_counts_as_stored() -> None:
    plan = difference(catalog(*ALL), catalog(user, dim))
    assert [change.name for change in plan.destructive] == ["profile"]


def test_an_error_names_a_few_of_many() -> None:
    views = [profile.model_copy(update={"name": f"v{number}"}) for number in range(7)]
    with pytest.raises(DestructiveChangeError, match=r'remove feature view "v6".* and 2 more\.'):
        difference(catalog(user, dim, *views), catalog(user, dim)).refuse_destructive()


def test_removal_goes_from_services_down_to_entities() -> None:
    plan = changed(*ALL, to=())
    assert [(change.action, change.name) for change in plan.changes] == [
        ("delete", name) for name in ("ctr", "ratio", "profile", "dim", "user")
    ]
    assert [change.name for change in plan.destructive] == ["profile"]
    assert [change.after for change in plan.changes] == [None] * 5


def test_a_changed_key_type_changes_the_view_above_it() -> None:
    text = Entity(name="user", join_key="user_id", type=STRING)
    plan = changed(*ALL, to=(text, dim, profile, ratio, service))
    assert [change.name for change in plan.changes] == ["user", "profile"]
    change = only(plan, "profile")
    assert change.before == change.after
    assert change.because == (("entity", "user"),)
    assert change.fields_changed == (FieldChange("keys.user_id", "INT64", "STRING"),)
    assert change.destructive
    assert change.data_changed


def test_a_view_may_name_its_entity_by_the_join_key() -> None:
    by_key = FeatureView(name="profile", entities=["user_id"], source="dim", features=[age, city])
    assert ("feature_view", "profile") in only(difference(None, catalog(user, dim, by_key)), "user").affects


def test_a_source_whose_columns_moved_is_an_update() -> None:
    before = catalog(user, dim, columns=Schema.of(user_id=INT64, ts=TIMESTAMP, old=INT64))
    after = catalog(user, dim, columns=Schema.of(user_id=INT64, ts=TIMESTAMP, new=STRING))
    (change,) = difference(before, after).changes
    assert change.fields_changed == (
        FieldChange("columns.old", "INT64", None),
        FieldChange("columns.new", None, "STRING"),
    )
    assert not change.destructive
    assert change.bound == {"columns": [["user_id", "INT64"], ["ts", "TIMESTAMP"], ["new", "STRING"]]}


def test_pushed_rows_are_stored_data_of_their_source() -> None:
    pushed = Source(
        name="live",
        timestamp="ts",
        stream=Stream(push=True),
        columns=[{"name": "ts", "type": "TIMESTAMP"}, {"name": "a", "type": "INT64"}],
    )
    narrow = pushed.model_copy(update={"columns": pushed.columns[:1]})
    log = {("source", "live"): Stored()}
    for after in (catalog(), catalog(narrow)):
        plan = difference(catalog(pushed), after, stored=log)
        assert [str(change.stored) for change in plan.destructive] == ["stored rows"]
        assert difference(catalog(pushed), after, stored={}).destructive == ()


def test_aggregations_are_matched_by_name() -> None:
    def clicks(*windows: str) -> FeatureView:
        aggregations = [Aggregation(name=f"cnt_{w}", function="count", window=w) for w in windows]
        return FeatureView(name="clicks", entities=["user"], source="dim", aggregations=aggregations)

    before = clicks("1h", "7d")
    after = FeatureView(
        name="clicks",
        entities=["user"],
        source="dim",
        aggregations=[Aggregation(name="cnt_1h", function="count", window="2h"), *clicks("7d", "30d").aggregations],
    )
    (change,) = changed(user, dim, before, to=(user, dim, after)).changes
    assert [field.path for field in change.fields_changed] == ["aggregations.cnt_1h.window", "aggregations.cnt_30d"]
    (moved,) = changed(user, dim, before, to=(user, dim, clicks("7d", "1h"))).changes
    assert moved.fields_changed == (FieldChange("aggregations", ["cnt_1h", "cnt_7d"], ["cnt_7d", "cnt_1h"]),)


def test_the_plan_is_what_the_registry_commits() -> None:
    plan = difference(catalog(user, dim), catalog(user, dim.model_copy(update={"path": "other"}), profile))
    changes = plan.registry_changes()
    assert [(change.action, change.kind, change.name) for change in changes] == [
        ("update", "source", "dim"), ("create", "feature_view", "profile"),
    ]  # fmt: skip
    assert FeatureView.model_validate(changes[1].spec) == profile
    assert changes[1].bound["features"] == [["age", "INT64"], ["city", "STRING"]]


sides = st.builds(
    lambda users, ages, ttls, tagged: (
        Entity(name="user", join_key="user_id", type=users),
        dim,
        *(
            [
                FeatureView(
                    name="profile", entities=["user"], source="dim", ttl=ttls,
                    features=[Field(name="age", type=kind) for kind in ages[:1]] + [city], tags=tagged,
                )
            ]
            if ages
            else []
        ),
    ),
    st.sampled_from([INT64, STRING]),
    st.lists(st.sampled_from([INT64, FLOAT64]), max_size=1),
    st.sampled_from([None, "1d"]),
    st.sampled_from([[], ["a"]]),
)  # fmt: skip


@given(sides, sides)
@settings(max_examples=60, deadline=None)
def test_applying_a_plan_gives_the_other_side(before: tuple[Definition, ...], after: tuple[Definition, ...]) -> None:
    plan = changed(*before, to=after)
    live = {(item.kind, item.name): item for item in before}
    for change in plan.changes:
        if change.after is None:
            assert live.pop((change.kind, change.name)) == change.before
        else:
            assert live.get((change.kind, change.name)) == change.before
            live[(change.kind, change.name)] = change.after
    assert live == {(item.kind, item.name): item for item in after}
    assert plan.is_empty == (before == after)
    lost = {(change.kind, change.name) for change in plan.changes if change.destructive}
    assert lost <= {("feature_view", "profile")}
