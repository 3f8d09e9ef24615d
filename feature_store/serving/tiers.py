"""How the two tiers of a tiered online store are, as /health, the metrics and the log tell it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from feature_store.serving.exchange import AccessLog
from feature_store.serving.metrics import Metrics
from feature_store.storage.online import OnlineStore
from feature_store.storage.routed import RoutedOnlineStore
from feature_store.storage.tiered import TieredOnlineStore

_STATES = ("ok", "opening", "unavailable")
_TOLD = {
    "ok": ("info", "the fast tier is used"),
    "opening": ("warning", "the fast tier has no copies to use yet: answers come from the slow tier"),
    "unavailable": ("warning", "the fast tier does not answer: answers come from the slow tier"),
}


class Tiers:
    """Of one worker. `store_of` gives the online store that requests read; it may have no tiers at all."""

    def __init__(self, store_of: Callable[[], OnlineStore], metrics: Metrics, log: AccessLog) -> None:
        self._store_of = store_of
        self._metrics = metrics
        self._log = log
        self._state = "ok"
        self._losses = 0

    def look(self, online_store: str = "ok") -> dict[str, str]:
        """The members of /health, where the store is otherwise as `online_store` says: `degraded` while the fast tier
        is not used. What changed is logged, once; counts go to the metrics."""
        stores = self._stores()
        if not stores:
            return {"online_store": online_store}
        state = max((store.fast_tier for store in stores), key=_STATES.index)
        counts: dict[str, int] = {"up": int(state == "ok")}
        for store in stores:
            for name, count in asdict(store.tally).items():
                counts[name] = counts.get(name, 0) + count
        self._metrics.tiers(counts)
        self._tell(state, counts["losses"])
        if online_store == "ok" and state != "ok":
            online_store = "degraded"
        return {"online_store": online_store, "fast_tier": state}

    def _stores(self) -> list[TieredOnlineStore]:
        store = self._store_of()
        return store.tiered if isinstance(store, RoutedOnlineStore) else []

    def _tell(self, state: str, losses: int) -> None:
        if losses > self._losses:
            self._losses = losses
            self._log.event(
                "warning", "the fast tier lost its copies: answers come from the slow tier until it has new"
            )
        if state != self._state:
            self._state = state
            self._log.event(*_TOLD[state])
