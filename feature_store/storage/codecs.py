"""The two codecs of a table, found fast."""

from __future__ import annotations

from typing import NamedTuple

from feature_store.storage.keys import KeyCodec, key_codec
from feature_store.storage.online import Table
from feature_store.storage.rows import RowCodec, row_codec

_MOST = 4_096


class Codecs(NamedTuple):
    """How a table's keys and rows are bytes."""

    table: Table
    keys: KeyCodec
    rows: RowCodec


_by_identity: dict[int, Codecs] = {}


def codecs(table: Table) -> Codecs:
    """The codecs of a table. Fast for a table object seen before: to hash a wide schema takes longer than to decode
    a row of it, so the object's identity is looked up first."""
    found = _by_identity.get(id(table))
    if found is not None and found.table is table:
        return found
    if len(_by_identity) >= _MOST:
        _by_identity.clear()
    found = _by_identity[id(table)] = Codecs(table, key_codec(table.keys), row_codec(table.values))
    return found
