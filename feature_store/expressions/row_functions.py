"""What operators do to one row's raw values in Python, where one expression cannot say it.

Raw values: TIMESTAMP is int microseconds, DATE int days, both since 1970-01-01 UTC. None of the arguments is None
unless said otherwise; None as an answer is NULL.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any, NoReturn

from feature_store.errors import InvalidInputError

DAY = 86_400_000_000
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_CASED = 0x1FFFF  # the planes above have no letters with case
_WIDE = Context(prec=80, rounding=ROUND_HALF_UP)

# The texts that casts from STRING read; anything else is NULL. Both SQL engines get the same patterns.
INTEGER_TEXT = r"^[ \t\n\r]*([+-]?[0-9]+)(?:\.[0-9]*)?[ \t\n\r]*$"
FLOAT_TEXT = (
    r"^[ \t\n\r]*([+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
    r"|[iI][nN][fF](?:[iI][nN][iI][tT][yY])?|[nN][aA][nN]))[ \t\n\r]*$"
)
DECIMAL_TEXT = r"^[ \t\n\r]*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))[ \t\n\r]*$"
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"  # DuckDB takes 0000 for 1 BC
_DAY = rf"{_YEAR}-[0-9]{{2}}-[0-9]{{2}}"
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,9})?)?"
_OFFSET = r"(?:Z|[+-](?:0[0-9]|1[0-4])(?::?[0-5][0-9])?)?"
DATE_TEXT = rf"^[ \t\n\r]*({_DAY})(?:[ T][^\n]*)?[ \t\n\r]*$"
TIMESTAMP_TEXT = rf"^[ \t\n\r]*({_DAY}(?:[ T]{_CLOCK}{_OFFSET})?)[ \t\n\r]*$"
MINUTES_LAST = r"([ T][0-9]{2}:[0-9]{2})(?![:0-9])"
TRUE_TEXT = ("t", "true", "y", "yes", "1")
FALSE_TEXT = ("f", "false", "n", "no", "0")

_integer = re.compile(INTEGER_TEXT).search
_float = re.compile(FLOAT_TEXT).search
_decimal = re.compile(DECIMAL_TEXT).search
_date = re.compile(DATE_TEXT).search
_timestamp = re.compile(TIMESTAMP_TEXT).search
_TIME_PARTS = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?)?(?:Z|([+-])(\d\d):?(\d\d)?)?"
)


def overflow(value: int) -> NoReturn:
    raise InvalidInputError(
        f"integer overflow: {value} does not fit 64 bits", hint="Cast an operand to FLOAT64 if that is precise enough"
    )


def out_of_range(value: int) -> NoReturn:
    raise InvalidInputError(f"date or timestamp out of range: {value} since the epoch")


def in_date_range(days: int) -> int:
    return days if -(2**31) < days < 2**31 - 1 else out_of_range(days)


def in_timestamp_range(micros: int) -> int:
    return micros if -(2**63) < micros < 2**63 - 1 else out_of_range(micros)


def integer_of_text(text: str) -> int | None:
    match = _integer(text)
    if not match:
        return None
    digits = match[1].lstrip("+-0") or "0"
    if len(digits) > 19:  # Python reads no thousands of digits
        return None
    value = -int(digits) if match[1].startswith("-") else int(digits)
    return value if -(2**63) <= value < 2**63 else None


def float_of_text(text: str) -> float | None:
    match = _float(text)
    return float(match[1]) if match else None


def decimal_of_text(text: str, precision: int, scale: int) -> Decimal | None:
    match = _decimal(text)
    return decimal_of(Decimal(match[1]), precision, scale) if match else None


def decimal_of(value: Decimal | int, precision: int, scale: int) -> Decimal | None:
    """Rounded half away from zero to `scale`; None where it needs more digits than `precision`."""
    if value and Decimal(value).adjusted() >= precision - scale:  # which may be more digits than `quantize` takes
        return None
    quantized = Decimal(value).quantize(Decimal(1).scaleb(-scale), context=_WIDE)
    magnitude = quantized.copy_abs()  # abs() would round to the 28 digits of the default context
    if magnitude >= Decimal(10) ** (precision - scale):
        return None
    return quantized if quantized else magnitude  # there is no -0.00 in SQL


def bool_of_text(text: str) -> bool | None:
    word = text.strip(" \t\n\r").lower()
    return True if word in TRUE_TEXT else False if word in FALSE_TEXT else None


def date_of_text(text: str) -> int | None:
    match = _date(text)
    if not match:
        return None
    try:
        return date.fromisoformat(match[1]).toordinal() - _EPOCH_ORDINAL
    except ValueError:
        return None


def timestamp_of_text(text: str) -> int | None:
    """ISO 8601; without an offset it is UTC; digits past the microsecond are dropped."""
    match = _timestamp(text)
    parts = _TIME_PARTS.fullmatch(match[1]) if match else None
    if not parts:
        return None
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = parts.groups()
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
    try:
        at = datetime(
            *(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0)),
            int((fraction or "").ljust(6, "0")[:6]),
            timezone(offset),
        )
    except ValueError:
        return None
    return (at - _EPOCH) // timedelta(microseconds=1)


def civil(days: int) -> tuple[int, int, int]:
    """(year, month, day) of days since the epoch, any year (Hinnant, chrono-compatible date algorithms)."""
    era, doe = divmod(days + 719_468, 146_097)
    yoe = (doe - doe // 1460 + doe // 36_524 - doe // 146_096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    month = mp + 3 if mp < 10 else mp - 9
    return yoe + era * 400 + (month <= 2), month, doy - (153 * mp + 2) // 5 + 1


def days_of(year: int, month: int, day: int) -> int:
    """Days since the epoch of a date, any year."""
    year -= month <= 2
    era, yoe = divmod(year, 400)
    doy = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146_097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719_468


def day_of_year(days: int) -> int:
    return days - days_of(civil(days)[0], 1, 1) + 1


def week_of_year(days: int) -> int:
    """ISO 8601 week: the one that holds the Thursday."""
    thursday = days - (days + 3) % 7 + 3
    return (day_of_year(thursday) - 1) // 7 + 1


def truncated(unit: str, micros: int) -> int:
    """`micros` at the start of its second, minute, hour, day, week (Monday), month, quarter or year."""
    length = {"SECOND": 1_000_000, "MINUTE": 60_000_000, "HOUR": 3_600_000_000, "DAY": DAY}.get(unit)
    if length:
        return micros - micros % length
    days = micros // DAY
    if unit == "WEEK":
        return (days - (days + 3) % 7) * DAY
    year, month, _ = civil(days)
    first = {"MONTH": month, "QUARTER": (month - 1) // 3 * 3 + 1, "YEAR": 1}[unit]
    return days_of(year, first, 1) * DAY


def text_of_date(days: int) -> str:
    return "{:04d}-{:02d}-{:02d}".format(*civil(days))


def text_of_timestamp(micros: int) -> str:
    """As Spark writes it: 2024-01-31 10:00:00.5, without trailing zeros."""
    days, rest = divmod(micros, DAY)
    seconds, fraction = divmod(rest, 1_000_000)
    text = f"{text_of_date(days)} {seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{text}.{fraction:06d}".rstrip("0") if fraction else text


def float32_of(value: float) -> float | None:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return None


def fmod(x: float, y: float) -> float:
    return math.nan if x in (math.inf, -math.inf) else math.fmod(x, y)


def exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def power(x: float, y: float) -> float | None:
    """IEEE pow; None for 0 to a negative power, and for a negative number to one that is not whole."""
    if (x == 0 and y < 0) or (x < 0 and math.isfinite(y) and y != math.floor(y)):
        return None
    try:
        return math.pow(x, y)
    except OverflowError:
        return -math.inf if x < 0 and math.fmod(y, 2) else math.inf


def rounded(x: float, digits: int = 0) -> float:
    """Half away from zero: round(x * 10^digits) / 10^digits; x itself where that product is not finite."""
    scale = 10.0**digits
    product = x * scale
    if not math.isfinite(product):
        return x
    whole = math.floor(abs(product))
    return math.copysign(whole + (abs(product) - whole >= 0.5), product) / scale


def sign(x: float) -> float:
    return 1.0 if x > 0 else -1.0 if x < 0 else 0.0 if x == 0 else x


@functools.lru_cache(4096)
def _upper(char: str) -> str:
    """One code point to one code point, as the SQL engines do; the titlecase where uppercase takes several."""
    if char == "ß":
        return "ẞ"
    return next((c for c in (char.upper(), char.title()) if len(c) == 1), char)


def upper(text: str) -> str:
    return text.upper() if text.isascii() else "".join(map(_upper, text))


def lower(text: str) -> str:
    return text.lower() if text.isascii() else "".join("i" if c == "İ" else c.lower() for c in text)


@functools.cache
def case_pairs(change: Callable[[str], str]) -> tuple[str, str]:
    """The code points that `upper` or `lower` changes, and what they become."""
    changed = [(char, change(char)) for char in map(chr, range(_LAST_CASED + 1)) if change(char) != char]
    return "".join(char for char, _ in changed), "".join(becomes for _, becomes in changed)


def substring(text: str, start: int, length: int) -> str:
    """Spark's: 1-based, 0 as 1, a negative start counts from the end."""
    begin = start - 1 if start > 0 else len(text) + start if start < 0 else 0
    return text[max(begin, 0) : max(begin + max(length, 0), 0)]


