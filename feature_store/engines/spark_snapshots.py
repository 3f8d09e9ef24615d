"""Snapshots of keys that have very many events: executors make tiles of them, which are few, and those are merged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from feature_store.engines.facts import snapshot_schema
from feature_store.engines.spark_joins import Spread
from feature_store.engines.spark_rows import quoted
from feature_store.expressions.aggregates import StoredRow, WindowReader, tile_schema
from feature_store.expressions.relations import Windows
from feature_store.storage.online import CREATED, EVENT_TIME, ITEM
from feature_store.storage.rows import raw_type, to_arrow
from feature_store.types import Schema


def heavy_keys(facts: Any, keys: Schema, spread: Spread) -> Any:
    """A frame of the keys that have more rows than a task should have, by a sample; None if there are none."""
    from pyspark.sql.functions import expr

    names = [*map(quoted, keys.names)]
    counted = facts.select(*names).sample(1 / spread.one_in, seed=1).groupBy(*names).agg(expr("count(1) AS __many"))
    found = counted.where(f"__many * {spread.one_in} > {spread.rows}").select(*names)
    rows = found.collect()
    return facts.sparkSession.createDataFrame(rows, found.schema) if rows else None


def among(facts: Any, keys: Any, names: Sequence[str], join: str) -> Any:
    """The facts of some keys (left_semi), or of all but those (left_anti)."""
    from pyspark.sql.functions import broadcast

    return facts.join(broadcast(keys), list(names), join)


def merged_tiles(relation: Windows, tiles: Mapping[int, pa.Table], at: int) -> pa.Table:
    """The windows at an instant of each key, of its tiles by their length; as online reads merge them."""
    items: dict[tuple[Any, ...], list[dict[bytes, StoredRow]]] = defaultdict(lambda: [{} for _ in relation.levels])
    for place, level in enumerate(relation.levels):
        table, states = tiles[level], tile_schema(relation.at_level(level))
        keys = zip(*(table[key.name].cast(raw_type(key.type)).to_pylist() for key in relation.keys), strict=True)
        values = zip(*(table[each.name].cast(raw_type(each.type)).to_pylist() for each in states), strict=True)
        stamps = (table[name].to_pylist() for name in (ITEM, EVENT_TIME, CREATED))
        for key, state, item, time, created in zip(keys, values, *stamps, strict=True):
            items[key][place][item] = (time, created, state)
    reader = WindowReader(relation.windows)
    rows = [(*key, *reader.read(of_key, at)[2]) for key, of_key in items.items()]
    types = [*(key.type for key in relation.keys), *(window.type for window in relation.windows)]
    columns = list(zip(*rows, strict=True)) or [()] * len(types)
    arrays = [to_arrow(values, type_) for values, type_ in zip(columns, types, strict=True)]
    return pa.table(arrays, schema=snapshot_schema(relation))
