"""Checks of definitions against each other, before any data is touched."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from feature_store.definitions import Entity
from feature_store.definitions.checks import check, check_twice, in_order
from feature_store.definitions.files import Located, load_text
from feature_store.errors import DefinitionError, Location

BASE = """\
entity: {name: user, join_key: user_id}
source: {name: s, path: data, timestamp: t}
---
"""
VIEW = "feature_view: {name: a, entities: [user], source: s, features: [{name: x, type: INT}, {name: y, type: INT}]}\n"


def _stream(name: str, topic: str, dead_letters: str | None = None) -> str:
    letters = f"      dead_letters: {dead_letters}\n" if dead_letters else ""
    head = f"source:\n  name: {name}\n  timestamp: t\n  columns: [{{name: t, type: TIMESTAMP}}]\n"
    return f"{head}  stream:\n    kafka:\n      topic: {topic}\n{letters}---\n"


MISTAKES = {
    "an unknown entity": (
        "feature_view:\n  name: v\n  entities: [user, usr]\n  source: s\n  features: [{name: x, type: INT}]",
        'feature view "v": no entity "usr". Did you mean "user"? (f.yaml:6)',
    ),
    "an entity twice": (
        "feature_view:\n  name: v\n  entities: [user, user_id]\n  source: s\n  features: [{name: x, type: INT}]",
        'feature view "v": entities "user" and "user_id" have the same join key "user_id" (f.yaml:6)',
    ),
    "a join key of several entities": (
        "entity: {name: buyer, join_key: user_id}\n"
        "feature_view:\n  name: v\n  entities: [user_id]\n  source: s\n  features: [{name: x, type: INT}]",
        'feature view "v": "user_id" is the join key of several entities: user, buyer. Write the entity\'s name '
        "(f.yaml:7)",
    ),
    "an unknown source": (
        "feature_view:\n  name: v\n  entities: [user]\n  source: sss\n  features: [{name: x, type: INT}]",
        'feature view "v": no source "sss". Sources are defined under source: (f.yaml:7)',
    ),
    "a source without a timestamp": (
        "source: {name: still, path: p}\n"
        "feature_view:\n  name: v\n  entities: [user]\n  source: still\n  features: [{name: x, type: INT}]",
        'feature view "v": source "still" has no timestamp column, and without event times there is no "as of". Write '
        "timestamp: COLUMN in the source (f.yaml:8)",
    ),
    "a feature named as its join key": (
        "feature_view:\n  name: v\n  entities: [user]\n  source: s\n  features:\n  - {name: x, type: INT}\n"
        "  - {name: user_id, type: INT}",
        'feature view "v": feature "user_id" has the name of a join key (f.yaml:10)',
    ),
    "a feature named as the time": (
        "feature_view:\n  name: v\n  entities: [user]\n  source: s\n  features:\n  - {name: event_timestamp, type: INT"
        "}",
        'feature view "v": "event_timestamp" is the time of entity rows and names nothing else (f.yaml:9)',
    ),
    "a cron line that is none": (
        "feature_view:\n  name: v\n  entities: [user]\n  source: s\n"
        "  aggregations: [{name: x, function: count, window: 1d}]\n  schedule: 99 * * * *",
        'feature view "v": schedule "99 * * * *" is not a cron line: Bad minute. Write minute, hour, day, month and '
        "weekday, for example 30 2 * * * (f.yaml:9)",
    ),
    "a timestamp that is not declared": (
        "source:\n  name: live\n  timestamp: tim\n  stream: {push: true}\n  columns: [{name: time, type: TIMESTAMP}]",
        'source "live": no column "tim". Did you mean "time"? (f.yaml:6)',
    ),
    "dead letters into the topic that is read": (
        _stream("live", "clicks", "clicks"),
        'source "live": a message that cannot be taken would come back for ever: topic clicks -> clicks. Name a topic '
        "that leads nowhere (f.yaml:11)",
    ),
    "dead letters that come back by other sources": (
        _stream("one", "clicks") + _stream("two", "clicks.dead-letters", "third") + _stream("three", "third", "clicks"),
        'source "two": a message that cannot be taken would come back for ever: topic clicks.dead-letters -> third -> '
        "clicks -> clicks.dead-letters. Name a topic that leads nowhere (f.yaml:19)",
    ),
    "an input that nobody has": (
        "on_demand_feature_view:\n  name: o\n  inputs:\n  - aa:x\n"
        "  features: [{name: z, type: INT, expression: x}]\n---\n" + VIEW,
        'on-demand feature view "o": no feature view "aa". Did you mean "a"? (f.yaml:7)',
    ),
    "an input feature that its view lacks": (
        "on_demand_feature_view:\n  name: o\n  inputs:\n  - a:xx\n"
        "  features: [{name: z, type: INT, expression: x}]\n---\n" + VIEW,
        'on-demand feature view "o": feature view "a" has no feature "xx". Did you mean "x"? (f.yaml:7)',
    ),
    "a request value named as a feature": (
        VIEW + "on_demand_feature_view:\n  name: o\n  inputs:\n  - a\n  - request:\n    - {name: x, type: INT}\n"
        "  features: [{name: z, type: INT, expression: x}]",
        'on-demand feature view "o": request value "x" has the name of the feature a:x. Rename the request value '
        "(f.yaml:10)",
    ),
    "a cycle": (
        "on_demand_feature_views:\n- {name: o, inputs: [p], features: [{name: z, type: INT, expression: w}]}\n"
        "- {name: p, inputs: ['q:v'], features: [{name: w, type: INT, expression: v}]}\n"
        "- {name: q, inputs: [z], features: [{name: v, type: INT, expression: z}]}",
        'on-demand feature view "o": it needs itself: o -> p -> q -> o (f.yaml:5)',
    ),
    "a service of nothing": (
        VIEW + "feature_service:\n  name: f\n  features:\n  - a\n  - bb",
        'feature service "f": no feature view or feature "bb" (f.yaml:9)',
    ),
    "a service of an ambiguous feature": (
        VIEW
        + VIEW.replace("name: a,", "name: b,").replace("feature_view", "---\nfeature_view")
        + "feature_service:\n  name: f\n  features:\n  - x",
        'feature service "f": feature "x" is in several views: a, b. Write "a:x" (f.yaml:10)',
    ),
    "a definition twice": (
        "entities:\n- name: user\n  join_key: id",
        'entity "user" is defined twice, first at f.yaml:1. Rename or remove one of them (f.yaml:5)',
    ),
    "a name of both kinds of view": (
        VIEW + "on_demand_feature_view:\n  name: a\n  inputs: [x]\n  features: [{name: z, type: INT, expression: x}]",
        'on-demand feature view "a" has the name of a feature view at f.yaml:4. Rename or remove one of them '
        "(f.yaml:6)",
    ),
    "a join key named as the time": (
        "entity:\n  name: when\n  join_key: event_timestamp",
        'entity "when": "event_timestamp" is the time of entity rows, not a join key (f.yaml:6)',
    ),
}


def _check_all(located: list[Located], places: Mapping[tuple[str, str], Location]) -> None:
    check_twice(located)
    check([item for item, _ in located], places)


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_at_its_line(case: str) -> None:
    text, message = MISTAKES[case]
    located = load_text(BASE + text, "f.yaml")
    places = {(item.kind, item.name): place for item, place in located}
    with pytest.raises(DefinitionError) as caught:
        _check_all(located, places)
    assert str(caught.value) == message


def test_another_source_may_read_dead_letters() -> None:
    chain = _stream("one", "clicks") + _stream("two", "clicks.dead-letters", "third") + _stream("three", "third")
    elsewhere = "      topic: third\n      brokers: elsewhere:9092\n      dead_letters: clicks\n"
    for text in (chain, chain.replace("      topic: third\n", elsewhere)):
        assert len(check([item for item, _ in load_text(BASE + text, "f.yaml")]).sources) == 4


def test_without_places_errors_have_no_location() -> None:
    with pytest.raises(DefinitionError) as caught:
        check([Entity(name="a"), Entity(name="a")])
    assert str(caught.value) == 'entity "a" is defined twice. Rename or remove one of them'
    assert caught.value.location is None


def test_the_same_object_may_come_twice() -> None:
    entity = Entity(name="a")
    assert check([entity, entity]).entities == {"a": entity}


def test_on_demand_views_are_put_in_order() -> None:
    text = (
        "on_demand_feature_views:\n- {name: c, inputs: ['b:w', x], features: [{name: z, type: INT, expression: w}]}\n"
        "- {name: b, inputs: [a, y], features: [{name: w, type: INT, expression: x}]}\n---\n" + VIEW
    )
    declared = check([item for item, _ in load_text(BASE + text, "f.yaml")])
    assert [view.name for view in in_order(declared)] == ["b", "c"]
