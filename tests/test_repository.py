"""Repositories: which files count, Python files, settings against definitions."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from feature_store.definitions import Entity, FeatureView, Field
from feature_store.definitions.bind import bind
from feature_store.errors import DefinitionError, FeatureStoreError, SettingsError
from feature_store.repository import Repository
from feature_store.types import FLOAT64, INT64, TIMESTAMP, Schema

SETTINGS = "project: ads\n"


def repository(root: Path, files: dict[str, str], settings: str = SETTINGS) -> Repository:
    for name, text in {"feature_store.yaml": settings, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Repository(root)


def names(repo: Repository) -> list[str]:
    return [definition.name for definition in repo.definitions]


def wrong(repo: Repository) -> str:
    with pytest.raises(FeatureStoreError) as caught:
        _ = repo.definitions
    return str(caught.value)


def entity(name: str) -> str:
    return f"entity: {{name: {name}}}\n"


def test_every_yaml_and_python_file_below_counts_except_what_is_left_out(tmp_path: Path) -> None:
    files = {
        "b.yaml": entity("b"),
        "a.yml": entity("a"),
        "features/deep/c.yaml": entity("c"),
        "features/d.py": "from feature_store import Entity\nd = Entity(name='d')\n",
        "notes.txt": "no: definition",
        ".hidden/x.yaml": "x: [",
        "venv/pyvenv.cfg": "",
        "venv/lib/x.py": "raise RuntimeError",
        "features/__pycache__/x.py": "raise RuntimeError",
        "data/dt=2026-01-01/x.yaml": "x: [",
        "data/offline/x.yaml": "x: [",
        "feature_store.prod.yaml": "project: prod\n",
        "other/feature_store.yaml": "project: other\n",
        "other/x.yaml": "x: [",
        "ignored/x.yaml": "x: [",
        "ignored/kept/e.yaml": entity("e"),
        "drafts.yaml": "x: [",
        "features/test_d.py": "raise RuntimeError",
        ".featureignore": "# comment\nignored/*\n!ignored/kept\n/drafts.yaml\ntest_*.py\n",
    }
    assert names(repository(tmp_path, files)) == ["a", "b", "c", "e", "d"]


def test_another_settings_file(tmp_path: Path) -> None:
    repository(tmp_path, {"prod.yaml": "project: prod\n", "a.yaml": entity("a")})
    repo = Repository(tmp_path, tmp_path / "prod.yaml")
    assert repo.settings.project == "prod"
    assert names(repo) == ["a"]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no directory .*Run fs init DIR to make a repository"):
        Repository(tmp_path / "none")


def test_settings_are_read_without_the_definitions(tmp_path: Path) -> None:
    repo = repository(tmp_path, {"broken.yaml": "x: ["})
    assert repo.settings.project == "ads"
    assert wrong(repo).startswith("not YAML: while parsing a flow node, did not find expected node content (broken.")


def test_locations_are_relative_to_the_root(tmp_path: Path) -> None:
    repo = repository(tmp_path, {"features/a.yaml": "---\n" + entity("a")})
    assert str(repo.locations["entity", "a"]) == "features/a.yaml:2"


def test_a_name_in_two_files(tmp_path: Path) -> None:
    repo = repository(tmp_path, {"a.yaml": entity("a"), "b.py": "from feature_store import *\n\nx = Entity(name='a')"})
    assert wrong(repo) == 'entity "a" is defined twice, first at a.yaml:1. Rename or remove one of them (b.py:3)'


PYTHON = """\
from feature_store import Entity, FeatureView, Field

from shared.entities import user

