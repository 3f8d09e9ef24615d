from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from feature_store.errors import SettingsError
from feature_store.plugins import open_online_store, redacted


def test_an_unknown_scheme_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        open_online_store("reds://localhost", "ads", tmp_path)
    assert 'Did you mean "redis"?' in str(caught.value)
    assert "sqlite" in str(caught.value)


def test_no_scheme_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match='opens "data/online"'):
        open_online_store("data/online", "ads", tmp_path)


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        open_online_store("nosuch://me:secret@host", "ads", tmp_path)
    assert "secret" not in str(caught.value)
    assert redacted("redis://:p@h/0") == "redis://:***@h/0"


def test_a_missing_driver_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from pathlib import Path\n"
        "from feature_store.errors import MissingExtraError\n"
        "from feature_store.plugins import open_online_store\n"
        "try:\n    open_online_store('redis://localhost', 'ads', Path('.'))\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "pip install 'feature_store[redis]'" in done.stdout
