"""Definitions in Python files: each file is run as a module of its own, with the repository's root importable."""

from __future__ import annotations

import ast
import importlib
import os
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from feature_store.definitions.base import Definition
from feature_store.definitions.files import Located
from feature_store.definitions.places import Path as Steps
from feature_store.definitions.places import Place
from feature_store.errors import DefinitionError, FeatureStoreError, Location

_LOCK = threading.RLock()
_READING: list[Path] = []
"""The repository that is being read, under the lock: its files run, and must not read it again."""


def load_modules(root: Path, paths: Sequence[Path]) -> list[Located]:
    """The definitions that the modules of some files below `root` hold, alone or in lists, each once: one that is
    imported from another file belongs to the file that makes it.

    `DefinitionError`, with the line of the user's code, for whatever goes wrong in it.
    """
    found: dict[int, tuple[bool, Located]] = {}
    with _LOCK, _reading(root), _importable(root):
        for path in paths:
            file = path.relative_to(root).as_posix()
            tree = _parse(path, file)
            imported = _imported_names(tree)
            for name, definition in _held(_run(root, path, file)):
                known = found.get(id(definition))
                if known is None or (known[0] and name not in imported):
                    found[id(definition)] = (name in imported, (definition, _place(tree, name, definition, file)))
    return [located for _, located in found.values()]


@contextmanager
def _reading(root: Path) -> Iterator[None]:
    if _READING:
        raise DefinitionError(
            "this file reads the repository while it is being read",
            hint='Put it under if __name__ == "__main__":, or list the file in .featureignore',
        )
    _READING.append(root)
    try:
        yield
    finally:
        _READING.pop()


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    """The root first on the import path, and its modules forgotten before and after."""
    before = {name: module for name, module in sys.modules.items() if _is_below(module, root)}
    for name in before:
        del sys.modules[name]
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(root))
        sys.dont_write_bytecode = writes_bytecode
        for name in [name for name, module in sys.modules.items() if _is_below(module, root)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_below(module: types.ModuleType, root: Path) -> bool:
    """Whether a module is of the repository, and not of a virtual environment in it or the running program."""
    if module.__name__.split(".")[0] in ("__main__", "feature_store"):
        return False
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    return any(_is_users(place, root) for place in places)


def _is_users(file: object, root: Path) -> bool:
    """Whether a file, or the folder of a package, is the user's code."""
    if not isinstance(file, str) or not file.startswith(f"{root}{os.sep}"):
        return False
    return "site-packages" not in file and not file.startswith(f"{sys.prefix}{os.sep}")


def _parse(path: Path, file: str) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise DefinitionError(f"not Python: {error.msg}", location=Location(file, error.lineno or 0)) from None
    except (OSError, ValueError) as error:
        raise DefinitionError(f"cannot read the file: {error}", location=Location(file)) from None


def _run(root: Path, path: Path, file: str) -> types.ModuleType:
    """The module of a file: the one another file has imported already, or a new one."""
    parts = [*path.relative_to(root).parts[:-1], *([] if path.name == "__init__.py" else [path.stem])]
    name = ".".join(parts)
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    module = types.ModuleType(name or "__init__")
    module.__file__ = str(path)
    module.__package__ = name if path.name == "__init__.py" else ".".join(parts[:-1])
    if path.name == "__init__.py":
        module.__path__ = [str(path.parent)]
    if name and known is None:
        sys.modules[name] = module
    try:
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _error(error, root, file) from error
    return module


def _error(error: BaseException, root: Path, file: str) -> FeatureStoreError:
    """The error at the innermost line of the user's code."""
    if isinstance(error, SyntaxError) and _is_users(error.filename, root):
        location = Location(Path(str(error.filename)).relative_to(root).as_posix(), error.lineno or 0)
        return DefinitionError(f"not Python: {error.msg}", location=location)
    location = Location(file)
    trace = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code.co_filename
        if _is_users(code, root):
            location = Location(Path(code).relative_to(root).as_posix(), trace.tb_lineno)
        trace = trace.tb_next
    if isinstance(error, FeatureStoreError):
        return error.at(location)
    text = str(error).splitlines()[0] if str(error) else ""
    return DefinitionError(f"{type(error).__name__}: {text}" if text else type(error).__name__, location=location)


def _held(module: types.ModuleType) -> Iterator[tuple[str, Definition]]:
    """The definitions among the values of a module, and in its lists and tuples."""
    for name, value in list(vars(module).items()):
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, Definition):
                yield name, item


def _imported_names(tree: ast.Module) -> frozenset[str]:
    """The names that a file imports from others."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return frozenset(alias.asname or alias.name for node in imports for alias in node.names)


def _place(tree: ast.Module, variable: str, definition: Definition, file: str) -> Place:
    """Where a definition is made: the call that gives its name, or the statement that sets its variable."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _gives_name(node, definition.name):
            return Place(file, _line_at(node, ("name",)), partial(_line_at, node))
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            return Place(file, getattr(node, "lineno", 0))
    return Place(file)


def _gives_name(call: ast.Call, name: str) -> bool:
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return function in _MAKERS and any(
        keyword.arg == "name" and isinstance(keyword.value, ast.Constant) and keyword.value.value == name
        for keyword in call.keywords
    )


_MAKERS = ("Entity", "Source", "FeatureView", "OnDemandFeatureView", "FeatureService")


def _line_at(call: ast.Call, path: Steps) -> int:
    """The line of the part of a call at a path, or of the nearest thing around it that is written down."""
    node: ast.expr = call
    line = call.lineno
    for part in path:
        inner = _inside(node, part)
        if inner is None:
            break
        node, line = inner, inner.lineno
    return line


def _inside(node: ast.expr, part: str | int) -> ast.expr | None:
    if isinstance(part, int):
        items = node.elts if isinstance(node, (ast.List, ast.Tuple)) else []
        return items[part] if part < len(items) else None
    if isinstance(node, ast.Call):
        return next((keyword.value for keyword in node.keywords if keyword.arg == part), None)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return next((value for key, value in pairs if isinstance(key, ast.Constant) and key.value == part), None)
    return None