views = [
    FeatureView(
        name=f"v{n}", entities=[user], source="s", features=[Field(name=f"x{n}", type="INT64")]
    )
    for n in range(2)
]
one = FeatureView(
    name="one",
    entities=[user],
    source="s",
    features=[
        Field(name="a", type="INT64"),
        Field(name="b", type="INT64", column="bb"),
    ],
)
"""
SHARED = "from feature_store import Entity\n\nuser = Entity(name='user')\n"
SOURCE = "source: {name: s, path: data, timestamp: t}\n"


def test_python_files_import_each_other_and_each_definition_counts_once(tmp_path: Path) -> None:
    repo = repository(tmp_path, {"features.py": PYTHON, "shared/entities.py": SHARED, "s.yaml": SOURCE})
    assert sorted(names(repo)) == ["one", "s", "user", "v0", "v1"]
    assert str(repo.locations["entity", "user"]) == "shared/entities.py:3"
    assert Entity(name="user") in repo.definitions
    assert (
        FeatureView(name="v1", entities=["user"], source="s", features=[Field(name="x1", type="INT64")])
        in repo.definitions
    )  # type: ignore[comparison-overlap]


def test_places_in_python_files_go_down_to_arguments(tmp_path: Path) -> None:
    repo = repository(tmp_path, {"features.py": PYTHON, "shared/entities.py": SHARED, "s.yaml": SOURCE})
    place = repo.locations["feature_view", "one"]
    inside = place.inside  # type: ignore[attr-defined]
    assert str(place) == "features.py:12"
    assert str(inside("features", 1, "column")) == "features.py:17"
    assert str(inside("features", 0)) == "features.py:16"
    assert str(repo.locations["feature_view", "v0"]) == "features.py:5"


def test_python_files_leave_no_trace_in_the_process(tmp_path: Path) -> None:
    path, modules = list(sys.path), dict(sys.modules)
    repo = repository(tmp_path, {"features.py": PYTHON, "shared/entities.py": SHARED, "s.yaml": SOURCE})
    assert names(repo)
    assert sys.path == path
    assert "shared" not in sys.modules
    assert "features" not in sys.modules
    assert modules.items() <= sys.modules.items()
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_changed_python_file_is_read_anew(tmp_path: Path) -> None:
    files = {"a.py": "from shared import e", "shared.py": "from feature_store import Entity\ne = Entity(name='a')"}
    assert names(repository(tmp_path, files)) == ["a"]
    files["shared.py"] = files["shared.py"].replace("'a'", "'b'")
    assert names(repository(tmp_path, files)) == ["b"]


def test_a_file_named_as_a_module_of_the_standard_library(tmp_path: Path) -> None:
    files = {"json.py": "from feature_store import Entity\ne = Entity(name='a')", "features/__init__.py": ""}
    import json

    assert names(repository(tmp_path, files)) == ["a"]
    assert sys.modules["json"] is json


def test_relative_imports(tmp_path: Path) -> None:
    files = {"f/a.py": "from .b import e\nfrom . import b", "f/b.py": SHARED.replace("user", "e")}
    assert names(repository(tmp_path, files)) == ["e"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n1 / 0\n", "ZeroDivisionError: division by zero (a.py:2)"),
        ("def f():\n    raise KeyError('x')\n\nf()\n", "KeyError: 'x' (a.py:2)"),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all' (a.py:1)"),
        ("x = [\n", "not Python: '[' was never closed (a.py:1)"),
        ("raise SystemExit\n", "SystemExit (a.py:1)"),
        (
            "from feature_store import Field\nf = Field(name='a', type='IN64')\n",
            'field "a": type: "IN64" is not a type. Did you mean "INT64"? (a.py:2)',
        ),
        (
            "from feature_store import Entity\n\ne = Entity(\n    name='a',\n    typ='INT',\n)\n",
            'entity "a": unknown key "typ". Did you mean "type"? (a.py:3)',
        ),
    ],
)
def test_what_goes_wrong_in_python_names_the_users_line(tmp_path: Path, text: str, message: str) -> None:
    assert wrong(repository(tmp_path, {"a.py": text})) == message


def test_a_mistake_in_an_imported_file_is_named_there(tmp_path: Path) -> None:
    files = {"a.py": "import shared.b\n", "shared/b.py": "\nx = None.y\n"}
    assert (
        wrong(repository(tmp_path, files)) == "AttributeError: 'NoneType' object has no attribute 'y' (shared/b.py:2)"
    )
    files["shared/b.py"] = "\nx = (\n"
    assert wrong(repository(tmp_path, files)) == "not Python: '(' was never closed (shared/b.py:2)"


STORED = """\
feature_view:
  name: v
  entities: [user]
  source: s
  features: [{name: x, type: INT}]
  engine: ENGINE
  storage:
    offline: hbase://cold/table
    online: redis://cache
