"""Every error this package raises on purpose, as one tree.

    FeatureStoreError
    ├── DefinitionError          a definition is wrong (exit code 2, HTTP 422)
    │   └── ExpressionError      an expression or SQL cannot be bound or carried to an engine
    ├── SettingsError            feature_store.yaml or a URI in it is wrong
    │   └── MissingExtraError    an optional dependency is not installed
    ├── UsageError               a command or call was put together wrongly
    ├── NotFoundError            no such feature, view, service, entity, ...
    ├── InvalidInputError        data that a caller gave is of the wrong shape or type
    │   └── TooLargeError        more of it than the limit allows
    ├── ConflictError            somebody else committed first; read again and retry
    ├── DestructiveChangeError   an apply would drop or retype stored data
    ├── SourceError              a source cannot be read, or not as declared
    └── StoreUnavailableError    a store cannot be reached or cannot take a write now

A message says what is wrong, with the value; `location` says where; `hint` says what to do.
Drivers' own errors are mapped to these at the port that wraps the driver.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """A line of a file, 1-based; line 0 means the file as a whole."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class FeatureStoreError(Exception):
    """The root: `str()` is one line, `what (where). hint`."""

    code = "INTERNAL"

    def __init__(self, message: str, *, location: Location | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.location = location
        self.hint = hint

    def at(self, location: Location | None) -> FeatureStoreError:
        """The same error with a location, unless it already has one."""
        if self.location is None:
            self.location = location
        return self

    def __str__(self) -> str:
        text = self.message
        if self.hint:
            text = f"{text.rstrip('.')}. {self.hint}"
        if self.location:
            text = f"{text} ({self.location})"
        return text


class DefinitionError(FeatureStoreError):
    code = "INVALID_DEFINITION"


class ExpressionError(DefinitionError):
    code = "INVALID_EXPRESSION"


class SettingsError(FeatureStoreError):
    code = "INVALID_SETTINGS"


class MissingExtraError(SettingsError):
    """An optional dependency is missing; the hint is the command that installs it."""

    code = "MISSING_EXTRA"

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the extra [{extra}], which is not installed",
            hint=f"Run: pip install 'feature_store[{extra}]'",
        )


class UsageError(FeatureStoreError):
    code = "INVALID_USAGE"


class NotFoundError(FeatureStoreError):
    """`code` may be narrowed by the raiser: FEATURE_NOT_FOUND, VIEW_NOT_FOUND, SERVICE_NOT_FOUND, ..."""

    code = "NOT_FOUND"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        location: Location | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, location=location, hint=hint)
        if code:
            self.code = code


class InvalidInputError(FeatureStoreError):
    code = "INVALID_INPUT"


class TooLargeError(InvalidInputError):
    code = "TOO_LARGE"


class ConflictError(FeatureStoreError):
    code = "CONFLICT"


class DestructiveChangeError(FeatureStoreError):
    code = "DESTRUCTIVE_CHANGE"


class SourceError(FeatureStoreError):
    code = "SOURCE_UNREADABLE"


class StoreUnavailableError(FeatureStoreError):
    code = "STORE_UNAVAILABLE"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A hint naming the known name closest to `name`: 'Did you mean "amount"?', or None."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'Did you mean "{match[0]}"?' if match else None
