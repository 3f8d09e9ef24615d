"""Definitions in YAML: documents that map a kind to one definition, its plural to a list of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from feature_store.definitions.base import Definition, title
from feature_store.definitions.documents import FLOAT, INT, Node, documents
from feature_store.definitions.entity import Entity
from feature_store.definitions.feature import Feature, written_at
from feature_store.definitions.feature_view import FeatureView
from feature_store.definitions.mistakes import explain
from feature_store.definitions.on_demand import OnDemandFeatureView
from feature_store.definitions.places import Path as Steps
from feature_store.definitions.places import Place
from feature_store.definitions.service import FeatureService
from feature_store.definitions.source import Source
from feature_store.errors import DefinitionError, Location, nearest

KINDS: dict[str, type[Definition]] = {
    model.kind: model for model in (Entity, Source, Feature, FeatureView, OnDemandFeatureView, FeatureService)
}
_PLURALS = {"entities" if kind == "entity" else f"{kind}s": kind for kind in KINDS}

Located = tuple[Definition, Place]


def load_file(path: Path, shown: str | None = None) -> list[Located]:
    """The definitions of a YAML file, each with its place; `shown` is what messages call the file."""
    file = shown or str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DefinitionError(f"cannot read the file: {error.strerror}", location=Location(file)) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"the file is not UTF-8: byte 0x{data[error.start]:02x}"
        raise DefinitionError(message, location=Location(file, line), hint="Save it as UTF-8") from None
    return load_text(text, file)


def loads(text: str) -> list[Definition]:
    """The definitions of a YAML text: `loads(dump(x)) == x`."""
    return [definition for definition, _ in load_text(text, "<text>")]


def load_text(text: str, file: str) -> list[Located]:
    """The definitions of a YAML text, each with its place in `file`."""
    return [located for document in documents(text, file) for located in _definitions(document, file)]


def dump(definitions: Definition | Sequence[Definition]) -> str:
    """YAML, a document a definition."""
    several = [definitions] if isinstance(definitions, Definition) else definitions
    plain = [{definition.kind: definition.to_dict()} for definition in several]
    text: str = yaml.dump_all(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _definitions(document: Node, file: str) -> Iterator[Located]:
    if document.entries is None:
        if document.items is None and document.scalar is None:
            return
        message = "a document maps kinds to definitions, and this one is not a mapping"
        raise DefinitionError(message, location=Location(file, document.line), hint=f"Kinds are {', '.join(KINDS)}")
    for key, (line, node) in document.entries.items():
        for item in _of_kind(key, node, Location(file, line)):
            yield _definition(KINDS[_PLURALS.get(key, key)], item, file)


def _of_kind(key: str, node: Node, location: Location) -> list[Node]:
    """The nodes of the definitions under a kind or its plural."""
    if key in KINDS:
        if node.items is not None:
            plural = next(plural for plural, kind in _PLURALS.items() if kind == key)
            raise DefinitionError(f"{key} takes one definition", location=location, hint=f"For a list write {plural}:")
        return [node]
    if key not in _PLURALS:
        if key == "project":
            hint: str | None = "This looks like settings: name the file in .featureignore"
        else:
            hint = nearest(key, [*KINDS, *_PLURALS]) or f"Kinds are {', '.join(KINDS)}"
        raise DefinitionError(f'unknown kind "{key}"', location=location, hint=hint)
    if node.items is None and node.entries is None and node.scalar is None:
        return []
    if node.items is None:
        hint = f"For one definition write {_PLURALS[key]}:"
        raise DefinitionError(f"{key} takes a list of definitions", location=location, hint=hint)
    return node.items


def _definition(model: type[Definition], node: Node, file: str) -> Located:
    try:
        data = node.value()
    except RecursionError:
        raise DefinitionError("aliases nest too deep", location=Location(file, node.line)) from None
    if not isinstance(data, dict):
        message = f"{title(model, None)}: this is not a mapping of keys to values"
        raise DefinitionError(message, location=Location(file, node.line))
    definition = _validated(model, data, node, file)
    if not isinstance(definition, Feature):
        return definition, Place(file, node.line_at(("name",)), node.line_at)
    view = _validated(FeatureView, definition.view(), node, file, short=True)
    return view, Place(file, node.line_at(("name",)), partial(_line_in_short, node))


def _validated(model: type[Definition], data: dict[str, Any], node: Node, file: str, short: bool = False) -> Definition:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        wrong, path = explain(error, model, title(model, data))
        line = node.line_at(written_at(path) if short else path)
        raise wrong.at(Location(file, line)) from None


def _line_in_short(node: Node, path: Steps) -> int:
    return node.line_at(written_at(path))


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes what this package, or any YAML 1.1 reader, would not take for text; long SQL is written as a block."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, value: str) -> Any:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
for _pattern in (INT, FLOAT):
    _whole = re.compile(f"(?:{_pattern.pattern})$")
    _Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _whole, list("+-.0123456789"))
