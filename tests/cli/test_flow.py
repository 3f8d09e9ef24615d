"""A repository from init to teardown, by commands alone; real files, DuckDB and SQLite."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feature_store.cli import run

SETTINGS = """
project: shop
registry: sqlite:///data/registry.db
offline_store: data/offline
online_store: sqlite:///data/online.db
"""
PROFILE = """
entity: {name: user, join_key: user_id, type: INT64}
---
source: {name: users, path: users.csv, timestamp: updated_at}
---
feature_view:
  name: profile
  entities: [user]
  source: users
  features: [{name: age, type: INT64}, {name: city, type: STRING}]
---
"""
CLICKS = """
source: {name: clicks, path: clicks.csv, timestamp: at, stream: {push: true}}
---
feature_view:
  name: behaviour
  entities: [user]
  source: clicks
  aggregations:
    - {name: cnt_7d, function: count, window: 7d}
    - {name: spend_7d, function: sum, column: price, window: 7d, where: "price > 0"}
---
on_demand_feature_view:
  name: context
  inputs: [{request: [{name: bid, type: FLOAT64}]}, behaviour]
  features: [{name: ratio, type: FLOAT64, expression: "spend_7d / cnt_7d * bid", default: 0.0}]
---
feature_service: {name: model, features: [profile, "behaviour:cnt_7d", context]}
"""


class Shell:
    """`fs` in one repository, its output kept."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        self._capsys.readouterr()
        got = run(["-c", str(self.root), *arguments])
        self.out, self.err = self._capsys.readouterr()
        assert got == code, self.err
        return self.out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def fs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    (tmp_path / "feature_store.yaml").write_text(SETTINGS)
    (tmp_path / "features.yaml").write_text(PROFILE + CLICKS)
    (tmp_path / "users.csv").write_text(
        "user_id,age,city,updated_at\n1,30,Paris,2026-01-01T00:00:00Z\n2,,Rome,2026-01-02T00:00:00Z\n"
    )
    (tmp_path / "clicks.csv").write_text(
        "user_id,price,at\n1,2.5,2026-01-03T10:00:00Z\n1,0.0,2026-01-03T11:00:00Z\n2,4.0,2026-01-03T12:00:00Z\n"
    )
    return Shell(tmp_path, capsys)


def test_plan_apply_and_apply_again(fs: Shell) -> None:
    plan = fs("plan")
    assert "+ feature view profile" in plan
    assert "Plan: 6 to create" not in plan
    assert "Plan: 7 to create, 0 to update, 0 to delete." in plan
    assert "Applied: 7 created, 0 updated, 0 deleted." in fs("apply")
    assert fs("apply") == 'Project "shop": nothing to change.\n'
    assert fs.json("plan")["changes"] == []


def test_the_registry_is_listed(fs: Shell) -> None:
    assert fs("list") == "Nothing is applied. Run: fs apply\n"
    assert fs.json("list") == []
    fs("apply")
    listed = fs.json("list")
    assert {(item["kind"], item["name"], item["version"]) for item in listed} == {
        ("entity", "user", 1), ("source", "users", 1), ("source", "clicks", 1), ("feature_view", "profile", 1),
        ("feature_view", "behaviour", 1), ("on_demand_feature_view", "context", 1), ("feature_service", "model", 1),
    }  # fmt: skip
    assert [item["name"] for item in fs.json("list", "feature-views")] == ["behaviour", "profile"]
    assert [line.split()[:2] for line in fs("list", "views").splitlines()[1:]] == [
        ["feature_view", "behaviour"], ["feature_view", "profile"],
    ]  # fmt: skip
    assert fs.json("describe", "profile")["name"] == "profile"
    assert "age" in fs("describe", "profile")
    fs("describe", "profle", code=1)
    assert 'Did you mean "profile"?' in fs.err
    edges = fs.json("lineage", "model")
    assert {
        "from": {"kind": "source", "name": "clicks", "column": "price"},
        "to": {"kind": "feature_view", "name": "behaviour", "column": "spend_7d"},
        "role": "where",
    } in edges
    assert "clicks:price" in fs("lineage", "context")
    fs("lineage", "nothing", code=1)


