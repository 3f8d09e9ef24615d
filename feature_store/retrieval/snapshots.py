"""Historical values of scheduled queries: from the snapshots that were served, or computed where one is missing."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_store.definitions.catalog import BoundView
from feature_store.definitions.tables import VALID_FROM, snapshots_path
from feature_store.engines.engine import Engine
from feature_store.expressions.relations import ScheduledQuery
from feature_store.expressions.schedules import boundary_array
from feature_store.storage.online import EVENT_TIME

if TYPE_CHECKING:
    from feature_store.storage.offline import OfflineStore


class Snapshots:
    """The snapshots of one view. `kept` are the boundaries that materialization says it kept: one of no rows leaves no
    partition behind. With `as_known` a missing one is computed over what was known at its boundary.

    `computed` tells the boundaries that were not stored, `hidden` how many rows as_known kept out of those, in all."""

    def __init__(
        self,
        bound: BoundView,
        engine: Engine,
        offline: OfflineStore,
        kept: Collection[int] = (),
        *,
        as_known: bool = False,
    ) -> None:
        assert isinstance(bound.relation, ScheduledQuery)
        self._bound = bound
        self._query = bound.relation
        self._engine = engine
        self._offline = offline
        self.path = snapshots_path(bound)
        self.elsewhere = offline.elsewhere(self.path)
        """What keeps them where it is not a Delta table, at `path`."""
        self._as_known = as_known
        self._stored = self._find(kept)
        self.computed: list[int] = []
        self.hidden = 0

    def _find(self, kept: Collection[int]) -> set[int]:
        if self.elsewhere:
            return set(self.elsewhere.boundaries())
        # Where the table is gone, what was kept in it is, too.
        found = set(kept) if kept and self._offline.exists(self.path) else set()
        return found | {int(partition[VALID_FROM]) for partition in self._offline.partitions(self.path)}

    def missing(self, boundaries: Collection[int]) -> list[int]:
        """Those of the boundaries at which no snapshot was kept."""
        return [at for at in boundaries if at not in self._stored]

    def as_of(self, spine: pa.Table, names: Collection[str]) -> pa.Table:
        """As `Engine.as_of`: for each spine row the values of the newest snapshot valid at its time, and only of it;
        EVENT_TIME is the boundary from which that snapshot was valid, null where it lacks the key."""
        times = spine[EVENT_TIME].to_numpy()
        valid = boundary_array(self._query.schedule, times - self._query.delay) + self._query.delay
        row = pa.array(np.arange(spine.num_rows))
        keys = spine.drop_columns([EVENT_TIME]).append_column("__row", row)
        parts = []
        for at in np.unique(valid):
            rows = keys.filter(pa.array(valid == at))
            parts.append(self._match(rows, int(at), names))
        if not parts:
            none = {c.name: pa.nulls(0, c.type.arrow) for c in self._bound.features}
            return pa.table({**none, EVENT_TIME: pa.nulls(0, pa.int64())})
        found = pa.concat_tables(parts)
        return found.take(pc.sort_indices(found["__row"])).select([*names, EVENT_TIME])

    def _match(self, rows: pa.Table, at: int, names: Collection[str]) -> pa.Table:
        key_names = list(self._bound.keys.names)
        snapshot = self._snapshot(at, rows).select([*key_names, *names])
        stamp = pa.repeat(pa.scalar(at, pa.int64()), snapshot.num_rows)
        # A join matches no null keys, and Acero cannot carry lists: positions are joined, values are taken.
        where = snapshot.select(key_names).append_column("__at", pa.array(np.arange(snapshot.num_rows)))
        joined = rows.join(where, keys=key_names, join_type="left outer")
        position = joined["__at"].combine_chunks()
        columns: dict[str, Any] = {name: snapshot[name].combine_chunks().take(position) for name in names}
        columns[EVENT_TIME] = stamp.take(position) if len(stamp) else pa.nulls(len(position), pa.int64())
        return pa.table({**columns, "__row": joined["__row"]})

    def _snapshot(self, at: int, among: pa.Table) -> pa.Table:
        """The rows of a snapshot, at least those of some keys."""
        if at in self._stored:
            if self.elsewhere:
                return self.elsewhere.read(at, among)
            return self._offline.read(self.path, {VALID_FROM: str(at)})
        self.computed.append(at)
        found = self._engine.snapshot(self._query, at, as_known=self._as_known).read().read_all()
        self.hidden += int((found.schema.metadata or {}).get(b"hidden", 0))
        return found
