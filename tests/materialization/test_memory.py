"""Memory of a run does not grow as the rows do that it reads and writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from tests.flows.broken import END, add, events, make

pytestmark = pytest.mark.timeout(300)

FEW, TIMES = 30_000, 8
SINCE = "2024-04-01T00:00:00Z"  # all of it in one step: time is not what bounds it
DEFINITIONS = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: events, path: data/events, timestamp: at, created: seen_at, stream: {push: true}}
---
feature_views:
  - name: rows
    entities: [user]
    source: events
    features: [{name: kind, type: STRING}]
  - name: tiles
    entities: [user]
    source: events
    aggregations: [{name: last_kind, function: last, column: kind, window: 7d}]
"""
PROGRAM = """
import sys
from feature_store import FeatureStore

store = FeatureStore(sys.argv[1])
store.apply()
written = store.materialize(sys.argv[3], sys.argv[4], [sys.argv[2]])
store.close()
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(written, peak)
"""


def run(root: Path, view: str, count: int) -> tuple[int, int]:
    """Materialize a view over so many events, two a user, in a process that does nothing else;
    the rows written and the most memory it ever held (KiB)."""
    make(root, definitions=DEFINITIONS, limits="{memory: 64MB, threads: 1}")
    rows = events(count, count // 2, since=SINCE)
    names = pa.array([f"{number:08}" for number in range(count)])
    add(root, "all", rows.set_column(rows.schema.get_field_index("kind"), "kind", names))
    command = [sys.executable, "-c", PROGRAM, str(root), view, SINCE, END]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written, peak = map(int, done.stdout.split())
    return written, peak


@pytest.mark.timeout(300)
@pytest.mark.parametrize("view", ["rows", "tiles"])
def test_eight_times_the_rows_take_little_more_memory(tmp_path: Path, view: str) -> None:
    """A quarter at most: a run that holds all its rows at once in Python takes more, most of the rest is libraries."""
    few, small = run(tmp_path / "few", view, FEW)
    many, large = run(tmp_path / "many", view, TIMES * FEW)
    assert many > 7 * few > 80_000
    assert large < 1.25 * small, f"{small:,} KiB for {few:,} rows, {large:,} KiB for {many:,}"
