from __future__ import annotations

import pytest

from feature_store.definitions import Entity, FeatureService, FeatureView, Field, OnDemandFeatureView, Source
from feature_store.definitions.catalog import BoundOnDemand, BoundView, Catalog, FeatureRef
from feature_store.definitions.lineage import lineage
from feature_store.errors import NotFoundError
from feature_store.expressions.instants import DAY
from feature_store.expressions.relations import (
    Computed,
    LatestRow,
    Relation,
    Rows,
    Schedule,
    ScheduledQuery,
    Window,
    Windows,
)
from feature_store.expressions.scalars import Ref
from feature_store.types import BOOL, FLOAT64, INT64, TIMESTAMP, Schema

CLICKS = Schema.of(user_id=INT64, price=FLOAT64, paid=BOOL, ts=TIMESTAMP)
KEYS = Schema.of(user_id=INT64)


def view(name: str, relation: Relation, **features: object) -> BoundView:
    fields = [Field(name=feature, type=FLOAT64) for feature in features]
    definition = FeatureView(name=name, entities=["user"], source="clicks", features=fields)
    return BoundView(definition, relation, KEYS, Schema.of(**features), {}, "v")  # type: ignore[arg-type]


@pytest.fixture
def catalog() -> Catalog:
    rows = Rows("clicks", CLICKS, path="/clicks", timestamp="ts")
    spend = Window("spend", "sum", FLOAT64, 7 * DAY, DAY, value=Ref(FLOAT64, "price"), where=Ref(BOOL, "paid"))
    count = Window("count", "count", INT64, 7 * DAY, DAY)
    query = ScheduledQuery(
        "SELECT user_id, COUNT(*) AS n, SUM(price) AS total FROM clicks WHERE paid GROUP BY user_id",
        (rows,), KEYS, (("n", "n", INT64), ("total", "total", FLOAT64)), Schedule("daily"),
    )  # fmt: skip
    last = LatestRow(rows, KEYS, (Computed("last_price", Ref(FLOAT64, "price")),))
    ctr = OnDemandFeatureView(
        name="ctr", inputs=["windows"], features=[Field(name="mean", type=FLOAT64, expression="spend / count + bid")]
    )
    needs = (FeatureRef("windows", "spend"), FeatureRef("windows", "count"))
    mean = Computed("mean", _Sum(FLOAT64))
    return Catalog(
        "p",
        {"user": Entity(name="user", join_key="user_id")},
        {"clicks": Source(name="clicks", path="/clicks", timestamp="ts")},
        {
            "windows": view("windows", Windows(rows, KEYS, (spend, count)), spend=FLOAT64, count=INT64),
            "last": view("last", last, last_price=FLOAT64),
            "query": view("query", query, n=INT64, total=FLOAT64),
        },
        {"ctr": BoundOnDemand(ctr, Schema.of(bid=FLOAT64), needs, (mean,), {}, {})},
        {"model": FeatureService(name="model", features=["ctr", "last"])},
        {"clicks": rows},
    )


class _Sum(Ref):
    """Three columns at once, without the parser."""

    def __init__(self, type_: object) -> None:
        super().__init__(type_, "spend")  # type: ignore[arg-type]

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"spend", "count", "bid"})


def text(edges: object) -> set[str]:
    return {f"{edge.source} {edge.role} {edge.target}" for edge in edges}  # type: ignore[attr-defined]


def test_every_column_is_followed_by_what_it_does(catalog: Catalog) -> None:
    found = text(lineage(catalog))
    assert {edge for edge in found if edge.endswith("windows:spend")} == {
        "clicks:price value windows:spend",
        "clicks:paid where windows:spend",
        "clicks:user_id key windows:spend",
        "clicks:ts timestamp windows:spend",
    }
    assert {edge for edge in found if edge.endswith("windows:count")} == {
        "clicks:user_id key windows:count",
        "clicks:ts timestamp windows:count",
    }
    assert {edge for edge in found if edge.endswith("ctr:mean")} == {
        "windows:spend expression ctr:mean",
        "windows:count expression ctr:mean",
        "ctr:bid expression ctr:mean",
    }
    assert {edge for edge in found if edge.endswith(" model")} == {
        "ctr:mean served model",
        "last:last_price served model",
    }


def test_sql_is_followed_too(catalog: Catalog) -> None:
    assert text(lineage(catalog, "query")) == {
        "clicks:price value query:total",
        "clicks:user_id key query:total",
        "clicks:paid where query:total",
        "clicks:user_id key query:n",
        "clicks:paid where query:n",
    }


def test_a_column_leads_up_and_down_but_not_sideways(catalog: Catalog) -> None:
    assert text(lineage(catalog, "clicks:paid")) == {
        "clicks:paid where query:n",
        "clicks:paid where query:total",
        "clicks:paid where windows:spend",
        "windows:spend expression ctr:mean",
        "ctr:mean served model",
    }
    up = text(lineage(catalog, "model"))
    assert "clicks:price value last:last_price" in up
    assert not any("query" in edge for edge in up)
    assert text(lineage(catalog, "last_price")) == text(lineage(catalog, "last:last_price"))


def test_an_entity_leads_to_what_it_keys(catalog: Catalog) -> None:
    assert "clicks:user_id key last:last_price" in text(lineage(catalog, "user"))
    assert "clicks:paid where windows:spend" not in text(lineage(catalog, "user"))


def test_an_unknown_name_gets_the_nearest(catalog: Catalog) -> None:
    with pytest.raises(NotFoundError, match=r'nothing is called "windws".*"windows"'):
        lineage(catalog, "windws")
