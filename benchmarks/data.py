"""The data of the benchmarks, deterministic: Parquet files under benchmarks/data, made once for each size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parent / "data"
VIEWS = 3
NOW = 1_750_000_000_000_000
"""The instant at which historical data ends, in microseconds."""
DAY = 86_400_000_000
SPAN = 90 * DAY
_PART = 250_000
_GROUP = 62_500
"""Rows of a row group of profiles: few, so that the smallest table that memory is compared for has several, as a large
one has. What a reader holds at once is measured in row groups, not in rows."""
_WORDS = np.array([f"word_{n:03d}" for n in range(200)])

KINDS = {"i": 8, "f": 10, "s": 2}
"""Of a view's 20 features how many are INT64, FLOAT64 and STRING."""


def features(view: int) -> dict[str, str]:
    """The names of one view's features and their types."""
    types = {"i": "INT64", "f": "FLOAT64", "s": "STRING"}
    return {f"v{view}_{kind}{n}": types[kind] for kind, count in KINDS.items() for n in range(count)}


def spread(count: int) -> list[str]:
    """`count` feature references, spread over the views."""
    per_view = [count // VIEWS + (view < count % VIEWS) for view in range(VIEWS)]
    return [f"view_{view}:{name}" for view, take in enumerate(per_view) for name in list(features(view))[:take]]


def profiles(users: int, view: int) -> Path:
    """One row a user of one view, in the order of users, at times of the last 30 days of the data."""
    path = ROOT / f"profiles_{users}_{view}_{_GROUP}.parquet"

    def parts() -> Iterator[pa.Table]:
        rng = np.random.default_rng(view)
        for start in range(0, users, _PART):
            ids = np.arange(start, min(users, start + _PART))
            yield _rows(rng, view, ids, NOW - rng.integers(1, 30 * DAY, len(ids)))

    return _written(path, parts(), _GROUP)


def history(rows: int, users: int, view: int) -> Path:
    """Rows of users at any time of the span, in no order."""
    path = ROOT / f"history_{rows}_{users}_{view}.parquet"

    def parts() -> Iterator[pa.Table]:
        rng = np.random.default_rng(100 + view)
        for start in range(0, rows, _PART):
            count = min(_PART, rows - start)
            yield _rows(rng, view, rng.integers(0, users, count), NOW - rng.integers(1, SPAN, count))

    return _written(path, parts())


def entities(rows: int, users: int, hot: int = 0) -> Path:
    """Entity rows numbered in `row`: users (one in a hundred unknown) in the last two thirds of the span. `hot` per
    cent are of one user."""
    path = ROOT / f"entities_{rows}_{users}{_hot(hot)}.parquet"

    def parts() -> Iterator[pa.Table]:
        rng = np.random.default_rng(7)
        ids = rng.integers(0, users + users // 100, rows)
        times = NOW - rng.integers(0, 2 * SPAN // 3, rows)
        ids[: rows * hot // 100] = 0
        yield pa.table({"row": np.arange(rows), "user_id": ids, "event_timestamp": _instants(times)})

    return _written(path, parts())


def events(rows: int, users: int, hot: int = 0) -> Path:
    """Events of users with a price, at any time of the span, in no order. `hot` per cent are of one user."""
    path = ROOT / f"events_{rows}_{users}{_hot(hot)}.parquet"

    def parts() -> Iterator[pa.Table]:
        rng = np.random.default_rng(11)
        for start in range(0, rows, _PART):
            count = min(_PART, rows - start)
            ids = rng.integers(0, users, count)
            ids[: count * hot // 100] = 0
            yield pa.table(
                {
                    "user_id": ids,
                    "event_timestamp": _instants(NOW - rng.integers(1, SPAN, count)),
                    "price": rng.integers(1, 10_000, count) / 64,  # sums are exact in any order
                    "amount": rng.integers(1, 100, count),
                }
            )

    return _written(path, parts())


def busy(users: int, now: int, days: int = 31, every: int = 60_000_000) -> Path:
    """Events of a few busy users until `now`, one every `every` microseconds; written anew each time."""
    path = ROOT / f"busy_{users}.parquet"
    times = np.arange(now - days * DAY, now, every)
    rng = np.random.default_rng(13)
    tables = (
        pa.table(
            {
                "user_id": np.full(len(times), user),
                "event_timestamp": _instants(times + rng.integers(0, every, len(times))),
                "price": rng.integers(1, 10_000, len(times)) / 64,
                "amount": rng.integers(1, 100, len(times)),
            }
        )
        for user in range(users)
    )
    path.unlink(missing_ok=True)
    return _written(path, tables)


def _rows(rng: np.random.Generator, view: int, ids: np.ndarray, times: np.ndarray) -> pa.Table:
    columns: dict[str, object] = {"user_id": ids, "event_timestamp": _instants(times)}
    for name, type_ in features(view).items():
        if type_ == "INT64":
            columns[name] = rng.integers(0, 100_000, len(ids))
        elif type_ == "FLOAT64":
            columns[name] = rng.random(len(ids))
        else:
            columns[name] = pa.DictionaryArray.from_arrays(rng.integers(0, 200, len(ids)), _WORDS).cast(pa.string())
    return pa.table(columns)


def _hot(percent: int) -> str:
    return f"_hot{percent}" if percent else ""


def _instants(micros: np.ndarray) -> pa.Array:
    return pa.array(micros, pa.int64()).cast(pa.timestamp("us", "UTC"))


def _written(path: Path, parts: Iterator[pa.Table], group: int = _PART) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        writer = None
        for part in parts:
            writer = writer or pq.ParquetWriter(unfinished, part.schema, compression="snappy")
            writer.write_table(part, row_group_size=group)
        assert writer is not None
        writer.close()
        unfinished.rename(path)
    return path
