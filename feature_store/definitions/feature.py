"""The short form of a feature view: one feature, computed by one SQL query."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from feature_store.definitions.base import Definition, Name, Strict
from feature_store.definitions.feature_view import Storage
from feature_store.definitions.places import Path
from feature_store.expressions.instants import Duration
from feature_store.types import Type


class Compute(Strict):
    """The query, and where it runs."""

    sql: str
    engine: str | None = None


def _names(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Feature(Definition):
    """One feature of a scheduled query, which is its column `value`; `entity` is an entity's name or its join key."""

    kind: ClassVar[str] = "feature"

    type: Type
    entity: Annotated[tuple[str, ...], BeforeValidator(_names)]
    source: Name | None = None
    compute: Compute
    storage: Storage | None = None
    schedule: str | None = None
    delay: Duration | None = None
    default: Any = None
    online: bool = True

    def view(self) -> dict[str, Any]:
        """What the feature view of that name is built from."""
        field = {"name": self.name, "type": self.type, "column": "value", "default": self.default}
        same = ("name", "description", "owner", "tags", "source", "schedule", "delay", "online", "storage")
        return {
            **{key: getattr(self, key) for key in same},
            "entities": self.entity,
            "features": [field],
            "sql": self.compute.sql,
            "engine": self.compute.engine,
        }


def written_at(path: Path) -> Path:
    """Where a part of the feature view stands in the short form."""
    head, rest = path[:1], path[1:]
    if head in (("sql",), ("engine",)):
        return ("compute", *path)
    if head == ("entities",):
        return ("entity", *rest)
    if head == ("features",):
        return ("compute", "sql") if "column" in rest else (rest[1:] or ("name",))
    return path