@functools.lru_cache(1024)
def like(pattern: str) -> Callable[[str], Any]:
    """The test of a LIKE pattern whose escape character is the backslash. Between two % the first place that fits is as
    good as any later one: none is tried again, or a long text would take for ever."""
    pieces, chars = [""], iter(pattern)
    for char in chars:
        if char == "%":
            pieces.append("")
        else:
            pieces[-1] += "." if char == "_" else re.escape(next(chars) if char == "\\" else char)
    first, *others = pieces
    between = "".join(f"(?>.*?{piece})" for piece in others[:-1])
    return re.compile(first + (f"{between}.*{others[-1]}" if others else ""), re.DOTALL).fullmatch


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def replaced(text: str, old: str, new: str) -> str:
    return text.replace(old, new) if old else text


def contains(items: Sequence[Any], value: Any) -> bool | None:
    """Three-valued: None where it is not found but an item is None. NaN is NaN."""
    if value in items or (value != value and any(item != item for item in items)):
        return True
    return None if None in items else False


def element_at(items: Sequence[Any], position: int) -> Any:
    """1-based, negative from the end; None outside."""
    if 0 < position <= len(items):
        return items[position - 1]
    return items[position] if -len(items) <= position < 0 else None


def float_key(x: float) -> tuple[bool, float]:
    """Orders floats with NaN greatest."""
    return (x != x, x)


def least(values: Sequence[Any]) -> Any:
    """The least of those that are not None."""
    return min((v for v in values if v is not None), default=None)


def greatest(values: Sequence[Any]) -> Any:
    return max((v for v in values if v is not None), default=None)


def least_float(values: Sequence[Any]) -> Any:
    return min((v for v in values if v is not None), default=None, key=float_key)


def greatest_float(values: Sequence[Any]) -> Any:
    return max((v for v in values if v is not None), default=None, key=float_key)
