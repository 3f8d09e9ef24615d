"""The fast tier in Redis: a string for each key, or a hash of items, as the online store has them.

A ticket and the copy of nothing begin with a byte that no row begins with, and expire. A hash has a field of no name,
which no item has: empty in a copy, the ticket in a ticket.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from feature_store.errors import StoreUnavailableError
from feature_store.storage.codecs import codecs
from feature_store.storage.online import Key, Row, Table
from feature_store.storage.redis import BELOW, RedisOnlineStore
from feature_store.storage.rows import Items, RowCodec, columns_of, items_of, to_batch
from feature_store.storage.tiers import MISSING, Answer
from feature_store.types import Schema

_ROWS_A_PART = 65_536
_NOTHING = bytes(17)
"""The copy of no row; a ticket is this and then its text."""
_HELD_FOR = 5_000
_NOTHING_FOR = 60_000
"""Milliseconds: what is asked for and not there must not fill the memory."""

_UPDATE_ROWS = (
    BELOW
    + """
for i = 1, #KEYS do
  local old = redis.call('GETRANGE', KEYS[i], 0, 17)
  if old ~= '' then
    if string.byte(old, 1) ~= 0 then
      if not below(string.sub(ARGV[i], 2, 17), string.sub(old, 2, 17)) then redis.call('SET', KEYS[i], ARGV[i]) end
    elseif #old == 17 then
      redis.call('SET', KEYS[i], ARGV[i])
    else
      redis.call('DEL', KEYS[i])
    end
  end
end
"""
)
_UPDATE_ITEMS = (
    BELOW
    + """
local copies = {}
for i = 1, #KEYS do
  local key, item, row = KEYS[i], ARGV[2 * i], ARGV[2 * i + 1]
  if copies[key] == nil then
    local mark = redis.call('HGET', key, '')
    copies[key] = mark == ''
    if mark == '' then redis.call('PERSIST', key) elseif mark then redis.call('DEL', key) end
  end
  if copies[key] then
    local old = redis.call('HGET', key, item)
    if not old or not below(string.sub(row, 2, 17), string.sub(old, 2, 17)) then redis.call('HSET', key, item, row) end
  end
end
local keep_from = ARGV[1]
if keep_from ~= '' then
  for key, copy in pairs(copies) do
    if copy then
      for _, item in ipairs(redis.call('HKEYS', key)) do
        if item ~= '' and below(item, keep_from) then redis.call('HDEL', key, item) end
      end
    end
  end
end
"""
)
_HOLD_ROWS = f"""
for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[1], 'NX', 'PX', {_HELD_FOR}) end
"""
_HOLD_ITEMS = f"""
for i = 1, #KEYS do
  if redis.call('HSETNX', KEYS[i], '', ARGV[1]) == 1 then redis.call('PEXPIRE', KEYS[i], {_HELD_FOR}) end
