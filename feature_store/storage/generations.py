"""Which copies of a table count, as all processes agree on it by a row that each table has in the slow tier.

Copies belong to a generation, and its number is part of where they rest. A generation ends when a write was
acknowledged that its copies may lack. The row goes through four states, in this order and from the last to the first:

    OPEN      writes update the copies, reads may use them
    CLOSING   a write could not update them: nobody uses them, writes wait
    CLOSED    writes go to the slow tier alone
    OPENING   of a new generation, which is empty: writes update it, nobody uses it yet

Between two states lies a lease: no process acts upon what it read longer ago than that, so those that act at the same
time are at most one state apart, which is safe:

- OPEN beside CLOSING: the write that the copies lack is not acknowledged before the lease is over.
- CLOSED beside OPENING: what is written to the slow tier alone is there before anybody makes copies to use.
- OPENING beside OPEN: both update.

Whoever finds a state older than the lease moves on from it, so it does not matter who ends in between. Of two moves
from one state the safer one stays, whichever comes last: the row's event time counts the moves, and its created says
which is safer. While a process cannot reach the slow tier, reads hold on to what they know: nobody can write either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import pyarrow as pa

from feature_store.storage.online import OnlineStore, Row, Table
from feature_store.storage.rows import columns_of, to_batch
from feature_store.types import INT64, STRING, Schema

_KEYS, _VALUES = Schema.of(row=INT64), Schema.of(state=STRING, generation=INT64, life=STRING)
_KEY = (0,)
_MARGIN = 1.1
"""How much longer than a lease is waited, for clocks that do not run at one speed."""


class State(StrEnum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
    OPENING = "opening"


@dataclass(frozen=True, slots=True)
class Generation:
    """What the row of a table says: the copies are those of `number`, made in that `life` of the fast tier.

    `move` is how often it changed; `since` when this process saw it first (monotonic seconds)."""

    state: State
    number: int = 0
    life: str = ""
    move: int = 0
    since: float = field(default=0.0, compare=False)

    @property
    def updated(self) -> bool:
        """Whether writes update the copies."""
        return self.state in (State.OPEN, State.OPENING)


CLOSED = Generation(State.CLOSED)
"""Of a table without a row."""


def state_table(table: Table) -> Table:
    """The table of one row beside each table in the slow tier."""
    return Table(f"{table.name}.tier", _KEYS, _VALUES)


def copies_of(table: Table, generation: Generation) -> Table:
    """The table in the fast tier."""
    return replace(table, name=f"{table.name}~{generation.number:x}")


class Generations:
    """The generations of a store's tables as this process knows them. Thread-safe."""

    def __init__(self, slow: OnlineStore, lease: float) -> None:
        self.lease = lease
        self._slow = slow
        self._lock = threading.Lock()
        self.known: dict[str, Generation] = {}
        """What was read last of each table."""
        self._tables: dict[str, Table] = {}
        self._read_at: dict[str, float] = {}
        self._tried_at = 0.0
        self._trying = False

    @property
    def all(self) -> list[tuple[Table, Generation]]:
        """The tables that were asked for, each with what was read of it last."""
        with self._lock:
            return [(table, self.known[name]) for name, table in self._tables.items()]

    @property
    def trusted(self) -> bool:
        """Whether reads may act upon all that is known: while the looks go on, also where the slow tier does not
        answer them."""
        return self._trying or time.monotonic() - self._tried_at < self.lease

    def to_read(self, table: Table) -> Generation:
        """What a read may act upon."""
        known = self.known.get(table.name)
        if known is not None and (self.trusted or time.monotonic() - self._read_at.get(table.name, 0.0) < self.lease):
            return known
        return self.look([table])[0]

    def to_write(self, table: Table) -> Generation:
        """What a write may act upon; `StoreUnavailableError` where the slow tier must tell and does not answer."""
        known = self.known.get(table.name)
        if known is not None and time.monotonic() - self._read_at.get(table.name, 0.0) < self.lease:
            return known
        return self.look([table])[0]

    def look(self, tables: Sequence[Table]) -> list[Generation]:
        """What the rows say now, in one read."""
        began = time.monotonic()
        answers = self._slow.read([(state_table(table), [_KEY]) for table in tables])
        return [self._note(table, answer[0], began) for table, answer in zip(tables, answers, strict=True)]

    def look_again(self) -> None:
        """Look at all tables that were asked for."""
        tables = [table for table, _ in self.all]
        self._tried_at, self._trying = time.monotonic(), True
        try:
            if tables:
                self.look(tables)
        finally:
            self._trying = False

    def move(self, table: Table, known: Generation, state: State, life: str = "") -> Generation:
        """Move on from what is known: what the row says afterwards, by this move or another one. To open begins a
        generation, made in that life of the fast tier."""
        move = known.move + 1 if known.move else time.time_ns() // 1000
        number, life = (move, life) if state is State.OPENING else (known.number, known.life)
        if not known.move:
            self._slow.create(state_table(table))
        columns = columns_of(state_table(table))
        row = to_batch(columns, [(*_KEY, str(state), number, life, move, int(state is State.CLOSING))])
        self._slow.write(state_table(table), pa.Table.from_batches([row]))
        return self.look([table])[0]

    def close(self, table: Table) -> None:
        """Return when no process uses the present copies of the table any more."""
        while (known := self.look([table])[0]).state is not State.CLOSED:
            if known.state is State.CLOSING:
                time.sleep(max(0.0, known.since + self.lease * _MARGIN - time.monotonic()))
            self.move(table, known, State.CLOSED if known.state is State.CLOSING else State.CLOSING)

    def ripe(self, known: Generation) -> bool:
        """Whether a state has lasted longer than a lease, as far as this process saw."""
        return time.monotonic() - known.since > self.lease * _MARGIN

    def drop(self, table: Table) -> None:
        """Remove the row; the table is then as if it had never been asked for."""
        self._slow.drop(state_table(table))
        with self._lock:
            for by_name in (self.known, self._tables, self._read_at):
                by_name.pop(table.name, None)

    def _note(self, table: Table, answer: object, began: float) -> Generation:
        found = CLOSED
        if isinstance(answer, Row):
            state, number, life = answer.values
            found = Generation(State(state), number, life, answer.event_time)
        with self._lock:
            if began < self._read_at.get(table.name, 0.0):  # a read that began later was faster
                return self.known[table.name]
            if self.known.get(table.name) != found:
                self.known[table.name] = replace(found, since=time.monotonic())
            self._tables.setdefault(table.name, table)
            self._read_at[table.name] = began
            return self.known[table.name]
