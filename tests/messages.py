"""Avro records as producers write them."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import fastavro


def record(schema: Any, values: Mapping[str, Any], head: bytes = b"") -> bytes:
    out = BytesIO(head)
    out.seek(len(head))
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), values)
    return out.getvalue()


def record_schema(**fields: Any) -> dict[str, Any]:
    return {"type": "record", "name": "r", "fields": [{"name": name, "type": type_} for name, type_ in fields.items()]}
