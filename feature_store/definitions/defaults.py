"""Default values: as YAML and the registry hold them (plain), and as raw row values (see `storage.online.Row`).

Plain, a TIMESTAMP or DATE is ISO 8601 text, BYTES are base64, a DECIMAL is text, and NaN and the infinities are the
strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import base64
import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from feature_store.errors import DefinitionError, InvalidInputError
from feature_store.expressions.instants import instant, to_iso
from feature_store.types import Type
from feature_store.values import json_value, read_value


def raw_default(value: Any, type_: Type) -> Any:
    """The raw row value of a plain or Python value; `DefinitionError` if the type does not hold it."""
    try:
        return read_value(type_, value)
    except InvalidInputError as error:
        raise DefinitionError(f"default {error.message}", hint=error.hint) from None


def plain_default(raw: Any, type_: Type) -> Any:
    """The plain value of a raw row value: `raw_default` of it gives `raw` back."""
    return json_value(type_, raw)


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
