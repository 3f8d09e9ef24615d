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
        return [key for key in keys if (table.name, key) not in self._keys]

    def put(self, table: Table, key: Key, items: KeyItems) -> None:
        self._keys[table.name, key] = items
        self._rows += len(items) + 1

    def get(self, table: Table, key: Key) -> KeyItems:
        """The rows of a key that is kept."""
        self._keys.move_to_end((table.name, key))
        return self._keys[table.name, key]

    def set(self, items: KeyItems, item: bytes, row: StoredRow) -> None:
        """Keep a row that was written, among those of its key."""
        self._rows += item not in items
        items[item] = row

    def cut(self, items: KeyItems, keep_from: bytes) -> None:
        """Let go of the items of a key below one."""
        for item in [item for item in items if item < keep_from]:
            del items[item]
            self._rows -= 1

    def shrink(self) -> None:
        """Let the oldest keys go while there are too many rows."""
        while self._rows > self._most:
            self._rows -= len(self._keys.popitem(last=False)[1]) + 1
