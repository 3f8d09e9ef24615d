"""Registries that other releases made."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from feature_store.errors import FeatureStoreError, SettingsError, StoreUnavailableError
from feature_store.registry import migrations
from feature_store.registry.database import Database
from feature_store.registry.records import Change, Progress
from feature_store.registry.registry import Registry
from feature_store.registry.tables import METADATA, MIGRATIONS, SCHEMA, SCHEMA_VERSION, revision

FIRST_RELEASE = """
CREATE TABLE fs_schema (id INTEGER NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (id));
CREATE TABLE fs_projects (project VARCHAR(128) NOT NULL, serial BIGINT NOT NULL, PRIMARY KEY (project));
CREATE TABLE fs_records (
    project VARCHAR(128) NOT NULL, kind VARCHAR(64) NOT NULL, name VARCHAR(128) NOT NULL, version INTEGER NOT NULL,
    hash VARCHAR(64) NOT NULL, spec TEXT NOT NULL, bound TEXT NOT NULL, deleted BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL, since_serial BIGINT NOT NULL, until_serial BIGINT,
    PRIMARY KEY (project, kind, name, version)
);
CREATE TABLE fs_progress (
    project VARCHAR(128) NOT NULL, view VARCHAR(128) NOT NULL, version VARCHAR(64) NOT NULL, revision BIGINT NOT NULL,
    body TEXT NOT NULL, PRIMARY KEY (project, view, version)
);
INSERT INTO fs_schema VALUES (1, 1);
INSERT INTO fs_projects VALUES ('ads', 2);
INSERT INTO fs_records VALUES
    ('ads', 'entity', 'user', 1, 'a1', '{"name":"user"}', '{}', false, 10, 1, 2),
    ('ads', 'entity', 'user', 2, 'a2', '{"name":"user","owner":"用户"}', '{}', false, 20, 2, NULL);
INSERT INTO fs_progress VALUES ('ads', 'clicks', 'v1', 3,
    '{"done":[[0,5]],"inputs":{"f":"1"},"running":{},"snapshots":[7],"through":9}')
