"""A feature repository: a directory with settings, and definitions in YAML and Python files below it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pathspec import GitIgnoreSpec

from feature_store.definitions.base import Definition
from feature_store.definitions.checks import check, check_twice
from feature_store.definitions.feature_view import FeatureView
from feature_store.definitions.files import Located, load_file
from feature_store.definitions.modules import load_modules
from feature_store.definitions.places import locate
from feature_store.errors import DefinitionError, Location, SettingsError, nearest
from feature_store.settings import FILE_NAME, Settings, load_settings

IGNORE_FILE = ".featureignore"
_ENDINGS = (".yaml", ".yml", ".py")
_ENGINES = ("local", "spark", "flink")


class Repository:
    """What a directory holds, read when it is first asked for.

    Definitions are in any *.yaml, *.yml and *.py below `root`; left out are hidden folders, virtual environments,
    `__pycache__`, the folders of Hive partitions and of the offline store, settings files (feature_store.yaml,
    feature_store.*.yaml in the root), folders with a feature_store.yaml of their own, and what .featureignore
    matches (patterns as in .gitignore).
    """

    def __init__(self, root: Path | str, settings_file: Path | str | None = None) -> None:
        self.root = Path(os.path.abspath(Path(root).expanduser()))
        self.settings_file = Path(os.path.abspath(settings_file)) if settings_file else self.root / FILE_NAME
        if not self.root.is_dir():
            raise SettingsError(f"there is no directory {self.root}", hint="Run fs init DIR to make a repository")

    @cached_property
    def settings(self) -> Settings:
        """The settings; `SettingsError` where they are wrong."""
        return load_settings(self.settings_file, self.root)

    @property
    def definitions(self) -> list[Definition]:
        """The definitions in the order of the files, checked against each other; `DefinitionError` with its place."""
        return [definition for definition, _ in self._checked[0]]

    def resolve_alias(self, uri: str) -> str | None:
        """What a storage URI of a definition means: an alias's URI, itself if it is an address, None for an alias
        that the settings lack (the repo's own stores serve then)."""
        if tiers := _tiers(uri):
            uris = [self.resolve_alias(tier) for tier in tiers]
            return None if None in uris else "tiered:" + "|".join(filter(None, uris))
        alias = _alias(uri)
        if alias is None:
            return uri
        address = self.settings.aliases.get(alias)
        return address and _joined(address, uri)

    @property
    def locations(self) -> Mapping[tuple[str, str], Location]:
        """Where each definition stands, by (kind, name): the file relative to the root, and the line."""
        return {(definition.kind, definition.name): place for definition, place in self._checked[0]}

    @property
    def warnings(self) -> list[str]:
        """What an `apply` should say without failing."""
        return self._checked[1]

    @cached_property
    def files(self) -> list[Path]:
        """The files that hold definitions, YAML before Python, each sorted."""
        ignored = self._ignored
        found = [path for path in self._walk(ignored) if not ignored.match_file(path.relative_to(self.root).as_posix())]
        return sorted(found, key=lambda path: (path.suffix == ".py", path.relative_to(self.root).parts))

    @cached_property
    def _checked(self) -> tuple[list[Located], list[str]]:
        located = [item for path in self.files if path.suffix != ".py" for item in load_file(path, self._shown(path))]
        located += load_modules(self.root, [path for path in self.files if path.suffix == ".py"])
        check_twice(located)
        locations = {(definition.kind, definition.name): place for definition, place in located}
        declared = check([definition for definition, _ in located], locations)
        warnings = []
        for view in declared.views.values():
            _check_engine(view, self.settings, locate(locations, view, "engine"))
            for key in ("offline", "online"):
                uri = getattr(view.storage, key, None)
                place = locate(locations, view, "storage", key)
                warnings += [str(wrong) for wrong in _unknown_alias(view, uri, self.settings, place)]
        return located, warnings

    def _shown(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @cached_property
    def _ignored(self) -> GitIgnoreSpec:
        path = self.root / IGNORE_FILE
        if not path.is_file():
            return GitIgnoreSpec.from_lines([])
        try:
            return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8-sig").splitlines())
        except (OSError, ValueError) as error:
            raise SettingsError(f"cannot read the patterns: {error}", location=Location(IGNORE_FILE)) from None

    def _walk(self, ignored: GitIgnoreSpec) -> Iterator[Path]:
        offline = Path(self.settings.offline_store)
        for folder, folders, names in os.walk(self.root):
            here = Path(folder)
            folders[:] = [
                name
                for name in folders
                if _may_hold_definitions(here / name)
                and here / name != offline
                and not ignored.match_file(f"{(here / name).relative_to(self.root).as_posix()}/")
            ]
            for name in names:
                if name.endswith(_ENDINGS) and not self._is_settings(here / name):
                    yield here / name

    def _is_settings(self, path: Path) -> bool:
        is_variant = path.name.startswith("feature_store.") and path.suffix in (".yaml", ".yml")
        return path == self.settings_file or (is_variant and path.parent == self.root)


def _may_hold_definitions(folder: Path) -> bool:
    """Not a hidden folder, a virtual environment, a cache, a Hive partition, Delta's log or another repository."""
    name = folder.name
    if name.startswith(".") or "=" in name or name in ("__pycache__", "_delta_log", "node_modules"):
        return False
    return not (folder / "pyvenv.cfg").is_file() and not (folder / FILE_NAME).is_file()


def _check_engine(view: FeatureView, settings: Settings, location: Location | None) -> None:
    known = {*_ENGINES, *settings.engines}
    if view.engine and view.engine not in known:
        hint = nearest(view.engine, known) or f"Engines are {', '.join(sorted(known))}"
        raise DefinitionError(f'{view.title}: no engine "{view.engine}"', location=location, hint=hint)


def _unknown_alias(
    view: FeatureView, uri: str | None, settings: Settings, location: Location | None
) -> Iterator[DefinitionError]:
    """What is wrong with a storage URI: a warning where the repo's own stores serve anyway, raised otherwise."""
    if uri is None:
        return
    if tiers := _tiers(uri):
        for tier in tiers:
            yield from _unknown_alias(view, tier, settings, location)
        return
    alias = _alias(uri)
    if alias is None or alias in settings.aliases:
        return
    hint = nearest(alias, settings.aliases) or f"Add it under aliases: in {FILE_NAME}"
    embedded = settings.online_store.startswith("sqlite")
    message = f'{view.title}: {FILE_NAME} has no alias "{alias}", which {uri} names'
    wrong = DefinitionError(message, location=location, hint=hint)
    if not embedded:
        raise wrong
    yield wrong


def _tiers(uri: str) -> list[str]:
    """The URIs of `tiered:URI|URI`, each of which may name an alias; none of any other."""
    return uri.removeprefix("tiered:").split("|") if uri.startswith("tiered:") and "|" in uri else []


def _joined(address: str, uri: str) -> str:
    """An alias's address of an HBase, with the table and the options that a definition's URI adds to it."""
    there, here = urlsplit(address), urlsplit(uri)
    if (there.scheme, here.scheme) != ("hbase", "hbase"):
        return address
    query = "&".join(filter(None, (there.query, here.query)))
    return urlunsplit((there.scheme, there.netloc, here.path.strip("/") or there.path, query, ""))


def _alias(uri: str) -> str | None:
    """The alias that a URI names as its host; None for an address (with a port or dots), or no host at all."""
    parts = urlsplit(uri)
    host = parts.netloc
    if not parts.scheme or not host or host == "localhost" or any(sign in host for sign in ".:@["):
        return None
    return host
