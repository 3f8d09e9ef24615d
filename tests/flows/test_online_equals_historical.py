"""The product in one property: for every (rows, T), online(T) = historical(T) = what the contract says.

The repository is drawn too: its keys, time zone, ttls, windows, hops, functions, schedules, delay and defaults. Rows
arrive in any order, by files, late files, pushes (each of them repeated) and messages of a stream (repeated, and read
again by a worker that follows one that died), between runs of materialize and materialize-incremental; then every
feature, value and status, is compared at T: online with history, and both with a brute-force oracle.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_store import FeatureStore
from feature_store.engines.streams import Messages, TopicId
from feature_store.expressions.instants import DAY, HOUR, MINUTE, Duration, instant
from feature_store.pipelines.stream_task import StreamTask
from tests.oracle import Event, Seen, agrees, hop_of, latest, slack, windowed

pytestmark = pytest.mark.timeout(600)

START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
BID = 2.0
NUMBERS = ("sum", "mean", "min", "max", "variance", "stddev", "first", "last", "last_n", "count_distinct")
TEXTS = ("min", "max", "first", "last", "last_n", "count_distinct")
TINY = 1e-290  # of smaller doubles not all twelve digits are there
DEFAULTS = {"INT64": -9, "FLOAT64": -1.0, "STRING": "none"}


@dataclass(frozen=True)
class Keys:
    """The join keys of a repository, three keys that have rows and, last, one that has none."""

    types: dict[str, str]
    values: tuple[tuple[Any, ...], ...]


KEYS = [
    Keys({"user_id": "INT64"}, ((1,), (2,), (-3,), (99,))),
    Keys({"user_id": "STRING"}, (("1",), ("Ä",), ("",), ("01",))),
    Keys({"user_id": "STRING", "place": "STRING"}, (("1", "23"), ("12", "3"), ("1", "2"), ("123", ""))),
    Keys({"user_id": "INT64", "place": "STRING"}, ((1, "23"), (12, "3"), (1, "2"), (2, "1"))),
]


@dataclass(frozen=True)
class Window:
    """A windowed aggregate; `only_a`: of the rows of kind 'a'."""

    function: str
    column: str | None
    length: int
    hop: int | None = None
    only_a: bool = False
    filled: bool = False

    @property
    def rounds(self) -> bool:
        """Whether the answer is a double that was computed, and not taken from a row."""
        return self.function in ("mean", "variance", "stddev") or (self.function == "sum" and self.column == "price")

    @property
    def default(self) -> Any:
        """What fills the answer where it is null."""
        if not self.filled or self.function in ("count", "count_distinct"):
            return None
        kind = "FLOAT64" if self.rounds or self.column == "price" else "INT64" if self.column == "item" else "STRING"
        return [DEFAULTS[kind]] if self.function == "last_n" else DEFAULTS[kind]

    def definition(self, name: str) -> dict[str, Any]:
        spelled = {
            "name": name,
            "function": "last_n(3)" if self.function == "last_n" else self.function,
            "column": self.column,
            "window": str(Duration(self.length)),
            "hop": self.hop and str(Duration(self.hop)),
            "where": "kind = 'a'" if self.only_a else None,
            "default": self.default,
        }
        return {key: value for key, value in spelled.items() if value is not None}

    def at(self, found: list[Row], at: int) -> Any:
        """The value at T and its status."""
        events = [
            Event(
                row.at, getattr(row, self.column) if self.column else 1, row.seen_at, not self.only_a or row.kind == "a"
            )
            for row in found
        ]
        hop = self.hop or hop_of(self.length)
        n = 3 if self.function == "last_n" else None
        value = windowed(self.function, events, at, self.length, hop, n, rows=self.column is None)
        return (self.default, "NULL_VALUE") if value is None else (value, "PRESENT")

    def slack(self, found: list[Row]) -> float:
        """What rounding may leave of a double that was computed from these rows."""
        assert self.column is not None
        return max(slack(self.function, self.rounds, [getattr(row, self.column) for row in found]), TINY)


@dataclass(frozen=True)
class Repo:
    """What is drawn of a repository."""

    keys: Keys
    timezone: str
    present_ttl: int | None
    latest_ttl: int | None
    filled: tuple[bool, bool, bool]  # of price, kind and the query's most
    short: Window
    long: Window
    moving: tuple[Window, ...]
    schedule: str | None
    daily: tuple[Window, ...]
    delay: int

    @property
    def windows(self) -> dict[str, Window]:
        """The aggregates that move with T, by name."""
        return {"short": self.short, "long": self.long, **{f"m{i}": each for i, each in enumerate(self.moving)}}

    @property
    def snapshots(self) -> dict[str, Window]:
        """The aggregates of the last boundary, by name."""
        return {f"d{i}": each for i, each in enumerate(self.daily)}

    def default(self, place: int, value: Any) -> Any:
        return value if self.filled[place] else None

    def definitions(self) -> str:
        return yaml.safe_dump_all(self._documents(), allow_unicode=True)

    def _documents(self) -> list[dict[str, Any]]:
        names = list(self.keys.types)
        files = {"path": "data/events", "timestamp": "at", "created": "seen_at"}
        typed = self.keys.types | {"at": "TIMESTAMP", "seen_at": "TIMESTAMP"}
        typed |= {"id": "INT64", "price": "FLOAT64", "item": "INT64", "kind": "STRING"}
        sources = [
            {
                "name": "events",
                **files,
                "columns": [{"name": name, "type": type_} for name, type_ in typed.items()],
                "unique": ["id"],
                "stream": {"push": True, "kafka": {"topic": "events"}},
            },
            {"name": "batch_events", **files},
            {
                "name": "changes",
                **files,
                "deleted": "gone",
                "stream": {"push": True, "kafka": {"topic": "changes"}},
            },
        ]
        views = [
            _view(
                name="present",
                source="changes",
                features=[_field("last_item", "INT64", -9, column="item")],
                ttl=_length(self.present_ttl),
            ),
            _view(
                name="latest",
                source="events",
                features=[
                    _field("price", "FLOAT64", self.default(0, -1.0)),
                    _field("kind", "STRING", self.default(1, "none")),
                ],
                ttl=_length(self.latest_ttl),
            ),
            _view(
                name="moving",
                source="events",
                aggregations=[each.definition(name) for name, each in self.windows.items()],
            ),
            _view(
                name="daily",
                source="batch_events",
                schedule=self.schedule,
                aggregations=[each.definition(name) for name, each in self.snapshots.items()],
            ),
            _view(
                name="queried",
                schedule="daily",
                delay=_length(self.delay or None),
                sql=f"SELECT {', '.join(names)}, COUNT(*) AS n, MAX(item) AS most FROM batch_events "
                "WHERE at >= date_sub('${date}', 6) AND at < date_add('${date}', 1) "
                f"GROUP BY {', '.join(names)}",
                features=[_field("n", "INT64"), _field("most", "INT64", self.default(2, 0))],
            ),
        ]
        entities = [{"name": f"by_{name}", "join_key": name, "type": type_} for name, type_ in self.keys.types.items()]
        mixed = {
            "name": "mixed",
            "inputs": [{"request": [{"name": "bid", "type": "FLOAT64"}]}, "moving", "latest"],
            "features": [
                {"name": "rate", "type": "FLOAT64", "expression": "short / long", "default": 0.5},
                {"name": "worth", "type": "FLOAT64", "expression": "price * bid"},
            ],
        }
        everything = ["present", "latest", "moving", "daily", "queried", "mixed"]
        return [
            {"entities": entities},
            {"sources": sources},
            {"feature_views": [view | {"entities": [each["name"] for each in entities]} for view in views]},
            {"on_demand_feature_view": mixed},
            {"feature_service": {"name": "everything", "features": everything}},
        ]


def _view(**keys: Any) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}


def _field(name: str, type_: str, default: Any = None, column: str | None = None) -> dict[str, Any]:
    return _view(name=name, type=type_, default=default, column=column)


def _length(micros: int | None) -> str | None:
    return None if micros is None else str(Duration(micros))


LENGTHS = st.sampled_from([5 * MINUTE, HOUR, 90 * MINUTE, 12 * HOUR, 36 * HOUR, 7 * DAY, 12 * DAY, 30 * DAY])
HOPS = [None, None, MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY, 2 * DAY]


@st.composite
def windows(draw: st.DrawFn, of: tuple[str, str | None] | None = None, only_a: bool | None = None) -> Window:
    """Any aggregate, or one `of` a function and a column."""
    columns = st.sampled_from([("price", NUMBERS), ("item", NUMBERS), ("kind", TEXTS)])
    column, functions = draw(columns) if of is None else (of[1], (of[0],))
    length = draw(LENGTHS)
    return Window(
        draw(st.sampled_from(functions)),
        column,
        length,
        draw(st.sampled_from([hop for hop in HOPS if hop is None or hop <= length])),
        draw(st.booleans()) if only_a is None else only_a,
        draw(st.booleans()),
    )


ttls = st.sampled_from([None, 3 * HOUR, 3 * DAY, 9 * DAY])
repos = st.builds(
    Repo,
    st.sampled_from(KEYS),
    st.sampled_from(["UTC", "Asia/Kathmandu", "America/New_York", "Europe/Vienna"]),  # two change their clocks in March
    ttls,
    ttls,
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    windows(("count", None), only_a=False),
    windows(("count", None), only_a=True),
    st.lists(windows(), min_size=1, max_size=6).map(tuple),
    st.sampled_from([None, "daily", "0 6 * * *"]),
    st.lists(windows(), min_size=1, max_size=3).map(tuple),
    st.sampled_from([0, 3 * HOUR, 30 * HOUR]),
)


@dataclass(frozen=True)
class Row:
    id: int
    user: int  # its place among the keys
    at: int
    lag: int
    price: float | None
    item: int | None
    kind: str | None
    gone: bool | None
    batch: int  # 0..2: the file it comes in; 3: pushed; 4: streamed

    @property
    def seen_at(self) -> int:
        return self.at + self.lag


FINE = [0, 0, 1, 299_999_999, 300_000_000, HOUR - 1]
CLOCKS_CHANGE = (175, 673)  # hours after START: of New York and of Vienna


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[Row]]:
    """T, and rows of which most are younger than two days or about as old as a window is long: where it matters."""
    hours = st.one_of(st.integers(1, 41 * 24), *(st.integers(change, change + 30) for change in CLOCKS_CHANGE))
    hour = START + draw(hours) * HOUR
    ages = st.one_of(st.integers(0, 48), LENGTHS.map(lambda length: length // HOUR), st.integers(0, 40 * 24))
    row = st.tuples(
        st.integers(0, 2),
        st.builds(lambda age, fine: max(START, hour - age * HOUR + fine), ages, st.sampled_from(FINE)),
        st.sampled_from([0, MINUTE, 600 * MINUTE]),
        st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(float("nan"))),
        st.one_of(st.none(), st.integers(-5, 5)),
        st.one_of(st.none(), st.sampled_from(["a", "b", "Ä", ""])),
        st.sampled_from([None, False, True]),
        st.integers(0, 4),
    )
    found = draw(st.lists(row, max_size=25) | st.lists(row, min_size=12, max_size=25))
    return hour + draw(st.sampled_from(FINE)), [Row(number, *each) for number, each in enumerate(found)]


orders = st.permutations([0, 1, 2, 3, 4])


@given(repos, histories(), orders)
@settings(max_examples=18, deadline=None, suppress_health_check=list(HealthCheck))
def test_sqlite(repo: Repo, history: tuple[int, list[Row]], order: list[int]) -> None:
    check(repo, *history, order, "sqlite:///data/online.db")


@given(repos, histories(), orders)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_redis(redis_url: str, repo: Repo, history: tuple[int, list[Row]], order: list[int]) -> None:
    check(repo, *history, order, redis_url)


def check(repo: Repo, at: int, found: list[Row], order: list[int], online: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = _repository(root, repo, online)
        try:
            arrived = [row for row in found if row.at <= at]
            _arrive(store, root, repo.keys, arrived, order, at)
            _compare(store, repo, arrived, at)
        finally:
            store.teardown()
            store.close()


def _repository(root: Path, repo: Repo, online: str) -> FeatureStore:
    (root / "data" / "events").mkdir(parents=True)
    _write(root, "empty", repo.keys, [])
    (root / "feature_store.yaml").write_text(f"project: flow\nonline_store: {online}\ntimezone: {repo.timezone}\n")
    (root / "features.yaml").write_text(repo.definitions(), encoding="utf-8")
    store = FeatureStore(root)
    store.apply()
    return store


def _arrive(store: FeatureStore, root: Path, keys: Keys, found: list[Row], order: list[int], at: int) -> None:
    """Files and pushes come in some order; after each, something is materialized; at last everything up to T."""
    for turn, batch in enumerate(order):
        part = [row for row in found if row.batch == batch]
        if batch < 3:
            _write(root, f"part{batch}", keys, part)
        if batch == 3 and part:
            for _ in range(2):
                store.push("events", _table(keys, part).drop_columns(["gone"]), to="online_and_offline")
                store.push("changes", _table(keys, part), to="online_and_offline")
        if batch == 4:
            for source in ("events", "changes"):
                _stream(store, source, keys, part, order, at)
        if turn == 0:
            store.materialize(_time(START), _time(max(START, at - 5 * DAY)))
        elif turn % 2:
            store.materialize_incremental(_time(at - (4 - turn) * DAY))
    store.materialize_incremental(_time(at))


def _stream(store: FeatureStore, source: str, keys: Keys, found: list[Row], order: list[int], at: int) -> None:
    """Each row as two messages of its partition, in an order of its own, taken in batches by workers of which all but
    the last die before they have landed anything."""
    rows = sorted([*found, *found], key=lambda row: (row.id * 7 + order[0]) % 5)
    topic = [
        Messages.of(_messages(keys, [row for row in rows if row.id % 2 == half]), half, produced=at) for half in (0, 1)
    ]
    ranges = {half: (0, len(messages)) for half, messages in enumerate(topic)}
    for last in (False, True):
        task = StreamTask(store, source, "worker", clock=lambda: at)
        starts = task.assigned(TopicId(source), ranges, ranges)
        for half, messages in enumerate(topic):
            for first in range(starts[half], len(messages), 1 + order[1]):
                here = np.arange(first, min(first + 1 + order[1], len(messages)))
                assert not task.handle(messages.take(here))
                if not last and first > len(messages) // 2:
                    break
        (task.close if last else task.abandon)()


def _messages(keys: Keys, found: list[Row]) -> list[bytes]:
    return [
        json.dumps(
            {
                "id": row.id,
                **dict(zip(keys.types, keys.values[row.user], strict=True)),
                "at": _time(row.at).isoformat(),
                "seen_at": _time(row.seen_at).isoformat(),
                "price": "NaN" if row.price != row.price else row.price,
                "item": row.item,
                "kind": row.kind,
                "gone": row.gone,
            }
        ).encode()
        for row in found
    ]


def _compare(store: FeatureStore, repo: Repo, found: list[Row], at: int) -> None:
    asked = repo.keys.values
    names = [str(ref) for ref in store.catalog.resolve("everything")]
    rows = dict(zip(repo.keys.types, map(list, zip(*asked, strict=True)), strict=True)) | {"bid": [BID] * len(asked)}
    response = store.online.get("everything", rows, now=at)
    spine = pa.table(rows | {"event_timestamp": pa.array([at] * len(asked), pa.timestamp("us", "UTC"))})
    historical = store.get_historical_features(spine, "everything", statuses=True).to_arrow()
    for index, key in enumerate(asked):
        of_key = [row for row in found if row.user == index]
        expected = _expected(repo, of_key, at)
        slacks = {name: each.slack(of_key) for name, each in (repo.windows | repo.snapshots).items() if each.rounds}
        for name in names:
            feature = name.partition(":")[2]
            position = response.names.index(feature)
            online = response.cells[position][0][index], response.statuses(feature)[index].name
            past = historical[feature][index].as_py(), historical[f"{feature}__status"][index].as_py()
            shown = f"{name} of {key}: online {online}, historical {past}, expected {expected[feature]}"
            assert online[1] == past[1] == expected[feature][1], shown
            assert _same(online[0], past[0], slacks.get(feature)), shown
            assert _same(online[0], expected[feature][0], slacks.get(feature)), shown
            assert _same(past[0], expected[feature][0], slacks.get(feature)), shown


def _same(value: Any, other: Any, slack: float | None) -> bool:
    """Equal, also in type; NaN is NaN. With `slack`, doubles that were computed may differ in their last digits."""
    if slack is not None:
        return agrees(value, other, slack)
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other, [None] * len(value)))
    if value != value and other != other:
        return True
    return type(value) is type(other) and bool(value == other)


def _expected(repo: Repo, found: list[Row], at: int) -> dict[str, tuple[Any, str]]:
    """Every feature of one key at T by the contract's words: pushed and streamed rows are no part of `batch_events`."""
    files = [row for row in found if row.batch < 3]
    out: dict[str, tuple[Any, str]] = {}
    changes = [Seen(row.at, (row.item,), row.seen_at, bool(row.gone)) for row in found]
    how, last = latest(changes, at, repo.present_ttl)
    item = last.values[0] if last and how == "FOUND" else None
    out["last_item"] = (-9, "NULL_VALUE" if how == "FOUND" else how) if item is None else (item, "PRESENT")
    for name, cell, default in zip(
        ("price", "kind"), _latest(repo, found, at), (repo.default(0, -1.0), repo.default(1, "none")), strict=True
    ):
        out[name] = cell if cell[1] == "PRESENT" else (default, cell[1])
    out |= {name: each.at(found, at) for name, each in repo.windows.items()}
    boundary = _boundary(repo, 6 if repo.schedule == "0 6 * * *" else 0, at)
    out |= {name: each.at(files, boundary) for name, each in repo.snapshots.items()}
    end = instant(_day(repo, at - repo.delay))  # of ${date}, in the query's own UTC
    week = [row for row in files if end - 7 * DAY <= row.at < end]
    items = [row.item for row in week if row.item is not None]
    out["n"] = (len(week), "PRESENT") if week else (None, "NOT_FOUND")
    most = max(items) if items else repo.default(2, 0)
    out["most"] = (most, "PRESENT" if items else "NULL_VALUE" if week else "NOT_FOUND")
    short, long = out["short"][0], out["long"][0]
    out["rate"] = (short / long, "PRESENT") if long else (0.5, "NULL_VALUE")
    price = out["price"][0]
    out["worth"] = (price * BID, "PRESENT") if price is not None else (None, "NULL_VALUE")
    return out