---
entity: {name: user}
---
"""


def test_an_alias_that_is_missing_is_a_warning_when_embedded(tmp_path: Path) -> None:
    files = {"a.yaml": STORED.replace("ENGINE", "spark") + SOURCE}
    repo = repository(tmp_path, files, SETTINGS + "aliases: {cash: 'redis://x:1', cold: 'hbase://y:1'}\n")
    assert repo.warnings == [
        'feature view "v": feature_store.yaml has no alias "cache", which redis://cache names. Did you mean "cash"? '
        "(a.yaml:9)"
    ]


def test_an_alias_that_is_missing_is_an_error_otherwise(tmp_path: Path) -> None:
    files = {"a.yaml": STORED.replace("ENGINE", "spark") + SOURCE}
    repo = repository(tmp_path, files, SETTINGS + "online_store: redis://localhost:6379/0\n")
    assert wrong(repo) == (
        'feature view "v": feature_store.yaml has no alias "cold", which hbase://cold/table names. Add it under '
        "aliases: in feature_store.yaml (a.yaml:8)"
    )


def test_addresses_are_no_aliases(tmp_path: Path) -> None:
    text = STORED.replace("ENGINE", "local").replace("hbase://cold", "hdfs://h.example").replace("//cache", "//c:6379")
    repo = repository(tmp_path, {"a.yaml": text + SOURCE})
    assert repo.warnings == []


def test_an_unknown_engine(tmp_path: Path) -> None:
    repo = repository(tmp_path, {"a.yaml": STORED.replace("ENGINE", "sparc") + SOURCE})
    assert wrong(repo) == 'feature view "v": no engine "sparc". Did you mean "spark"? (a.yaml:6)'


def test_references_are_checked_across_files(tmp_path: Path) -> None:
    repo = repository(
        tmp_path, {"a.yaml": STORED.replace("ENGINE", "local").replace("source: s", "source: ss") + SOURCE}
    )
    assert wrong(repo) == 'feature view "v": no source "ss". Did you mean "s"? (a.yaml:4)'


def test_five_hundred_views_load_and_bind_quickly(tmp_path: Path) -> None:
    """Generous: the figure to hold is 3 s for a whole `apply`, measured in benchmarks."""
    view = """\
feature_view:
  name: v{n}
  entities: [user]
  source: s{m}
  features:
  - {{name: a{n}, type: INT64, column: a}}
  - {{name: b{n}, type: FLOAT64, column: b, default: 0.0}}
  - {{name: c{n}, type: FLOAT64, expression: "a + b"}}
---
"""
    files = {"user.yaml": entity("user")}
    files |= {f"sources/s{m}.yaml": f"source: {{name: s{m}, path: p, timestamp: t}}\n" for m in range(50)}
    files |= {f"views/v{n}.yaml": view.format(n=n, m=n % 50) for n in range(500)}
    repo = repository(tmp_path, files)
    started = time.process_time()
    schema = Schema.of(user=INT64, t=TIMESTAMP, a=INT64, b=FLOAT64)
    catalog = bind(
        "ads",
        repo.definitions,
        root=repo.root,
        offline=str,
        timezone="UTC",
        schema_of=lambda rows: schema,
        locations=repo.locations,
    )
    assert len(catalog.views) == 500
    assert time.process_time() - started < 3


def test_a_definition_error_is_not_hidden_by_later_reads(tmp_path: Path) -> None:
    repo = repository(tmp_path, {"a.yaml": "entity: {nam: a}"})
    for _ in range(2):
        with pytest.raises(DefinitionError, match='unknown key "nam"'):
            _ = repo.locations


def test_a_script_that_reads_the_repository_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: p\n")
    (tmp_path / "train.py").write_text(
        'from feature_store import FeatureStore\nstore = FeatureStore(".")\nstore.repository.definitions\n'
    )
    script = f"import os; os.chdir({str(tmp_path)!r}); from feature_store import FeatureStore; FeatureStore('.').plan()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "reads the repository while it is being read" in done.stderr
    assert "train.py:3" in done.stderr
