"""Default values: as YAML and the registry hold them (plain), and as raw row values (see `storage.online.Row`).

Plain, a TIMESTAMP or DATE is ISO 8601 text, BYTES are base64, a DECIMAL is text, and NaN and the infinities are the
strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from feature_store.errors import DefinitionError, InvalidInputError
from feature_store.expressions.instants import DAY, instant, to_iso
from feature_store.types import Type

_NOT_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_INTEGER_BITS = {"INT32": 31, "INT64": 63}


def raw_default(value: Any, type_: Type) -> Any:
    """The raw row value of a plain or Python value; `DefinitionError` if the type does not hold it."""
    try:
        return _READERS[type_.kind](value, type_)
    except (ValueError, ArithmeticError, InvalidInputError):
        raise DefinitionError(
            f"default {value!r} is not {_article(type_)} {type_}", hint=_HINTS.get(type_.kind)
        ) from None


def plain_default(raw: Any, type_: Type) -> Any:
    """The plain value of a raw row value: `raw_default` of it gives `raw` back."""
    if type_.item:
        return [plain_default(item, type_.item) for item in raw]
    if type_.kind == "TIMESTAMP":
        return to_iso(raw)
    if type_.kind == "DATE":
        return to_iso(raw * DAY)[:10]
    if type_.kind == "BYTES":
        return base64.b64encode(raw).decode()
    return f"{raw:f}" if type_.kind == "DECIMAL" else plain(raw)


def plain(value: Any) -> Any:
    """A Python value as YAML and JSON can hold it, where the type is not known yet."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime):
        return to_iso(instant(value))
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value) if isinstance(value, Decimal) else value


def _integer(value: Any, type_: Type) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value >> _INTEGER_BITS[type_.kind] <= 0:
        raise ValueError
    return value


def _float(value: Any, type_: Type) -> float:
    if isinstance(value, str) and value in _NOT_NUMBERS:
        return _NOT_NUMBERS[value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    return float(value)


def _instance(kind: type) -> Callable[[Any, Type], Any]:
    def read(value: Any, type_: Type) -> Any:
        if not isinstance(value, kind):
            raise ValueError
        return value

    return read


def _bytes(value: Any, type_: Type) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ValueError from None


def _timestamp(value: Any, type_: Type) -> int:
    if not isinstance(value, (str, date)):
        raise ValueError
    return instant(value)


def _date(value: Any, type_: Type) -> int:
    if isinstance(value, datetime) or not isinstance(value, (str, date)):
        raise ValueError
    day = date.fromisoformat(value) if isinstance(value, str) else value
    return instant(day) // DAY


def _decimal(value: Any, type_: Type) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise ValueError
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise ValueError from None
    if not number.is_finite() or number.copy_abs() >= 10 ** (type_.precision - type_.scale):
        raise ValueError
    sign, digits, exponent = number.as_tuple()
    # In integers: the arithmetic of decimals rounds to the digits of its context.
    whole, shift = int("".join(map(str, digits))), int(exponent) + type_.scale
    if shift < 0 and whole % 10 ** min(-shift, len(digits)):
        raise ValueError
    scaled = whole * 10**shift if shift >= 0 else whole // 10 ** min(-shift, len(digits))
    return Decimal((sign if scaled else 0, tuple(map(int, str(scaled))), -type_.scale))


def _array(value: Any, type_: Type) -> list[Any]:
    if not isinstance(value, (list, tuple)) or type_.item is None:
        raise ValueError
    return [_READERS[type_.item.kind](item, type_.item) for item in value]


_READERS: dict[str, Callable[[Any, Type], Any]] = {
    "INT32": _integer,
    "INT64": _integer,
    "FLOAT32": _float,
    "FLOAT64": _float,
    "STRING": _instance(str),
    "BYTES": _bytes,
    "BOOL": _instance(bool),
    "TIMESTAMP": _timestamp,
    "DATE": _date,
    "DECIMAL": _decimal,
    "ARRAY": _array,
}
_HINTS = {
    "TIMESTAMP": "Write ISO 8601, for example 2026-11-23T12:00:00Z",
    "DATE": "Write for example 2026-11-23",
    "BYTES": "Write base64",
    "STRING": "Put it in quotes",
    "DECIMAL": 'Write it as text, for example "1.50", with no more digits than the type holds',
}


def _article(type_: Type) -> str:
    return "an" if type_.kind[0] in "AI" else "a"
