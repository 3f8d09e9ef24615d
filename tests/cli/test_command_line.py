"""The command line itself: help, options, errors and exit codes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from feature_store import errors
from feature_store.cli import COMMANDS, exit_code, fs, run

HEAVY = (
    "pyarrow",
    "duckdb",
    "deltalake",
    "sqlalchemy",
    "sqlglot",
    "pydantic",
    "yaml",
    "rich",
    "fastapi",
    "pandas",
    "numpy",
)


def test_help_imports_nothing_heavy_and_answers_fast() -> None:
    code = (
        "import sys; from feature_store.cli import run; assert run(['--help']) == 0;"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: the wall's depends on who else is on the machine.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stderr.strip() == "[]"
    assert all(command in done.stdout for command in COMMANDS)
    assert min(seconds) < 0.3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: fs {command}" in text
    assert "--chdir DIR" in text
    assert "--traceback" in text


@pytest.mark.parametrize("command", ["plan", "apply", "list", "describe", "lineage", "get-online-features"])
def test_every_listing_has_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_help_lines_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--help"])
    listing = capsys.readouterr().out.partition("Commands:")[2]
    assert "..." not in listing
    assert set(fs.list_commands(None)) == set(COMMANDS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["matrialize"], 'there is no command "matrialize". Did you mean "materialize"?'),
        (["plan", "--jsno"], "No such option '--jsno'"),
        (["describe"], "Missing argument 'NAME'. See: fs describe --help"),
        (["materialize", "2026-13-01", "now"], '"2026-13-01" is not a time. Write ISO 8601'),
        (["materialize", "2026-01-02", "2026-01-01"], "START 2026-01-02T00:00:00Z is after END 2026-01-01T00:00:00Z"),
        (["push", "v", "f.csv", "--to", "both"], "'both' is not one of 'online', 'offline', 'online_and_offline'"),
        (["push", "v", "nowhere.csv"], "there is no file nowhere.csv"),
        (["get-online-features", "--entity", "a=1"], "give either --features or --service"),
        (["get-online-features", "--entity", "a", "--features", "v"], '--entity "a" is not NAME=VALUE'),
        (["get-historical-features", "--entities", "e.csv", "--service", "s", "-o", "x.txt"], "x.txt ends in neither"),
        (["get-historical-features", "--entities", "nowhere.csv", "--service", "s"], "there is no file nowhere.csv"),
        (["list", "veiws"], 'there is no kind "veiws". Did you mean "views"?'),
        (["init", "somewhere", "--template", "minmal"], 'there is no template "minmal". Did you mean "minimal"?'),
        (["serve", "--port", "70000"], "70000 is not in the range"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_a_directory_without_settings_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["-c", str(tmp_path), "plan"], ["plan", "-c", str(tmp_path)]):
        assert run(arguments) == 2
        err = capsys.readouterr().err
        assert str(tmp_path) in err
        assert err.count("\n") == 1


def test_another_settings_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "production.yaml"
    other.write_text("project: ads\nregistri: x\n")
    assert run(["-c", str(tmp_path), "-f", str(other), "list"]) == 2
    assert f'no setting "registri". Did you mean "registry"? ({other}:2)' in capsys.readouterr().err


def test_traceback_shows_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--traceback", "-c", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last):" in err
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DefinitionError("x"), 2),
        (errors.ExpressionError("x"), 2),
        (errors.SettingsError("x"), 2),
        (errors.UsageError("x"), 2),
        (errors.MissingExtraError("redis", "x"), 1),
        (errors.NotFoundError("x"), 1),
        (errors.TooLargeError("x"), 1),
        (errors.ConflictError("x"), 1),
        (errors.DestructiveChangeError("x"), 1),
        (errors.SourceError("x"), 1),
        (errors.StoreUnavailableError("x"), 1),
    ],
)
def test_exit_codes(error: errors.FeatureStoreError, code: int) -> None:
    assert exit_code(error) == code


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    code = "from feature_store.cli import main; main()"
    command = [sys.executable, "-c", code, "--help"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