def _day(repo: Repo, at: int) -> date:
    return _time(at).astimezone(ZoneInfo(repo.timezone)).date()


def _boundary(repo: Repo, hour: int, at: int) -> int:
    """The last instant up to T at which the clocks of the time zone say this hour."""
    days = [_day(repo, at) - timedelta(days=back) for back in (0, 1)]
    starts = [instant(datetime.combine(day, time(hour), ZoneInfo(repo.timezone))) for day in days]
    return next(start for start in starts if start <= at)


def _latest(repo: Repo, found: list[Row], at: int) -> list[tuple[Any, str]]:
    seen = [Seen(row.at, (_ordered(row.price), row.kind), row.seen_at) for row in found]
    kind, row = latest(seen, at, repo.latest_ttl)
    if kind != "FOUND" or row is None:
        return [(None, kind)] * 2
    values = (None if row.values[0] is None else row.values[0][1], row.values[1])
    return [(value, "NULL_VALUE" if value is None else "PRESENT") for value in values]


def _ordered(value: float | None) -> tuple[bool, float] | None:
    """NaN is the greatest."""
    return None if value is None else (value != value, value if value == value else float("nan"))


def _write(root: Path, name: str, keys: Keys, found: list[Row]) -> None:
    pq.write_table(_table(keys, found), root / "data" / "events" / f"{name}.parquet")


def _table(keys: Keys, found: list[Row]) -> pa.Table:
    stamp = pa.timestamp("us", "UTC")
    keyed = {
        name: pa.array([keys.values[row.user][place] for row in found], pa.int64() if type_ == "INT64" else pa.string())
        for place, (name, type_) in enumerate(keys.types.items())
    }
    return pa.table(
        {
            "id": pa.array([row.id for row in found], pa.int64()),
            **keyed,
            "at": pa.array([row.at for row in found], stamp),
            "seen_at": pa.array([row.seen_at for row in found], stamp),
            "price": pa.array([row.price for row in found], pa.float64()),
            "item": pa.array([row.item for row in found], pa.int64()),
            "kind": pa.array([row.kind for row in found], pa.string()),
            "gone": pa.array([row.gone for row in found], pa.bool_()),
        }
    )


def _time(micros: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


if __name__ == "__main__":
    pytest.main([__file__])
