"""Jars of the servers that tests start, fetched once by Maven: `python tests/jars.py` fetches them all.

Each folder of tests/maven holds a pom.xml; its jars lie in build/jars, in a folder of the same name.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_POMS = _ROOT / "tests" / "maven"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies"
_HOW = "Run make services, or: apt-get install maven openjdk-17-jre-headless"


def java() -> str:
    """The program `java`."""
    return _program("java")


def jars(name: str) -> Path:
    """The folder with the jars that tests/maven/`name`/pom.xml asks for. Of several processes one fetches them."""
    pom, folder = _POMS / name / "pom.xml", _ROOT / "build" / "jars" / name
    stamp, wanted = folder.with_suffix(".stamp"), hashlib.sha256(pom.read_bytes()).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            stamp.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            _fetch(pom, folder)
            stamp.write_text(wanted)
    return folder


def _fetch(pom: Path, folder: Path) -> None:
    # Not in ~/.m2: Maven leaves descriptions without their jars there, which Spark's Ivy takes for the whole.
    options = [
        "-DincludeScope=runtime",
        f"-DoutputDirectory={folder}",
        f"-Dmaven.repo.local={_ROOT / 'build' / 'maven'}",
    ]
    command = [_program("mvn"), "-q", "-B", "-f", str(pom), _COPY, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"Maven cannot fetch the jars of {pom}:\n{done.stdout[-2000:]}")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"there is no {name}. {_HOW}")
    return found


if __name__ == "__main__":
    for each in sorted(_POMS.glob("*/pom.xml")):
        print(f"jars of {each.parent.name}: {jars(each.parent.name)}")
