"""A registry in PostgreSQL that several apply to at once, that dies under them, or that does not let them in."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from feature_store import FeatureStore
from feature_store.registry.registry import Registry
from tests.flows.broken import error_of, fs, start, wait_for
from tests.registry.test_migrations import FIRST_RELEASE
from tests.servers import PostgresServer, free_port

DEFINITIONS = """
from pathlib import Path
import time
from feature_store import Entity, FeatureService, FeatureView, Field, Source

here = Path(__file__).parent
if (here / "gate").exists():  # wait with the registry read and nothing written
    (here / "waiting").touch()
    while (here / "gate").exists():
        time.sleep(0.01)
owner = (here / "owner").read_text()
user = Entity(name="user", join_key="user_id", type="INT64", owner=owner)
users = Source(name="users", path="users.csv", timestamp="at", owner=owner)
age = Field(name="age", type="INT64")
ages = FeatureView(name="ages", entities=["user"], source="users", features=[age], owner=owner)
own = FeatureView(name=f"of_{owner}", entities=["user"], source="users", features=[age])
service = FeatureService(name="v1", features=["ages"], owner=owner)
"""


def make(root: Path, registry: str, owner: str) -> Path:
    """A repository whose every definition says whose it is."""
    root.mkdir()
    (root / "feature_store.yaml").write_text(f"project: shared\nregistry: {registry}\n")
    (root / "features.py").write_text(DEFINITIONS)
    (root / "owner").write_text(owner)
    (root / "users.csv").write_text("user_id,age,at\n1,30,2024-01-01T00:00:00Z\n")
    return root


def held(root: Path) -> subprocess.Popen[str]:
    """An apply that has read the registry and waits for its gate to go."""
    (root / "waiting").unlink(missing_ok=True)
    (root / "gate").touch()
    return start(root, "apply")


def release(roots: list[Path], processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Open the gates once all wait there; the exit code and the line of error of each."""
    for root, process in zip(roots, processes, strict=True):
        wait_for((root / "waiting").exists, process)
    for root in roots:
        (root / "gate").unlink()
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    return [(code, error_of(err) if code else "") for err, code in ended]


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    server = PostgresServer().start()
    yield server
    server.close()


@pytest.fixture
def registry(postgres_url: str) -> Iterator[Registry]:
    """The shared registry, seen by a process that only looks."""
    registry = Registry(postgres_url, "shared")
    yield registry
    registry.close()


def owners(registry: Registry, serial: int) -> set[str]:
    """Whose the definitions of a serial are."""
    return {record.spec["owner"] for record in registry.load(serial).records if not record.name.startswith("of_")}


def test_of_four_applies_at_once_one_wins_each_serial(registry: Registry, postgres_url: str, tmp_path: Path) -> None:
    """The others are told and write nothing; run again, each lands whole, on top of all before it."""
    left = [make(tmp_path / owner, postgres_url, owner) for owner in "abcd"]
    order: list[str] = []
    while left:
        before = registry.serial()
        outcomes = release(left, [held(root) for root in left])
        winners = [root for root, (code, _) in zip(left, outcomes, strict=True) if code == 0]
        assert len(winners) == 1
        for code, message in outcomes:
            assert code == 0 or "moved on: somebody else applied since serial" in message
        order.append(winners[0].name)
        left.remove(winners[0])
        assert registry.serial() == before + 1 == len(order)
    for serial, owner in enumerate(order, 1):
        assert owners(registry, serial) == {owner}
        live = {record.name for record in registry.load(serial).records}
        assert live == {"user", "users", "ages", "v1", f"of_{owner}"}
    assert [record.spec["owner"] for record in registry.history("feature_view", "ages")] == order


def test_killed_between_reading_and_writing(own_server: PostgresServer, tmp_path: Path) -> None:
    root = make(tmp_path / "repo", own_server.url, "a")
    process = held(root)
    wait_for((root / "waiting").exists, process)
    own_server.kill()
    [(code, message)] = release([root], [process])
    assert code == 1 and own_server.url.partition("@")[2] in message
    assert "Check that the database can be reached" in message
    own_server.start()
    after_a_fault(own_server.url, root)


def test_killed_amid_a_commit(own_server: PostgresServer, tmp_path: Path) -> None:
    """Its first statement is done, its next one waits for a lock: nothing of it may stay."""
    root = make(tmp_path / "repo", own_server.url, "a")
    fs(root, "apply")
    (root / "owner").write_text("b")
    locker = own_server.client()
    locker.execute("BEGIN")
    locker.execute("LOCK TABLE fs_records IN SHARE ROW EXCLUSIVE MODE")  # others may read it
    process = start(root, "apply")
    with own_server.client() as looker:
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'fs_records'::regclass"
        wait_for(lambda: looker.execute(waits).fetchone() == (1,), process)
    own_server.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Check that the database can be reached" in error_of(err)
    locker.close()
    own_server.start()
    seen = Registry(own_server.url, "shared")
    assert seen.serial() == 1 and owners(seen, 1) == {"a"}
    seen.close()
    after_a_fault(own_server.url, root, before=1)


