"""`make demo`, smaller."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_the_demo_does_every_step_in_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / ".made-by-demo").touch()
    (folder / "left_over.yaml").write_text("not: a definition")
    command = [sys.executable, str(ROOT / "docs/examples/demo.py"), "--events", "5000", "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = ("generate", "apply", "materialize", "serve", "read over HTTP", "push", "historical retrieval", "done")
    assert all(step in done.stdout for step in steps)
    assert (folder / "data/training.parquet").is_file()
    assert not (folder / "left_over.yaml").exists()


def test_the_demo_removes_nothing_that_it_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: mine\n")
    command = [sys.executable, str(ROOT / "docs/examples/demo.py"), "--events", "1000", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "not empty" in done.stdout + done.stderr
    assert (tmp_path / "feature_store.yaml").read_text() == "project: mine\n"
