"""The definitions of a project with names and types settled: what retrieval, materialization and serving read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from feature_store.definitions.base import Definition
from feature_store.definitions.entity import Entity
from feature_store.definitions.feature_view import FeatureView
from feature_store.definitions.on_demand import OnDemandFeatureView
from feature_store.definitions.service import FeatureService
from feature_store.definitions.source import Kafka, Source
from feature_store.errors import InvalidInputError, NotFoundError, nearest
from feature_store.expressions.relations import Computed, Relation, Rows, ScheduledQuery
from feature_store.types import Schema, Type

D = TypeVar("D", bound=Definition)


@dataclass(frozen=True, slots=True, order=True)
class FeatureRef:
    """One feature of one view; `str()` is `view:feature`."""

    view: str
    feature: str

    def __str__(self) -> str:
        return f"{self.view}:{self.feature}"


def output_names(refs: Sequence[FeatureRef], full: bool = False) -> tuple[str, ...]:
    """The names of features in an answer: bare, or `view__feature`; `InvalidInputError` where two are the same."""
    names = tuple(f"{ref.view}__{ref.feature}" if full else ref.feature for ref in refs)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        first, second = [ref for ref, name in zip(refs, names, strict=True) if name == twice][:2]
        raise InvalidInputError(
            f'features {first} and {second} have the same name "{twice}"', hint="Use full_feature_names"
        )
    return names


@dataclass(frozen=True, slots=True)
class BoundView:
    """A feature view as a relation.

    `keys` are the join-key columns in the order of `view.entities`; `features` the outputs in declared order;
    `defaults` raw row values of the features that have one; `version` 12 hexadecimal digits over all that determines
    the stored values, so that a changed owner, ttl or default keeps the stored rows.
    """

    view: FeatureView
    relation: Relation
    keys: Schema
    features: Schema
    defaults: Mapping[str, Any]
    version: str

    @property
    def name(self) -> str:
        return self.view.name

    @property
    def table(self) -> str:
        """The name of its online table; tiles append `@` and their hop in seconds."""
        return f"{self.view.name}.{self.version}"

    @property
    def inputs(self) -> tuple[Rows, ...]:
        """The rows it is computed from."""
        return self.relation.sources if isinstance(self.relation, ScheduledQuery) else (self.relation.rows,)


@dataclass(frozen=True, slots=True)
class BoundOnDemand:
    """An on-demand view: scalars over bare names, those of `request` and the feature names in `needs`.

    `needs` holds the features of views, and of other on-demand views, that the expressions read. `defaults` and
    `request_defaults` are raw row values.
    """

    view: OnDemandFeatureView
    request: Schema
    needs: tuple[FeatureRef, ...]
    features: tuple[Computed, ...]
    defaults: Mapping[str, Any]
    request_defaults: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.view.name

    def only(self, names: Collection[str]) -> BoundOnDemand:
        """The view with some of its features, and no request values and needs but those that these read."""
        features = tuple(feature for feature in self.features if feature.name in names)
        read = frozenset[str]().union(*(feature.scalar.columns for feature in features))
        return replace(
            self,
            request=Schema(tuple(column for column in self.request if column.name in read)),
            needs=tuple(ref for ref in self.needs if ref.feature in read),
            features=features,
        )


@dataclass(frozen=True)
class Catalog:
    """All definitions of a project, by name; `on_demand` in an order in which each comes after those it needs.

    `rows` are the rows of each source, with their schemas; one that does not exist yet has those it declares.
    """

    project: str
    entities: Mapping[str, Entity]
    sources: Mapping[str, Source]
    views: Mapping[str, BoundView]
    on_demand: Mapping[str, BoundOnDemand]
    services: Mapping[str, FeatureService]
    rows: Mapping[str, Rows] = field(default_factory=dict)
    awaiting: Mapping[FeatureRef, str] = field(default_factory=dict)
    """In a catalog to read online by: the features that are applied and cannot be served yet, each with the reason."""

    def view(self, name: str) -> BoundView | BoundOnDemand:
        """A view of either kind; `NotFoundError` with the code VIEW_NOT_FOUND."""
        found = self.views.get(name) or self.on_demand.get(name)
        if found is None:
            raise NotFoundError(
                f'no feature view "{name}"',
                code="VIEW_NOT_FOUND",
                hint=self._awaited(name)
                or nearest(name, [*self.views, *self.on_demand])
                or "See: fs list feature_view",
            )
        return found

    def service(self, name: str) -> FeatureService:
        """A feature service; `NotFoundError` with the code SERVICE_NOT_FOUND."""
        found = self.services.get(name)
        if found is None:
            hint = nearest(name, self.services)
            if not hint and (name.partition(":")[0] in self._features or name in self._owners):
                hint = f'A feature reference goes in a list: features=["{name}"]'
            raise NotFoundError(
                f'no feature service "{name}"', code="SERVICE_NOT_FOUND", hint=hint or "See: fs list feature_service"
            )
        return found

    def takes_pushes(self, source: str) -> bool:
        """Whether rows can be pushed to a source."""
        stream = self.sources[source].stream if source in self.sources else None
        return stream is not None and stream.push

    def kafka(self, source: str) -> Kafka:
        """The topic that a source reads; `InvalidInputError` if it reads none."""
        stream = self.definition(Source, source).stream
        if stream is None or stream.kafka is None:
            raise InvalidInputError(
                f'source "{source}" reads no topic', hint="Write in its definition stream: {kafka: {topic: NAME}}"
            )
        return stream.kafka

    def definitions(self, kind: type[D]) -> Mapping[str, D]:
        """The definitions of a kind by name, as they were applied."""
        bound: tuple[BoundView | BoundOnDemand, ...] = (*self.views.values(), *self.on_demand.values())
        given = (*self.entities.values(), *self.sources.values(), *(found.view for found in bound))
        return {found.name: found for found in (*given, *self.services.values()) if isinstance(found, kind)}

    def definition(self, kind: type[D], name: str) -> D:
        """One definition of a kind; `NotFoundError`."""
        found = self.definitions(kind)
        if name not in found:
            raise NotFoundError(
                f'no {kind.kind.replace("_", " ")} "{name}"',
                code=f"{kind.kind.split('_')[-1].upper()}_NOT_FOUND",
                hint=nearest(name, found) or f"See: fs list {kind.kind}",
            )
        return found[name]

    def resolve(
        self, features: str | FeatureService | Sequence[str | FeatureRef | Definition]
    ) -> tuple[FeatureRef, ...]:
        """The features asked for, in order, each once.

        A string is the name of a service. Elements of a sequence are `view:feature`, `view` (all of it), a bare
        feature name that one view has, or definitions. `NotFoundError` with the code FEATURE_NOT_FOUND,
        VIEW_NOT_FOUND or SERVICE_NOT_FOUND and the nearest name otherwise.
        """
        if isinstance(features, str):
            return self.resolve(self.service(features).features)
        if isinstance(features, FeatureService):
            return self.resolve(features.features)
        return tuple(dict.fromkeys(ref for item in features for ref in self._resolve_one(item)))

    def needed(self, refs: Sequence[FeatureRef]) -> tuple[dict[str, list[str]], list[BoundOnDemand]]:
        """What answers these features and no more: the features to read of each view, in declared order, and the
        on-demand views with the features to compute, each after those it needs."""
        wanted: dict[str, set[str]] = {}
        for ref in refs:
            wanted.setdefault(ref.view, set()).add(ref.feature)
        on_demand: list[BoundOnDemand] = []
        for name in reversed(tuple(self.on_demand)):
            if name in wanted:
                on_demand.append(self.on_demand[name].only(wanted.pop(name)))
                for ref in on_demand[-1].needs:
                    wanted.setdefault(ref.view, set()).add(ref.feature)
        views = {
            name: [feature for feature in self.views[name].features.names if feature in found]
            for name, found in wanted.items()
        }
        return views, on_demand[::-1]

    def feature_type(self, ref: FeatureRef) -> Type:
        """The type of a feature that `resolve` gave."""
        return self._types[ref]

    def default(self, ref: FeatureRef) -> Any:
        """The raw row value that stands in where a feature has none, or None."""
        return self.view(ref.view).defaults.get(ref.feature)

    def _resolve_one(self, item: str | FeatureRef | Definition) -> Iterator[FeatureRef]:
        if isinstance(item, FeatureService):
            yield from self.resolve(item)
            return
        text = item.name if isinstance(item, Definition) else str(item)
        view, colon, feature = text.partition(":")
        if colon:
            yield self._of_view(view, feature)
        elif text in self._features:
            yield from (FeatureRef(text, name) for name in self._features[text])
        elif isinstance(item, Definition):
            self.view(text)
        else:
            yield FeatureRef(self._owner(text), text)

    def _of_view(self, view: str, feature: str) -> FeatureRef:
        self.view(view)
        if feature not in self._features[view]:
            names = self._features[view]
            hint = self.awaiting.get(FeatureRef(view, feature)) or nearest(feature, names)
            hint = hint or f"It has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            raise NotFoundError(
                f'feature view "{view}" has no feature "{feature}"', code="FEATURE_NOT_FOUND", hint=hint
            )
        return FeatureRef(view, feature)

    def _owner(self, feature: str) -> str:
        owners = self._owners.get(feature, ())
        if not owners:
            raise NotFoundError(
                f'no feature or feature view "{feature}"',
                code="FEATURE_NOT_FOUND",
                hint=self._awaited(feature)
                or nearest(feature, [*self._owners, *self._features])
                or "See: fs list feature_view",
            )
        if len(owners) > 1:
            raise NotFoundError(
                f'feature "{feature}" is in several views: {", ".join(owners)}',
                code="FEATURE_NOT_FOUND",
                hint=f'Write "{owners[0]}:{feature}"',
            )
        return owners[0]

    def _awaited(self, name: str) -> str | None:
        """Why a view, or a feature given by its bare name, cannot be served yet."""
        return next((reason for ref, reason in self.awaiting.items() if name in (ref.view, ref.feature)), None)

    @cached_property
    def _types(self) -> dict[FeatureRef, Type]:
        bound: tuple[BoundView | BoundOnDemand, ...] = (*self.views.values(), *self.on_demand.values())
        return {FeatureRef(view.name, feature.name): feature.type for view in bound for feature in view.features}

    @cached_property
    def _features(self) -> dict[str, tuple[str, ...]]:
        """The feature names of each view."""
        names: dict[str, tuple[str, ...]] = {name: view.features.names for name, view in self.views.items()}
        return names | {name: view.view.feature_names for name, view in self.on_demand.items()}

    @cached_property
    def _owners(self) -> dict[str, tuple[str, ...]]:
        """The views that have a feature of a name."""
        owners: dict[str, tuple[str, ...]] = {}
        for view, names in self._features.items():
            for name in names:
                owners[name] = (*owners.get(name, ()), view)
        return owners
