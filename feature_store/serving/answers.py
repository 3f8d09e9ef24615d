"""Online answers as bytes: Feast's JSON, written column by column, or an Arrow stream.

The statuses and event times that columns of one view share are written once and pasted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from feature_store.expressions.visibility import Status
from feature_store.retrieval.online import OnlinePlan
from feature_store.retrieval.response import OnlineResponse, Statuses, Times
from feature_store.retrieval.values import EARLIEST, LATEST, json_writer

JSON = b"application/json"
ARROW = b"application/vnd.apache.arrow.stream"

Writer = Callable[[Sequence[Any]], Sequence[Any]] | None

_QUOTED = {status: orjson.dumps(status.name) for status in Status}
_NEVER = b'"1970-01-01T00:00:00Z"'
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MANY = 8
_NUMPY = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z
_KEPT = 4096
_OPENING, _NEXT = b'{"results":[{"values":', b',{"values":'


class JsonAnswers:
    """Writes the answers of one plan as JSON; `iso` as in `json_writer`."""

    def __init__(self, plan: OnlinePlan, iso: bool = False) -> None:
        self._writers: tuple[Writer, ...] = tuple(json_writer(type_, iso) for type_ in plan.types)
        self._names = orjson.dumps(plan.names)[1:]
        self._endings: dict[tuple[str, ...], bytes] = {}

    def encode(self, response: OnlineResponse) -> bytes:
        """The body: `results` and `metadata`, entity columns first."""
        rows, cells = response.rows, response.cells
        given = len(cells) - len(self._writers)
        parts: list[bytes] = []
        opening = _OPENING
        tails: dict[tuple[int, int], bytes] = {}
        for values, statuses, times in cells[:given]:
            parts += (opening, orjson.dumps(values, default=str), _tail(statuses, times, rows))
            opening = _NEXT
        for writer, (values, statuses, times) in zip(self._writers, cells[given:], strict=True):
            shared = (id(statuses), id(times))
            tail = tails.get(shared)
            if tail is None:
                tail = tails[shared] = _tail(statuses, times, rows)
            parts += (opening, orjson.dumps(values if writer is None else writer(values)), tail)
            opening = _NEXT
        if not parts:
            parts.append(b'{"results":[')
        parts.append(self._ending(response.names[:given]))
        return b"".join(parts)

    def _ending(self, entities: tuple[str, ...]) -> bytes:
        ending = self._endings.get(entities)
        if ending is None:
            names = orjson.dumps(entities)[:-1]
            separator = b"," if entities and self._writers else b""
            ending = b'],"metadata":{"feature_names":' + names + separator + self._names + b"}}"
            if len(self._endings) < 64:
                self._endings[entities] = ending
        return ending


def arrow_stream(response: OnlineResponse) -> bytes:
    """An Arrow stream: a column a name, each followed by `name__status` and `name__ts`."""
    sink = pa.BufferOutputStream()
    table = response.to_arrow(statuses=True, include_event_timestamps=True)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


_uniform: dict[tuple[Status, int], bytes] = {}
_never: dict[int, bytes] = {}


def _tail(statuses: Statuses, times: Times, rows: int) -> bytes:
    """What follows the values of a column: statuses, event times and the closing brace."""
    marks = _same(statuses, rows) if isinstance(statuses, Status) else _list([_QUOTED[mark] for mark in statuses])
    return b',"statuses":' + marks + b',"event_timestamps":' + _event_times(times, rows) + b"}"


def _same(status: Status, rows: int) -> bytes:
    found = _uniform.get((status, rows))
    if found is None:
        found = _list([_QUOTED[status]] * rows)
        if len(_uniform) < _KEPT:
            _uniform[status, rows] = found
    return found


def _event_times(times: Times, rows: int) -> bytes:
    if times is None:
        found = _never.get(rows)
        if found is None:
            found = _list([_NEVER] * rows)
            if len(_never) < _KEPT:
                _never[rows] = found
        return found
    try:
        if len(times) >= _MANY:
            return orjson.dumps(np.array(times, "i8").view("M8[us]"), option=_NUMPY)
        return orjson.dumps([_EPOCH + timedelta(microseconds=time) for time in times], option=orjson.OPT_UTC_Z)
    except (OverflowError, TypeError, orjson.JSONEncodeError):
        return _event_times([min(max(time, EARLIEST), LATEST) for time in times], rows)


def _list(items: list[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"
