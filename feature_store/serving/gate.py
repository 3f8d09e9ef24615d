"""Who may ask what of the service, and how often: `clients` and `limits: requests_per_s` of the settings."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Mapping
from hashlib import sha256

from feature_store.serving.exchange import Scope
from feature_store.serving.failures import ForbiddenError, TooManyRequestsError, UnauthenticatedError
from feature_store.settings import READ, WRITE, Client

_NEEDS = {
    "/get-online-features": READ,
    "/push": WRITE,
    "/write-to-online-store": WRITE,
    "/materialize": WRITE,
    "/materialize-incremental": WRITE,
}
"""The other routes tell nothing of the data, and are open."""

_BEARER = b"bearer "


class Gate:
    """Looks at each request before anything else does. One a worker: each counts the requests that it gets.

    Without clients anybody may ask anything, `requests_per_s` of all together. A client's own rate comes before that.
    """

    def __init__(
        self,
        clients: Mapping[str, Client],
        requests_per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clients = {sha256(each.token.encode()).digest(): (name, each) for name, each in clients.items()}
        rates = {name: each.requests_per_s or requests_per_s for name, each in clients.items()}
        rates |= {} if clients else {"": requests_per_s}
        self._buckets = {name: _Bucket(rate, clock) for name, rate in rates.items() if rate}

    def check(self, scope: Scope) -> None:
        """Let a request pass, or raise `UnauthenticatedError`, `ForbiddenError` or `TooManyRequestsError`."""
        need = _NEEDS.get(scope["path"])
        if need is None:
            return
        name = self._known(scope, need) if self._clients else ""
        bucket = self._buckets.get(name)
        if bucket and (wait := bucket.take()):
            raise TooManyRequestsError(name, bucket.rate, wait)

    def _known(self, scope: Scope, need: str) -> str:
        """The name of the client that asks."""
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not given[: len(_BEARER)].lower() == _BEARER:
            raise UnauthenticatedError("the request names no token", hint="Send Authorization: Bearer TOKEN")
        digest = sha256(given[len(_BEARER) :].strip()).digest()
        found = None
        for known, each in self._clients.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(known, digest):
                found = each
        if found is None:
            raise UnauthenticatedError(
                "no client has this token", hint="Those that are known are in feature_store.yaml, clients"
            )
        name, client = found
        if need not in client.may:
            raise ForbiddenError(
                f'client "{name}" may not {need}', hint=f"Add {need} to its may, in feature_store.yaml, clients"
            )
        return name


class _Bucket:
    """Holds a second's worth of requests, and is filled at a rate."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self.rate, self._clock = rate, clock
        self._most = max(rate, 1.0)
        self._left, self._at = self._most, clock()

    def take(self) -> int:
        """Take one; 0, or in how many whole seconds there is one again."""
        now = self._clock()
        self._left = min(self._left + (now - self._at) * self.rate, self._most)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0
        return math.ceil((1 - self._left) / self.rate)
