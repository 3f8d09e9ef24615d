"""A made-up advertising platform as Parquet: users, ads, impressions, clicks, conversions; equal for equal seeds.

What is in it, so that what a model finds can be judged:

- Activity is heavy-tailed: users and ads are drawn with Zipf weights, and the day and the week have a rhythm.
- Users and ads have hidden taste, vectors around the centre of their group (age and gender; industry). A click has the
  probability `examined(position) * sigmoid(bias + user + ad + slope * user taste . ad taste)`. Ranking by that very
  probability scores an AUC of about 0.84, the ceiling of any model; by position alone about 0.61, the position bias.
- Some clicks convert, hours or days later (log-normal), and a conversion later than the end has not happened yet.
- 2 % of the events arrive late (`ingested_at` hours after `event_time`), 0.5 % arrive twice (equal `impression_id`).

Memory is bounded by the number of users and ads and one chunk of events, whatever the number of events.
`python -m feature_store.templates.generator OUT --events 1000000`
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.errors import UsageError
from feature_store.expressions.instants import DAY, HOUR, MINUTE, SECOND, instant, to_datetime

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Columns = dict[str, Any]

END = "2026-11-01T00:00:00Z"
POSITIONS = 5
EXAMINED = np.array([1.0, 0.72, 0.55, 0.43, 0.35])
COUNTRIES = np.array(["CN", "US", "DE", "JP", "BR", "IN"])
SYSTEMS = np.array(["android", "ios", "windows", "macos", "other"])
INDUSTRIES = np.array(
    [
        "games",
        "retail",
        "finance",
        "travel",
        "education",
        "food",
        "cars",
        "health",
        "software",
        "media",
        "home",
        "sport",
    ]
)
_TASTES = 8
_BIAS, _SLOPE, _OF_USER, _OF_AD = -3.4, 1.25, 0.35, 0.45
_LATE, _TWICE, _CONVERTS, _FREE = 0.02, 0.005, 0.12, 0.05
_STREAMS = {"users": 1, "ads": 2, "user rows": 3, "ad rows": 4, "events": 5}
_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class World:
    """What is generated: how many impressions and over which days, how many users and ads, from which seed.

    `end` is an instant in microseconds: nothing happens or arrives after it. Everything follows from these values.
    """

    events: int = 100_000
    days: int = 30
    users: int = 0
    ads: int = 0
    seed: int = 7
    end: int = instant(END)
    chunk: int = 500_000

    def __post_init__(self) -> None:
        if self.events < 1 or self.days < 1 or self.chunk < 1:
            raise UsageError(f"events, days and chunk must be at least 1, not {self.events}, {self.days}, {self.chunk}")
        object.__setattr__(self, "users", self.users or int(np.clip(self.events // 20, 50, 2_000_000)))
        object.__setattr__(self, "ads", self.ads or int(np.clip(self.events // 500, 20, 100_000)))

    @property
    def start(self) -> int:
        return self.end - self.days * DAY

    def rng(self, stream: str, *part: int) -> np.random.Generator:
        """A generator of its own for each part of the world, so that parts do not depend on each other's order."""
        return np.random.default_rng([self.seed, _STREAMS[stream], *part])

    @cached_property
    def people(self) -> People:
        return _people(self)

    @cached_property
    def catalogue(self) -> Catalogue:
        return _catalogue(self)

    def click_probability(self, user_id: Ints, ad_id: Ints, position: Ints) -> Floats:
        """The true probability of a click, which no feature states."""
        user, ad = user_id - 1, ad_id - 1
        people, catalogue = self.people, self.catalogue
        affinity = np.einsum("ij,ij->i", people.taste[user], catalogue.taste[ad]) / np.sqrt(_TASTES)
        logit = _BIAS + _SLOPE * affinity + _OF_USER * people.bias[user] + _OF_AD * catalogue.bias[ad]
        chance: Floats = EXAMINED[position - 1] / (1.0 + np.exp(-logit.astype(np.float64)))
        return chance


