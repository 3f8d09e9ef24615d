"""YAML text as trees of values that know their lines.

A strict subset of YAML 1.2: only `true` and `false` are booleans, so `on`, `yes` and `no` are text; times are text;
keys are text and come once; no tags but the standard ones. Text that would exhaust memory or the stack is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from feature_store.errors import DefinitionError, Location

MAX_DEPTH = 100
MAX_VALUES = 1_000_000
"""How many values the aliases of a document may expand to, beyond those written down."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STANDARD = "tag:yaml.org,2002:"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")}
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a document: a scalar, `items` of a list, or `entries` of a mapping as (line of the key, value)."""

    line: int
    scalar: Any = None
    items: list[Node] | None = None
    entries: dict[str, tuple[int, Node]] | None = None

    def value(self) -> Any:
        """The plain Python value."""
        if self.entries is not None:
            return {key: node.value() for key, (_, node) in self.entries.items()}
        return [node.value() for node in self.items] if self.items is not None else self.scalar

    def line_at(self, path: tuple[str | int, ...]) -> int:
        """The line of the key or item at a path, or of the nearest thing around it that is written down."""
        node, line = self, self.line
        for part in path:
            if isinstance(part, int) and node.items is not None and part < len(node.items):
                node = node.items[part]
                line = node.line
            elif isinstance(part, str) and node.entries is not None and part in node.entries:
                line, node = node.entries[part]
            else:
                break
        return line


def documents(text: str, file: str) -> Iterator[Node]:
    """The documents of a text; `DefinitionError` with file and line for the first thing that is not right."""
    builder = _Builder(file, MAX_VALUES + len(text))
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            document = builder.take(event)
            if document is not None:
                yield document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(filter(None, (error.context, error.problem))).replace("'\\t'", "a tab")
        hint = "YAML is indented with spaces" if "a tab" in what else None
        if "a tab" not in what and mark and "\t" in _line(text, mark.line):
            hint = "There is a tab on this line, and YAML is indented with spaces"
        location = Location(file, mark.line + 1 if mark else 0)
        raise DefinitionError(f"not YAML: {what}", location=location, hint=hint) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 0
        message = f"not YAML: {error.reason}"
        raise DefinitionError(message, location=Location(file, line)) from None


def _line(text: str, number: int) -> str:
    lines = text.split("\n", number + 1)
    return lines[number] if number < len(lines) else ""


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read; `key` is a key that waits for its value."""

    node: Node
    anchor: str | None
    key: tuple[str, int] | None = None
    is_merge: bool = False
    merges: list[Node] | None = None


