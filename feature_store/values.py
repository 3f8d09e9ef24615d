"""Values at the edge: what people write and send becomes raw row values of a type, and back to JSON.

One table reads defaults in definitions, columns of requests and pushed rows alike.

Raw row values: TIMESTAMP is int microseconds, DATE int days since the epoch, the rest as Python has them.
JSON (and Python callers alike) write TIMESTAMP as seconds since the epoch or ISO 8601, DATE as ISO 8601, BYTES as
base64, DECIMAL as text, and NaN and the infinities as the strings "NaN", "Infinity", "-Infinity".
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation
from numbers import Integral, Real
from operator import index
from typing import Any

from feature_store.errors import InvalidInputError
from feature_store.expressions.instants import DAY, SECOND, instant, to_datetime, to_iso
from feature_store.types import Type

EARLIEST, LATEST = -62_135_596_800 * SECOND, 253_402_300_800 * SECOND - 1
"""The instants that a date and time of the years 1 to 9999 can write."""

_EPOCH = date(1970, 1, 1)
_FIRST_DAY, _LAST_DAY = EARLIEST // DAY, LATEST // DAY
_EXACT = Context(prec=38, traps=[InvalidOperation, Inexact])
"""As many digits as a DECIMAL has at most. The thread's own context may have fewer, and rounds."""
_STEPS = [Decimal(1).scaleb(-scale) for scale in range(39)]
_NONE = frozenset({type(None)})
_NATIVE: dict[str, type] = {
    "INT32": int, "INT64": int, "FLOAT32": float, "FLOAT64": float, "STRING": str, "BYTES": bytes, "BOOL": bool,
}  # fmt: skip
_RANGES = {"INT32": (-(2**31), 2**31 - 1), "INT64": (-(2**63), 2**63 - 1)}
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NULLS = ("NaTType", "NAType")
_HOW = {
    "INT32": "Give an integer from -2147483648 to 2147483647",
    "INT64": "Give an integer of 64 bits, not a string, a bool or a fraction",
    "FLOAT32": 'Give a number, or "NaN", "Infinity", "-Infinity"',
    "FLOAT64": 'Give a number, or "NaN", "Infinity", "-Infinity"',
    "STRING": "Give a string, in quotes",
    "BYTES": "Give a base64 string",
    "BOOL": "Give true or false",
    "TIMESTAMP": "Give seconds since the epoch, or ISO 8601, for example 2026-11-23T12:00:00Z",
    "DATE": "Give ISO 8601, for example 2026-11-23",
    "DECIMAL": 'Give a string, for example "12.50", with no more digits than the type has',
    "ARRAY": "Give a list",
}


def read_column(name: str, type_: Type, values: Sequence[Any]) -> Sequence[Any]:
    """A caller's column as raw row values; None stays None.

    `InvalidInputError` names the column, the row and the value that is not of the type.
    """
    kind = type_.kind
    native = _NATIVE.get(kind)
    if native is not None and {native}.issuperset(map(type, values)) and _fits(kind, values):
        return values
    out = []
    try:
        for value in values:  # how many are read by then says which one is wrong
            out.append(read_value(type_, value))
    except InvalidInputError as error:
        raise InvalidInputError(f'column "{name}", row {len(out)}: {error.message}', hint=error.hint) from None
    return out


def _fits(kind: str, values: Sequence[Any]) -> bool:
    """Whether values of the right Python type need no further look."""
    if not values or kind in ("BOOL", "FLOAT64", "BYTES"):
        return True
    if kind == "STRING":
        return "".join(values).isascii()
    if kind in _RANGES:
        low, high = _RANGES[kind]
        return bool(low <= min(values) and max(values) <= high)
    return False


def read_value(type_: Type, value: Any) -> Any:
    """One value as a raw row value; None stays None. `InvalidInputError` if it is not of the type."""
    try:
        return _read(type_, value)
    except (ValueError, TypeError, ArithmeticError, RecursionError, InvalidInputError):
        raise InvalidInputError(f"{shown(value)} is not {_article(type_)}", hint=_HOW[type_.kind]) from None


def _read(type_: Type, value: Any) -> Any:
    if value is None or type(value).__name__ in _NULLS:
        return None
    if type_.item is None:
        return _READERS[type_.kind](type_, value)
    if isinstance(value, (str, bytes, Mapping)):
        raise TypeError
    return [_read(type_.item, item) for item in value]