def test_values_online_and_offline(fs: Shell) -> None:
    fs("apply")
    out = fs("materialize", "2026-01-01", "2026-01-04")
    assert re.fullmatch(r"Materialized \d+ rows from 2026-01-01T00:00:00Z to 2026-01-04T00:00:00Z\.\n", out)
    ahead = fs("materialize-incremental", "2150-01-01")
    assert re.search(r"rows up to 20[2-9].*Z, now: 2150-01-01T00:00:00Z lies ahead\.\n$", ahead)
    assert "profile: " in fs.err
    assert fs.json(
        "get-online-features", "--features", "profile", "--entity", "user_id=1", "--entity", "user_id=3"
    ) == [
        {"user_id": 1, "age": 30, "city": "Paris"},
        {"user_id": 3, "age": None, "city": None},
    ]
    shown = fs.json(
        "get-online-features", "--service", "model", "--entity", "user_id=2", "--request", "bid=2", "--statuses"
    )
    assert shown[0]["age"] is None
    assert (shown[0]["age__status"], shown[0]["city__status"]) == ("NULL_VALUE", "PRESENT")
    assert "Paris" in fs("get-online-features", "--features", "city", "--entity", "user_id=1")
    fs("get-online-features", "--features", "cty", "--entity", "user_id=1", code=1)
    assert 'Did you mean "city"?' in fs.err

    entities = fs.root / "entities.csv"
    entities.write_text("user_id,event_timestamp,bid\n1,2026-01-03T10:30:00Z,2.0\n2,2026-01-03T10:30:00Z,2.0\n")
    for name in ("training.csv", "training.parquet"):
        fs("get-historical-features", "--entities", str(entities), "--service", "model", "-o", str(fs.root / name))
        assert "Wrote 2 rows" in fs.err
    with (fs.root / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(fs.root / "training.parquet").to_pylist()
    assert [row["user_id"] for row in rows] == ["1", "2"]
    assert [(row["age"], row["city"], row["cnt_7d"], row["ratio"]) for row in table] == [
        (30, "Paris", 1, 5.0), (None, "Rome", 0, 0.0),
    ]  # fmt: skip
    answer = fs.json("get-historical-features", "--entities", str(entities), "--features", "cnt_7d", "--statuses")
    assert [row["cnt_7d"] for row in answer] == [1, 0]
    fs("materialize-incremental", "2026-01-05")


def test_rows_as_they_were_known(fs: Shell) -> None:
    (fs.root / "features.yaml").write_text(
        PROFILE.replace("updated_at}", "updated_at, created: told_at}").rstrip("-\n")
    )
    (fs.root / "users.csv").write_text(
        "user_id,age,city,updated_at,told_at\n1,30,Paris,2026-01-01,2026-01-01\n1,31,Rome,2026-01-02,2026-01-05\n"
    )
    fs("apply")
    entities = fs.root / "entities.csv"
    entities.write_text("user_id,event_timestamp\n1,2026-01-03\n1,2026-01-05\n")
    ask = ("get-historical-features", "--entities", str(entities), "--features", "city")
    assert [row["city"] for row in fs.json(*ask)] == ["Rome", "Rome"]
    assert [row["city"] for row in fs.json(*ask, "--as-known")] == ["Paris", "Rome"]
    fs(*ask, "--as-known", "-o", str(fs.root / "known.csv"))
    assert "Wrote 2 rows as known at the time (1 later rows not seen)" in fs.err


def test_pushed_rows_count(fs: Shell) -> None:
    fs("apply")
    more = fs.root / "more.csv"
    more.write_text("user_id,price,at\n7,1.0,2026-01-03T10:00:00Z\n7,2.0,2026-01-03T11:00:00Z\n")
    assert fs("push", "clicks", str(more), "--to", "offline") == "Pushed 2 rows to clicks, offline.\n"
    entities = fs.root / "entities.csv"
    entities.write_text("user_id,event_timestamp\n7,2026-01-03T12:00:00Z\n")
    answer = fs.json("get-historical-features", "--entities", str(entities), "--features", "behaviour")
    assert [(row["cnt_7d"], row["spend_7d"]) for row in answer] == [(2, 3.0)]
    (fs.root / "features.yaml").write_text(PROFILE)
    fs("apply", code=1)
    assert 'source "clicks" with stored rows' in fs.err


def test_data_is_not_dropped_unasked(fs: Shell) -> None:
    fs("apply")
    fs("materialize", "2026-01-01", "2026-01-04", "-v", "profile")
    (fs.root / "features.yaml").write_text(PROFILE.replace(", {name: city, type: STRING}", ""))
    plan = fs("plan")
    assert "- feature service model" in plan
    assert "- features.city" in plan
    kept = "they are served until the new version is complete: fs backfill profile START END"
    assert f"stored rows up to 2026-01-04T00:00:00Z no longer hold (destructive); {kept}" in plan
    assert "needs --allow-destructive" in plan
    fs("apply", code=1)
    assert "--allow-destructive" in fs.err
    assert len(fs.json("list")) == 7
    fs("apply", "--allow-destructive")
    assert [item["name"] for item in fs.json("list", "views")] == ["profile"]
    assert fs("apply") == 'Project "shop": nothing to change.\n'


def test_rows_pushed_online_are_not_dropped_unasked(fs: Shell) -> None:
    fs("apply")
    more = fs.root / "more.csv"
    more.write_text("user_id,price,at\n7,1.0,2026-01-03T10:00:00Z\n")
    assert "clicks, online." in fs("push", "clicks", str(more))
    whole = (fs.root / "features.yaml").read_text()
    (fs.root / "features.yaml").write_text(PROFILE)
    plan = fs("plan")
    assert "- feature view behaviour" in plan
    assert "    stored rows (destructive)" in plan
    fs("apply", code=1)
    assert 'this would remove feature view "behaviour" with stored rows' in fs.err
    assert "--allow-destructive" in fs.err
    (fs.root / "features.yaml").write_text(whole)
    assert fs("apply") == 'Project "shop": nothing to change.\n'


def test_a_wrong_definition_has_its_place_and_exit_code_2(fs: Shell) -> None:
    text = PROFILE.replace("source: users\n", "source: usres\n")
    (fs.root / "features.yaml").write_text(text)
    line = text[: text.index("usres")].count("\n") + 1
    for command in ("plan", "apply"):
        fs(command, code=2)
        assert 'Did you mean "users"?' in fs.err
        assert f"features.yaml:{line}" in fs.err
        assert fs.err.count("\n") == 1


def test_teardown_asks_first(fs: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fs("apply")
    command = [sys.executable, "-c", "from feature_store.cli import main; main()", "-c", str(fs.root), "teardown"]
    for answer in ("n\n", ""):
        done = subprocess.run(command, input=answer, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert 'records of project "shop"' in done.stderr
    assert len(fs.json("list")) == 7
    fs("teardown", "--yes")
    assert fs.json("list") == []


def test_init_makes_a_repository_that_works(fs: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repo = Shell(tmp_path / "new", capsys)
    assert run(["init", str(repo.root), "--template", "minimal"]) == 0
    assert run(["init", str(repo.root), "--template", "minimal"]) == 2
    repo("apply")
    repo("materialize-incremental", "now")
    assert repo.json("get-online-features", "--service", "profile_v1", "--entity", "user_id=1")[0]["user_age"] > 0
