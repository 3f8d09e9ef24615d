"""What is DuckDB's own in the embedded engine; the rest is in `conformance`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from feature_store.engines.local import LocalEngine
from feature_store.errors import SourceError
from feature_store.expressions.relations import Windows
from tests.conformance.histories import KEYS, Found, asked, event, events, every_window, latest, source, spine, write


@pytest.mark.parametrize(("events_at_once", "batch"), [(7, 5), (1, 1), (40, 3)])
def test_many_batches_of_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events_at_once: int, batch: int
) -> None:
    monkeypatch.setattr("feature_store.engines.facts.EVENTS_AT_ONCE", events_at_once)
    monkeypatch.setattr("feature_store.engines.facts.BATCH", batch)
    engine, rng = LocalEngine(), random.Random(batch)
    made = events(rng, 20)
    windows = [each for each in every_window() if each.name in ("rows", "sum_x", "last_n_n")]
    relation = Windows(source(write(tmp_path / "rows", made)), KEYS, tuple(windows))
    questions = asked(rng, made, 20, 60)
    found = engine.as_of(relation, spine(*questions), [each.name for each in windows]).to_pylist()
    for (key, at), answer in zip(questions, found, strict=True):
        for each in windows:
            assert Found.of(each, [e for e in made if e.key == key]).agrees(answer[each.name], at)
    tiles = engine.tiles(relation, windows[0].hop, None, 2**60)
    assert tiles.count() == len({(e.key, e.at // windows[0].hop) for e in made if e.at is not None})
    engine.close()


def test_a_reader_may_be_dropped_between_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_store.engines.facts.BATCH", 10)
    engine = LocalEngine()
    relation = latest(source(write(tmp_path / "rows", [event(key, 5, x=1.0) for key in range(1000)])))
    reader = engine.latest(relation, None, 10).read()
    assert reader.read_next_batch().num_rows < 1000
    del reader
    assert engine.latest(relation, None, 10).read().read_all().num_rows == 1000
    engine.close()


def test_what_does_not_fit_into_memory_says_what_to_do(tmp_path: Path) -> None:
    engine = LocalEngine(memory_limit="1MB", threads=1)
    made = [event(key, 5, s=f"{key:>200}") for key in range(20_000)]
    with pytest.raises(SourceError, match="Give the engine more memory"):
        engine.latest(latest(source(write(tmp_path / "rows", made)), "s"), None, 10).read().read_all()
    engine.close()


def test_the_folder_that_it_spills_to_goes_with_it() -> None:
    engine = LocalEngine()
    folder = Path(engine._spill)
    assert folder.is_dir()
    engine.close()
    assert not folder.exists()
