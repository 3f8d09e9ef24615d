"""A backfill on Spark, HBase and PostgreSQL, killed on its way and run again, leaves what an undisturbed one leaves."""

from __future__ import annotations

import re
import signal
from contextlib import closing
from pathlib import Path

import pytest

from feature_store import FeatureStore
from feature_store.expressions.instants import instant
from tests.flows.broken import END, add, events, make, start, visible, wait_for

pytestmark = pytest.mark.timeout(900)

ROWS = events(2_000, 100, since="2024-03-01T00:00:00Z")
SINCE = {"a_latest": "2024-04-06T12:00:00Z", "b_moving": "2024-04-18T12:00:00Z"}
SPARK = {
    "engine": "spark",
    "engines": "{spark: {master: 'local[2]', conf: {spark.driver.memory: 512m, spark.sql.shuffle.partitions: 2}}}",
}


@pytest.mark.parametrize("view", SINCE)
def test_a_backfill_killed_and_run_again(view: str, hbase_url: str, postgres_url: str, tmp_path: Path) -> None:
    for name, settings in (("undisturbed", {}), ("repo", {"online": hbase_url, "registry": postgres_url, **SPARK})):
        add(make(tmp_path / name, **settings), "all", ROWS)
    command = ("backfill", view, SINCE[view], END, "--parallel", "2")
    with closing(FeatureStore(tmp_path / "undisturbed")) as alone, closing(FeatureStore(tmp_path / "repo")) as store:
        alone.apply()
        written = alone.backfill(view, SINCE[view], END, 2)
        store.apply()
        bound = store.catalog.views[view]

        def chunks_done() -> int:
            job = store.registry.backfills.get(view, bound.version)
            return len(job.done) if job else 0

        process = start(store.root, *command)
        wait_for(lambda: chunks_done() >= 2, process, 400)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        progress = store.registry.progress(view, bound.version)
        assert progress is None or progress.through is None
        again = start(store.root, *command)
        out, err = again.communicate(timeout=600)
        assert again.returncode == 0, out + err
        (rows,) = re.findall(rf"Backfilled {view}: ([\d,]+) rows", out)
        assert 0 < int(rows.replace(",", "")) < written, "what was done is not done again"
        assert visible(store)[view] == visible(alone)[view]
        assert visible(store)[view]
        assert store.registry.backfills.get(view, bound.version) is None
        progress = store.registry.progress(view, bound.version)
        assert progress is not None and progress.through == instant(END)
