from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.errors import ConflictError, NotFoundError, SettingsError, StoreUnavailableError
from feature_store.registry.records import Change, Progress, Role, Version, canonical
from feature_store.registry.registry import Registry

_OPENED: list[Registry] = []


def opened(url: str, project: str) -> Registry:
    registry = Registry(url, project)
    _OPENED.append(registry)
    return registry


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while _OPENED:
        _OPENED.pop().close()


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/data/registry.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, file_url: str) -> str:
    """A database without projects."""
    if request.param == "sqlite":
        return file_url
    return str(request.getfixturevalue("postgres_url"))


def put(name: str, **spec: object) -> Change:
    return Change("update", "entity", name, {"name": name, **spec})


def test_a_new_project_is_empty(url: str) -> None:
    registry = opened(url, "ads")
    assert registry.serial() == 0
    assert registry.load().records == ()
    assert registry.history("entity", "user") == []
    assert registry.all_progress() == []


def test_every_version_stays(url: str) -> None:
    registry = opened(url, "ads")
    assert registry.commit([put("user", owner="a"), put("ad")], 0) == 1
    assert registry.commit([put("user", owner="b")], 1) == 2
    assert registry.commit([Change("delete", "entity", "user")], 2) == 3
    assert registry.commit([put("user", owner="c")], 3) == 4

    history = registry.history("entity", "user")
    assert [(r.version, r.serial, r.deleted, r.spec.get("owner")) for r in history] == [
        (1, 1, False, "a"), (2, 2, False, "b"), (3, 3, True, None), (4, 4, False, "c"),
    ]  # fmt: skip
    assert [(r.name, r.version) for r in registry.load().records] == [("ad", 1), ("user", 4)]
    assert [(r.name, r.version) for r in registry.load(serial=2).records] == [("ad", 1), ("user", 2)]
    assert [(r.name, r.version) for r in registry.load(serial=3).records] == [("ad", 1)]
    assert len({r.hash for r in history}) == 4


def test_the_same_content_is_no_new_version(url: str) -> None:
    registry = opened(url, "ads")
    registry.commit([Change("create", "source", "s", {"b": 1, "a": 2}, {"columns": []})], 0)
    assert registry.commit([Change("update", "source", "s", {"a": 2, "b": 1}, {"columns": []})], 1) == 1
    assert registry.serial() == 1
    changed_schema = Change("update", "source", "s", {"a": 2, "b": 1}, {"columns": [["x", "INT64"]]})
    assert registry.commit([changed_schema], 1) == 2


def test_a_commit_is_whole_or_not_at_all(url: str) -> None:
    registry = opened(url, "ads")
    with pytest.raises(NotFoundError, match='no entity "ghost" to delete'):
        registry.commit([put("user"), Change("delete", "entity", "ghost")], 0)
    assert registry.serial() == 0
    assert registry.load().records == ()


def test_a_stale_serial_is_refused(url: str) -> None:
    one, other = opened(url, "ads"), opened(url, "ads")
    one.commit([put("user")], 0)
    with pytest.raises(ConflictError, match="Read again and retry"):
        other.commit([put("user", owner="b")], 0)
    with pytest.raises(ConflictError):
        other.commit([put("user", owner="b")], 2)
    assert other.load().records[0].spec == {"name": "user"}


def test_projects_do_not_meet(url: str) -> None:
    ads, shop = opened(url, "ads"), opened(url, "shop")
    ads.commit([put("user")], 0)
    shop.commit([put("user", owner="shop")], 0)
    shop.save_progress(Progress("v", "1", through=5))
    ads.drop()
    assert (ads.serial(), ads.load().records, ads.history("entity", "user")) == (0, (), [])
    assert shop.load().records[0].spec["owner"] == "shop"
    assert shop.progress("v", "1") == Progress("v", "1", through=5, revision=1)


def test_get_reads_a_definition_by_class_and_name(url: str) -> None:
    from feature_store.definitions import Entity, Source  # here: the processes of other tests need the registry only

    registry = opened(url, "ads")
    user = Entity(name="user", join_key="user_id")
    registry.commit([Change("create", "entity", "user", user.to_dict())], 0)
    assert registry.get(Entity, "user") == user
    with pytest.raises(NotFoundError, match=r'no entity "usr"\. Did you mean "user"'):
        registry.get(Entity, "usr")
    with pytest.raises(NotFoundError, match='no source "user"'):
        registry.get(Source, "user")


def test_progress_is_compared_and_set_by_revision(url: str) -> None:
    registry = opened(url, "ads")
    assert registry.progress("v", "1") is None
    first = registry.save_progress(Progress("v", "1", through=10, inputs={"a.parquet": "x"}, done=((0, 0, 5),)))
    assert registry.progress("v", "1") == first
    assert first.revision == 1
    second = registry.save_progress(first)
    for stale in (first, Progress("v", "1")):
        with pytest.raises(ConflictError, match='"v"'):
            registry.save_progress(stale)
    registry.save_progress(Progress("v", "2", snapshots=(1, 2)))
    assert registry.all_progress() == [second, Progress("v", "2", snapshots=(1, 2), revision=1)]
    registry.forget_progress("v", "1")
    assert registry.progress("v", "1") is None
    registry.forget_progress("v")
    assert registry.all_progress() == []


def test_what_is_retired_is_forgotten_and_the_serial_stays(url: str) -> None:
    registry = opened(url, "ads")
    roles = {"1": Role.RETIRED, "2": Role.SERVED}
    versions = {("v", number): Version("v", number, role, 0, "UTC", 5) for number, role in roles.items()}
    registry.commit([put("user")], 0, versions=versions)
    for number in ("1", "2", "3"):
        registry.save_progress(Progress("v", number))
    registry.forget_retired([("v", "1")])
    assert [progress.version for progress in registry.all_progress()] == ["2", "3"]
    state = registry.load()
    assert (state.serial, state.versions) == (1, (versions["v", "2"],))


