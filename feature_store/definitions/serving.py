"""Which version of each view answers online reads: the applied one, or an earlier one until the applied is complete.

A changed definition is a new version with tables of its own, empty at first. The registry keeps, beside the applied
definitions, which earlier version is served; here is what follows from that, as pure functions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from feature_store.definitions.catalog import BoundOnDemand, BoundView, Catalog, FeatureRef
from feature_store.definitions.service import FeatureService
from feature_store.errors import NotFoundError
from feature_store.expressions.instants import to_iso
from feature_store.expressions.relations import LatestRow
from feature_store.registry.records import Progress, Role, State, Version
from feature_store.types import Type

VersionKey = tuple[str, str]
"""(view, version)"""


def roles_after(
    before: Catalog, after: Catalog, state: State, complete: Collection[VersionKey], timezone: str, now: int
) -> dict[VersionKey, Version | None]:
    """The roles that versions get, or lose (None), when `after` is applied over `before`, the catalog of `state`.

    A version that is `complete` (or holds what was pushed to it), or was served until now, stays served while its
    successor is filled; one that never was is retired at once. A view that goes away takes all its versions along,
    whose tables nobody needs a moment longer.
    """
    back = {(name, new.version) for name, new in after.views.items() if name not in before.views}
    roles: dict[VersionKey, Version | None] = {_key(v): None for v in state.versions if _key(v) in back}
    for name, old in before.views.items():
        new = after.views.get(name)
        if new is None:
            gone = [*state.versions, Version(name, old.version, Role.RETIRED, state.serial, timezone, 0)]
            roles |= {_key(v): replace(v, role=Role.RETIRED, since=0) for v in gone if v.view == name}
        elif new.version != old.version:
            roles |= dict(_roles_of(old, new, state, (name, old.version) in complete, timezone, now))
    return roles


def _key(version: Version) -> VersionKey:
    return version.view, version.version


def _roles_of(
    old: BoundView, new: BoundView, state: State, complete: bool, timezone: str, now: int
) -> Iterator[tuple[VersionKey, Version | None]]:
    name = old.name
    known = {v.version: v for v in state.versions if v.view == name}
    served = next((v for v in known.values() if v.role is Role.SERVED), None)
    retired = Version(name, old.version, Role.RETIRED, state.serial, timezone, now)
    if new.version in known:
        yield (name, new.version), None  # back to what it was: what it has is still there
    if served is not None:
        yield (name, old.version), retired
        if not new.view.online:
            yield (name, served.version), replace(served, role=Role.RETIRED, since=now)
    else:
        keeps = complete and old.view.online and new.view.online
        yield (name, old.version), replace(retired, role=Role.SERVED) if keeps else retired


def served_after(state: State, roles: Mapping[VersionKey, Version | None]) -> dict[str, str]:
    """The views of which an earlier version is served once `roles` are given, with that version."""
    versions: dict[VersionKey, Version | None] = {_key(v): v for v in state.versions}
    return {v.view: v.version for v in (versions | dict(roles)).values() if v and v.role is Role.SERVED}


def lacks(bound: BoundView, new: Progress | None, old: Progress | None) -> str | None:
    """What a version of a view lacks that an earlier one holds: values as late, or from as early on; None: nothing."""
    if old is None or old.through is None:
        return None
    if new is None or new.through is None:
        return "it is empty"
    if new.through < old.through:
        return f"it ends at {to_iso(new.through)}, the served one at {to_iso(old.through)}"
    if not isinstance(bound.relation, LatestRow) or new.since is None:
        return None  # tiles reach back as far as their windows, snapshots are whole
    if old.since is None or old.since < new.since:
        begins = "with the first row" if old.since is None else f"at {to_iso(old.since)}"
        return f"it begins at {to_iso(new.since)}, the served one {begins}"
    return None


def serving_catalog(applied: Catalog, earlier: Mapping[str, Catalog]) -> Catalog:
    """The catalog that online reads go by.

    `earlier` has, by view, the catalog of which a version is still served. An on-demand view over such a view is
    computed as it was defined there, so that both change in one step; a service that lists what cannot be served yet
    has the list that it had. `awaiting` says what is to come.
    """
    earlier = {name: catalog for name, catalog in earlier.items() if name in applied.views}
    if not earlier:
        return applied
    views = {name: earlier[name].views[name] if name in earlier else bound for name, bound in applied.views.items()}
    on_demand = _OnDemand(applied, earlier, views).chosen()
    catalog = replace(applied, views=views, on_demand=on_demand, awaiting={})
    services = {name: _service(service, catalog, earlier.values()) for name, service in applied.services.items()}
    return replace(catalog, services=services, awaiting=dict(_awaiting(applied, catalog, earlier)))


class _OnDemand:
    """Chooses a definition for each on-demand view: one whose inputs are served, with the types it was bound to."""

    def __init__(self, applied: Catalog, earlier: Mapping[str, Catalog], views: Mapping[str, BoundView]) -> None:
        self._applied = applied
        self._earlier = earlier
        self._types: dict[FeatureRef, Type] = {
            FeatureRef(name, column.name): column.type for name, bound in views.items() for column in bound.features
        }
        self._chosen: dict[str, BoundOnDemand] = {}

    def chosen(self) -> dict[str, BoundOnDemand]:
        """The on-demand views that can be computed, each after those it needs."""
        for name in self._applied.on_demand:
            self._choose(name, frozenset())
        return self._chosen

    def _choose(self, name: str, path: frozenset[str]) -> None:
        if name in self._chosen or name in path:
            return
        for bound, catalog in self._candidates(name):
            for need in bound.needs:
                if need.view in self._applied.on_demand:
                    self._choose(need.view, path | {name})
            if all(self._types.get(need) == catalog.feature_type(need) for need in bound.needs):
                self._chosen[name] = bound
                self._types |= {FeatureRef(name, feature.name): feature.type for feature in bound.features}
                return

    def _candidates(self, name: str) -> Iterator[tuple[BoundOnDemand, Catalog]]:
        """The definitions of the time of the views it needs, then the applied one."""
        for view in sorted(self._needed(name)):
            if view in self._earlier and name in self._earlier[view].on_demand:
                yield self._earlier[view].on_demand[name], self._earlier[view]
        yield self._applied.on_demand[name], self._applied

    def _needed(self, name: str) -> set[str]:
        """The views that an on-demand view needs as it is applied, through others too."""
        needs = {need.view for need in self._applied.on_demand[name].needs}
        through = (self._needed(view) for view in needs & self._applied.on_demand.keys())
        return needs.union(*through)


def _service(service: FeatureService, catalog: Catalog, earlier: Iterable[Catalog]) -> FeatureService:
    """A service as it can be answered; as it is applied where it cannot be."""
    for candidate in (service, *(found.services[service.name] for found in earlier if service.name in found.services)):
        try:
            catalog.resolve(candidate)
        except NotFoundError:
            continue
        return candidate
    return service


def _awaiting(applied: Catalog, catalog: Catalog, earlier: Mapping[str, Catalog]) -> Iterator[tuple[FeatureRef, str]]:
    """The features that are applied and not served, and why not."""
    for name in earlier:
        for feature in applied.views[name].features.names:
            if feature not in catalog.views[name].features:
                yield FeatureRef(name, feature), _being_filled(applied.views[name])
    for name, bound in applied.on_demand.items():
        served = {feature.name for feature in catalog.on_demand[name].features} if name in catalog.on_demand else set()
        needed = next((need.view for need in bound.needs if need.view in earlier), next(iter(earlier)))
        for item in bound.features:
            if item.name not in served:
                yield FeatureRef(name, item.name), _being_filled(applied.views[needed])


def _being_filled(bound: BoundView) -> str:
    return f'version {bound.version} of "{bound.name}" is being filled: fs backfill {bound.name} START END'
