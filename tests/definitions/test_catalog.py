"""Catalogs: what references resolve to, and what they say when there is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_store.definitions import FeatureService, FeatureView, Field
from feature_store.definitions.bind import Catalog, bind
from feature_store.definitions.catalog import FeatureRef
from feature_store.definitions.files import loads
from feature_store.errors import NotFoundError
from feature_store.types import INT64, TIMESTAMP, Schema

TEXT = """
entity: {name: user}
source: {name: s, path: p, timestamp: t}
feature_views:
- {name: profile, entities: [user], source: s, features: [{name: age, type: INT}, {name: size, type: INT}]}
- {name: other, entities: [user], source: s, features: [{name: size, type: INT}, {name: profiles, type: INT}]}
on_demand_feature_view: {name: twice, inputs: [age], features: [{name: double, type: INT, expression: age * 2}]}
feature_service: {name: model, features: [profile, double]}
"""


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    schema = Schema.of(user=INT64, t=TIMESTAMP, age=INT64, size=INT64, profiles=INT64)
    return bind("p", loads(TEXT), root=Path("/r"), offline=str, timezone="UTC", schema_of=lambda rows: schema)


def test_references(catalog: Catalog) -> None:
    def resolved(*references: object) -> list[str]:
        return [str(ref) for ref in catalog.resolve(references)]  # type: ignore[arg-type]

    assert resolved("profile:age") == ["profile:age"]
    assert resolved("other") == ["other:size", "other:profiles"]
    assert resolved("age", "double") == ["profile:age", "twice:double"]
    assert resolved("profile:size", "profile") == ["profile:size", "profile:age"]
    assert resolved(FeatureRef("other", "size")) == ["other:size"]
    assert resolved(catalog.views["profile"].view) == ["profile:age", "profile:size"]
    assert resolved(catalog.services["model"], "other:size") == [
        "profile:age",
        "profile:size",
        "twice:double",
        "other:size",
    ]
    assert [str(ref) for ref in catalog.resolve("model")] == ["profile:age", "profile:size", "twice:double"]
    assert catalog.resolve(FeatureService(name="x", features=["age"])) == (FeatureRef("profile", "age"),)
    assert catalog.resolve([]) == ()


@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [
        ("models", "SERVICE_NOT_FOUND", 'no feature service "models". Did you mean "model"?'),
        ("zzz", "SERVICE_NOT_FOUND", 'no feature service "zzz". See: fs list feature_service'),
        (
            "other:size",
            "SERVICE_NOT_FOUND",
            'no feature service "other:size". A feature reference goes in a list: features=["other:size"]',
        ),
        (["profil:age"], "VIEW_NOT_FOUND", 'no feature view "profil". Did you mean "profile"?'),
        (["profile:ages"], "FEATURE_NOT_FOUND", 'feature view "profile" has no feature "ages". Did you mean "age"?'),
        (["profile:zzz"], "FEATURE_NOT_FOUND", 'feature view "profile" has no feature "zzz". It has age, size'),
        (["ages"], "FEATURE_NOT_FOUND", 'no feature or feature view "ages". Did you mean "age"?'),
        (["size"], "FEATURE_NOT_FOUND", 'feature "size" is in several views: profile, other. Write "profile:size"'),
    ],
)
def test_what_is_not_there(catalog: Catalog, reference: str | list[str], code: str, message: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        catalog.resolve(reference)
    assert (caught.value.code, str(caught.value)) == (code, message)


def test_a_view_object_that_was_not_applied(catalog: Catalog) -> None:
    view = FeatureView(name="profiles2", entities=["user"], source="s", features=[Field(name="a", type="INT")])
    with pytest.raises(NotFoundError, match='no feature view "profiles2"') as caught:
        catalog.resolve([view])
    assert caught.value.code == "VIEW_NOT_FOUND"
