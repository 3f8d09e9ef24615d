"""Instants, durations, hops and schedule boundaries, all in int64 microseconds UTC."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from feature_store.errors import DefinitionError, InvalidInputError

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

MICROSECOND = 1
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
_UNITS = {"us": 1, "ms": 1000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_DURATION = re.compile(r"(?:\d+(?:us|ms|[smhdw]))+")
_PART = re.compile(r"(\d+)(us|ms|[smhdw])")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Duration(int):
    """A positive length of time in microseconds; `str()` is its shortest spelling, such as 90d or 1h30m."""

    @classmethod
    def of(cls, value: object) -> Duration:
        """From '90d', '1h30m', a timedelta or another Duration; `DefinitionError` otherwise."""
        if isinstance(value, Duration):
            return value
        if isinstance(value, timedelta):
            micros = value // timedelta(microseconds=1)
        elif isinstance(value, str) and _DURATION.fullmatch(value.strip()):
            micros = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(value))
        else:
            raise DefinitionError(f"{value!r} is not a duration", hint="Write for example 30s, 5m, 1h, 7d or 1h30m")
        if not 0 < micros <= 36_500 * DAY:
            raise DefinitionError(f"duration {value!r} is out of range", hint="It must be above 0 and at most 36500d")
        return cls(micros)

    def __str__(self) -> str:
        rest, text = int(self), ""
        for unit in ("d", "h", "m", "s", "ms", "us"):
            count, rest = divmod(rest, _UNITS[unit])
            text += f"{count}{unit}" if count else ""
        return text

    __repr__ = __str__

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        def read(value: object) -> Duration:
            try:
                return cls.of(value)
            except DefinitionError as error:
                raise ValueError(str(error)) from None

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.to_string_ser_schema(when_used="always")
        )


def default_hop(window: int) -> int:
    """The hop of a window that names none: 5 min under 12 h, 1 h under 12 d, else 1 d."""
    if window < 12 * HOUR:
        return 5 * MINUTE
    return HOUR if window < 12 * DAY else DAY


def instant(value: object) -> int:
    """Microseconds since the epoch of a datetime, date, ISO 8601 text or int (taken as microseconds).

    A naive time is UTC. `InvalidInputError` if it is none of these or lies outside the years 1 to 9999.
    """
    if isinstance(value, bool):
        raise InvalidInputError(f"{value!r} is not a time")
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise InvalidInputError(
                f'"{value}" is not a time', hint="Write ISO 8601, for example 2026-11-23T12:00:00Z"
            ) from None
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return (aware - _EPOCH) // timedelta(microseconds=1)
    if isinstance(value, date):
        return (value - _EPOCH.date()).days * DAY
    raise InvalidInputError(f"{value!r} is not a time")


def to_datetime(micros: int) -> datetime:
    """The UTC datetime of an instant."""
    return _EPOCH + timedelta(microseconds=micros)


def to_iso(micros: int) -> str:
    """ISO 8601 in UTC, with microseconds only where there are any: 2026-11-23T12:55:40Z."""
    return to_datetime(micros).isoformat().replace("+00:00", "Z")


def start_of_day(day: date, timezone: str) -> int:
    """The instant at which a calendar date begins in a time zone."""
    return instant(datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(timezone)))


def date_at(micros: int, timezone: str) -> date:
    """The calendar date in a time zone at an instant."""
    return to_datetime(micros).astimezone(ZoneInfo(timezone)).date()