end
"""
_FILL_ROWS = f"""
local copies = 0
for i = 1, #KEYS do
  local old = redis.call('GET', KEYS[i])
  if old == ARGV[1] then
    local row = ARGV[i + 1]
    if #row == 17 then
      redis.call('SET', KEYS[i], row, 'PX', {_NOTHING_FOR})
    else
      redis.call('SET', KEYS[i], row)
    end
    copies = copies + 1
  elseif old and (string.byte(old, 1) ~= 0 or #old == 17) then
    copies = copies + 1
  end
end
return copies
"""
_FILL_ITEMS = f"""
local copies = 0
for i = 1, #KEYS do
  local mark = redis.call('HGET', KEYS[i], '')
  if mark == ARGV[1] or mark == '' then copies = copies + 1 end
  if mark == ARGV[1] then
    local items, at = ARGV[i + 1], 1
    redis.call('HSET', KEYS[i], '', '')
    while at <= #items do
      local item, row
      item, row, at = struct.unpack('>I2c0I4c0', items, at)
      redis.call('HSET', KEYS[i], item, row)
    end
    if at == 1 then redis.call('PEXPIRE', KEYS[i], {_NOTHING_FOR}) else redis.call('PERSIST', KEYS[i]) end
  end
end
return copies
"""


class RedisFastTier(RedisOnlineStore):
    """The `FastTier` of the URIs of `RedisOnlineStore`. A cluster is in one life always: its nodes must come back
    empty, or not at all."""

    def life(self) -> str:
        return self._server.life()

    def read(  # type: ignore[override]
        self, requests: Sequence[tuple[Table, Sequence[Key]]], life: str
    ) -> tuple[list[list[Any]], bool]:
        plain: list[bytes] = []
        hashes: list[bytes] = []
        for table, keys in requests:
            (hashes if table.items else plain).extend(self._keys(table, codecs(table).keys.encode_all(keys)))
        found, found_items = self._server.fetch(plain, hashes, life)
        answers: list[list[Any]] = []
        at, at_items, whole = 0, 0, True
        for table, keys in requests:
            codec, count = codecs(table).rows, len(keys)
            if table.items:
                answers.append([_items(codec, reply) for reply in found_items[at_items : at_items + count]])
                whole = whole and MISSING not in answers[-1]
                at_items += count
                continue
            part = found[at : at + count]
            at += count
            try:
                answers.append([*map(codec.decode, part)])  # type: ignore[arg-type]
            except (TypeError, StoreUnavailableError):  # at least one is no row
                answers.append([_row(codec, data) for data in part])
                whole = whole and MISSING not in answers[-1]
        return answers, whole

    def update(self, table: Table, rows: pa.Table, keep_from: bytes | None, life: str) -> None:
        for start in range(0, rows.num_rows, _ROWS_A_PART):
            part = rows.slice(start, _ROWS_A_PART)
            _, keys, values = codecs(table)
            names, data = self._keys(table, keys.encode_table(part)), values.encode(part)
            if table.items:
                arguments = list(zip(items_of(part), data, strict=True))
                self._server.run(_UPDATE_ITEMS, names, arguments, (keep_from or b"",), life)
            else:
                self._server.run(_UPDATE_ROWS, names, [(row,) for row in data], (), life)

    def hold(self, table: Table, keys: Sequence[Key], ticket: bytes, life: str) -> None:
        names = self._keys(table, codecs(table).keys.encode_all(keys))
        script = _HOLD_ITEMS if table.items else _HOLD_ROWS
        self._server.run(script, names, [(b"",)] * len(names), (_NOTHING + ticket,), life)

    def fill(self, table: Table, keys: Sequence[Key], answers: Sequence[Answer], ticket: bytes, life: str) -> int:
        names = self._keys(table, codecs(table).keys.encode_all(keys))
        if table.items:
            script, data = _FILL_ITEMS, [_pack(table, answer) for answer in answers]
        else:
            rows = iter(_encode(table, [row for row in answers if isinstance(row, Row)]))
            script, data = _FILL_ROWS, [next(rows) if isinstance(row, Row) else _NOTHING for row in answers]
        return sum(self._server.run(script, names, [(row,) for row in data], (_NOTHING + ticket,), life))

    def began(self, tables: Sequence[Table], now: int) -> list[int]:
        # No key is written so: those of rows begin with the version of their codec.
        names = [self._prefix(table) + b"began}" for table in tables]
        return [int(value) for value in self._server.put_once(names, b"%d" % now)]


def _row(codec: RowCodec, data: bytes | None) -> Any:
    if data is None:
        return MISSING
    if data[0] == 0:
        return None if len(data) == len(_NOTHING) else MISSING
    return codec.decode(data)


def _items(codec: RowCodec, reply: list[bytes]) -> Any:
    rows = dict(zip(reply[::2], reply[1::2], strict=True))
    return Items(codec, rows) if rows.pop(b"", None) == b"" else MISSING


def _encode(table: Table, rows: Sequence[Row]) -> list[bytes]:
    """The bytes of rows."""
    columns = columns_of(Table(table.name, Schema(()), table.values))
    batch = to_batch(columns, [(*row.values, row.event_time, row.created) for row in rows])
    return codecs(table).rows.encode(pa.Table.from_batches([batch]))


def _pack(table: Table, answer: Answer) -> bytes:
    """The items of a key and their rows, as `_FILL_ITEMS` takes them apart."""
    assert isinstance(answer, Mapping)
    parts = zip(answer, _encode(table, list(answer.values())), strict=True)
    return b"".join(struct.pack(f">H{len(item)}sI{len(row)}s", len(item), item, len(row), row) for item, row in parts)
