"""Mistakes in definitions: pydantic's errors in this package's one-line wording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from feature_store.errors import DefinitionError, nearest

_WANTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def mistake(message: str, *path: str | int) -> PydanticCustomError:
    """What a validator raises to point at a part of its model: the path is from that model inwards."""
    return PydanticCustomError("mistake", "{text}", {"text": message, "path": path})


def explain(error: ValidationError, model: type[Any], title: str) -> tuple[DefinitionError, tuple[str | int, ...]]:
    """The error for the first mistake, and the path to it. An unknown key comes before a missing one: often it is the
    missing one misspelt."""
    found = error.errors(include_url=False)
    first = min(found, key=lambda item: item["type"] != "extra_forbidden")
    path = _path(first, model)
    message, hint = _wording(first, path, model)
    return DefinitionError(f"{title}: {message}" if title else message, hint=hint), path


def _path(detail: ErrorDetails, model: type[BaseModel]) -> tuple[str | int, ...]:
    """The keys and indexes, without the tags of unions that pydantic mixes in."""
    path: list[str | int] = []
    inner: type[BaseModel] | None = model
    parts = [*detail["loc"], *detail.get("ctx", {}).get("path", ())]
    for position, part in enumerate(parts, 1):
        known = inner.model_fields if inner else {}
        is_unknown_key = position == len(parts) and detail["type"] == "extra_forbidden"
        if isinstance(part, str) and part not in known and not is_unknown_key:
            continue
        path.append(part)
        if isinstance(part, str) and part in known:
            inner = _model_in(known[part].annotation)
    return tuple(path)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as tuple[Field, ...] or Storage | None holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _wording(detail: ErrorDetails, path: Sequence[str | int], model: type[BaseModel]) -> tuple[str, str | None]:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        known = _keys_at(path[:-1], model)
        prefix = _spell(path[:-1])
        key = str(path[-1])
        hint: str | None = nearest(key, known) or f"Keys are {', '.join(known)}"
        if key.endswith((")", ">")):
            hint = "Inside { } and [ ] a comma ends a value: put the value in quotes"
        return f'{prefix}unknown key "{key}"', hint
    if kind == "missing":
        return f'{_spell(path[:-1])}"{path[-1]}" is missing', None
    prefix = _spell(path)
    if kind in _WANTED:
        hint = "Put it in quotes" if kind == "string_type" and isinstance(value, (bool, int, float)) else None
        return f"{prefix}{_shown(value)} is not {_WANTED[kind]}", hint
    if kind == "literal_error":
        return f"{prefix}{_shown(value)} is not one of {detail['ctx']['expected'].replace(' or ', ', ')}", None
    if kind == "value_error":
        return prefix + detail["msg"].removeprefix("Value error, "), None
    if kind == "mistake":
        return _spell(_without(path, detail)) + detail["msg"], None
    what = detail["msg"].removeprefix("Input ")
    return f"{prefix}{_shown(value)} {what}", None


def _without(path: Sequence[str | int], detail: ErrorDetails) -> Sequence[str | int]:
    """The path to the model that was wrong as a whole: its message names the part itself."""
    return path[: len(path) - len(detail["ctx"]["path"])]


def _keys_at(path: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    inner = model
    for part in path:
        if isinstance(part, str):
            inner = _model_in(inner.model_fields[part].annotation) or inner
    return list(inner.model_fields)


def _spell(path: Sequence[str | int]) -> str:
    """features[0].type, and a colon; nothing for an empty path."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"{text}: " if text else ""


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
