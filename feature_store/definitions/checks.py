"""What can be said of a set of definitions without touching data: names, references, forms, cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from feature_store.definitions.base import Definition
from feature_store.definitions.entity import Entity
from feature_store.definitions.feature_view import FeatureView
from feature_store.definitions.on_demand import OnDemandFeatureView, RequestInput
from feature_store.definitions.places import Locations, locate
from feature_store.definitions.service import FeatureService
from feature_store.definitions.source import Kafka, Source
from feature_store.errors import DefinitionError, Location, nearest
from feature_store.expressions.relations import Schedule
from feature_store.expressions.schedules import boundary

TIME_COLUMN = "event_timestamp"
"""The time of entity rows, which no feature and no join key may be called."""


@dataclass(frozen=True)
class Declared:
    """Definitions by kind and name, and where they stand. Building one checks that each name is there once."""

    definitions: Sequence[Definition]
    locations: Locations

    @cached_property
    def entities(self) -> Mapping[str, Entity]:
        return {item.name: item for item in self.definitions if isinstance(item, Entity)}

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        return {item.name: item for item in self.definitions if isinstance(item, Source)}

    @cached_property
    def views(self) -> Mapping[str, FeatureView]:
        return {item.name: item for item in self.definitions if isinstance(item, FeatureView)}

    @cached_property
    def on_demand(self) -> Mapping[str, OnDemandFeatureView]:
        return {item.name: item for item in self.definitions if isinstance(item, OnDemandFeatureView)}

    @cached_property
    def services(self) -> Mapping[str, FeatureService]:
        return {item.name: item for item in self.definitions if isinstance(item, FeatureService)}

    @cached_property
    def features(self) -> Mapping[str, tuple[str, ...]]:
        """The feature names of each view, of both kinds."""
        views = {name: view.feature_names for name, view in self.views.items()}
        return views | {name: view.feature_names for name, view in self.on_demand.items()}

    @cached_property
    def owners(self) -> Mapping[str, tuple[str, ...]]:
        """The views that have a feature of a name."""
        owners: dict[str, tuple[str, ...]] = {}
        for view, names in self.features.items():
            for name in names:
                owners[name] = (*owners.get(name, ()), view)
        return owners

    @cached_property
    def _entity_of_join_key(self) -> Mapping[str, list[Entity]]:
        found: dict[str, list[Entity]] = {}
        for entity in self.entities.values():
            found.setdefault(entity.join_key, []).append(entity)
        return found

    def entity(self, name: str) -> Entity | None:
        """An entity by its name, or by a join key that is its alone."""
        by_key = self._entity_of_join_key.get(name, [])
        return self.entities.get(name) or (by_key[0] if len(by_key) == 1 else None)

    def keys(self, view: FeatureView) -> tuple[Entity, ...]:
        """The entities of a checked view."""
        return tuple(entity for name in view.entities if (entity := self.entity(name)))

    def error(self, definition: Definition, message: str, *path: str | int, hint: str | None = None) -> DefinitionError:
        """An error about a part of a definition, at its place."""
        location = locate(self.locations, definition, *path)
        return DefinitionError(f"{definition.title}: {message}", location=location, hint=hint)

    def expand(self, definition: Definition, reference: str, *path: str | int) -> tuple[tuple[str, str], ...]:
        """The (view, feature) pairs of a reference that a definition makes: `view`, `view:feature` or a feature."""
        view, colon, feature = reference.partition(":")
        if not colon and view in self.features:
            return tuple((view, name) for name in self.features[view])
        if not colon:
            return ((self._only_owner(definition, reference, path), reference),)
        if view not in self.features:
            raise self.error(definition, f'no feature view "{view}"', *path, hint=nearest(view, self.features))
        if feature not in self.features[view]:
            hint = nearest(feature, self.features[view])
            raise self.error(definition, f'feature view "{view}" has no feature "{feature}"', *path, hint=hint)
        return ((view, feature),)

    def _only_owner(self, definition: Definition, feature: str, path: Sequence[str | int]) -> str:
        owners = self.owners.get(feature, ())
        if not owners:
            hint = nearest(feature, [*self.features, *self.owners])
            raise self.error(definition, f'no feature view or feature "{feature}"', *path, hint=hint)
        if len(owners) > 1:
            message = f'feature "{feature}" is in several views: {", ".join(owners)}'
            raise self.error(definition, message, *path, hint=f'Write "{owners[0]}:{feature}"')
        return owners[0]


def check(definitions: Sequence[Definition], locations: Locations | None = None) -> Declared:
    """The definitions by name; `DefinitionError`, with its place, for the first thing that is wrong among them."""
    declared = Declared(definitions, locations or {})
    check_twice((definition, locate(declared.locations, definition)) for definition in definitions)
    for entity in declared.entities.values():
        if entity.join_key == TIME_COLUMN:
            raise declared.error(entity, f'"{TIME_COLUMN}" is the time of entity rows, not a join key', "join_key")
    for source in declared.sources.values():
        _check_source(declared, source)
    _check_dead_letters(declared)
    for view in declared.views.values():
        _check_view(declared, view)
    for on_demand in declared.on_demand.values():
        _check_on_demand(declared, on_demand)
    in_order(declared)
    for service in declared.services.values():
        for index, reference in enumerate(service.features):
            declared.expand(service, reference, "features", index)
    return declared


def in_order(declared: Declared) -> list[OnDemandFeatureView]:
    """The on-demand views, each after those it needs; `DefinitionError` names a cycle."""
    done: dict[str, OnDemandFeatureView] = {}
    for view in declared.on_demand.values():
        _visit(declared, view, (), done)
    return list(done.values())


def _visit(
    declared: Declared, view: OnDemandFeatureView, path: tuple[str, ...], done: dict[str, OnDemandFeatureView]
) -> None:
    if view.name in done:
        return
    if view.name in path:
        cycle = " -> ".join((*path[path.index(view.name) :], view.name))
        raise declared.error(view, f"it needs itself: {cycle}", "inputs")
    for needed in _needed_views(declared, view):
        if needed in declared.on_demand:
            _visit(declared, declared.on_demand[needed], (*path, view.name), done)
    done[view.name] = view


def _needed_views(declared: Declared, view: OnDemandFeatureView) -> dict[str, None]:
    """The views that the inputs name, in order."""
    return dict.fromkeys(
        owner
        for index, reference in enumerate(view.inputs)
        if isinstance(reference, str)
        for owner, _ in declared.expand(view, reference, "inputs", index)
    )


def check_twice(located: Iterable[tuple[Definition, Location | None]]) -> None:
    """`DefinitionError`, naming both places, where two definitions share a kind and a name; feature views and
    on-demand views share their names."""
    seen: dict[tuple[str, str], tuple[Definition, Location | None]] = {}
    for definition, location in located:
        space = "feature_view" if isinstance(definition, OnDemandFeatureView) else definition.kind
        first, first_location = seen.setdefault((space, definition.name), (definition, location))
        if first is definition:
            continue
        where = f" at {first_location}" if first_location else ""
        message = f"{definition.title} is defined twice{where and ', first'}{where}"
        if first.kind != definition.kind:
            message = f"{definition.title} has the name of a {first.kind.replace('_', ' ')}{where}"
        raise DefinitionError(message, location=location, hint="Rename or remove one of them")


def _check_source(declared: Declared, source: Source) -> None:
    if not source.columns:
        return
    names = [column.name for column in source.columns]
    for key in ("timestamp", "created", "deleted"):
        column = getattr(source, key)
        if column and column not in names:
            raise declared.error(source, f'no column "{column}"', key, hint=nearest(column, names))
    for index, column in enumerate(source.unique):
        if column not in names:
            raise declared.error(source, f'no column "{column}"', "unique", index, hint=nearest(column, names))


def _check_dead_letters(declared: Declared) -> None:
    """A message that cannot be taken is as bad when it is read again: it must not come back to where it was."""
    kafkas = {name: each.stream.kafka for name, each in declared.sources.items() if each.stream and each.stream.kafka}
    for name, kafka in kafkas.items():
        topics = _circle(kafka, kafkas.values()) if kafka.dead_letters else None
        if topics:
            message = f"a message that cannot be taken would come back for ever: topic {' -> '.join(topics)}"
            path = ("stream", "kafka", "dead_letters")
            raise declared.error(declared.sources[name], message, *path, hint="Name a topic that leads nowhere")


def _circle(start: Kafka, others: Iterable[Kafka]) -> list[str] | None:
    """The topics, from that of `start` back to it, that a message passes which no source can take."""
    readers = [each for each in others if each.brokers == start.brokers]
    ways, seen = [[start.topic, start.dead_letter_topic]], {start.dead_letter_topic}
    while ways:
        way = ways.pop()
        if way[-1] == start.topic:
            return way
        nexts = {each.dead_letter_topic for each in readers if each.topic == way[-1]} - seen
        ways += [[*way, topic] for topic in sorted(nexts)]
        seen |= nexts
    return None


def _check_view(declared: Declared, view: FeatureView) -> None:
    _check_entities(declared, view)
    if view.source and view.source not in declared.sources:
        hint = nearest(view.source, declared.sources) or "Sources are defined under source:"
        raise declared.error(view, f'no source "{view.source}"', "source", hint=hint)
    if not view.sql and view.source and not declared.sources[view.source].timestamp:
        message = f'source "{view.source}" has no timestamp column, and without event times there is no "as of"'
        raise declared.error(view, message, "source", hint="Write timestamp: COLUMN in the source")
    _check_schedule(declared, view)
    key = "features" if view.features else "aggregations"
    joins = {entity.join_key for entity in declared.keys(view)}
    for index, name in enumerate(view.feature_names):
        if name in joins:
            raise declared.error(view, f'feature "{name}" has the name of a join key', key, index, "name")
        _check_not_time(declared, view, name, key, index, "name")


def _check_entities(declared: Declared, view: FeatureView) -> None:
    seen: dict[str, str] = {}
    for index, name in enumerate(view.entities):
        entity = declared.entity(name)
        if entity is None:
            join_keys = [known.join_key for known in declared.entities.values()]
            if name in join_keys:
                names = ", ".join(known.name for known in declared.entities.values() if known.join_key == name)
                message = f'"{name}" is the join key of several entities: {names}'
                raise declared.error(view, message, "entities", index, hint="Write the entity's name")
            hint = nearest(name, [*declared.entities, *join_keys]) or "Entities are defined under entity:"
            raise declared.error(view, f'no entity "{name}"', "entities", index, hint=hint)
        if entity.join_key in seen:
            message = f'entities "{seen[entity.join_key]}" and "{name}" have the same join key "{entity.join_key}"'
            raise declared.error(view, message, "entities", index)
        seen[entity.join_key] = name


def _check_schedule(declared: Declared, view: FeatureView) -> None:
    if view.schedule:
        try:
            boundary(Schedule(view.schedule), 0)
        except DefinitionError as error:
            raise declared.error(view, error.message, "schedule", hint=error.hint) from None


def _check_on_demand(declared: Declared, view: OnDemandFeatureView) -> None:
    brought: dict[str, tuple[str, str]] = {}
    for index, reference in enumerate(view.inputs):
        if isinstance(reference, str):
            brought |= {pair[1]: pair for pair in declared.expand(view, reference, "inputs", index)}
    for index, item in enumerate(view.inputs):
        for position, field in enumerate(item.request if isinstance(item, RequestInput) else ()):
            path = ("inputs", index, "request", position, "name")
            _check_not_time(declared, view, field.name, *path)
            if field.name in brought:
                message = f'request value "{field.name}" has the name of the feature {":".join(brought[field.name])}'
                raise declared.error(view, message, *path, hint="Rename the request value")
    for index, field in enumerate(view.features):
        _check_not_time(declared, view, field.name, "features", index, "name")


def _check_not_time(declared: Declared, view: Definition, name: str, *path: str | int) -> None:
    if name == TIME_COLUMN:
        raise declared.error(view, f'"{TIME_COLUMN}" is the time of entity rows and names nothing else', *path)


def names_at(references: Iterable[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """(view, feature) pairs by the bare feature name, each pair once."""
    found: dict[str, list[tuple[str, str]]] = {}
    for pair in dict.fromkeys(references):
        found.setdefault(pair[1], []).append(pair)
    return found