def after_a_fault(url: str, root: Path, before: int = 0) -> None:
    """The registry is as it was, and a second apply does it all; a third finds nothing to do."""
    registry = Registry(url, "shared")
    assert registry.serial() == before
    fs(root, "apply")
    fs(root, "apply")
    assert registry.serial() == before + 1
    assert owners(registry, before + 1) == {(root / "owner").read_text()}
    registry.close()


def test_an_apply_upgrades_what_a_first_release_wrote(postgres_url: str, tmp_path: Path) -> None:
    """Other commands say what to run, and leave it to the releases that share it."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute(FIRST_RELEASE.encode())
    root = make(tmp_path / "repo", postgres_url, "a")
    for command in (("list",), ("plan",), ("get-online-features", "--features", "ages", "--entity", "user_id=1")):
        message = fs(root, *command, code=2)
        assert "has tables of version 1" in message and "Run: fs registry upgrade" in message
    fs(root, "apply")
    assert "ages" in fs(root, "list")
    assert "is of this release" in fs(root, "registry", "upgrade")
    ads = Registry(postgres_url, "ads")
    assert ads.serial() == 2
    ads.close()


def test_the_registry_is_upgraded_on_request(postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute(FIRST_RELEASE.encode())
    root = make(tmp_path / "repo", postgres_url, "a")
    assert "from version 1" in fs(root, "registry", "upgrade")
    assert "is of this release" in fs(root, "registry", "upgrade")
    assert "Nothing is applied" in fs(root, "list")


def test_who_is_not_let_in_is_told_in_one_line(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """By a wrong password, to a database or for a user that is not there, where nobody listens or nobody answers."""
    with postgres_server.client() as client:
        client.execute("DROP ROLE IF EXISTS guarded")
        client.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
    address = f"127.0.0.1:{postgres_server.port}"
    closed = free_port()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        wrong = {
            f"postgresql://guarded:wrong@{address}/postgres": "password authentication failed",
            f"postgresql://guarded@{address}/postgres": "no password",
            f"postgresql://postgres@{address}/nowhere": 'database "nowhere" does not exist',
            f"postgresql://nobody@{address}/postgres": 'role "nobody" does not exist',
            f"postgresql://postgres@127.0.0.1:{closed}/postgres": "Connection refused",
            f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/postgres?connect_timeout=2": "timeout",
        }
        root = make(tmp_path / "repo", "replaced", "a")
        for url, reason in wrong.items():
            (root / "feature_store.yaml").write_text(f"project: shared\nregistry: {url}\n")
            message = fs(root, "list", code=1)
            assert reason in message
            assert "wrong" not in message and url.split("@")[1].split("?")[0] in message


def test_who_may_only_read_can_list_and_is_told_so_at_apply(postgres_server: PostgresServer, tmp_path: Path) -> None:
    url = postgres_server.database("readable")
    root = make(tmp_path / "repo", url, "a")
    fs(root, "apply")
    with postgres_server.client("readable") as client:
        client.execute("DROP ROLE IF EXISTS reader")
        client.execute("CREATE ROLE reader LOGIN")
        client.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    reading = make(tmp_path / "reading", url.replace("postgres@", "reader@"), "b")
    assert "ages" in fs(reading, "list")
    message = fs(reading, "apply", code=1)
    assert "permission denied for table fs_projects" in message and "write access" in message
    empty = postgres_server.database("closed").replace("postgres@", "reader@")
    (reading / "feature_store.yaml").write_text(f"project: shared\nregistry: {empty}\n")
    message = fs(reading, "list", code=1)
    assert "permission denied for schema public" in message and "write access" in message


def test_a_service_goes_on_and_sees_what_is_applied_after_a_restart(own_server: PostgresServer, tmp_path: Path) -> None:
    root = make(tmp_path / "repo", own_server.url, "a")
    fs(root, "apply")
    port = free_port()
    service = start(root, "serve", "--port", str(port))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_for(lambda: asked(client, "of_a") == 200, service)
            own_server.kill()
            assert asked(client, "of_a") == 200
            own_server.start()
            (root / "owner").write_text("b")
            fs(root, "apply")
            wait_for(lambda: asked(client, "of_b") == 200, service)
            assert asked(client, "of_a") == 404
    finally:
        service.terminate()
        service.communicate(timeout=30)


def asked(client: httpx.Client, view: str) -> int:
    try:
        body = {"features": [f"{view}:age"], "entities": {"user_id": [1]}}
        return client.post("/get-online-features", json=body).status_code
    except httpx.TransportError:
        return 0


def test_a_store_that_was_open_goes_on_after_a_restart(own_server: PostgresServer, tmp_path: Path) -> None:
    """Its pooled connections are dead; the next use finds out and takes new ones, without an error."""
    root = make(tmp_path / "repo", own_server.url, "a")
    store = FeatureStore(root)
    store.apply()
    own_server.kill()
    own_server.start()
    assert store.registry.serial() == 1
    assert [found["name"] for found in store.list("entity")] == ["user"]
    store.close()
