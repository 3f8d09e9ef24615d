"""Two tiers as one online store: `tiered:FAST|SLOW`, copies in memory before a store that holds everything.

**Writes** go to the slow tier, then update the copies that the fast tier has; they make none, so that a nightly load
of every user there is fills no memory with those who never come. A write is acknowledged when both have it. If the
fast tier does not take it, the copies of that table are declared void in the slow tier, and the write is acknowledged
when every process knows (a lease at most, for the first such write): a fast tier that comes back with what it had
serves none of it. If the slow tier does not take it, `StoreUnavailableError`: repeated, it does no harm.

**Reads** ask the fast tier first, in one round trip. What it lacks comes from the slow tier, and a copy is made behind
the reader's back; of what is in neither tier, too, for a minute. The slow tier has a time budget: a read that exceeds
it fails with `StoreUnavailableError` (`on_timeout=error`, the default), because a row that is there but slow is not a
row that is not there; the copies are made nevertheless, so that the same read succeeds soon. With
`on_timeout=missing` such keys are answered as not found, and counted.

So every read sees every write acknowledged before, whatever the fast tier went through: unreachable, evicted, emptied,
restarted with an older state (see `storage.tiers` and `storage.generations` for why). What this relies on: a process
that cannot reach the slow tier goes on using the copies it knows, since then nobody can write either; and of two
writes of one key with equal times that run at once, each tier may keep another one until the copy is made anew.
To drop a table needs both tiers.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pyarrow as pa

from feature_store.errors import SettingsError, StoreUnavailableError
from feature_store.plugins import open_fast_tier, open_online_store, redacted
from feature_store.storage.generations import CLOSED, Generation, Generations, State, copies_of
from feature_store.storage.online import Answers, Key, Row, Table
from feature_store.storage.rows import raw_type
from feature_store.storage.tier_keeper import Tally, TierKeeper
from feature_store.storage.tiers import MISSING

Requests = Sequence[tuple[Table, Sequence[Key]]]
Answer = Row | Mapping[bytes, Row] | None

_THREADS = 8
_KEYS_A_REFILL = 1_000
_MOST_TABLES = 4_096
_LEASES_TO_OPEN = 10
"""From any state it takes three, and the looks in between."""
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s)")
_UNITS = {"ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Options:
    """The URIs of the tiers; the time budget of a read of the slow one, and the lease, in seconds."""

    fast: str
    slow: str
    budget: float = 0.5
    lease: float = 1.0
    error: bool = True

    @classmethod
    def of(cls, uri: str) -> Options:
        """From `tiered:FAST|SLOW[?budget=20ms&on_timeout=error|missing&lease=1s]`: other options are the slow
        tier's."""
        fast, bar, slow = uri.removeprefix("tiered:").partition("|")
        if not bar or not fast or not slow or "|" in slow:
            raise SettingsError(
                f'"{redacted(uri)}" does not name two tiers', hint="Write tiered:redis://HOST:PORT/DB|hbase://HOST:PORT"
            )
        slow, _, query = slow.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        budget, lease = (_seconds(name, options.pop(name, default)) for name, default in _TIMES)
        on_timeout = options.pop("on_timeout", "error")
        if on_timeout not in ("error", "missing"):
            raise SettingsError(f'on_timeout is "error" or "missing", not "{on_timeout}"')
        slow = f"{slow}?{urlencode(options)}" if options else slow
        return cls(fast, slow, budget, lease, on_timeout == "error")


_TIMES = (("budget", "500ms"), ("lease", "1s"))


