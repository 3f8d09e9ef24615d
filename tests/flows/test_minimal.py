"""The smallest repository, from `fs init` to values known by heart, by commands."""

import json
import subprocess
import sys
from pathlib import Path

FS = str(Path(sys.executable).parent / "fs")


def fs(repo: Path, *arguments: str) -> str:
    done = subprocess.run([FS, "-c", str(repo), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_minimal_template(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    subprocess.run([FS, "init", str(repo), "--template", "minimal"], check=True, capture_output=True, timeout=60)
    fs(repo, "apply")
    fs(repo, "materialize-incremental", "2026-04-01")
    out = fs(repo, "get-online-features", "--service", "profile_v1", "--entity", "user_id=1", "--entity", "user_id=3",
             "--entity", "user_id=9", "--json")  # fmt: skip
    assert [(row["user_id"], row["user_age"], row["user_gender"]) for row in json.loads(out)] == [
        (1, 35, 1),
        (3, 41, None),
        (9, None, None),
    ]
    fs(repo, "get-historical-features", "--entities", str(repo / "entities.csv"), "--features", "user_age",
       "-o", str(tmp_path / "out.csv"))  # fmt: skip
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert [line.split(",")[-1].strip('"') for line in lines] == ["user_age", "34", "35", "27", ""]
