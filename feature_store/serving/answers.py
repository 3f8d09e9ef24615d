"""Online answers as bytes: Feast's JSON, or an Arrow stream.

All columns are written by one call, as a list of lists, which is then cut at `]`, and what stands between two columns
in the answer is put there: statuses and event times, which columns of one view mostly share. Where a value contains a
bracket too (an array, an odd string), columns are written one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from feature_store.expressions.visibility import Status
from feature_store.retrieval.online import OnlinePlan
from feature_store.retrieval.response import OnlineResponse, Statuses, Times
from feature_store.values import EARLIEST, LATEST, json_writer

JSON = b"application/json"
ARROW = b"application/vnd.apache.arrow.stream"

_QUOTED = {status: orjson.dumps(status.name) for status in Status}
_NEVER = b'"1970-01-01T00:00:00Z"'
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MANY = 8
_NUMPY = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z
_KEPT = 4096
_NEXT = b',{"values":['


class JsonAnswers:
    """Writes the answers of one plan as JSON; `iso` as in `json_writer`."""

    def __init__(self, plan: OnlinePlan, iso: bool = False) -> None:
        writers = [json_writer(type_, iso) for type_ in plan.types]
        # JSON has no NaN: it is written as null. So floats are looked at only where the text has a null.
        needed = [(at, writer) for at, writer in enumerate(writers) if writer is not None]
        self._floats = [(at, writer) for at, writer in needed if plan.types[at].is_float]
        self._others = [(at, writer) for at, writer in needed if not plan.types[at].is_float]
        self._names = orjson.dumps(plan.names)[1:]
        self._features = len(plan.names)
        self._endings: dict[tuple[str, ...], bytes] = {}

    def encode(self, response: OnlineResponse) -> bytes:
        """The body: `results` and `metadata`, entity columns first."""
        rows, cells = response.rows, response.cells
        given = len(cells) - self._features
        ending = self._ending(response.names[:given])
        if not cells:
            return b'{"results":[' + ending
        tails: dict[tuple[int, int], bytes] = {}
        between: list[bytes] = []
        for _, statuses, times in cells:
            shared = (id(statuses), id(times))
            tail = tails.get(shared)
            if tail is None:
                tail = tails[shared] = _tail(statuses, times, rows)
            between.append(tail)
        parts = [b""] * (2 * len(cells))
        parts[0::2] = self._texts([column[0] for column in cells], given)
        parts[1::2] = between
        return b'{"results":[{"values":[' + b"".join(parts)[: -len(_NEXT)] + ending

    def _texts(self, columns: list[Sequence[Any]], given: int) -> list[bytes]:
        """Each column's values as JSON, without brackets."""
        for at, writer in self._others:
            columns[given + at] = writer(columns[given + at])
        text = orjson.dumps(columns, default=str)
        # Looking for one byte costs a hundredth of looking for the word.
        if self._floats and b"n" in text and self._name_infinities(columns, given):
            text = orjson.dumps(columns, default=str)
        texts = text.split(b"]")
        if len(texts) != len(columns) + 2:
            return [orjson.dumps(column, default=str)[1:-1] for column in columns]
        return [piece[2:] for piece in texts[:-2]]

    def _name_infinities(self, columns: list[Sequence[Any]], given: int) -> bool:
        """Replace NaN and infinities by their names; whether there were any."""
        changed = False
        for at, writer in self._floats:
            named = writer(columns[given + at])
            changed |= named is not columns[given + at]
            columns[given + at] = named
        return changed

    def _ending(self, entities: tuple[str, ...]) -> bytes:
        ending = self._endings.get(entities)
        if ending is None:
            names = orjson.dumps(entities)[:-1]
            separator = b"," if entities and self._features else b""
            ending = b'],"metadata":{"feature_names":' + names + separator + self._names + b"}}"
            if len(self._endings) < 64:
                self._endings[entities] = ending
        return ending


def with_tiers(body: bytes, tiers: dict[str, dict[str, int]]) -> bytes:
    """A JSON answer with which tiers answered, by view, as the last member of its metadata."""
    return body[: -len(b"}}")] + b',"tiers":' + orjson.dumps(tiers) + b"}}"


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
    """What stands between the values of a column and those of the next: statuses and event times."""
    marks = _same(statuses, rows) if isinstance(statuses, Status) else _list([_QUOTED[mark] for mark in statuses])
    return b'],"statuses":' + marks + b',"event_timestamps":' + _event_times(times, rows) + b"}" + _NEXT


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
        if len(times) == 1:
            return _single_time(times[0])
        if len(times) >= _MANY:
            return orjson.dumps(np.array(times, "i8").view("M8[us]"), option=_NUMPY)
        return orjson.dumps([_EPOCH + timedelta(microseconds=time) for time in times], option=orjson.OPT_UTC_Z)
    except (OverflowError, TypeError, orjson.JSONEncodeError):
        return _event_times([min(max(time, EARLIEST), LATEST) for time in times], rows)


@lru_cache(maxsize=_KEPT)
def _single_time(time: int) -> bytes:
    """One event time: rows that were computed together share theirs, so it is often the one before."""
    return orjson.dumps([_EPOCH + timedelta(microseconds=time)], option=orjson.OPT_UTC_Z)


def _list(items: list[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"
