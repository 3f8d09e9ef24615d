"""README and docs are true: their examples run, their tables name the keys there are, their pictures are as drawn.

A fenced block whose info string ends in `run` (```python run, ```bash run) is run, in order, a page in a folder of its
own: the pages of docs/ in an applied and materialized copy of the ads repository, README in an empty folder. A block
marked `serve` is started beside the others and lives to the end of the page. A block of YAML is loaded: as settings,
of which it may be a part, where all its keys are keys of feature_store.yaml, and as definitions otherwise.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from feature_store import definitions
from feature_store.cli import COMMANDS
from feature_store.definitions.feature import Compute, Feature
from feature_store.definitions.files import load_text
from feature_store.definitions.source import SourceColumn
from feature_store.settings import KafkaPlace, Limits, Settings, load_settings
from feature_store.templates import create
from tests.servers import KafkaServer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PORT = 6566
_BLOCK = re.compile(r"^```(\w+) (run|serve)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_YAML = re.compile(r"^```ya?ml.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TOP_KEY = re.compile(r"^(\w+):", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@dataclass(frozen=True)
class Block:
    language: str
    how: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m[1], m[2], m[3], text[: m.start()].count("\n") + 2) for m in _BLOCK.finditer(text)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Reader:
    """Somebody who types what a page says, in one shell and one Python."""

    def __init__(self, page: Path, folder: Path, home: Path) -> None:
        self.page = page
        self.folder = folder
        self.home = home
        self.port = free_port()
        self.names: dict[str, Any] = {}
        self.servers: list[subprocess.Popen[bytes]] = []
        self.environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def read(self) -> None:
        for block in blocks(self.page):
            code = block.code.replace(f"--port {PORT}", f"--port {self.port}").replace(f":{PORT}", f":{self.port}")
            if block.how == "serve":
                self.serve(code)
            elif block.language == "bash":
                self.bash(code, block.line)
            else:
                self.python(code, block.line)

    def bash(self, code: str, line: int) -> None:
        where = self.home / "pwd"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{code}\npwd > {where}"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{self.page.name}:{line}\n{done.stdout}\n{done.stderr}"
        self.folder = Path(where.read_text().strip())

    def python(self, code: str, line: int) -> None:
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            exec(compile("\n" * (line - 1) + code, str(self.page), "exec"), self.names)
        finally:
            os.chdir(before)

    def serve(self, code: str) -> None:
        command = ["bash", "-c", f"exec {code.strip()}"]
        with (self.home / "server.log").open("wb") as log:
            self.servers.append(
                subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
            )
        until = time.monotonic() + 30
        while time.monotonic() < until and self.servers[-1].poll() is None:
            try:
                urllib.request.urlopen(f"http://localhost:{self.port}/health", timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        pytest.fail(f"the server of {self.page.name} did not answer:\n{(self.home / 'server.log').read_text()}")

    def close(self) -> None:
        for server in self.servers:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def ads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create(tmp_path_factory.mktemp("docs") / "ads", "ads", events=2_000)


@pytest.fixture
def reader(
    request: pytest.FixtureRequest, ads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reader]:
    page: Path = request.param
    if page.name == "streams.md":
        kafka: KafkaServer = request.getfixturevalue("kafka_server")
        request.getfixturevalue("ads_topics")
        monkeypatch.setenv("KAFKA", kafka.url)
    folder = tmp_path / "work"
    if page.name == "README.md":
        folder.mkdir()
    else:
        shutil.copytree(ads, folder)
        prepare(folder)
    reader = Reader(page, folder, tmp_path)
    yield reader
    reader.close()


def prepare(repo: Path) -> None:
    from datetime import UTC, datetime

    from feature_store import FeatureStore

    store = FeatureStore(repo)
    store.apply()
    store.materialize_incremental(datetime.now(UTC))
    store.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("reader", [p for p in PAGES if blocks(p)], ids=lambda p: p.name, indirect=True)
def test_the_examples_of_a_page_run(reader: Reader) -> None:
    reader.read()


def yaml_blocks() -> Iterator[Any]:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for found in _YAML.finditer(text):
            where = f"{page.relative_to(ROOT)}:{text[: found.start()].count(chr(10)) + 2}"
            yield pytest.param(where, found[1], id=where)


@pytest.mark.parametrize(("where", "text"), list(yaml_blocks()))
def test_an_example_in_yaml_loads(where: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set(_TOP_KEY.findall(text))
    for variable in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(variable, f"what {variable} holds")
    if keys <= set(Settings.model_fields):
        file = tmp_path / "feature_store.yaml"
        file.write_text(text if "project" in keys else f"{text}\nproject: docs\n", encoding="utf-8")
        assert keys <= load_settings(file).model_fields_set
    else:
        assert load_text(text, where)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


KEYS: dict[str, tuple[type[BaseModel], type[BaseModel] | None]] = {
    "Definitions": (definitions.Definition, None),
    "entity": (definitions.Entity, definitions.Definition),
    "source": (definitions.Source, definitions.Definition),
    "source/columns": (SourceColumn, None),
    "source/stream": (definitions.Stream, None),
    "source/kafka": (definitions.Kafka, None),
    "feature_view": (definitions.FeatureView, definitions.Definition),
    "feature_view/features": (definitions.Field, None),
    "feature_view/aggregations": (definitions.Aggregation, None),
    "feature_view/storage": (definitions.Storage, None),
    "on_demand_feature_view": (definitions.OnDemandFeatureView, definitions.Definition),
    "on_demand_feature_view/inputs": (definitions.RequestInput, None),
    "feature_service": (definitions.FeatureService, definitions.Definition),
    "feature_service/logging": (definitions.Logging, None),
    "feature": (Feature, definitions.Definition),
    "feature/compute": (Compute, None),
    "feature_store.yaml": (Settings, None),
    "feature_store.yaml/limits": (Limits, None),
    "feature_store.yaml/kafka": (KafkaPlace, None),
}


def documented_keys() -> dict[str, list[str]]:
    """The first column of each table of definitions.md that starts with `key`, by heading."""
    tables: dict[str, list[str]] = {}
    section = heading = ""
    inside = False
    for line in (ROOT / "docs/definitions.md").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"(#+) (.*)", line):
            section = section if len(match[1]) == 3 else match[2]
            heading = f"{section}/{match[2]}" if len(match[1]) == 3 else match[2]
        inside = line.startswith("| key |") or (inside and line.startswith("|"))
        if inside and (cell := re.match(r"\| `(\w+)` \|", line)):
            tables.setdefault(heading, []).append(cell[1])
    return tables


def test_every_key_is_documented_and_every_documented_key_exists() -> None:
    documented = documented_keys()
    assert set(documented) == set(KEYS)
    for heading, (model, base) in KEYS.items():
        keys = set(model.model_fields) - set(base.model_fields if base else ())
        assert set(documented[heading]) == keys, heading
        assert len(documented[heading]) == len(keys), heading


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    rows = re.findall(r"^\| (`fs .*?) \|", (ROOT / "docs/cli.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"`fs ([a-z-]+)", "\n".join(rows))
    assert sorted(named) == sorted(COMMANDS)


def test_the_readmes_map_of_the_house_is_true() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    house = re.search(r"^## The map of the house\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert house
    named = {match[1] for match in re.finditer(r"^  (\w+(?:/|\.py)) ", house[1], re.MULTILINE)}
    package = ROOT / "feature_store"
    there = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    there |= {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
    assert named == there


def test_the_pictures_are_as_drawn() -> None:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs/pictures.py")
    assert spec
    assert spec.loader
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    assert {path.stem for path in (ROOT / "docs/pictures").glob("*.svg")} == set(pictures.PICTURES)
    for name, draw in pictures.PICTURES.items():
        assert (ROOT / f"docs/pictures/{name}.svg").read_text(encoding="utf-8") == draw().svg()
