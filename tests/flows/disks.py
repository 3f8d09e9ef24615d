"""Disks that are full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 KB for the offline store."""
    with mounted(tmp_path / "disk", "400k") as folder:
        yield folder


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A new folder as a disk of this size; where it cannot be mounted, the test asks for root."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk takes root; a limit on files is tested in any case")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all of the free space but a little."""
    path = disk / "filling"
    free = os.statvfs(disk)
    path.write_bytes(b"x" * (free.f_bavail * free.f_frsize - 8192))
    return path
