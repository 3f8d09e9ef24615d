"""Runs views by the clock until it is told to stop. APScheduler keeps the time and the threads; when a view is due is
decided by `expressions.schedules` alone, and who runs it by the lease."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from feature_store.errors import FeatureStoreError
from feature_store.expressions.instants import instant, to_datetime
from feature_store.pipelines.due import Scheduled
from feature_store.pipelines.runner import Outcome, Runner

LOOK_EVERY_S = 5.0
"""How often to look for changed definitions, for retries that are due, and for views that a dead runner left."""

_TOLD_EVERY_S = 0.1


class Boundaries(BaseTrigger):  # type: ignore[misc]
    """Fires at the boundaries of a view's schedule."""

    def __init__(self, item: Scheduled) -> None:
        self.item = item

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        found = self.item.next(instant(previous or now))
        return None if found is None else to_datetime(found)


class Scheduler:
    """Runs what is due, `parallel` views at a time; `notice` takes what became of each run, and what goes wrong."""

    def __init__(
        self,
        runner: Runner,
        parallel: int,
        notice: Callable[[str], object],
        look_every: float = LOOK_EVERY_S,
    ) -> None:
        self._runner = runner
        self._notice = notice
        self._told = False
        self._stopped = threading.Event()
        self._looking = threading.Lock()
        self._known: dict[str, Scheduled] = {}
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._failing: str | None = None
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(parallel), "look": ThreadPoolExecutor(1)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )
        # It warns of every job that is begun late, or is still running: what is late is run all the same.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        trigger = IntervalTrigger(seconds=look_every, timezone="UTC")
        now = datetime.now(trigger.timezone) - timedelta(seconds=1)
        self._scheduler.add_job(self._look, trigger, id="look", executor="look", next_run_time=now)

    def run(self) -> None:
        """Run until `stop`; what runs then ends after its present step, and its lease is released."""
        self._scheduler.start()
        while not self._told:
            time.sleep(_TOLD_EVERY_S)
        self._stopped.set()
        self._runner.stop()
        with self._looking:  # APScheduler waits for its jobs with locks held that adding jobs takes
            pass
        self._scheduler.shutdown(wait=True)

    def stop(self, *_: Any) -> None:
        """End `run`; may be called in a signal handler, which must take no lock."""
        self._told = True

    def _look(self) -> None:
        with self._looking:
            if not self._stopped.is_set():
                self._take_over()

    def _take_over(self) -> None:
        """Take over definitions that were applied, and run at once what is due and not run by its time."""
        try:
            found = self._runner.scheduled()
            due = self._runner.due()
        except FeatureStoreError as error:
            self._fail(str(error))
            return
        self._failing = None
        for name in self._known.keys() - found.keys():
            self._scheduler.remove_job(_at_boundaries(name))
        for name, item in found.items():
            if self._known.get(name) != item:
                self._add(item, _at_boundaries(name), trigger=Boundaries(item))
        self._known = found
        for name in due:
            if name not in self._busy:
                self._add(found[name], f"{name}, due")

    def _add(self, item: Scheduled, name: str, **when: Any) -> None:
        self._scheduler.add_job(self._run, args=[item], id=name, replace_existing=True, **when)

    def _run(self, item: Scheduled) -> None:
        with self._lock:
            if self._stopped.is_set() or item.view in self._busy:
                return
            self._busy.add(item.view)
        try:
            outcome: Outcome | None = self._runner.run(item)
            if outcome is not None:
                self._notice(str(outcome))
        except FeatureStoreError as error:
            self._fail(f"{item.view}: {error}")
        finally:
            self._busy.discard(item.view)

    def _fail(self, text: str) -> None:
        """Say what keeps it from running, such as a registry that is away, once."""
        if text != self._failing:
            self._failing = text
            self._notice(text)


def _at_boundaries(view: str) -> str:
    return f"{view}, at its boundaries"
