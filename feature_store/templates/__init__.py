"""Repositories to start from: `ads`, with generated data, and `minimal`.

`ads` is the repository's own `repo_example/`, packaged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from feature_store.errors import UsageError, nearest

TEMPLATES = {
    "ads": "users, ads, impressions, clicks and conversions, with generated data",
    "minimal": "one entity, one CSV, one view",
}
_STATE = shutil.ignore_patterns("data", "__pycache__")


def create(
    directory: str | Path,
    template: str = "ads",
    events: int = 100_000,
    seed: int = 7,
    end: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Make a working repository in a new or empty directory and return its path.

    For `ads`, `events` impressions are generated from `seed` up to the instant `end` (default: now, to the hour), so
    that windows hold something; `progress` is told how many are written. `UsageError` for an unknown template or a
    directory that holds something.
    """
    if template not in TEMPLATES:
        hint = nearest(template, TEMPLATES) or f"They are {', '.join(TEMPLATES)}"
        raise UsageError(f'there is no template "{template}"', hint=hint)
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not empty", hint="Give a new directory")
    shutil.copytree(Path(__file__).parent / template, target, dirs_exist_ok=True, ignore=_STATE)
    if template == "ads":
        _generate(target / "data", events, seed, end, progress)
    return target


def _generate(data: Path, events: int, seed: int, end: int | None, progress: Callable[[int], object] | None) -> None:
    import time

    from feature_store.expressions.instants import HOUR, SECOND
    from feature_store.templates.generator import World, generate

    now = int(time.time()) * SECOND // HOUR * HOUR if end is None else end
    generate(data, World(events=events, seed=seed, end=now), progress)