class _Builder:
    """Folds parser events into nodes, without recursion."""

    def __init__(self, file: str, budget: int) -> None:
        self._file = file
        self._budget = budget
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._root: Node | None = None
        self._actions: dict[type, Callable[[Any], None]] = {
            yaml.ScalarEvent: self._scalar,
            yaml.MappingStartEvent: self._start,
            yaml.SequenceStartEvent: self._start,
            yaml.MappingEndEvent: self._end,
            yaml.SequenceEndEvent: self._end,
            yaml.AliasEvent: self._alias,
        }

    def take(self, event: Any) -> Node | None:
        """Adds an event; the document, at its end."""
        action = self._actions.get(type(event))
        if action:
            action(event)
        elif isinstance(event, yaml.DocumentEndEvent):
            root, self._root, self._anchors = self._root, None, {}
            return root
        return None

    def _start(self, event: Any) -> None:
        line = event.start_mark.line + 1
        wanted = "map" if isinstance(event, yaml.MappingStartEvent) else "seq"
        if event.tag not in (None, "!", _STANDARD + wanted):
            raise self._error(f"the tag {event.tag} is not supported", line)
        if len(self._open) >= MAX_DEPTH:
            raise self._error(f"values nested more than {MAX_DEPTH} deep", line)
        if self._open and self._open[-1].node.entries is not None and self._open[-1].key is None:
            raise self._error("a key must be text, not a list or a mapping", line)
        node = Node(line, entries={}) if wanted == "map" else Node(line, items=[])
        self._open.append(_Open(node, event.anchor))

    def _end(self, event: Any) -> None:
        done = self._open.pop()
        for merged in done.merges or ():
            assert done.node.entries is not None and merged.entries is not None
            for key, entry in merged.entries.items():
                done.node.entries.setdefault(key, entry)
        self._add(done.node, done.anchor)

    def _scalar(self, event: Any) -> None:
        line = event.start_mark.line + 1
        top = self._open[-1] if self._open else None
        if top and top.node.entries is not None and top.key is None:
            self._key(top, event, line)
        else:
            self._add(Node(line, scalar=self._resolve(event, line)), event.anchor)

    def _key(self, top: _Open, event: Any, line: int) -> None:
        key = self._resolve(event, line)
        if not isinstance(key, str):
            raise self._error(f"the key {event.value or 'null'} is not text", line, "Put it in quotes")
        assert top.node.entries is not None
        top.is_merge = key == "<<" and bool(event.implicit[0])
        if key in top.node.entries and not top.is_merge:
            first = top.node.entries[key][0]
            raise self._error(f'the key "{key}" is there twice, first on line {first}', line, self._hint_for_twice(key))
        top.key = (key, line)

    def _hint_for_twice(self, key: str) -> str | None:
        if len(self._open) > 1:
            return None
        return f"Start a new document with ---, or write a list under the plural of {key}"

    def _alias(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if event.anchor not in self._anchors:
            raise self._error(f'the alias "*{event.anchor}" names nothing above it', line)
        node, size = self._anchors[event.anchor]
        self._budget -= size
        if self._budget < 0:
            raise self._error(f"aliases expand to more than {MAX_VALUES:,} values", line)
        if self._open and self._open[-1].node.entries is not None and self._open[-1].key is None:
            raise self._error("a key cannot be an alias", line)
        self._add(node, None)

    def _add(self, node: Node, anchor: str | None) -> None:
        if anchor:
            self._anchors[anchor] = (node, self._size(node))
        if not self._open:
            self._root = node
            return
        top = self._open[-1]
        if top.node.items is not None:
            top.node.items.append(node)
            return
        assert top.key is not None and top.node.entries is not None
        (key, line), top.key = top.key, None
        if top.is_merge:
            top.merges = [*(top.merges or ()), *self._merged(node, line)]
        else:
            top.node.entries[key] = (line, node)

    def _merged(self, node: Node, line: int) -> list[Node]:
        parts = node.items if node.items is not None else [node]
        if any(part.entries is None for part in parts):
            raise self._error("<< merges mappings, and this is none", line)
        return parts

    def _size(self, node: Node) -> int:
        """How many values a node expands to: what aliases in it stand for is counted each time."""
        size, waiting = 0, [node]
        while waiting and size <= MAX_VALUES:
            inner = waiting.pop()
            size += 1
            if inner.items is not None:
                waiting.extend(inner.items)
            elif inner.entries is not None:
                waiting.extend(value for _, value in inner.entries.values())
        return size

    def _resolve(self, event: Any, line: int) -> Any:
        """The value of a scalar: by its tag, as text where it is quoted, else by its look."""
        text: str = event.value
        if event.tag not in (None, "!"):
            return self._tagged(event.tag.removeprefix(_STANDARD), event.tag, text, line)
        if not event.implicit[0] or event.tag == "!":
            return text
        return self._plain(text, line)

    def _plain(self, text: str, line: int) -> Any:
        if text in _NULLS:
            return None
        if text in _BOOLS:
            return _BOOLS[text]
        if text[0] not in "0123456789+-.":
            return text
        if INT.fullmatch(text):
            if len(text) > 100:
                raise self._error(f"a whole number of {len(text)} digits", line, "Put it in quotes")
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def _tagged(self, tag: str, full: str, text: str, line: int) -> Any:
        value: Any = text if tag == "str" else self._plain(text, line)
        types: dict[str, tuple[type, ...]] = {
            "str": (str,),
            "int": (int,),
            "float": (int, float),
            "bool": (bool,),
            "null": (type(None),),
        }
        if not isinstance(value, types.get(tag, ())):
            raise self._error(f"the tag {full} is not supported here", line)
        return float(str(value)) if tag == "float" else value

    def _error(self, message: str, line: int, hint: str | None = None) -> DefinitionError:
        return DefinitionError(message, location=Location(self._file, line), hint=hint)
