"""Generated events of many keys with a column of every type, as files, and what the oracle says of them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.expressions.aggregates import result_type
from feature_store.expressions.algebra import TABLE as FUNCTIONS
from feature_store.expressions.instants import DAY, HOUR, MINUTE, instant
from feature_store.expressions.relations import DELETED, Computed, LatestRow, Rows, Window
from feature_store.expressions.scalars import bind
from feature_store.storage.online import EVENT_TIME, NO_CREATED
from feature_store.types import (
    BOOL,
    BYTES,
    DATE,
    FLOAT32,
    FLOAT64,
    INT32,
    INT64,
    STRING,
    TIMESTAMP,
    Schema,
    array,
    decimal,
)  # fmt: skip
from tests import oracle
from tests.scalars import to_arrow

VALUES = Schema.of(
    small=INT32,
    n=INT64,
    f=FLOAT32,
    x=FLOAT64,
    y=FLOAT64,
    p=decimal(10, 2),
    q=decimal(38, 0),
    s=STRING,
    raw=BYTES,
    ok=BOOL,
    moment=TIMESTAMP,
    day=DATE,
    tags=array(STRING),
)
KEYS = Schema.of(user_id=INT64)
SCHEMA = Schema((*KEYS, *Schema.of(at=TIMESTAMP, created=TIMESTAMP), *VALUES))
BASES = (0, -(3 * 10**15) - 7, 7 * 10**15)
"""Where keys' times begin: 1970, 1874, 2191."""
_UNITS = (1, MINUTE, 6 * HOUR)


class Event(NamedTuple):
    """An event; times are microseconds, values raw row values in the order of `VALUES`."""

    key: int | None
    at: int | None
    created: int | None = None
    values: tuple[Any, ...] = (None,) * len(VALUES)

    def value(self, name: str) -> Any:
        return self.values[VALUES.names.index(name)]


def event(key: int | None, at: int | None, created: int | None = None, **values: Any) -> Event:
    return Event(key, at, created, tuple(values.get(name) for name in VALUES.names))


def _float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


_NAN, _INF = float("nan"), float("inf")
_DRAWN: dict[str, Any] = {
    "small": lambda rng: rng.choice([-(2**31), 2**31 - 1, rng.randint(-3, 3)]),
    "n": lambda rng: rng.choice([2**58 + 1, -(2**58), 2**53 + 1, rng.randint(-3, 3)]),
    "f": lambda rng: _float32(rng.choice([0.1, -2.5, 1e6, _NAN, rng.uniform(-9, 9)])),
    "x": lambda rng: rng.choice([0.0, -0.0, 0.1, 0.2, -0.3, 1e9 + 1, 1e9 - 1, _NAN, 1e16, -1e16, rng.uniform(-9, 9)]),
    "y": lambda rng: rng.choice([-1.0, 0.0, 1.5, 2.0, _NAN, _INF, -_INF]),
    "p": lambda rng: Decimal(rng.choice([rng.randint(-300, 300), 10**10 - 1])).scaleb(-2),
    "q": lambda rng: Decimal(rng.choice([rng.randint(-3, 3), 10**36, -(10**36)])),
    "s": lambda rng: rng.choice(["", "a", "ab", "é", "z", "\uffff", "😀", "B"]),
    "raw": lambda rng: rng.choice([b"", b"\x00", b"\xff", b"ab", b"\x7f"]),
    "ok": lambda rng: rng.random() < 0.5,
    "moment": lambda rng: rng.choice([-1, 0, 1, rng.randint(-(10**15), 10**16)]),
    "day": lambda rng: rng.randint(-40_000, 90_000),
    "tags": lambda rng: [rng.choice(["a", "b", None]) for _ in range(rng.randint(0, 2))],
}  # fmt: skip


def drawn(rng: random.Random, key: int, at: int, created: int | None) -> Event:
    """An event with values of every type, some of them null."""
    return Event(key, at, created, tuple(None if rng.random() < 0.2 else _DRAWN[name](rng) for name in VALUES.names))


def events(rng: random.Random, keys: int, most: int = 14) -> list[Event]:
    """Up to `most` events a key, in no order; times tie often, some are created late, some come twice."""
    made: list[Event] = []
    for key in range(keys):
        base, unit = BASES[key % len(BASES)], rng.choice(_UNITS)
        for _ in range(rng.randint(0, most)):
            at = base + rng.randint(0, 60) * unit + rng.choice([0, 0, 1])
            created = rng.choice([None, at, base + rng.randint(0, 70) * unit])
            made.append(drawn(rng, key, at, created))
            values = made[-1].values
            if rng.random() < 0.15:
                made.append(made[-1])
            elif rng.random() < 0.3:  # a tie that some value decides
                first = rng.randrange(len(VALUES))
                changed = [_DRAWN[name](rng) for name in VALUES.names[first:]]
                made.append(made[-1]._replace(values=(*values[:first], *changed)))
    rng.shuffle(made)
    return made


def asked(rng: random.Random, made: Sequence[Event], keys: int, count: int) -> list[tuple[int | None, int]]:
    """Keys, unknown and null ones among them, each with a T: at, a moment after and some time after its events."""
    of_key: dict[int | None, list[int]] = {}
    for each in made:
        if each.at is not None:
            of_key.setdefault(each.key, []).append(each.at)
    found: list[tuple[int | None, int]] = []
    for _ in range(count):
        key = rng.choice([*range(keys), keys + 1, None]) if rng.random() < 0.1 else rng.randrange(keys)
        known = of_key.get(key, [0])
        found.append((key, rng.choice(known) + rng.choice([0, 1, -1, 7 * MINUTE, DAY, 3 * DAY])))
    return found


