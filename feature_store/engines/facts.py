"""The rows of a source as a view needs them, in DuckDB SQL: keys, times, computed values.

Columns: __k0, __k1, ... keys; `TIME` and `KNOWN` (microseconds); __v0, ... values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from feature_store.engines.scans import KNOWN, TIME, Scan, listed, quoted
from feature_store.engines.windows import Columns, Events, answers
from feature_store.expressions.ranges import Ints
from feature_store.expressions.relations import Rows, Windows
from feature_store.expressions.scalars import Ref, Scalar, to_sql
from feature_store.expressions.sql_writer import duckdb_order
from feature_store.storage.online import NO_CREATED
from feature_store.types import Schema, Type

Batches = Iterator[pa.RecordBatch]

EVENTS_AT_ONCE = 1_000_000
BATCH = 16_384


class Facts:
    """The rows of a source with what a view needs of them: keys, times and computed values; rows without a key or an
    event time are left out."""

    def __init__(self, session: Any, rows: Rows, keys: Schema, scalars: Sequence[Scalar], once: bool = False) -> None:
        self.session, self.rows, self.once = session, rows, once
        self.since: int | None = None
        self.until: int | None = None
        self.known_by: int | None = None
        self.short_keys = [f"__k{number}" for number in range(len(keys))]
        self.short_values = [f"__v{number}" for number in range(len(scalars))]
        self.keys, self.values = listed(self.short_keys), listed(self.short_values)
        self._key_columns = [(key.name, key.type.duckdb) for key in keys]
        self._scalars = list(scalars)
        self._scan = Scan(session, rows)
        self._semi = ""
        self._settled = ""

    @classmethod
    def of_windows(cls, session: Any, relation: Windows, columns: Columns) -> Facts:
        facts = cls(session, relation.rows, relation.keys, [*columns.values, *columns.conditions], once=True)
        facts.short_values = [*columns.values.values(), *columns.conditions.values()]
        return facts

    def restrict_to(self, table: str) -> None:
        """Only rows whose key is in a table with columns __k0, ..."""
        self._semi = f" SEMI JOIN {table} USING ({self.keys})"

    def restrict_to_inputs(self, inputs: Collection[str]) -> None:
        """Only rows whose key has a row in one of these inputs."""
        named = listed(self._named_keys())
        rows = self._scan.touched([name for name, _ in self._key_columns], inputs)
        self.session.execute(f"CREATE TEMP TABLE touched AS SELECT DISTINCT {named} FROM ({rows})")
        self.restrict_to("touched")

    def settle(self) -> None:
        """Keeps the rows in a temporary table where reading them twice would cost much."""
        self._scan.check_time()
        if self._scan.is_cheap and not (self.once and self.rows.unique):
            return
        self.session.execute(f"CREATE TEMP TABLE settled AS {self._select(self.short_values, self._semi)}")
        self._settled = "settled"

    def narrow(self, everywhere: bool = False) -> str:
        """Keys and times; `everywhere`: of any key, which costs less where a join restricts the rows anyway."""
        return self._settled_or([], everywhere)

    def wide(self, everywhere: bool = False) -> str:
        """Keys, times and values."""
        return self._settled_or(self.short_values, everywhere)

    def _settled_or(self, values: Sequence[str], everywhere: bool) -> str:
        if self._settled:
            return f"SELECT {listed([self.keys, TIME, KNOWN, *values])} FROM {self._settled}"
        return self._select(values, "" if everywhere else self._semi)

    def _named_keys(self) -> list[str]:
        pairs = zip(self._key_columns, self.short_keys, strict=True)
        return [f"CAST({quoted(name)} AS {type_}) AS {short}" for (name, type_), short in pairs]

    def _select(self, values: Sequence[str], semi: str) -> str:
        computed = dict(zip(self.short_values, self._scalars, strict=True))
        scalars = {short: computed[short] for short in values}
        names = [name for name, _ in self._key_columns]
        columns = [*names, *sorted(frozenset[str]().union(*(scalar.columns for scalar in scalars.values())))]
        selected = [
            *self._named_keys(),
            TIME,
            KNOWN,
            *(f"{to_sql(each)} AS {short}" for short, each in scalars.items()),
        ]
        present = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in names)
        if self.known_by is not None:
            present += f" AND coalesce({KNOWN}, {NO_CREATED}) <= {self.known_by}"
        opaque = frozenset[str]().union(*(each.columns for each in scalars.values() if not isinstance(each, Ref)))
        rows = self._scan.select(columns, self.since, self.until, self.once, stamped=True, opaque=opaque)
        return f"SELECT * FROM (SELECT {listed(selected)} FROM ({rows}) WHERE {present}){semi}"

    def may_tie(self, *identity: str) -> bool:
        """Whether rows that are equal in their key and `identity` are to be expected: corrections told apart by when
        they were created, or rows that came by push and then in a file."""
        return len(self._scan.parts) > 1 or (self.rows.created is not None and KNOWN not in identity)

    def fetch(self, *identity: str, tag: str = "") -> str:
        """SQL for one row of each of the table `winners` (keys and `identity`, maybe also a column `tag`): of rows
        that are equal in those, the one whose created time, then values, compare greatest."""
        using = listed([self.keys, *identity])
        narrow = self._identified(self.narrow(everywhere=True), identity)
        # Every winner has a row: no more rows than winners, no ties. Counting is cheaper than looking for them.
        more = f"SELECT (SELECT count(*) FROM ({narrow}) SEMI JOIN winners USING ({using})) - count(*) FROM winners"
        if not self.session.execute(more).fetchall()[0][0]:
            return self.candidates(*identity, tag=tag)
        self.session.execute(
            f"CREATE TEMP TABLE tied AS SELECT winners.* FROM winners SEMI JOIN ("
            f"SELECT {using} FROM ({narrow}) SEMI JOIN winners USING ({using}) "
            f"GROUP BY ALL HAVING count(*) > 1) USING ({using})"
        )
        typed = zip(self.short_values, self._scalars, strict=True)
        keys = [KNOWN, *(duckdb_order(name, scalar.type) for name, scalar in typed)]
        order = listed(f"{key} DESC NULLS LAST" for key in keys)
        untied = f"(FROM winners ANTI JOIN tied USING ({using}))"
        return (
            f"{self.candidates(*identity, tag=tag, winners=untied)} "
            f"UNION ALL {self.candidates(*identity, tag=tag, winners='tied')} "
            f"QUALIFY row_number() OVER (PARTITION BY {using} ORDER BY {order}) = 1"
        )

    def candidates(self, *identity: str, tag: str = "", winners: str = "winners") -> str:
        """SQL for every row of each of the winners, of which `fetch` takes one."""
        columns = listed([*([tag] if tag else []), self.keys, TIME, KNOWN, *self.short_values])
        wide = self._identified(self.wide(everywhere=True), identity)
        return f"SELECT {columns} FROM ({wide}) JOIN {winners} USING ({listed([self.keys, *identity])})"

    def _identified(self, rows: str, identity: Sequence[str]) -> str:
        """With created unknown as a number, where rows are told apart by it: NULL equals nothing."""
        return f"SELECT * REPLACE (coalesce(__c, {NO_CREATED}) AS __c) FROM ({rows})" if KNOWN in identity else rows


def event_columns(columns: Columns) -> str:
    """Of facts, what `Events` take."""
    return listed([TIME, f"coalesce(__c, {NO_CREATED}) AS __c", *columns.values.values(), *columns.conditions.values()])


def snapshot_schema(relation: Windows) -> pa.Schema:
    """The columns of a snapshot of windows."""
    return pa.schema([*relation.keys.arrow, *(pa.field(each.name, each.type.arrow) for each in relation.windows)])


def snapshot_rows(relation: Windows, rows: pa.Table, group: Ints, columns: Columns, at: int) -> pa.Table:
    """The windows at an instant of each key in a table of whole keys, sorted by time."""
    starts = np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
    one = np.full(len(starts), at, np.int64)
    found = answers(relation.windows, Events.of(rows, group, columns), group[starts], one)
    keys = [rows[name].take(pa.array(starts)) for name in relation.keys.names]
    return pa.table([*keys, *(found[each.name] for each in relation.windows)], schema=snapshot_schema(relation))


def batches(relation: Any) -> Batches:
    """The rows of a DuckDB relation, as they are made."""
    yield from relation.to_arrow_reader(BATCH)


def conform(column: Any, type_: Type | pa.DataType) -> Any:
    """An Arrow column in a type that holds the same values."""
    arrow = type_.arrow if isinstance(type_, Type) else type_
    return column if column.type == arrow else column.cast(arrow)