def test_text_in_any_script_comes_back(url: str) -> None:
    registry = opened(url, "ads")
    spec = {"name": "用户", "description": "用户最近7天点击广告次数 'quoted' \"x\" \\ \n 🙂", "default": 1e-300}
    registry.commit([Change("create", "feature_view", "v", spec)], 0)
    assert registry.load().records[0].spec == spec


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('aé用🙂\n"'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", max_size=3), values, max_size=4))
@settings(max_examples=50, deadline=None)
def test_canonical_text_does_not_depend_on_order(spec: dict[str, object]) -> None:
    assert canonical(dict(reversed(spec.items()))) == canonical(spec)


operations = st.lists(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", None])), min_size=1, max_size=3), max_size=8
)


@given(operations)
@settings(max_examples=25, deadline=None)
def test_any_run_of_commits_agrees_with_a_dict(commits: list[list[tuple[str, str | None]]]) -> None:
    registry = opened("sqlite://", "ads")
    live: dict[str, str] = {}
    states = [dict(live)]
    for commit in commits:
        wanted = {name: value for name, value in commit if value or name in live}
        changes = [
            put(name, owner=value) if value else Change("delete", "entity", name) for name, value in wanted.items()
        ]
        before = dict(live)
        for name, value in wanted.items():
            live.pop(name, None) if value is None else live.__setitem__(name, value)
        serial = registry.commit(changes, registry.serial())
        assert serial == len(states) - (live == before)
        if live != before:
            states.append(dict(live))
    for serial, state in enumerate(states):
        assert {r.name: r.spec["owner"] for r in registry.load(serial).records} == state
    for name in "abc":
        assert [r.version for r in registry.history("entity", name)] == list(
            range(1, len(registry.history("entity", name)) + 1)
        )


def _race(url: str, mark: str, barrier: object, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    registry = opened(url, "ads")
    for round_ in range(6):
        barrier.wait()  # type: ignore[attr-defined]
        serial = registry.serial()
        barrier.wait()  # type: ignore[attr-defined]
        try:
            registry.commit([put("user", owner=f"{mark}{round_}")], serial)
            results.put((round_, mark))
        except ConflictError:
            results.put((round_, None))


def test_of_concurrent_commits_one_wins(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_race, args=(url, mark, barrier, results)) for mark in "xyz"]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in range(18)]
    for process in processes:
        process.join(timeout=30)
    winners = {round_: mark for round_, mark in answers if mark}
    assert sorted(winners) == list(range(6))
    assert len([mark for _, mark in answers if mark]) == 6
    registry = opened(url, "ads")
    assert registry.serial() == 6
    assert [r.spec["owner"] for r in registry.history("entity", "user")] == [f"{winners[i]}{i}" for i in range(6)]


def _retry(url: str, mark: str) -> None:
    registry = opened(url, "ads")
    for number in range(8):
        while True:
            try:
                registry.commit([put(f"{mark}{number}")], registry.serial())
                break
            except ConflictError:
                continue


def test_retries_lose_nothing(url: str) -> None:
    """The processes make the database at the same moment, too."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_retry, args=(url, mark)) for mark in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 3
    state = opened(url, "ads").load()
    assert state.serial == 24
    assert len(state.records) == 24


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("no url", "not a database URL"), ("oracel://host/x", 'no database is called "oracel"')],
)
def test_a_wrong_url_is_a_settings_error(wrong: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        opened(wrong, "ads")


def test_a_file_that_is_no_database_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"PK this is no database, and longer than a page header" * 50)
    with pytest.raises(SettingsError, match=r"registry\.db.*not a database"):
        opened(f"sqlite:///{tmp_path}/registry.db", "ads")


def test_tables_of_a_newer_release_are_refused(file_url: str, tmp_path: Path) -> None:
    opened(file_url, "ads").close()
    with sqlite3.connect(tmp_path / "data/registry.db") as raw:
        raw.execute("update fs_schema set version = 99")
    raw.close()
    with pytest.raises(SettingsError, match="version 99; this release works with"):
        opened(file_url, "ads")


def test_a_folder_that_cannot_be_made_is_an_unavailable_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match="cannot make the folder"):
        opened(f"sqlite:///{tmp_path}/file/registry.db", "ads")


def test_a_readonly_database_can_be_read_only(file_url: str, tmp_path: Path) -> None:
    opened(file_url, "ads").commit([put("user")], 0)
    reader = opened(f"sqlite:///file:{tmp_path}/data/registry.db?mode=ro&uri=true", "ads")
    assert reader.serial() == 1
    with pytest.raises(StoreUnavailableError, match="readonly"):
        reader.commit([put("ad")], 1)


def test_a_locked_database_is_waited_for_then_unavailable(
    file_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(file_url, "ads").commit([put("user")], 0)
    monkeypatch.setattr("feature_store.registry.database.BUSY_TIMEOUT_MS", 50)
    raw = sqlite3.connect(tmp_path / "data/registry.db", isolation_level=None)
    raw.execute("begin immediate")
    registry = opened(file_url, "ads")
    assert registry.serial() == 1  # a reader does not wait for a writer
    with pytest.raises(StoreUnavailableError, match="locked"):
        registry.commit([put("ad")], 1)
    raw.execute("rollback")
    raw.close()
    assert registry.commit([put("ad")], 1) == 2


def test_postgresql_without_its_driver_says_what_to_install_or_that_it_is_down() -> None:
    with pytest.raises((SettingsError, StoreUnavailableError)) as error:
        opened("postgresql://user:secret@127.0.0.1:1/registry", "ads")
    assert "secret" not in str(error.value)