@dataclass(frozen=True)
class People:
    """The users, by position user_id - 1."""

    age: Ints
    gender: Ints
    country: Ints
    system: Ints
    taste: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    reach: Floats


@dataclass(frozen=True)
class Catalogue:
    """The ads, by position ad_id - 1. `reach` is the running sum of how often an ad is shown, ending at 1."""

    industry: Ints
    advertiser: Ints
    bid: Floats
    taste: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    reach: Floats


def _zipf_reach(rng: np.random.Generator, count: int, offset: float, exponent: float) -> Floats:
    total: Floats = np.cumsum(rng.permutation((np.arange(count) + offset) ** -exponent))
    total /= total[-1]
    return total


def _people(world: World) -> People:
    rng, n = world.rng("users"), world.users
    age = np.clip(rng.normal(34, 13, n), 13, 90).astype(np.int64)
    gender = rng.choice(3, n, p=[0.06, 0.46, 0.48])
    centres = rng.normal(0, 0.8, (6, 3, _TASTES))
    taste = centres[np.minimum(age // 15, 5), gender] + rng.normal(0, 0.75, (n, _TASTES))
    return People(
        age=age,
        gender=gender.astype(np.int64),
        country=rng.choice(len(COUNTRIES), n, p=[0.4, 0.2, 0.12, 0.1, 0.1, 0.08]),
        system=rng.choice(len(SYSTEMS), n, p=[0.46, 0.3, 0.14, 0.07, 0.03]),
        taste=taste.astype(np.float32),
        bias=rng.normal(0, 1, n).astype(np.float32),
        reach=_zipf_reach(rng, n, 10.0, 0.85),
    )


def _catalogue(world: World) -> Catalogue:
    rng, n = world.rng("ads"), world.ads
    industry = rng.choice(len(INDUSTRIES), n)
    centres = rng.normal(0, 0.8, (len(INDUSTRIES), _TASTES))
    return Catalogue(
        industry=industry,
        advertiser=rng.integers(1, max(2, n // 5) + 1, n),
        bid=np.round(rng.lognormal(-0.5, 0.6, n), 2) + 0.01,
        taste=(centres[industry] + rng.normal(0, 0.75, (n, _TASTES))).astype(np.float32),
        bias=rng.normal(0, 1, n).astype(np.float32),
        reach=_zipf_reach(rng, n, 2.0, 1.0),
    )


def _versions(world: World, rng: np.random.Generator, count: int, mean: float) -> tuple[Ints, Ints, Ints]:
    """The rows of a slowly changing table: position of the thing, time of the row, and which version it is (0, 1, ...).

    The first version is older than any event; the others fall into the days of the world.
    """
    extra = rng.poisson(mean, count)
    first = world.start - rng.integers(DAY, 400 * DAY, count)
    things = np.concatenate([np.arange(count), np.repeat(np.arange(count), extra)])
    later = rng.integers(world.start, world.end, int(extra.sum()))
    times = np.concatenate([first, later])
    order = np.lexsort((times, things))
    things, times = things[order], times[order]
    starts = np.searchsorted(things, things, side="left")
    return things, times, np.arange(len(things)) - starts


def _arrival(world: World, rng: np.random.Generator, times: Ints) -> Ints:
    """When the platform learns of rows: after seconds; of a few, hours later."""
    late = rng.random(len(times)) < _LATE
    delay = rng.exponential(20 * SECOND, len(times))
    delay += np.where(late, np.minimum(rng.lognormal(1.0, 0.9, len(times)), 48) * HOUR, 0)
    return times + delay.astype(np.int64)


def _blocks(total: int, size: int) -> Iterator[tuple[int, int, int]]:
    for number, low in enumerate(range(0, total, size)):
        yield number, low, min(low + size, total)


def user_rows(world: World) -> Iterator[Columns]:
    """The versions of the users: they grow older, move, change their phone; the gender of some is not known (null)."""
    people = world.people
    for number, low, high in _blocks(world.users, world.chunk):
        rng = world.rng("user rows", number)
        things, times, version = _versions(world, rng, high - low, 0.6)
        who = things + low
        gender = people.gender[who]
        yield {
            "user_id": who + 1,
            "age": people.age[who] + (version > 1),
            "gender": pa.array(gender, mask=gender == 0),
            "country": COUNTRIES[(people.country[who] + version * (who % 7 == 0)) % len(COUNTRIES)],
            "os": SYSTEMS[(people.system[who] + version * (who % 3 == 0)) % len(SYSTEMS)],
            "updated_at": times,
            "ingested_at": _arrival(world, rng, times),
        }


def ad_rows(world: World) -> Iterator[Columns]:
    """The versions of the ads: their bid moves."""
    ads = world.catalogue
    for number, low, high in _blocks(world.ads, world.chunk):
        rng = world.rng("ad rows", number)
        things, times, _ = _versions(world, rng, high - low, 2.0)
        which = things + low
        yield {
            "ad_id": which + 1,
            "industry": INDUSTRIES[ads.industry[which]],
            "advertiser_id": ads.advertiser[which],
            "bid": np.round(ads.bid[which] * rng.uniform(0.8, 1.25, len(which)), 2),
            "updated_at": times,
            "ingested_at": _arrival(world, rng, times),
        }


def _rhythm() -> Floats:
    """The share of a day's events before each minute: quiet before dawn, busiest at eight in the evening."""
    hour = (np.arange(1440) + 0.5) / 60
    density = 1 + 0.65 * np.cos((hour - 20) / 24 * 2 * np.pi) + 0.25 * np.cos((hour - 8.5) / 12 * 2 * np.pi)
    total: Floats = np.concatenate([[0.0], np.cumsum(density)])
    total /= total[-1]
    return total


_MINUTES = np.arange(1441) * MINUTE
_BEFORE = _rhythm()


def _calendar(world: World) -> list[tuple[int, int, float, float]]:
    """For each UTC day of the world: its start, how many events, and the shares of the day's rhythm it covers."""
    first, last = world.start // DAY, (world.end - 1) // DAY
    starts = np.arange(first, last + 1) * DAY
    low = np.interp(np.maximum(world.start - starts, 0), _MINUTES, _BEFORE)
    high = np.interp(np.minimum(world.end - starts, DAY), _MINUTES, _BEFORE)
    weekend = (starts // DAY + 3) % 7 >= 5
    share = np.cumsum((high - low) * np.where(weekend, 1.25, 1.0))
    until = np.round(share / share[-1] * world.events).astype(np.int64)
    counts = np.diff(until, prepend=0)
    return list(zip(starts.tolist(), counts.tolist(), low.tolist(), high.tolist(), strict=True))


@dataclass(frozen=True)
class Chunk:
    """Some of the events of one day, in the order they happened."""

    day: int
    number: int
    impressions: Columns
    clicks: Columns
    conversions: Columns
    clicked: npt.NDArray[np.bool_]


def chunks(world: World) -> Iterator[Chunk]:
    """The events, a day after another, at most `world.chunk` impressions at a time."""
    first_id = 1
    for day, count, low, high in _calendar(world):
        for number, start, stop in _blocks(count, world.chunk):
            rng = world.rng("events", day // DAY, number)
            share = low + (high - low) * (np.arange(start, stop) + rng.random(stop - start)) / count
            times = day + np.interp(share, _BEFORE, _MINUTES).astype(np.int64)
            times = np.clip(times, world.start, world.end - 1)
            yield _chunk(world, rng, day, number, times, first_id + start)
        first_id += count


def _chunk(world: World, rng: np.random.Generator, day: int, number: int, times: Ints, first_id: int) -> Chunk:
    n = len(times)
    user_id = np.searchsorted(world.people.reach, rng.random(n), side="right") + 1
    ad_id = np.searchsorted(world.catalogue.reach, rng.random(n), side="right") + 1
    position = rng.integers(1, POSITIONS + 1, n)
    other = rng.random(n) < 0.1
    system = np.where(other, rng.integers(0, len(SYSTEMS), n), world.people.system[user_id - 1])
    clicked = rng.random(n) < world.click_probability(user_id, ad_id, position)
    base = {"impression_id": first_id + np.arange(n), "user_id": user_id, "ad_id": ad_id}
    impressions = {**base, "position": position, "os": SYSTEMS[system], "event_time": times}
    clicks = {name: column[clicked] for name, column in base.items()}
    count = len(clicks["ad_id"])
    wait = np.minimum(rng.lognormal(1.8, 1.0, count), 1800) * SECOND
    clicks["event_time"] = times[clicked] + wait.astype(np.int64)
    paid = rng.uniform(0.5, 1.0, count) * (rng.random(count) >= _FREE)
    clicks["price"] = np.round(world.catalogue.bid[clicks["ad_id"] - 1] * paid, 2)
    return Chunk(day, number, impressions, clicks, _conversions(rng, clicks), clicked)


def _conversions(rng: np.random.Generator, clicks: Columns) -> Columns:
    chosen = rng.random(len(clicks["ad_id"])) < _CONVERTS
    rows: Columns = {name: clicks[name][chosen] for name in ("impression_id", "user_id", "ad_id")}
    n = len(rows["ad_id"])
    delay = np.minimum(rng.lognormal(np.log(3.0), 1.3, n), 14 * 24) * HOUR
    rows["event_time"] = clicks["event_time"][chosen] + delay.astype(np.int64)
    rows["amount"] = np.round(rng.lognormal(3.0, 0.8, n), 2)
    return rows


def _arrived(world: World, rng: np.random.Generator, rows: Columns) -> pa.Table:
    """The rows as they came in: with arrival time, some twice, in the order of arrival, none from after the end."""
    ingested = _arrival(world, rng, rows["event_time"])
    again = np.flatnonzero(rng.random(len(ingested)) < _TWICE)
    later = ingested[again] + (rng.lognormal(1.0, 1.0, len(again)) * MINUTE).astype(np.int64)
    picked = np.concatenate([np.arange(len(ingested)), again])
    ingested = np.concatenate([ingested, later])
    keep = np.flatnonzero(ingested < world.end)
    keep = keep[np.argsort(ingested[keep], kind="stable")]
    columns = {name: column[picked[keep]] for name, column in rows.items()}
    return _table({**columns, "ingested_at": ingested[keep]})


def _table(columns: Columns) -> pa.Table:
    """Arrow columns; those named like a time become timestamps in UTC."""
    arrays = {name: pa.array(column) for name, column in columns.items()}
    for name in ("event_time", "ingested_at", "updated_at", "event_timestamp", "request_time"):
        if name in arrays:
            arrays[name] = arrays[name].cast(_TIME)
    return pa.table(arrays)


class _Partitions:
    """Writes events as Hive partitions `dt=YYYY-MM-DD`, holding back the few that fall on later days."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waiting: dict[int, list[pa.Table]] = defaultdict(list)
        self.rows = 0
        self.files: dict[int, int] = defaultdict(int)

    def write(self, table: pa.Table, day: int) -> None:
        path = self.folder / f"dt={to_datetime(day):%Y-%m-%d}"
        path.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path / f"part-{self.files[day]:05}.parquet", compression="zstd")
        self.files[day] += 1
        self.rows += table.num_rows

    def hold(self, table: pa.Table) -> None:
        days = table["event_time"].cast(pa.int64()).to_numpy() // DAY * DAY
        for day in np.unique(days).tolist():
            self.waiting[day].append(table.filter(pa.array(days == day)))

    def flush(self, until: int) -> None:
        for day in sorted(day for day in self.waiting if day <= until):
            self.write(pa.concat_tables(self.waiting.pop(day)), day)


def _labelled(world: World, chunk: Chunk, share: float) -> pa.Table:
    """Some of the impressions, as a training set starts: what was shown to whom and when, and if it was clicked."""
    rows = chunk.impressions
    picked = np.flatnonzero((rows["impression_id"] * 2654435761 % 2**32) < share * 2**32)
    return _table(
        {
            "user_id": rows["user_id"][picked],
            "ad_id": rows["ad_id"][picked],
            "event_timestamp": rows["event_time"][picked],
            "request_time": rows["event_time"][picked],
            "os": rows["os"][picked],
            "position": rows["position"][picked],
            "clicked": chunk.clicked[picked].astype(np.int64),
        }
    )


def _write_dimension(folder: Path, parts: Iterator[Columns]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    rows = 0
    for number, columns in enumerate(parts):
        table = _table(columns)
        pq.write_table(table, folder / f"part-{number:05}.parquet", compression="zstd")
        rows += table.num_rows
    return rows


def generate(out: Path, world: World, progress: Callable[[int], object] | None = None) -> dict[str, int]:
    """Write the world under `out` and return the number of rows of each table.

    `dim_user`, `dim_ad`; `dwd_ad_impression`, `dwd_ad_click`, `dwd_ad_conversion` in Hive partitions; and
    `impressions_labelled.parquet`, at most about 10,000 impressions with their outcome. `progress` is told how many
    impressions have been written. `UsageError` if a table is there already.
    """
    names = ("dim_user", "dim_ad", "dwd_ad_impression", "dwd_ad_click", "dwd_ad_conversion")
    for name in names:
        if (out / name).exists():
            raise UsageError(f"{out / name} exists already", hint="Give another folder, or remove it first")
    counts = {
        "dim_user": _write_dimension(out / "dim_user", user_rows(world)),
        "dim_ad": _write_dimension(out / "dim_ad", ad_rows(world)),
    }
    impressions, clicks, conversions = (_Partitions(out / name) for name in names[2:])
    labelled, done = [], 0
    for chunk in chunks(world):
        rng = world.rng("events", chunk.day // DAY, chunk.number, 1)
        impressions.write(_arrived(world, rng, chunk.impressions), chunk.day)
        clicks.hold(_arrived(world, rng, chunk.clicks))
        conversions.hold(_arrived(world, rng, chunk.conversions))
        labelled.append(_labelled(world, chunk, min(1.0, 10_000 / world.events)))
        for held in (clicks, conversions):
            held.flush(chunk.day - DAY)
        done += len(chunk.clicked)
        if progress:
            progress(done)
    for held in (clicks, conversions):
        held.flush(world.end)
    pq.write_table(pa.concat_tables(labelled), out / "impressions_labelled.parquet", compression="zstd")
    return {**counts, names[2]: impressions.rows, names[3]: clicks.rows, names[4]: conversions.rows}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m feature_store.templates.generator", description="Make ads data.")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--events", type=int, default=100_000, help="how many impressions (100000)")
    parser.add_argument("--days", type=int, default=30, help="over how many days (30)")
    parser.add_argument("--users", type=int, default=0, help="how many users (a 20th of the events, 50 to 2 M)")
    parser.add_argument("--ads", type=int, default=0, help="how many ads (a 500th of the events, 20 to 100,000)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--end", default=END, help=f"nothing happens after this time ({END})")
    given = parser.parse_args(arguments)
    world = World(
        given.events, given.days, given.users, given.ads, given.seed, instant(datetime.fromisoformat(given.end))
    )
    try:
        counts = generate(given.out, world)
    except UsageError as error:
        parser.exit(2, f"{error}\n")
    for name, rows in counts.items():
        print(f"{name:18} {rows:>12,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
