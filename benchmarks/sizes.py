"""How much of everything one run measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The rows and repetitions of one run."""

    name: str
    users: int
    """Users whose features are online, three views each."""
    feast_users: int
    """Those that Feast holds online: its materialization takes 17 KB of memory a row. Load asks for these only."""
    rounds: int
    """Repetitions of each online measurement; the least is taken, because the machine is shared."""
    seconds: float
    """Length of one repetition under load."""
    source_rows: int
    """Rows of each source of historical features."""
    entity_rows: int
    few_entities_rows: int
    """Rows of the source in which an entity has 1,000."""
    dask_rows: int
    """Entity rows and source rows of the comparison with Feast's default store."""
    events: int
    views: int
    """Views of one `fs apply`."""
    stream_events: int
    """Events that wait in a topic when a worker starts."""
    stream_growth: int
    """How many of the larger numbers of keys streams are measured with."""
    stream_outage: int
    """Events that came while no worker ran."""
    stream_seconds: float
    """How long a freshness is measured."""


FULL = Size(
    "full", users=1_000_000, feast_users=100_000, rounds=3, seconds=2.0, source_rows=10_000_000,
    entity_rows=1_000_000, few_entities_rows=1_000_000, dask_rows=100_000, events=10_000_000, views=500,
    stream_events=500_000, stream_growth=2, stream_outage=7_200_000, stream_seconds=20.0,
)  # fmt: skip
QUICK = Size(
    "quick", users=50_000, feast_users=10_000, rounds=2, seconds=1.0, source_rows=500_000,
    entity_rows=50_000, few_entities_rows=100_000, dask_rows=20_000, events=500_000, views=500,
    stream_events=150_000, stream_growth=1, stream_outage=300_000, stream_seconds=5.0,
)  # fmt: skip
