"""What every definition shares: a name, a description, an owner, tags; frozen, strict, named by content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from feature_store.definitions.defaults import plain_default, raw_default
from feature_store.definitions.mistakes import explain, mistake
from feature_store.errors import DefinitionError
from feature_store.types import Type

if TYPE_CHECKING:
    from typing import Self

    from pydantic.fields import FieldInfo

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
    """Lets Python users give the definitions themselves, or some features of them, where a list of names is asked
    for."""
    if isinstance(value, (list, tuple)):
        return tuple(name for item in value for name in (item if isinstance(item, tuple) else (_name_of(item),)))
    return value


def _name_of(item: object) -> object:
    return item.name if isinstance(item, Definition) else item


Name = Annotated[str, BeforeValidator(_name)]
"""An identifier; a definition may be given in its place."""

Tags = Annotated[dict[str, str], BeforeValidator(_tags)]
"""Tags as a mapping; a list of tags is a mapping to empty strings."""


if TYPE_CHECKING:

    class _Model:
        """What type checkers see of pydantic: constructors that take what validators read, such as ttl="7d"."""

        model_config: ClassVar[ConfigDict]
        model_fields: ClassVar[dict[str, FieldInfo]]

        def __init__(self, **data: Any) -> None: ...
        @classmethod
        def model_validate(cls, obj: Any) -> Self: ...
        def model_dump(self, *, mode: str, exclude_defaults: bool) -> dict[str, Any]: ...
else:
    _Model = BaseModel


class Strict(_Model):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    if not TYPE_CHECKING:

        def __init__(self, **data: Any) -> None:
            """`DefinitionError`, on one line, for the first thing that is wrong."""
            try:
                super().__init__(**data)
            except ValidationError as error:
                raise explain(error, type(self), title(type(self), data))[0] from None

        # Tells pydantic that models inside others need not be built through this method.
        __init__.__pydantic_base_init__ = True

    def __hash__(self) -> int:
        return hash((type(self), self.content_hash()))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, defaults left out: what YAML and the registry hold."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def content_hash(self) -> str:
        """SHA-256 over the canonical JSON, 64 hexadecimal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def title(model: type[Any], data: Any) -> str:
    """What messages call an object that could not be built: feature view "user_orders"."""
    kind = getattr(model, "kind", model.__name__.lower()).replace("on_demand", "on-demand").replace("_", " ")
    name = data.get("name") if isinstance(data, dict) else None
    return f'{kind} "{name}"' if isinstance(name, str) else kind


class Definition(Strict):
    """A named record of a feature repository. `kind` is its key in YAML."""

    kind: ClassVar[str]

    name: Name
    description: str = ""
    owner: str = ""
    tags: Tags = {}  # noqa: RUF012 - pydantic copies it

    @property
    def title(self) -> str:
        """What messages call it: feature view "user_orders"."""
        return title(type(self), {"name": self.name})


class View(Definition):
    """A definition that has features: `view[["a", "b"]]` are references to some of them."""

    def __getitem__(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{self.name}:{name}" for name in ([names] if isinstance(names, str) else names))


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

    @field_validator("default", mode="before")
    @classmethod
    def _default_is_of_the_type(cls, value: Any, info: ValidationInfo) -> Any:
        type_ = info.data.get("type")
        if value is None or type_ is None:
            return value
        try:
            return plain_default(raw_default(value, type_), type_)
        except DefinitionError as error:
            raise ValueError(str(error)) from None

    @property
    def raw_default(self) -> Any:
        """The default as a raw row value, or None."""
        return None if self.default is None else raw_default(self.default, self.type)

    @model_validator(mode="after")
    def _is_a_column_or_computed(self) -> Field:
        if self.column is not None and self.expression is not None:
            raise mistake("a feature has a column or an expression, not both", "expression")
        return self


def check_names(names: Sequence[str], key: str) -> None:
    """Raises, pointing at the second one below `key`, where a feature name comes twice."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise mistake(f'feature "{name}" is defined twice', key, index, "name")