def _read_integer(type_: Type, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError
    number = index(value)
    low, high = _RANGES[type_.kind]
    if not low <= number <= high:
        raise ValueError
    return number


def _read_float(type_: Type, value: Any) -> float:
    if isinstance(value, str):
        value = _SPECIAL.get(value, value)
    if isinstance(value, (bool, str)) or not isinstance(value, Real):
        raise TypeError
    number = float(value)
    return _float32(number) if type_.kind == "FLOAT32" else number


def _float32(number: float) -> float:
    """The nearest number of 32 bits; `OverflowError` beyond them."""
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded


def _read_string(type_: Type, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()
    return str(value)


def _read_bytes(type_: Type, value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if not isinstance(value, str):
        raise TypeError
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ValueError from None


def _read_bool(type_: Type, value: Any) -> bool:
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
        raise TypeError
    return bool(value)


def _read_timestamp(type_: Type, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, Integral):
        micros = index(value) * SECOND
    elif isinstance(value, Real):
        micros = round(float(value) * SECOND)
    elif getattr(getattr(value, "dtype", None), "kind", "") == "M":
        micros = int(value.astype("M8[us]").astype("int64"))
    else:
        micros = instant(value)
    if not EARLIEST <= micros <= LATEST:
        raise ValueError
    return micros


def _read_date(type_: Type, value: Any) -> int:
    if isinstance(value, datetime):
        raise TypeError
    if isinstance(value, str):
        value = date.fromisoformat(value)
    if not isinstance(value, date):
        raise TypeError
    return (value - _EPOCH).days


def _read_decimal(type_: Type, value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (str, float, Integral, Decimal)):
        raise TypeError
    if isinstance(value, Integral):
        value = index(value)
    number = Decimal(repr(float(value)) if isinstance(value, float) else value)
    if not number.is_finite():
        raise ValueError
    fitted = _EXACT.quantize(number, _STEPS[type_.scale])
    if len(fitted.as_tuple().digits) > type_.precision:
        raise ValueError
    return _EXACT.plus(fitted)  # there is no -0.00 in SQL


_READERS: dict[str, Callable[[Type, Any], Any]] = {
    "INT32": _read_integer,
    "INT64": _read_integer,
    "FLOAT32": _read_float,
    "FLOAT64": _read_float,
    "STRING": _read_string,
    "BYTES": _read_bytes,
    "BOOL": _read_bool,
    "TIMESTAMP": _read_timestamp,
    "DATE": _read_date,
    "DECIMAL": _read_decimal,
}


def _article(type_: Type) -> str:
    return f"{'an' if str(type_)[0] in 'AI' else 'a'} {type_}"


def shown(value: Any) -> str:
    """A value that somebody sent, as an error tells it: 80 characters at most, of lists of any depth, too."""
    try:
        text = f'"{value}"'.encode(errors="replace").decode() if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):  # JSON may be nested more deeply than Python writes, a number have more digits
        text = f"a value of the type {type(value).__name__}, too large to show,"
    return text if len(text) <= 80 else f"{text[:76]}..."


def json_value(type_: Type, value: Any) -> Any:
    """A raw row value as definitions hold it in YAML and JSON: `read_value` gives it back."""
    if value is None:
        return None
    if type_.item is not None:
        return [json_value(type_.item, item) for item in value]
    if type_.kind == "TIMESTAMP":
        return to_iso(value)
    if type_.kind == "FLOAT32":
        return _json_float(_shortest(value))
    return _json_float(value) if type_.is_float else _TO_JSON.get(type_.kind, _same)(value)


def _same(value: Any) -> Any:
    return value


def _shortest(value: float) -> float:
    """The number of fewest digits that rounds to this one of 32 bits: 0.1 for 0.10000000149011612."""
    for digits in range(6, 10):
        short = float(f"{value:.{digits}g}")
        if _float32(short) == value:
            return short
    return value


def json_writer(type_: Type, iso: bool = False) -> Callable[[Sequence[Any]], Sequence[Any]] | None:
    """What turns a column of raw row values into JSON values; None where they are JSON already.

    `iso` writes TIMESTAMP as ISO 8601 with microseconds instead of whole seconds since the epoch.
    """
    if type_.is_float:
        return _finite
    one = _json_value(type_, iso)
    if one is None:
        return None
    return lambda values: [None if value is None else one(value) for value in values]


def _finite(values: Sequence[Any]) -> Sequence[Any]:
    try:
        if math.isfinite(sum(values)):
            return values
    except TypeError:
        pass
    named = [_json_float(value) for value in values]
    return named if any(type(value) is str for value in named) else values


def _json_float(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _json_value(type_: Type, iso: bool) -> Callable[[Any], Any] | None:
    if type_.item is not None:
        item = _json_value(type_.item, iso)
        return None if item is None else lambda values: [None if value is None else item(value) for value in values]
    if type_.is_float:
        return _json_float
    if type_.kind == "TIMESTAMP":
        return _iso if iso else lambda micros: micros // SECOND
    return _TO_JSON.get(type_.kind)


def _iso(micros: int) -> str | None:
    """ISO 8601 with microseconds; an instant outside the years 1 to 9999 has no text."""
    if not EARLIEST <= micros <= LATEST:
        return None
    return to_datetime(micros).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _json_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _json_date(days: int) -> str | None:
    """ISO 8601; a day outside the years 1 to 9999 has no text."""
    if not _FIRST_DAY <= days <= _LAST_DAY:
        return None
    return (_EPOCH + timedelta(days=days)).isoformat()


def _json_decimal(value: Decimal) -> str:
    return format(value, "f")


_TO_JSON: dict[str, Callable[[Any], Any]] = {"BYTES": _json_bytes, "DATE": _json_date, "DECIMAL": _json_decimal}
