"""Backfills: whatever the chunks, whoever does them and whatever arrives meanwhile, the store ends the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store import FeatureStore
from feature_store.errors import InvalidInputError, NotFoundError
from feature_store.expressions.instants import DAY, instant
from feature_store.expressions.relations import LatestRow, Rows, Windows
from feature_store.materialization.chunks import MOST_CHUNKS, chunks_between
from feature_store.materialization.steps import LatestStep, TileStep, chunk_of
from feature_store.storage.online import OnlineStore, Table
from feature_store.types import INT64, TIMESTAMP, Schema
from tests.flows.broken import DEFINITIONS, END, START, add, events, make, visible

USERS = 200
ROWS = events(4_000, USERS)
SPANS = {"a_latest": START, "b_moving": START, "c_daily": START, "d_queried": "2024-04-14T12:34:56Z"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    root = make(tmp_path / "repo")
    add(root, "all", ROWS)
    found = FeatureStore(root)
    found.apply()
    yield found
    found.close()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What runs that are no backfills leave."""
    root = make(tmp_path_factory.mktemp("materialized") / "repo")
    add(root, "all", ROWS)
    store = FeatureStore(root)
    store.apply()
    for view, start in SPANS.items():
        store.materialize(start, END, [view])
    found = visible(store)
    store.close()
    return found


class StoppedError(Exception):
    """A backfill that ends before its time."""


def after(chunks: int, act: Callable[[], object]) -> Callable[[str, int, int, int], None]:
    """A report that acts once when so many chunks are done."""
    acted: list[object] = []

    def report(view: str, done: int, total: int, rows: int) -> None:
        if done >= chunks and not acted:
            acted.append(None)
            acted.append(act())

    return report


def stop() -> None:
    raise StoppedError


@pytest.mark.parametrize("parallel", [1, 4])
def test_chunks_make_what_one_run_makes(store: FeatureStore, expected: dict[str, Any], parallel: int) -> None:
    totals: dict[str, int] = {}
    for view, start in SPANS.items():
        report = lambda view, done, total, rows: totals.update({view: total})  # noqa: E731
        assert store.backfill(view, start, END, parallel, report) > 0
    assert visible(store) == expected
    assert totals["a_latest"] > 50 and totals["b_moving"] > 50 and totals["d_queried"] == 6
    assert all(p.through == instant(END) for p in store.registry.all_progress())
    assert len(store.registry.progress("d_queried", store.catalog.views["d_queried"].version).snapshots) == 6  # type: ignore[union-attr]
    assert store.materialize_incremental(END) == 0


@pytest.mark.parametrize("view", ["a_latest", "b_moving", "d_queried"])
def test_one_that_was_stopped_goes_on(store: FeatureStore, expected: dict[str, Any], view: str) -> None:
    with pytest.raises(StoppedError):
        store.backfill(view, SPANS[view], END, 1, after(4, stop))
    bound = store.catalog.views[view]
    job = store.registry.backfills.get(view, bound.version)
    assert job is not None
    assert len(job.done) >= 4
    assert (p := store.registry.progress(view, bound.version)) is None or p.through is None
    first: list[int] = []
    store.backfill(view, SPANS[view], END, 2, lambda view, done, total, rows: first.append(done))
    assert first[0] == len(job.done), "what was done is not done again"
    assert visible(store)[view] == expected[view]
    assert store.registry.backfills.get(view, bound.version) is None


def test_one_that_is_run_again_up_to_a_later_now_goes_on(store: FeatureStore) -> None:
    with pytest.raises(StoppedError):
        store.backfill("a_latest", START, "2024-04-20T10:00:00Z", 1, after(30, stop))
    first: list[int] = []
    store.backfill("a_latest", START, END, 1, lambda view, done, total, rows: first.append(done))
    assert first[0] >= 30


def test_rows_that_come_late_are_loaded_too(store: FeatureStore, expected: dict[str, Any]) -> None:
    """In a file that was not there when the backfill began, of times that it has left behind."""
    (store.root / "data/events/all.parquet").unlink()
    odd = [n % 2 == 1 for n in range(ROWS.num_rows)]
    add(store.root, "first", ROWS.filter(pa.array(odd)))
    late = lambda: add(store.root, "late", ROWS.filter(pa.array([not n for n in odd])))  # noqa: E731
    for view in ("a_latest", "b_moving"):
        store.backfill(view, START, END, 1, after(40, late))
        assert visible(store)[view] == expected[view]
        (store.root / "data/events/late.parquet").unlink()


class Interrupted:
    """An online store of which one write comes late: something else happens between the reading and the writing."""

    def __init__(self, store: OnlineStore, at: int, act: Callable[[], object]) -> None:
        self._store, self._left, self._act = store, at, act

    def write(self, table: Table, rows: pa.Table, keep_from: bytes | None = None) -> None:
        self._left -= 1
        if not self._left:
            self._act()
        self._store.write(table, rows, keep_from)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize(("view", "at"), [("a_latest", 5), ("b_moving", 5), ("b_moving", 30)])
def test_what_another_run_wrote_meanwhile_is_not_taken_back(store: FeatureStore, view: str, at: int) -> None:
    """By a chunk that read the sources before late rows were there, and writes after another run has loaded them."""
    (store.root / "data/events/all.parquet").unlink()
    many = events(3_000, 4)  # several a key and tile: the last of them may be one that the chunk knows
    odd = pa.array([n % 2 == 1 for n in range(many.num_rows)])
    add(store.root, "first", many.filter(odd))
    store.materialize(START, END, [view])
    loaded: list[Any] = []

    def meanwhile() -> None:
        other = FeatureStore(store.root)
        add(store.root, "late", many.filter(pc.invert(odd)))
        other.materialize_incremental(END, [view])
        loaded.append(visible(other)[view])
        other.close()

    store.online_store = Interrupted(store.online_store, at, meanwhile)
    store.backfill(view, START, END, 1)
    assert [visible(store)[view]] == loaded