"""
"""What the release wrote that knew no migrations."""


def engine_of(url: str) -> sa.Engine:
    return sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def run(engine: sa.Engine, script: str) -> None:
    with engine.begin() as connection:
        for statement in script.split(";"):
            connection.exec_driver_sql(statement)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """Another way into the database."""
    engine = engine_of(url)
    yield engine
    engine.dispose()


def difference(engine: sa.Engine) -> list[object]:
    """What differs between the tables there and those that the release declares, as Alembic sees it."""
    with engine.connect() as connection:
        options = {"compare_type": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))


def versions(engine: sa.Engine) -> tuple[int, str]:
    with engine.connect() as connection:
        return (
            connection.execute(sa.select(SCHEMA.c.version)).scalar_one(),
            connection.execute(sa.select(MIGRATIONS.c.version_num)).scalar_one(),
        )


def test_new_tables_are_those_declared(url: str, engine: sa.Engine) -> None:
    Registry(url, "ads").close()
    assert difference(engine) == []
    assert versions(engine) == (SCHEMA_VERSION, revision(SCHEMA_VERSION))


def test_the_steps_make_the_tables_declared(url: str, engine: sa.Engine) -> None:
    run(engine, FIRST_RELEASE)
    assert difference(engine) != []
    Registry(url, "ads", upgrade=True).close()
    assert difference(engine) == []
    assert versions(engine) == (SCHEMA_VERSION, revision(SCHEMA_VERSION))


def test_the_steps_lead_from_nothing_too(url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateTable(MIGRATIONS))
        migrations.upgrade(connection)
    assert difference(engine) == []


def test_the_steps_are_one_line_that_ends_at_this_release() -> None:
    script = ScriptDirectory.from_config(migrations.configured(None))  # type: ignore[arg-type]
    steps = [step.revision for step in script.walk_revisions()]
    assert steps == [revision(version) for version in range(SCHEMA_VERSION, 0, -1)]


def test_an_upgrade_keeps_what_the_registry_holds(url: str, engine: sa.Engine) -> None:
    run(engine, FIRST_RELEASE)
    registry = Registry(url, "ads", upgrade=True)
    assert registry.serial() == 2
    assert [(r.version, r.spec, r.created_at) for r in registry.history("entity", "user")] == [
        (1, {"name": "user"}, 10),
        (2, {"name": "user", "owner": "用户"}, 20),
    ]
    expected = Progress("clicks", "v1", through=9, inputs={"f": "1"}, snapshots=(7,), revision=3)  # its run begins anew
    assert registry.progress("clicks", "v1") == expected
    assert registry.commit([Change("create", "entity", "ad", {"name": "ad"})], 2) == 3
    registry.close()


@pytest.mark.parametrize("before", range(1, SCHEMA_VERSION))
def test_every_version_is_upgraded(url: str, engine: sa.Engine, before: int) -> None:
    run(engine, FIRST_RELEASE)
    with engine.begin() as connection:
        migrations.upgrade(connection, before)
    assert versions(engine) == (before, revision(before))
    Registry(url, "ads", upgrade=True).close()
    assert difference(engine) == []
    assert versions(engine) == (SCHEMA_VERSION, revision(SCHEMA_VERSION))


def test_an_older_registry_that_others_share_is_upgraded_only_when_asked(url: str, engine: sa.Engine) -> None:
    run(engine, FIRST_RELEASE)
    if engine.dialect.name == "sqlite":
        Registry(url, "ads").close()
        assert versions(engine)[0] == SCHEMA_VERSION
        return
    with pytest.raises(SettingsError, match=r"has tables of version 1; this release works with.*fs registry upgrade"):
        Registry(url, "ads")
    with engine.connect() as connection:
        assert connection.execute(sa.select(SCHEMA.c.version)).scalar_one() == 1


def test_a_newer_registry_is_refused_as_it_is(url: str, engine: sa.Engine) -> None:
    Registry(url, "ads").close()
    with engine.begin() as connection:
        connection.execute(SCHEMA.update().values(version=99))
    for upgrade in (False, True):
        with pytest.raises(SettingsError, match=r"version 99.*Install the release that wrote it"):
            Registry(url, "ads", upgrade=upgrade)
    assert versions(engine)[0] == 99


def test_an_upgrade_that_fails_leaves_everything_as_it_was(url: str, engine: sa.Engine) -> None:
    """Something else has the name that a step wants."""
    run(engine, FIRST_RELEASE)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX fs_records_live ON fs_records (hash)")
    with pytest.raises(StoreUnavailableError, match="already exists"):
        Registry(url, "ads", upgrade=True)
    assert not sa.inspect(engine).has_table(MIGRATIONS.name)
    with engine.begin() as connection:
        assert connection.execute(sa.select(SCHEMA.c.version)).scalar_one() == 1
        connection.exec_driver_sql("DROP INDEX fs_records_live")
    Registry(url, "ads", upgrade=True).close()
    assert difference(engine) == []


def _open(url: str, barrier: object, answers: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    barrier.wait()  # type: ignore[attr-defined]
    try:
        registry = Registry(url, "ads", upgrade=True)
        answers.put(registry.serial())
        registry.close()
    except FeatureStoreError as error:
        answers.put(str(error))


@pytest.mark.parametrize("script", ["", FIRST_RELEASE], ids=["new", "first release"])
def test_processes_that_come_together_make_or_upgrade_once(url: str, engine: sa.Engine, script: str) -> None:
    if script:
        run(engine, script)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_open, args=(url, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [2 if script else 0] * 4
    for process in processes:
        process.join(timeout=30)
    assert difference(engine) == []
    assert versions(engine) == (SCHEMA_VERSION, revision(SCHEMA_VERSION))


def test_others_tables_stay(url: str, engine: sa.Engine) -> None:
    """Alembic's of another application, too."""
    run(engine, "CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('x')")
    run(engine, FIRST_RELEASE)
    Registry(url, "ads", upgrade=True).close()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one() == "x"


def test_a_current_registry_is_opened_in_one_look_and_without_alembic(url: str, engine: sa.Engine) -> None:
    Registry(url, "ads").close()
    program = f"""
import json, sys, sqlalchemy as sa
from feature_store.registry.registry import Registry
seen = []
sa.event.listen(sa.Engine, "before_cursor_execute", lambda c, cursor, statement, *rest: seen.append(statement))
Registry({url!r}, "ads").close()
print(json.dumps([seen, [name for name in sys.modules if name.split(".")[0] in ("alembic", "mako")]]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    statements, modules = json.loads(done.stdout)
    own = [statement for statement in statements if "pg_catalog" not in statement and "show " not in statement.lower()]
    assert len(own) == 1 and "fs_schema" in own[0]
    assert modules == []


def test_a_database_is_upgraded_once(url: str, engine: sa.Engine) -> None:
    run(engine, FIRST_RELEASE)
    for _ in range(2):
        Database(url, upgrade=True).close()
    assert versions(engine)[0] == SCHEMA_VERSION
