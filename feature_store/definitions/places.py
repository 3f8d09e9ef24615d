"""Places: where definitions stand in files, down to their keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from feature_store.definitions.base import Definition
from feature_store.errors import Location

Path = tuple[str | int, ...]
"""Keys and indexes from a definition inwards: ("features", 0, "type")."""


@dataclass(frozen=True, slots=True)
class Place(Location):
    """The line of a definition, which can also tell those of its parts."""

    line_of: Callable[[Path], int] | None = None

    def inside(self, *path: str | int) -> Location:
        """Where a part stands, or the nearest thing around it that is written down."""
        return Location(self.file, self.line_of(path) if self.line_of else self.line)


Locations = Mapping[tuple[str, str], Location]
"""Where each definition stands, by (kind, name)."""


def locate(locations: Locations, definition: Definition, *path: str | int) -> Location | None:
    """Where a definition stands, or a part of it if the location knows its parts."""
    location = locations.get((definition.kind, definition.name))
    return location.inside(*path) if isinstance(location, Place) else location
