"""The applied definitions under the names that Feast's store has for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeVar

from feature_store.definitions.base import Definition
from feature_store.definitions.catalog import Catalog
from feature_store.definitions.entity import Entity
from feature_store.definitions.feature_view import FeatureView
from feature_store.definitions.on_demand import OnDemandFeatureView
from feature_store.definitions.service import FeatureService
from feature_store.definitions.source import Source

D = TypeVar("D", bound=Definition)


class Directory(ABC):
    """Looks up definitions in a catalog, which is brought up to date first unless a cached one will do.

    `get_...` raise `NotFoundError`; `list_...` give those that have all of `tags`.
    """

    @property
    @abstractmethod
    def catalog(self) -> Catalog: ...

    @abstractmethod
    def refresh(self) -> bool: ...

    def refresh_registry(self) -> None:
        """Take what was applied since this store last looked."""
        self.refresh()

    def get_entity(self, name: str, allow_registry_cache: bool = False) -> Entity:
        return self._get(Entity, name, allow_registry_cache)

    def get_data_source(self, name: str, allow_registry_cache: bool = False) -> Source:
        return self._get(Source, name, allow_registry_cache)

    def get_feature_view(self, name: str, allow_registry_cache: bool = False) -> FeatureView:
        return self._get(FeatureView, name, allow_registry_cache)

    def get_on_demand_feature_view(self, name: str, allow_registry_cache: bool = False) -> OnDemandFeatureView:
        return self._get(OnDemandFeatureView, name, allow_registry_cache)

    def get_feature_service(self, name: str, allow_cache: bool = False) -> FeatureService:
        return self._get(FeatureService, name, allow_cache)

    def list_entities(self, allow_cache: bool = False, tags: Mapping[str, str] | None = None) -> list[Entity]:
        return self._list(Entity, allow_cache, tags)

    def list_data_sources(self, allow_cache: bool = False, tags: Mapping[str, str] | None = None) -> list[Source]:
        return self._list(Source, allow_cache, tags)

    def list_feature_views(self, allow_cache: bool = False, tags: Mapping[str, str] | None = None) -> list[FeatureView]:
        return self._list(FeatureView, allow_cache, tags)

    def list_on_demand_feature_views(
        self, allow_cache: bool = False, tags: Mapping[str, str] | None = None
    ) -> list[OnDemandFeatureView]:
        return self._list(OnDemandFeatureView, allow_cache, tags)

    def list_feature_services(
        self, allow_cache: bool = False, tags: Mapping[str, str] | None = None
    ) -> list[FeatureService]:
        return self._list(FeatureService, allow_cache, tags)

    def _get(self, kind: type[D], name: str, cached: bool) -> D:
        return self._current(cached).definition(kind, name)

    def _list(self, kind: type[D], cached: bool, tags: Mapping[str, str] | None) -> list[D]:
        wanted = (tags or {}).items()
        return [found for found in self._current(cached).definitions(kind).values() if wanted <= found.tags.items()]

    def _current(self, cached: bool) -> Catalog:
        if not cached:
            self.refresh()
        return self.catalog
