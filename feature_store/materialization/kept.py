"""What a worker of a stream keeps at hand of the rows it wrote last, so that it does not read them with each batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from feature_store.expressions.aggregates import StoredRow
from feature_store.storage.online import Key, Table

MOST_ROWS = 500_000
"""Of these, about 200 bytes each, the keys that were longest not asked for go."""

KeyItems = dict[bytes, StoredRow]
"""The rows of one key by item."""


class Kept:
    """Rows by table and key. Of a key that is kept every row is, so that an item it lacks is not stored either."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        self._most = most_rows
        self._keys: OrderedDict[tuple[str, Key], KeyItems] = OrderedDict()
        self._rows = 0

    def clear(self) -> None:
        self._keys.clear()
        self._rows = 0

    def missing(self, table: Table, keys: Iterable[Key]) -> list[Key]:
        """The keys that have to be read."""
        name, kept = table.name, self._keys
        return [key for key in keys if (name, key) not in kept]

    def put(self, table: Table, key: Key, items: KeyItems) -> None:
        self._keys[table.name, key] = items
        self._rows += len(items) + 1

    def get(self, table: Table, keys: Iterable[Key]) -> list[KeyItems]:
        """The rows of keys that are kept."""
        name, kept = table.name, self._keys
        places = [(name, key) for key in keys]
        for place in places:
            kept.move_to_end(place)
        return [kept[place] for place in places]

    def set(self, rows: Iterable[tuple[KeyItems, bytes, StoredRow]], new: int) -> None:
        """Keep rows that were written, each among those of its key; so many are of items that were not there."""
        for items, item, row in rows:
            items[item] = row
        self._rows += new

    def cut(self, items: KeyItems, keep_from: bytes) -> None:
        """Let go of the items of a key below one."""
        for item in [item for item in items if item < keep_from]:
            del items[item]
            self._rows -= 1

    def shrink(self) -> None:
        """Let the oldest keys go while there are too many rows."""
        while self._rows > self._most:
            self._rows -= len(self._keys.popitem(last=False)[1]) + 1
