"""Errors over HTTP: one table from the error tree to status codes, one shape of body."""

from __future__ import annotations

import orjson

from feature_store.errors import (
    ConflictError,
    DefinitionError,
    DestructiveChangeError,
    FeatureStoreError,
    InvalidInputError,
    NotFoundError,
    SourceError,
    StoreUnavailableError,
    TooLargeError,
    UsageError,
)

RETRY_AFTER = b"1"
"""Seconds after which a client may try a store again that could not be reached."""


class MalformedError(UsageError):
    """The body is not JSON, or not an object."""

    code = "MALFORMED"


class UnauthenticatedError(UsageError):
    """The request says of no client that it knows that it is from it."""

    code = "UNAUTHENTICATED"


class ForbiddenError(UsageError):
    """The client may not ask this."""

    code = "FORBIDDEN"


class TooManyRequestsError(UsageError):
    """The client asks too often; `wait` is in how many seconds it may ask again."""

    code = "TOO_MANY_REQUESTS"

    def __init__(self, name: str, rate: float, wait: int) -> None:
        who = f'client "{name}" asks' if name else "clients ask"
        super().__init__(f"{who} more than {rate:g} times a second", hint=f"Try again in {wait} s")
        self.wait = wait


_STATUS: tuple[tuple[type[FeatureStoreError], int], ...] = (
    (TooLargeError, 413),
    (InvalidInputError, 422),
    (NotFoundError, 404),
    (ConflictError, 409),
    (DestructiveChangeError, 409),
    (DefinitionError, 422),
    (UnauthenticatedError, 401),
    (ForbiddenError, 403),
    (TooManyRequestsError, 429),
    (UsageError, 400),
    (StoreUnavailableError, 503),
    (SourceError, 503),
)


def http_status(error: FeatureStoreError) -> int:
    """The status code of an error; 500 is for what is our own fault."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_body(code: str, message: str, hint: str | None = None) -> bytes:
    """`{"error": {"code", "message", "hint"}}`."""
    return orjson.dumps({"error": {"code": code, "message": clean(message), "hint": hint and clean(hint)}})


def clean(text: str) -> str:
    """Text that UTF-8 can hold: half a surrogate pair becomes a question mark."""
    return text.encode(errors="replace").decode()


def describe(error: FeatureStoreError) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Status, body and extra headers of the answer to an error."""
    status = http_status(error)
    headers = [(b"retry-after", RETRY_AFTER)] if status == 503 else []
    if isinstance(error, TooManyRequestsError):
        headers = [(b"retry-after", b"%d" % error.wait)]
    if isinstance(error, UnauthenticatedError):
        headers = [(b"www-authenticate", b"Bearer")]
    return status, error_body(error.code, error.message, error.hint), headers
