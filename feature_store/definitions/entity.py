"""What features are about, and the column that names it."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import model_validator

from feature_store.definitions.base import Definition, Name
from feature_store.definitions.mistakes import mistake
from feature_store.types import INT64, Type

KEY_KINDS = ("INT32", "INT64", "STRING", "BYTES", "BOOL", "TIMESTAMP", "DATE")


class Entity(Definition):
    """What features are about: a user, an ad. `join_key` (default: the name) is its column."""

    kind: ClassVar[str] = "entity"

    join_key: Name
    type: Type = INT64

    @model_validator(mode="before")
    @classmethod
    def _default_join_key(cls, data: Any) -> Any:
        if isinstance(data, dict) and "join_key" not in data and "name" in data:
            return {**data, "join_key": data["name"]}
        return data

    @model_validator(mode="after")
    def _type_can_be_a_key(self) -> Entity:
        if self.type.kind not in KEY_KINDS:
            raise mistake(f"a join key cannot be {self.type}. It can be {', '.join(KEY_KINDS)}", "type")
        return self
