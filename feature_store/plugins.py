"""Opens a back end by the scheme of its URI. Built-ins register as entry points, like anyone's."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_store.errors import SettingsError, nearest
from feature_store.settings import resolve_uri

if TYPE_CHECKING:
    from feature_store.storage.online import OnlineStore
    from feature_store.storage.tiers import FastTier

ONLINE_STORES = "feature_store.online_stores"
"""Each entry point is named by a URI scheme and loads a callable `(uri, project) -> OnlineStore`."""
FAST_TIERS = "feature_store.fast_tiers"
"""The same for what may be the first of `tiered:URI|URI`: `(uri, project) -> FastTier`."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def open_online_store(uri: str, project: str, root: Path) -> OnlineStore:
    """The online store that a URI names, opened for one project; relative files are relative to `root`.

    `SettingsError` for an unknown scheme or a wrong URI, `MissingExtraError` if its driver is not installed.
    """
    store: OnlineStore = _load(ONLINE_STORES, uri, "online store")(resolve_uri(uri, root), project)
    return store


def open_fast_tier(uri: str, project: str) -> FastTier:
    """The fast tier that a URI names; errors as of `open_online_store`."""
    tier: FastTier = _load(FAST_TIERS, uri, "fast tier")(uri, project)
    return tier


def check_online_store(uri: str) -> None:
    """`SettingsError` if no online store has the URI's scheme; nothing is opened."""
    _entry_point(ONLINE_STORES, uri, "online store")


def _load(group: str, uri: str, what: str) -> Any:
    """What the entry point of the URI's scheme loads."""
    point = _entry_point(group, uri, what)
    try:
        return point.load()
    except ImportError as error:
        raise SettingsError(f"the {what} {point.name}: cannot be loaded: {error}") from error


def _entry_point(group: str, uri: str, what: str) -> EntryPoint:
    match = _SCHEME.match(uri)
    scheme = match[1].lower() if match else ""
    known = _installed(group)
    if scheme not in known:
        names = ", ".join(sorted(known)) or "none"
        hint = " ".join(filter(None, (nearest(scheme, known) if scheme else None, f"Known schemes: {names}")))
        raise SettingsError(f'no {what} opens "{redacted(uri)}"', hint=hint)
    return known[scheme]


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def redacted(uri: str) -> str:
    """The URI without a password, for messages."""
    return re.sub(r"(://[^/@:]*:)[^@]*@", r"\1***@", uri)