class TieredOnlineStore:
    """`tiered:FAST|SLOW`, opened for one project: of the fast tier `plugins.FAST_TIERS` says what it may be, the slow
    one is any online store. Thread-safe."""

    def __init__(self, uri: str, project: str) -> None:
        self._options = Options.of(uri)
        self._fast = open_fast_tier(self._options.fast, project)
        self._slow = open_online_store(self._options.slow, project, Path("/"))
        self._generations = Generations(self._slow, self._options.lease)
        self.tally = Tally()
        self._keeper = TierKeeper(self._fast, self._generations, self.tally)
        self._pool: ThreadPoolExecutor | None = None
        self._copies: dict[int, tuple[Table, Generation, Table]] = {}

    @property
    def fast_tier(self) -> str:
        """How the fast tier is: `ok`, `unavailable`, or `opening`."""
        return self._keeper.state

    def create(self, *tables: Table) -> None:
        self._slow.create(*tables)
        self._keeper.ensure()
        for table, known in zip(tables, self._generations.look(tables), strict=True):
            self._keeper.want(table, known)

    def drop(self, table: Table) -> None:
        self._slow.drop(table)
        known = self._generations.look([table])[0]
        if known.number:
            self._fast.drop(copies_of(table, known))
        self._generations.drop(table)

    def write(self, table: Table, rows: pa.Table, keep_from: bytes | None = None) -> None:
        self._keeper.ensure()
        known = self._keeper.want(table, self._generations.to_write(table))
        self._slow.write(table, rows, keep_from)
        while True:
            try:
                if known.updated:
                    self._fast.update(copies_of(table, known), rows, keep_from, known.life)
            except StoreUnavailableError:
                self._keeper.fast_failed()
                self.tally.missed += 1
                self._generations.close(table)
                return
            # What was known when it began may have changed while it ran.
            latest = self._generations.to_write(table)
            if latest.state is State.CLOSING:
                self._generations.close(table)
            elif latest.updated and (latest.number, latest.life) != (known.number, known.life):
                known = latest
                continue
            return

    def read(self, requests: Requests) -> list[list[Answer]]:
        self._keeper.ensure()
        asked, life, behind = self._usable(requests)
        if life:
            try:
                answers, whole = self._fast.read(asked, life)
            except StoreUnavailableError:
                self._keeper.fast_failed()
                return self._completed(requests, [(table, ()) for table, _ in requests], [], "")
            if whole and not behind:
                self.tally.fast += sum(map(len, answers))
                return Answers(answers)
            return self._completed(requests, asked, answers, life)
        return self._completed(requests, asked, [], "")

    def scan(self, table: Table) -> Iterator[pa.RecordBatch]:
        return self._slow.scan(table)

    def refill(self, table: Table) -> int:
        """Copy the whole table into the fast tier, without waiting to be asked; how many keys have a copy then.

        `StoreUnavailableError` where a tier fails, or the copies become void meanwhile; it tells how far this came.
        """
        known, copied = self._opened(table), 0
        try:
            for keys in self._keys_of(table):
                _check_same(self._generations.to_read(table), known)
                copied += self._copy(table, known, keys)
            _check_same(self._generations.look([table])[0], known)
        except StoreUnavailableError as error:
            hint = f"{error.hint}, then run fs refill again" if error.hint else "Run fs refill again"
            raise StoreUnavailableError(
                f'"{table.name}" is not refilled, {copied:,} keys were copied: {error.message}', hint=hint
            ) from error
        return copied

    def close(self) -> None:
        self._keeper.close()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        self._fast.close()
        self._slow.close()

    def _opened(self, table: Table) -> Generation:
        """The generation of a table, when it takes copies; `StoreUnavailableError` if it does not come to that."""
        self._keeper.ensure()
        known = self._generations.look([table])[0]
        self._keeper.want(table, known)
        deadline = time.monotonic() + _LEASES_TO_OPEN * self._options.lease
        while (known := self._generations.to_read(table)).state is not State.OPEN or self._keeper.life() != known.life:
            if time.monotonic() > deadline:
                raise StoreUnavailableError(
                    f"the fast tier {redacted(self._options.fast)} takes no copies", hint="Check that it answers"
                )
            time.sleep(self._options.lease / 10)
        return known

    def _keys_of(self, table: Table) -> Iterator[list[Key]]:
        """All keys of a table, so many at a time."""
        last: Key | None = None
        for batch in self._slow.scan(table):
            columns = [batch.column(column.name).cast(raw_type(column.type)).to_pylist() for column in table.keys]
            # The items of a key may go on in the next batch.
            keys = [key for key in dict.fromkeys(zip(*columns, strict=True)) if key != last]
            for start in range(0, len(keys), _KEYS_A_REFILL):
                yield keys[start : start + _KEYS_A_REFILL]
            last = keys[-1] if keys else last

    def _copy(self, table: Table, known: Generation, keys: list[Key]) -> int:
        """Make copies of keys; how many of them have one then."""
        copies, ticket = copies_of(table, known), secrets.token_bytes(12)
        self._fast.hold(copies, keys, ticket, known.life)
        found = self._slow.read([(table, keys)])[0]
        copied = self._fast.fill(copies, keys, found, ticket, known.life)
        self.tally.promoted += copied
        return copied

    def _usable(self, requests: Requests) -> tuple[list[tuple[Table, Sequence[Key]]], str, bool]:
        """What to ask the fast tier, the life that it must be in (empty: nothing may be asked), and whether something
        remains: where a table has no copies to use, no keys of the table itself are asked."""
        generations, copies = self._generations, self._copies
        asked: list[tuple[Table, Sequence[Key]]] = []
        life, behind = "", False
        answers, trusted, by_name = self._keeper.fast_answers, generations.trusted, generations.known
        for table, keys in requests:
            known = by_name.get(table.name) if trusted else None
            if known is None or not answers:
                known = generations.to_read(table) if answers else CLOSED
            kept = copies.get(id(table))
            if kept is None or kept[1] is not known or kept[0] is not table:
                kept = self._remember(table, known)
            if kept[2] is not table and (not life or known.life == life):
                life = known.life
                asked.append((kept[2], keys))
            else:
                behind = True
                asked.append((table, ()))
        return asked, life, behind

    def _remember(self, table: Table, known: Generation) -> tuple[Table, Generation, Table]:
        """The table of the copies, one object each as codecs are found by it; of a table without any, itself."""
        if len(self._copies) >= _MOST_TABLES:
            self._copies.clear()
        copies = copies_of(table, known) if known.state is State.OPEN else table
        kept = self._copies[id(table)] = (table, known, copies)
        return kept

    def _completed(
        self, requests: Requests, asked: Requests, answers: Sequence[list[Any]], life: str
    ) -> list[list[Answer]]:
        """The answers with what is missing from the slow tier in its place."""
        found = [
            answers[place] if life and asked[place][0] is not table else [MISSING] * len(keys)
            for place, (table, keys) in enumerate(requests)
        ]
        rows = [[row for row, answer in enumerate(each) if answer is MISSING] for each in found]
        missing = {}
        for place, at in enumerate(rows):
            if at:
                table, keys = requests[place]
                copies = None if asked[place][0] is table else asked[place][0]
                missing[place] = _Missing(table, copies, [keys[row] for row in at])
        slow, tier = self._from_slow([*missing.values()], life), "slow"
        if slow is None:
            slow, tier = [each.absent() for each in missing.values()], "timeout"
        for place, part in zip(missing, slow, strict=True):
            for row, answer in zip(rows[place], part, strict=True):
                found[place][row] = answer
        return self._counted(found, rows, tier)

    def _counted(self, found: list[list[Any]], rows: Sequence[Sequence[int]], tier: str) -> list[list[Answer]]:
        """The answers, with the rows of each that came by another tier than the first."""
        behind = sum(map(len, rows))
        self.tally.fast += sum(map(len, found)) - behind
        if tier == "slow":
            self.tally.slow += behind
        else:
            self.tally.timeout += behind
        answers = Answers(found)
        answers.behind = [{tier: len(at)} if at else {} for at in rows]
        return answers

    def _from_slow(self, missing: list[_Missing], life: str) -> list[list[Answer]] | None:
        """What the slow tier answers; None where it took too long and that is to count as missing."""
        if not missing:
            return []
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="slow-tier")
        answer: Future[list[list[Answer]]] = Future()
        self._pool.submit(self._fetch, missing, life, answer)
        try:
            return answer.result(self._options.budget)
        except FutureTimeoutError:
            answer.cancel()  # if it has not begun; otherwise it goes on and makes copies
        if not self._options.error:
            return None
        self.tally.timeout += sum(len(m.keys) for m in missing)
        raise StoreUnavailableError(
            f"the slow tier did not answer within {self._options.budget * 1000:g} ms",
            hint="Try again: what it finds is copied to the fast tier; or give it more with ?budget=",
        )

    def _fetch(self, missing: list[_Missing], life: str, answer: Future[list[list[Answer]]]) -> None:
        """Read the slow tier, hand over the answer, then make copies."""
        if not answer.set_running_or_notify_cancel():
            return
        ticket = secrets.token_bytes(12)
        try:
            held = self._held(missing, ticket, life)
            answers = self._slow.read([(each.table, each.keys) for each in missing])
        except BaseException as error:
            answer.set_exception(error)
            return
        answer.set_result(answers)
        try:
            for each, found in zip(missing, answers, strict=True):
                if held and each.copies is not None:
                    self._fast.fill(each.copies, each.keys, found, ticket, life)
                    self.tally.promoted += len(found)
        except StoreUnavailableError:
            self._keeper.fast_failed()

    def _held(self, missing: list[_Missing], ticket: bytes, life: str) -> bool:
        """Put tickets where copies are to be made; whether there are any."""
        try:
            for each in missing:
                if each.copies is not None:
                    self._fast.hold(each.copies, each.keys, ticket, life)
        except StoreUnavailableError:
            self._keeper.fast_failed()
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Missing:
    """Keys of a table of which there is no copy; `copies` where one may be made."""

    table: Table
    copies: Table | None
    keys: list[Key]

    def absent(self) -> list[Answer]:
        """What a store answers that has no rows."""
        return [{} if self.table.items else None for _ in self.keys]


def _check_same(now: Generation, known: Generation) -> None:
    """`StoreUnavailableError` where the generation that copies are made in has ended: nobody would read them, and
    nobody drop them any more."""
    if now != known:
        raise StoreUnavailableError(
            "its copies became void meanwhile, because a write missed the fast tier or that was started again"
        )


def _seconds(name: str, text: str) -> float:
    """A span such as 20ms or 1.5s."""
    match = _SPAN.fullmatch(text)
    if not match or float(match[1]) <= 0:
        raise SettingsError(f'{name} is a span of time such as 20ms or 1s, not "{text}"')
    return float(match[1]) * _UNITS[match[2]]
