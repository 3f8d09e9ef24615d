"""The definitions that a worker serves, kept up to date in the background: no request asks the registry."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from feature_store.errors import FeatureStoreError, StoreUnavailableError
from feature_store.retrieval.online import OnlineFeatures
from feature_store.serving.exchange import AccessLog
from feature_store.serving.metrics import Metrics
from feature_store.serving.tiers import Tiers
from feature_store.settings import Limits
from feature_store.storage.online import OnlineStore

if TYPE_CHECKING:
    from feature_store.store import FeatureStore

LOOK_EVERY = 1.0
"""Seconds between two looks at the registry's serial."""
PROGRESS_EVERY = 10
"""Looks between two readings of how far views are materialized."""


class Current:
    """The plans of the definitions that are served, replaced as a whole when somebody applies or a version is complete.

    A registry that cannot be reached leaves those known; before there are any, requests get its error as a 503.
    """

    def __init__(
        self,
        store: FeatureStore,
        metrics: Metrics,
        log: AccessLog,
        reader: OnlineStore | None = None,
        tiers: Tiers | None = None,
    ) -> None:
        self._store = store
        self._reader = reader
        self._tiers = tiers
        self._metrics = metrics
        self._log = log
        self._online: OnlineFeatures | None = None
        self._error: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def limits(self) -> Limits:
        return self._store.settings.limits

    def online(self) -> OnlineFeatures:
        """The plans to answer by; `StoreUnavailableError` while there are none."""
        if self._online is None:
            raise StoreUnavailableError(
                f"the definitions are not known yet: {self._error or 'the service is starting'}", hint="Try again soon"
            )
        return self._online

    @property
    def error(self) -> str | None:
        """What went wrong at the last look, or None."""
        return self._error

    def start(self) -> None:
        """Look once, then go on looking in a thread."""
        self.look()
        self._progress()
        self._thread = threading.Thread(target=self._run, name="registry-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def look(self) -> None:
        """Take over what is applied now."""
        try:
            self._store.refresh()
            catalog = self._store.serving
            reader = self._reader or self._store.online_store
        except FeatureStoreError as error:
            self._fail(str(error))
        except Exception as error:
            self._fail(f"{type(error).__name__}: {error}")
        else:
            self._error = None
            if self._online is None or self._online.catalog is not catalog:
                self._online = OnlineFeatures(catalog, reader, self.limits.max_entities)
                self._log.event("info", "definitions loaded", views=len(catalog.views))

    def _fail(self, error: str) -> None:
        if error != self._error:
            self._error = error
            self._log.event("warning", "the registry cannot be read", error=error)

    def _run(self) -> None:
        looks = 0
        while not self._stop.wait(LOOK_EVERY):
            looks += 1
            self.look()
            if looks % PROGRESS_EVERY == 0:
                self._progress()
            if self._tiers is not None:
                self._tiers.look()
            self._save()

    def _progress(self) -> None:
        if self._online is None:
            return
        versions = {(view.name, view.version) for view in self._online.catalog.views.values()}
        try:
            found = self._store.registry.all_progress()
        except FeatureStoreError:
            return
        self._metrics.through(
            {p.view: p.through for p in found if (p.view, p.version) in versions and p.through is not None}
        )

    def _save(self) -> None:
        try:
            self._metrics.save()
        except (OSError, RuntimeError) as error:
            self._log.event("warning", "metrics cannot be shared", error=str(error), at=time.time())
