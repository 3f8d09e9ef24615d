"""Versions of a view side by side: both are kept fresh, and the new one takes over when it holds what the old one does.

The switch is one commit in the registry, which every server follows within two seconds. The old version's tables stay
for a while after it, for those that have not followed yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from feature_store.definitions.catalog import BoundView, Catalog
from feature_store.definitions.feature_view import FeatureView
from feature_store.definitions.serving import lacks
from feature_store.errors import ConflictError, FeatureStoreError
from feature_store.expressions.instants import SECOND
from feature_store.registry.records import Record, Role, State, Version
from feature_store.registry.registry import Registry

MOVED_ON = 3 * SECOND
"""After an apply, everybody who pushes knows of it: they look every two seconds."""

KEPT_FOR = 60 * SECOND
"""How long the tables of a version stay once it is no longer served."""

Work = Callable[[BoundView], int]
"""Materializes one version of a view; the number of rows written."""


def filling(view: str, version: str) -> str:
    """The lease that a backfill of a version holds."""
    return f"backfill {view} {version}"


@dataclass(frozen=True)
class Rollout:
    """The versions of the views of one catalog, the applied one. `earlier` has the bound version that is served, by
    view, where that is not the catalog's."""

    registry: Registry
    catalog: Catalog
    earlier: Mapping[str, BoundView]

    def run(self, bound: BoundView, work: Work) -> int:
        """Do work for the version that is served, then for the applied one, which takes over if it then can.

        The applied one is left to a backfill that is under way. What keeps the old one from being kept fresh, such as
        a source that is gone, counts only if it is still served in the end.
        """
        old = self.earlier.get(bound.name)
        if old is None:
            return work(bound)
        rows, failure = 0, None
        try:
            rows = work(old)
        except FeatureStoreError as error:
            failure = error
        if not self.registry.leases.held(filling(bound.name, bound.version)):
            self.wait_for_pushes(bound)
            rows += work(bound)
        if not self.promote(bound) and failure is not None:
            raise failure
        return rows

    def wait_for_pushes(self, bound: BoundView) -> None:
        """Wait until everybody who pushes to the view's source writes to this version, too: a row pushed after it is
        read from the source and before that would be missing from it."""
        if not any(self.catalog.takes_pushes(rows.name) for rows in bound.inputs):
            return
        served = self._served(self.registry.load(), bound.name)
        if served is None or self.registry.progress(bound.name, bound.version) is not None:
            return
        # The clock of whoever applied may be wrong by any amount.
        left = min(max(served.since + MOVED_ON - _now(), 0), MOVED_ON)
        time.sleep(left / SECOND)

    def promote(self, bound: BoundView) -> bool:
        """Serve this version, in one step, if it is the applied one and holds what the served one does; whether it is
        served now."""
        while True:
            state = self.registry.load()
            record = state.get(FeatureView.kind, bound.name)
            if record is None or record.bound["version"] != bound.version:
                return False
            served = self._served(state, bound.name)
            if served is None:
                return True
            if self._lacks(bound, served):
                return False
            try:
                retired = replace(served, role=Role.RETIRED, since=_now())
                self.registry.commit([], state.serial, versions={(bound.name, served.version): retired})
                return True
            except ConflictError:
                continue  # somebody applied something: look again what is served

    def lacks(self, bound: BoundView) -> str | None:
        """Why a version is not served yet; None if it is."""
        served = self._served(self.registry.load(), bound.name)
        return None if served is None else self._lacks(bound, served)

    def _lacks(self, bound: BoundView, served: Version) -> str | None:
        new, old = (self.registry.progress(bound.name, version) for version in (bound.version, served.version))
        return lacks(bound, new, old)

    def drop_retired(self, drop: Callable[[Record], Any], kept_for: int) -> None:
        """Drop what versions hold that nobody reads any more, and forget them."""
        state = self.registry.load()
        gone = dict(self._retired(state, _now() - kept_for))
        for record in gone.values():
            drop(record)  # before it is forgotten: killed here, it is dropped again
        if gone:
            self.registry.forget_retired((version.view, version.version) for version in gone)

    def _retired(self, state: State, before: int) -> Iterator[tuple[Version, Record]]:
        for version in state.versions:
            if version.role is Role.RETIRED and version.since <= before:
                history = self.registry.history(FeatureView.kind, version.view)
                yield from ((version, r) for r in history[::-1] if r.bound.get("version") == version.version)

    def _served(self, state: State, view: str) -> Version | None:
        return next((v for v in state.versions if v.view == view and v.role is Role.SERVED), None)


def _now() -> int:
    return time.time_ns() // 1000