def table(made: Sequence[Event], schema: Schema = SCHEMA) -> pa.Table:
    rows = [(each.key, each.at, each.created, *each.values) for each in made]
    columns = [*zip(*rows, strict=True)] or [()] * len(schema)
    typed = zip(schema.names, columns, schema, strict=True)
    return pa.table({name: to_arrow(list(values), column.type) for name, values, column in typed})


def write(path: Path, made: Sequence[Event], files: int = 1) -> Path:
    """Parquet files in a folder."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        pq.write_table(table(made[number::files]), path / f"{number}.parquet", row_group_size=50)
    return path


def source(path: Path | str | None, schema: Schema = SCHEMA, **changes: Any) -> Rows:
    options: dict[str, Any] = {"timestamp": "at", "created": "created", **changes}
    return Rows("events", schema, path=None if path is None else str(path), **options)


def latest(rows: Rows, *names: str, keys: Schema = KEYS, deleted: str | None = None) -> LatestRow:
    """The latest row, with columns or expressions; `deleted` is the column that deletes."""
    first = [Computed(DELETED, bind(f"coalesce({deleted}, false)", rows.schema))] if deleted else []
    values = [Computed(name, bind(name, rows.schema)) for name in names or VALUES.names]
    return LatestRow(rows, keys, (*first, *values))


def spine(*rows: tuple[int | None, int]) -> pa.Table:
    keys, times = [key for key, _ in rows], [time for _, time in rows]
    return pa.table({"user_id": pa.array(keys, pa.int64()), EVENT_TIME: pa.array(times, pa.int64())})


def moment(text: str) -> int:
    return instant(datetime.fromisoformat(text).replace(tzinfo=UTC))


def days(text: str) -> int:
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


# Windows


def window(
    name: str, function: str, value: str | None, length: int, hop: int,
    where: str | None = None, n: int | None = None, schema: Schema = SCHEMA,
) -> Window:  # fmt: skip
    scalar = None if value is None else bind(value, schema)
    return Window(
        name, function, result_type(function, scalar.type if scalar else None), length, hop, scalar,
        None if where is None else bind(where, schema), n,
    )  # fmt: skip


_REACHES = ((20 * MINUTE, 5 * MINUTE), (40 * MINUTE, 10 * MINUTE), (7 * DAY, HOUR), (12 * DAY, DAY))
_SUMMED = {"sum": "x", "mean": "x", "variance": "x", "stddev": "x"}


def every_window() -> tuple[Window, ...]:
    """Every function over every type that it takes, in windows of several lengths and hops; some with conditions."""
    made = [window("rows", "count", None, *_REACHES[0]), window("dear", "count", None, *_REACHES[2], where="y > 0")]
    pairs = [
        (function, column.name)
        for function, kinds in FUNCTIONS.items()
        for column in VALUES
        if column.type.kind.rstrip("3264") in kinds and not (function in _SUMMED and column.name == "y")
    ]
    for number, (function, name) in enumerate(pairs):
        n = 1 + number % 3 if function == "last_n" else None
        where = "ok" if number % 7 == 0 else None
        made.append(window(f"{function}_{name}", function, name, *_REACHES[number % 4], where=where, n=n))
    return tuple(made)


@dataclass(frozen=True)
class Found:
    """What the oracle is told of a window: its events of a key."""

    window: Window
    events: list[oracle.Event]

    @classmethod
    def of(cls, window: Window, made: Iterable[Event], now: int | None = None) -> Found:
        """Over events of one key; with `now` those known by then."""
        name = getattr(window.value, "name", None)
        passes = {None: lambda each: True, "ok": lambda each: bool(each.value("ok")), "y": _positive}
        check = passes[next(iter(window.where.columns), None) if window.where else None]
        told = [
            oracle.Event(
                each.at,
                None if name is None else _comparable(each.value(name)),
                NO_CREATED if each.created is None else each.created,
                check(each),
            )
            for each in made
            if each.at is not None and (now is None or each.created is None or each.created <= now)
        ]
        return cls(window, told)

    def agrees(self, answer: Any, at: int) -> bool:
        made = self.window
        expected = oracle.windowed(
            made.function, self.events, at, made.length, made.hop, made.n, rows=made.value is None
        )
        if isinstance(expected, list):
            return isinstance(answer, list) and [*map(_comparable, answer)] == expected
        return oracle.agrees(answer, expected, self._slack())

    def _slack(self) -> float:
        return oracle.slack(self.window.function, self.window.type == FLOAT64, [each.value for each in self.events])


def _positive(each: Event) -> bool:
    """NaN is greater than any number."""
    y = each.value("y")
    return y is not None and (y > 0 or y != y)


def _comparable(value: Any) -> Any:
    if isinstance(value, list):
        return ()  # lists are only counted
    return value + 0.0 if isinstance(value, float) else value


# Latest rows


def seen(made: Iterable[Event], key: int | None, deleted: str | None = None) -> list[oracle.Seen]:
    """Of a key. NaN, the greatest number, and lists are told to the oracle as such."""
    return [
        oracle.Seen(
            each.at,
            tuple(map(_ordered, each.values)),
            NO_CREATED if each.created is None else each.created,
            bool(deleted and each.value(deleted)),
        )
        for each in made
        if each.key == key and each.at is not None
    ]


def _ordered(value: Any) -> Any:
    if isinstance(value, float):
        return (value != value, 0.0 if value != value else value + 0.0)
    if isinstance(value, list):
        return [(item is not None, item or "") for item in value]
    return value


def orderly(values: Iterable[Any]) -> tuple[Any, ...]:
    """Values found, as the oracle has them."""
    return tuple(map(_ordered, values))


def unknown_created(made: Iterable[Event]) -> list[Event]:
    """The events as a source without `created` has them."""
    return [each._replace(created=None) for each in made]
