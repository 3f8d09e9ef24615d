"""YAML text that is no YAML, or more than it looks."""

from __future__ import annotations

import pytest

from feature_store.definitions.documents import documents
from feature_store.errors import DefinitionError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MISTAKES = {
    "a tab": (
        "entity:\n\tname: u",
        "not YAML: while scanning for the next token, found character that cannot start any token. There is a tab on "
        "this line, and YAML is indented with spaces (f:2)",
    ),
    "an open bracket": (
        "a: {b: c",
        "not YAML: while parsing a flow mapping, did not find expected ',' or '}' (f:2)",
    ),
    "an open quote": ("a:\n  b: 'c", "not YAML: while scanning a quoted scalar, found unexpected end of stream (f:2)"),
    "a control character": ("a: b\nc: \x01", "not YAML: control characters are not allowed (f:2)"),
    "a key twice": ("a:\n  b: 1\n  c: 2\n  b: 3", 'the key "b" is there twice, first on line 2 (f:4)'),
    "a kind twice": (
        "entity: 1\nentity: 2",
        'the key "entity" is there twice, first on line 1. Start a new document with ---, or write a list under the '
        "plural of entity (f:2)",
    ),
    "a number as a key": ("a:\n  1: x", "the key 1 is not text. Put it in quotes (f:2)"),
    "a list as a key": ("? [a]\n: b", "a key must be text, not a list or a mapping (f:1)"),
    "an alias as a key": ("a: &x b\n*x : c", "a key cannot be an alias (f:2)"),
    "an alias to nothing": ("a: *x", 'the alias "*x" names nothing above it (f:1)'),
    "an alias to itself": ("a: &x [b, *x]", 'the alias "*x" names nothing above it (f:1)'),
    "a bomb of aliases": (BOMB, "aliases expand to more than 1,000,000 values (f:6)"),
    "a merge of no mapping": ("a:\n  <<: [1]", "<< merges mappings, and this is none (f:2)"),
    "an object": (
        "a: !!python/object/apply:os.system [ls]",
        "the tag tag:yaml.org,2002:python/object/apply:os.system is not supported (f:1)",
    ),
    "a tag of another type": ("a: !!int x", "the tag tag:yaml.org,2002:int is not supported here (f:1)"),
    "deep lists": ("[" * 100_000, "values nested more than 100 deep (f:1)"),
    "deep blocks": ("- " * 200 + "a", "values nested more than 100 deep (f:1)"),
    "a long number": ("a: " + "9" * 5000, "a whole number of 5000 digits. Put it in quotes (f:1)"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_is_not_right_is_named_at_its_line(case: str) -> None:
    text, message = MISTAKES[case]
    with pytest.raises(DefinitionError) as caught:
        list(documents(text, "f"))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-12", -12),
        ("+1", 1),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("Off", "Off"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01 12:00:00", "2026-01-01 12:00:00"),
        ('"12"', "12"),
        ("'true'", "true"),
        ("!!str 12", "12"),
        ("! 12", "12"),
        ("!!float 12", 12.0),
        ("|\n  12\n", "12\n"),
        ("=", "="),
    ],
)
def test_scalars(text: str, value: object) -> None:
    (document,) = documents(f"a: {text}", "f")
    read = document.value()["a"]
    assert (read, type(read)) == (value, type(value))


def test_lines() -> None:
    (document,) = documents("a:\n  - b: 1\n    c: |\n      x\n      y\n  -\n    d\n", "f")
    assert document.line_at(()) == 1
    assert document.line_at(("a", 0, "c")) == 3
    assert document.line_at(("a", 1)) == 7
    assert document.line_at(("a", 0, "missing", "deeper")) == 2
    assert document.line_at(("a", 9)) == 1


def test_ten_megabytes() -> None:
    text = "a:\n" + f"- {{name: abcdefgh, text: '{'some words' * 40}', number: 12}}\n" * 25_000
    (document,) = documents(text, "f")
    items = document.value()["a"]
    assert len(text) > 10_000_000
    assert (len(items), items[-1]) == (25_000, {"name": "abcdefgh", "text": "some words" * 40, "number": 12})
