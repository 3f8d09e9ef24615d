"""How far long work is: a bar on a terminal, plain lines elsewhere, both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 5.0

Report = Callable[[str, int, int | None, int], None]
"""Called with (view, steps done, steps in all or None, rows written)."""


@contextmanager
def reporting() -> Iterator[Report]:
    """Takes the reports of materialization."""
    if not sys.stderr.isatty():
        yield _Lines(sys.stderr)
        return
    with _bars() as progress:
        yield _Bars(progress)


@contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[[int], object] | None]:
    """Takes how many of `total` are done; without a total nothing is shown."""
    if total is None:
        yield None
        return
    with reporting() as report:
        yield lambda done: report(what, done, total, done)


class _Lines:
    """A line when a view is done, and every few seconds in between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._written = time.monotonic()

    def __call__(self, view: str, done: int, total: int | None, rows: int) -> None:
        now = time.monotonic()
        if done != total and now - self._written < SECONDS_BETWEEN_LINES:
            return
        self._written = now
        of = f"{done}/{total}" if total is not None else str(done)
        print(f"{view}: {of}, {rows:,} rows", file=self._stream, flush=True)


class _Bars:
    """A bar a view."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, view: str, done: int, total: int | None, rows: int) -> None:
        if view not in self._tasks:
            self._tasks[view] = self._progress.add_task(view, rows=0)
        self._progress.update(self._tasks[view], completed=done, total=total, rows=rows)


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rows]:,} rows", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
