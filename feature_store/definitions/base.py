"""What every definition shares: a name, a description, an owner, tags; frozen, strict, named by content."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from feature_store.types import Type

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def _name(value: object) -> object:
    if isinstance(value, Definition):
        return value.name
    if isinstance(value, str) and (not _NAME.fullmatch(value) or "__" in value):
        raise ValueError(
            f'"{value}" is not a name: letters, digits and single underscores, not starting with a digit, '
            "at most 128 characters"
        )
    return value


def _tags(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return {str(tag): "" for tag in value}
    if isinstance(value, dict):
        return {str(key): str(item) for key, item in value.items()}
    return value


def names_of(value: object) -> object:
    """Lets Python users give the definitions themselves where a list of names is asked for."""
    if isinstance(value, (list, tuple)):
        return tuple(item.name if isinstance(item, Definition) else item for item in value)
    return value


Name = Annotated[str, BeforeValidator(_name)]
"""An identifier; a definition may be given in its place."""

Tags = Annotated[dict[str, str], BeforeValidator(_tags)]
"""Tags as a mapping; a list of tags is a mapping to empty strings."""


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def __hash__(self) -> int:
        return hash((type(self), self.content_hash()))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, defaults left out: what YAML and the registry hold."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def content_hash(self) -> str:
        """SHA-256 over the canonical JSON, 64 hexadecimal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class Definition(Strict):
    """A named record of a feature repository. `kind` is its key in YAML."""

    kind: ClassVar[str]

    name: Name
    description: str = ""
    owner: str = ""
    tags: Tags = {}


class Field(Strict):
    """One feature, or one request value: a name and a type.

    `column` (default: the name) is the source's column that holds it; or `expression` computes it.
    `default` stands in for a value that is null, missing or too old; the status still tells.
    """

    name: Name
    type: Type
    column: str | None = None
    expression: str | None = None
    default: Any = None
    description: str = ""
