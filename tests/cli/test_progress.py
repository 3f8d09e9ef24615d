from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from feature_store.cli.progress import counting, reporting

_SCRIPT = """
from feature_store.cli.progress import reporting
with reporting() as report:
    for done in range(4):
        report("user_clicks", done, 3, done * 1000)
"""


def test_elsewhere_a_line_when_a_view_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting() as report:
        for done in range(4):
            report("clicks", done, 3, done * 1000)
        report("profile", 1, 1, 5)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "clicks: 3/3, 3,000 rows\nprofile: 1/1, 5 rows\n"


def test_on_a_terminal_a_bar() -> None:
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", _SCRIPT], stderr=theirs, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "user_clicks" in shown
    assert "3/3" in shown
    assert "3,000 rows" in shown


def test_counting_without_a_total_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("x", None) as report:
        assert report is None
    with counting("x", 10) as report:
        assert report is not None
        report(10)
    assert capsys.readouterr().err == "x: 10/10, 10 rows\n"
