"""Definitions and the schemas of their sources, bound to a catalog: names and types are settled once, here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from feature_store.definitions.base import Definition
from feature_store.definitions.catalog import BoundOnDemand, BoundView, Catalog, FeatureRef
from feature_store.definitions.source import Source
from feature_store.errors import Location
from feature_store.expressions.relations import Rows
from feature_store.types import Schema

__all__ = ["BoundOnDemand", "BoundView", "Catalog", "FeatureRef", "Locations", "bind", "rows_of"]

Locations = Mapping[tuple[str, str], Location]
"""Where each definition stands, by (kind, name)."""


def rows_of(source: Source, root: Path, pushed: Callable[[str], str], schema: Schema) -> Rows:
    """The rows of a source; a relative path is below `root`, and `pushed` gives the table of its push log."""
    raise NotImplementedError


def bind(
    project: str,
    definitions: Sequence[Definition],
    *,
    root: Path,
    pushed: Callable[[str], str],
    timezone: str,
    schema_of: Callable[[Rows], Schema],
    locations: Locations | None = None,
) -> Catalog:
    """The catalog of a project's definitions; `DefinitionError` for the first one that is wrong."""
    raise NotImplementedError
