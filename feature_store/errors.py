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
    """A definition is wrong: by itself, or beside the others and the data."""

    code = "INVALID_DEFINITION"


class ExpressionError(DefinitionError):
    """An expression or SQL cannot be read, bound to names and types, or carried to an engine."""

    code = "INVALID_EXPRESSION"


class SettingsError(FeatureStoreError):
    """feature_store.yaml, or a URI in it, is wrong."""

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
    """A command or call was put together wrongly, whatever the data."""

    code = "INVALID_USAGE"


class NotFoundError(FeatureStoreError):
    """There is nothing of this name.

    `code` may be narrowed by the raiser: FEATURE_NOT_FOUND, VIEW_NOT_FOUND, SERVICE_NOT_FOUND, ...
    """

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
    """Data that a caller gave is of the wrong shape or type, or out of range."""

    code = "INVALID_INPUT"


class TooLargeError(InvalidInputError):
    """A caller gave more than the limits in the settings allow."""

    code = "TOO_LARGE"


class ConflictError(FeatureStoreError):
    """Somebody else committed first: read again and retry."""

    code = "CONFLICT"


class DestructiveChangeError(FeatureStoreError):
    """An apply would drop or retype stored data, and was not told that it may."""

    code = "DESTRUCTIVE_CHANGE"


class SourceError(FeatureStoreError):
    """A source or file cannot be read or written, or does not hold what was declared."""

    code = "SOURCE_UNREADABLE"


class StoreUnavailableError(FeatureStoreError):
    """A store cannot be reached, or cannot take a write now: the same call may succeed later."""

    code = "STORE_UNAVAILABLE"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A hint naming the known name closest to `name`: 'Did you mean "amount"?', or None."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f'Did you mean "{match[0]}"?' if match else None