def test_pushed_rows_are_not_taken_back(store: FeatureStore) -> None:
    row = {"id": -1, "user_id": 7, "at": END, "seen_at": END, "price": 7.5, "item": 1, "kind": "a"}
    store.backfill("a_latest", START, END, 1, after(5, lambda: store.push("events", [row], to="online")))
    found = store.online.get(["a_latest:price"], {"user_id": [7]}, now=instant(END)).to_dict()
    assert found["price"] == [7.5]


def test_two_at_once_share_the_work(store: FeatureStore, expected: dict[str, Any]) -> None:
    notices: list[str] = []
    other = FeatureStore(store.root)

    def second() -> None:
        other.backfill("b_moving", START, END, 1, notice=notices.append)

    thread = threading.Thread(target=second)
    store.backfill("b_moving", START, END, 1, after(3, thread.start))
    thread.join()
    assert visible(store)["b_moving"] == expected["b_moving"]
    assert len(notices) == 1
    assert 'another backfill of "b_moving" seems to be under way' in notices[0]
    progress = {p.view: p for p in store.registry.all_progress()}
    assert progress["b_moving"].through == instant(END)
    other.close()


def test_a_new_version_is_served_when_it_is_filled(store: FeatureStore) -> None:
    store.materialize_incremental(END, ["a_latest"])
    old = visible(store)["a_latest"]
    text = DEFINITIONS.replace("{name: price, type: FLOAT64}", "{name: price, type: FLOAT64, expression: '0 - price'}")
    (store.root / "features.yaml").write_text(text)
    store.apply()

    def prices() -> list[float | None]:
        users = {"user_id": [row["user_id"] for row in old]}
        return store.online.get(["a_latest:price"], users, now=instant(END)).to_dict()["price"]

    before = prices()
    assert store.backfill("a_latest", "2024-01-01", END) > 0
    assert "it begins at 2024-01-01T00:00:00Z, the served one with the first row" in store.filling()["a_latest"]
    assert prices() == before
    store.backfill("a_latest", "2020-01-01", "2024-02-01")
    assert store.filling() == {}, "before 2020 there is nothing"
    assert prices() == [None if price is None else -price for price in before]


def test_an_incremental_run_leaves_a_version_to_its_backfill(store: FeatureStore) -> None:
    store.materialize_incremental(END, ["a_latest"])
    (store.root / "features.yaml").write_text(
        DEFINITIONS.replace("{name: kind, type: STRING}", "{name: item, type: INT64}")
    )
    store.apply(allow_destructive=True)
    meanwhile: list[int] = []
    other = FeatureStore(store.root)
    run = lambda: meanwhile.append(other.materialize_incremental(END, ["a_latest"]))  # noqa: E731
    store.backfill("a_latest", "2020-01-01", END, 1, after(3, run))
    assert meanwhile == [0], "the served version was up to date, the other one not touched"
    assert store.describe("a_latest")["complete"] is True
    other.close()


def test_what_cannot_be_backfilled_is_refused(store: FeatureStore) -> None:
    with pytest.raises(NotFoundError, match='no feature view "a_lates"'):
        store.backfill("a_lates", START, END)
    with pytest.raises(InvalidInputError, match="lies after the end"):
        store.backfill("a_latest", END, START)


ROWS_OF = Rows("events", Schema.of(user_id=INT64, at=TIMESTAMP), timestamp="at")
SPAN = st.tuples(st.integers(0, 3_000 * DAY), st.integers(0, 3_000 * DAY)).map(sorted)


class Bound:
    """As much of a bound view as chunks depend on."""

    def __init__(self, relation: Any) -> None:
        self.relation = relation


@given(SPAN)
def test_chunks_of_rows_cover_every_instant_once(span: list[int]) -> None:
    start, end = span
    chunks = chunks_between(Bound(LatestRow(ROWS_OF, Schema.of(user_id=INT64), ())), start, end)  # type: ignore[arg-type]
    assert all(isinstance(chunk, LatestStep) for chunk in chunks)
    assert chunks[0].start == start and chunks[-1].until == end  # type: ignore[union-attr]
    assert all(one.until + 1 == two.start for one, two in pairwise(chunks))  # type: ignore[union-attr]
    assert len(chunks) <= MOST_CHUNKS + 1


@given(SPAN, st.integers(0, 6))
def test_chunks_stay_when_the_end_moves(span: list[int], hours: int) -> None:
    start, end = span
    bound = Bound(LatestRow(ROWS_OF, Schema.of(user_id=INT64), ()))
    before, now = (chunks_between(bound, start, until) for until in (end, end + hours * DAY // 24))  # type: ignore[arg-type]
    if len(before) > MOST_CHUNKS // 2 + 1 and len(now) >= len(before):
        assert {*map(chunk_of, before[:-1])} <= {*map(chunk_of, now)}


def test_tiles_belong_to_one_chunk_each(store: FeatureStore) -> None:
    bound = store.catalog.views["b_moving"]
    assert isinstance(bound.relation, Windows)
    chunks = chunks_between(bound, instant(START), instant(END))
    for level in bound.relation.levels:
        mine = [chunk for chunk in chunks if isinstance(chunk, TileStep) and chunk.level == level]
        assert all(one.until == two.start and two.start % level == 0 for one, two in pairwise(mine))  # type: ignore[operator]
        assert mine[-1].until == instant(END)
