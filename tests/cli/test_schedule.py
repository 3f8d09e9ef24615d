"""`fs schedule` as a command: what it runs, what it lists, and the file it writes for Airflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from feature_store.cli import run
from tests.flows.broken import DEFINITIONS, add, events, make

AIRFLOW_PYTHON = Path(os.environ.get("AIRFLOW_PYTHON", "build/airflow/bin/python"))
PARSE = """
import json, sys
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag
import pendulum

bag = DagBag(sys.argv[1], include_examples=False)
found = {}
for dag in bag.dags.values():
    dag.validate()
    run = dag.task_dict["materialize"]
    at = pendulum.datetime(2026, 3, 28, 23, 0, 0)
    context = {"data_interval_end": at, "macros": __import__("airflow.sdk.execution_time.macros", fromlist=["x"])}
    command = dag.get_template_env().from_string(run.bash_command).render(**context)
    found[dag.dag_id] = {
        "tasks": sorted(dag.task_ids), "cron": dag.timetable.summary, "zone": str(dag.timezone), "retries": run.retries,
        "catchup": dag.catchup, "most": dag.max_active_runs, "before": sorted(run.upstream_task_ids),
        "command": command,
    }
print("FOUND " + json.dumps({"errors": [str(error) for error in bag.import_errors.values()], "dags": found}))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    text = DEFINITIONS.replace(
        "    schedule: daily\n    sql: |", "    schedule: 30 2 * * *\n    delay: 90m\n    sql: |"
    )
    root = make(tmp_path / "a repo", definitions=text, timezone="Europe/Berlin")
    add(root, "all", events(200, 20))
    return root


def fs(root: Path, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    found = run(["-c", str(root), *arguments])
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


def listed(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    return {row["view"]: row for row in json.loads(fs(root, capsys, "schedule", "list", "--json")[0])}


def test_what_is_due_is_run_and_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fs(root, capsys, "apply")
    before = listed(root, capsys)
    assert before.keys() == {"c_daily", "d_queried"}
    assert (before["d_queried"]["schedule"], before["d_queried"]["timezone"]) == ("30 2 * * *", "Europe/Berlin")
    assert before["c_daily"]["through"] is None
    out, _ = fs(root, capsys, "schedule", "run", "--once", "c_daily")
    assert out.startswith("c_daily: up to ")
    after = listed(root, capsys)["c_daily"]
    assert after["through"] is not None and after["next_run"] > after["through"] and after["error"] is None
    assert fs(root, capsys, "schedule", "run", "--once", "c_daily")[0] == ""
    text, _ = fs(root, capsys, "schedule", "list")
    assert text.splitlines()[0].split() == ["view", "schedule", "through", "next_run", "attempts", "error", "running"]


def test_a_failed_run_is_said_and_has_exit_code_1(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fs(root, capsys, "apply")
    (root / "data/events/broken.parquet").write_bytes(b"PAR1 no file")
    _, err = fs(root, capsys, "schedule", "run", "--once", "c_daily", code=1)
    assert err.startswith("c_daily: attempt 1 failed, again at ")
    assert "broken.parquet" in listed(root, capsys)["c_daily"]["error"]


def test_a_view_that_is_not_there_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fs(root, capsys, "apply")
    _, err = fs(root, capsys, "schedule", "run", "--once", "c_dayly", code=1)
    assert 'no feature view "c_dayly". Did you mean "c_daily"?' in err


def test_help_names_the_commands(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = fs(root, capsys, "schedule", "--help")
    assert all(name in out for name in ("run", "list", "export"))


@pytest.fixture(scope="module")
def airflow() -> str:
    if not AIRFLOW_PYTHON.exists():
        pytest.fail(f"there is no {AIRFLOW_PYTHON}. Run: make airflow")
    return str(AIRFLOW_PYTHON.absolute())


def test_airflow_reads_the_exported_file(
    root: Path, airflow: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fs(root, capsys, "apply")
    file = tmp_path / "features.py"
    settings = shutil.copy(root / "feature_store.yaml", root / "feature_store.cluster.yaml")
    export = ["schedule", "export", "airflow", "-o", str(file), "--fs", "nice fs", "--attempts", "3"]
    out, _ = fs(root, capsys, "-f", str(settings), *export)
    assert out == f"Wrote 2 DAGs to {file}.\n"
    home = {"AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    parsed = subprocess.run(
        [airflow, "-c", PARSE, str(file)], env={**os.environ, **home}, capture_output=True, text=True, cwd=tmp_path
    )
    assert parsed.returncode == 0, parsed.stderr
    found = json.loads(parsed.stdout[parsed.stdout.index("FOUND ") :].removeprefix("FOUND "))
    assert found["errors"] == []
    begin = f"nice fs -c '{root.absolute()}' -f '{root.absolute()}/feature_store.cluster.yaml' materialize-incremental"
    assert found["dags"]["broken__c_daily"] == {
        "tasks": ["materialize"],
        "cron": "0 0 * * *",
        "zone": "Europe/Berlin",
        "retries": 2,
        "catchup": False,
        "most": 1,
        "before": [],
        "command": f'{begin} "2026-03-28T23:00:00+00:00" -v c_daily',
    }
    assert found["dags"]["broken__d_queried"]["tasks"] == ["delay", "materialize"]
    assert found["dags"]["broken__d_queried"]["before"] == ["delay"]
    assert found["dags"]["broken__d_queried"]["command"] == f'{begin} "2026-03-29T00:30:00+00:00" -v d_queried'
