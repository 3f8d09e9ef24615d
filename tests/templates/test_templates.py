from pathlib import Path

import pytest

from feature_store.errors import UsageError
from feature_store.expressions.instants import instant
from feature_store.repository import Repository
from feature_store.templates import TEMPLATES, create

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_a_template_holds_settings_and_definitions(template: str, tmp_path: Path) -> None:
    made = create(tmp_path / "repo", template, events=1_000, end=instant("2026-06-01T00:00:00Z"))
    assert (made / "feature_store.yaml").is_file()
    assert list(made.rglob("*feature*.yaml"))
    assert not list(made.rglob("__pycache__"))
    assert not (made / "data/registry.db").exists()


def test_ads_is_repo_example_with_data_up_to_the_end(tmp_path: Path) -> None:
    made = create(tmp_path / "repo", "ads", events=1_000, end=instant("2026-06-01T12:00:00Z"))
    for path in (ROOT / "repo_example").rglob("*"):
        inside = path.relative_to(ROOT / "repo_example")
        if path.is_file() and inside.parts[0] != "data" and "__pycache__" not in inside.parts:
            assert (made / inside).read_bytes() == path.read_bytes()
    days = sorted(path.name for path in (made / "data/dwd_ad_impression").iterdir())
    assert days[-1] == "dt=2026-06-01"
    assert len(days) == 31


def test_an_unknown_template_and_a_full_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'no template "adds".*Did you mean "ads"'):
        create(tmp_path / "repo", "adds")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        create(tmp_path, "minimal")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_a_template_holds_valid_definitions(template: str, tmp_path: Path) -> None:
    repository = Repository(create(tmp_path / "repo", template, events=1_000))
    names = {definition.name for definition in repository.definitions}
    assert repository.settings.project == template
    assert names >= ({"user_profile", "user_click_cnt_7d", "ad_history", "ctr_v1"} if template == "ads" else {"users"})
    assert len(repository.warnings) == (2 if template == "ads" else 0)  # the aliases that the short form names
