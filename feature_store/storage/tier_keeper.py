"""What a process knows of the two tiers, kept fresh in a thread: generations, and whether the fast tier answers."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass

from feature_store.errors import FeatureStoreError, StoreUnavailableError
from feature_store.storage.generations import Generation, Generations, State, copies_of
from feature_store.storage.online import Table
from feature_store.storage.tiers import FastTier


@dataclass(slots=True)
class Tally:
    """What one process counted of a tiered store: keys answered by tier, copies made, writes that the fast tier
    missed, and how often it lost its copies."""

    fast: int = 0
    slow: int = 0
    timeout: int = 0
    promoted: int = 0
    missed: int = 0
    losses: int = 0


class TierKeeper:
    """Looks every half lease, and moves generations on. `tick` is one look; the thread begins with `ensure`."""

    def __init__(self, fast: FastTier, generations: Generations, tally: Tally) -> None:
        self._fast = fast
        self._generations = generations
        self._tally = tally
        self.fast_answers = True
        """Whether the fast tier answered last."""
        self._wanted: set[str] = set()
        self._began: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = 0

    @property
    def state(self) -> str:
        """`ok`, `unavailable`, or `opening` while at least one table has no copies that may be used."""
        if not self.fast_answers:
            return "unavailable"
        states = [known.state for table, known in self._generations.all if self._wants(table, known)]
        return "ok" if all(state is State.OPEN for state in states) else "opening"

    def fast_failed(self) -> None:
        """Ask it no more before the next look."""
        self.fast_answers = False

    def want(self, table: Table, known: Generation) -> Generation:
        """Open a table that was never opened; later if the fast tier does not answer."""
        self._wanted.add(table.name)
        if known.move == 0 and (life := self.life()):
            return self._generations.move(table, known, State.OPENING, life)
        return known

    def ensure(self) -> None:
        """Begin, in a process that has not."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name="tier-keeper", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread; `ensure` begins another one."""
        self._stop.set()
        if self._thread is not None and self._process == os.getpid():
            self._thread.join(timeout=10)
        self._process = 0

    def tick(self) -> None:
        """Look at both tiers once, and do what is due."""
        life = self.life()
        with contextlib.suppress(StoreUnavailableError):
            self._generations.look_again()
            for table, known in self._generations.all:
                if self._wants(table, known):
                    self._move_on(table, known, life)
        if life:
            with contextlib.suppress(StoreUnavailableError):
                self._count_losses()

    def life(self) -> str | None:
        """The life that the fast tier is in; None where it does not answer."""
        try:
            life = self._fast.life()
        except StoreUnavailableError:
            self.fast_answers = False
            return None
        self.fast_answers = True
        return life

    def _wants(self, table: Table, known: Generation) -> bool:
        return known.move > 0 or table.name in self._wanted

    def _move_on(self, table: Table, known: Generation, life: str | None) -> None:
        move, ripe = self._generations.move, self._generations.ripe(known)
        if known.state is State.CLOSED and life:
            move(table, known, State.OPENING, life)
            if known.number:
                self._fast.drop(copies_of(table, known))
        elif known.state is State.CLOSING and ripe:
            move(table, known, State.CLOSED)
        elif known.state is State.OPENING and ripe and life == known.life:
            move(table, known, State.OPEN)
        elif known.updated and life and life != known.life:
            move(table, known, State.CLOSING)

    def _count_losses(self) -> None:
        """A table's copies began to be made anew: what was there is lost."""
        copies = [copies_of(table, known) for table, known in self._generations.all if known.state is State.OPEN]
        if not copies:
            return
        began = dict(
            zip([table.name for table in copies], self._fast.began(copies, time.time_ns() // 1000), strict=True)
        )
        if any(self._began.get(name, at) != at for name, at in began.items()):
            self._tally.losses += 1
        self._began = began

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._generations.lease / 2):
            with contextlib.suppress(FeatureStoreError):
                self.tick()
