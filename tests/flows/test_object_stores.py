"""A repository whose sources and offline tables lie in S3 or HDFS, and one that cannot get at them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_store import FeatureStore
from feature_store.storage.remote import list_files
from tests.flows.broken import DEFINITIONS, END, FS, RUNS, add, events, fs, make, visible
from tests.remotes import Remote, remote
from tests.servers import S3Server, free_port

__all__ = ["remote"]

ROWS = events(1_500, 200)
PUSHED = events(200, 200, seed=1, since="2024-04-20T10:00:00Z")
SPINE = pa.table({"user_id": list(range(250)), "event_timestamp": ["2024-04-19T05:06:07Z"] * 250})
MINIMAL = """
entity: {{name: user, join_key: user_id, type: INT64}}
---
source: {{name: users, path: "{path}", timestamp: at, stream: {stream}}}
---
feature_view: {{name: ages, entities: [user], source: users, features: [{{name: age, type: INT64}}]}}
"""


def lived(root: Path) -> dict[str, Any]:
    """What a repository shows after its runs, a push to both stores, and one run more."""
    pq.write_table(PUSHED, root / "pushed.parquet")
    pq.write_table(SPINE, root / "spine.parquet")
    fs(root, "apply")
    for run in RUNS:
        fs(root, *run)
    fs(root, "push", "events", str(root / "pushed.parquet"), "--to", "online_and_offline")
    fs(root, "materialize-incremental", END, "-v", "a_latest", "-v", "b_moving", "-v", "c_daily")
    history = ("get-historical-features", "--entities", str(root / "spine.parquet"), "--service", "everything")
    fs(root, *history, "-o", str(root / "history.parquet"))
    store = FeatureStore(root)
    found = visible(store) | {"history": pq.read_table(root / "history.parquet").to_pylist()}
    progress = store.registry.all_progress()
    found["kept"] = {each.view: (each.snapshots, each.done) for each in progress}
    store.close()
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make(tmp_path_factory.mktemp("local") / "repo")
    add(root, "all", ROWS)
    return root


@pytest.fixture(scope="module")
def expected(local: Path) -> dict[str, Any]:
    """What everything on a disk leads to."""
    return lived(local)


@pytest.mark.timeout(300)
def test_everything_remote_is_as_on_a_disk(
    remote: Remote, local: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    there = remote.put(local / "data" / "events", "events")
    offline = f"{remote.url}-offline" if there.startswith("hdfs") else f"{remote.url}/offline"
    distant = make(tmp_path / "distant", definitions=DEFINITIONS.replace("data/events", there), offline_store=offline)
    found = lived(distant)
    assert found == expected
    assert len(found["history"]) == SPINE.num_rows
    assert not (distant / "data" / "offline").exists()
    kept = list_files(offline)
    assert any("_delta_log" in name for name in kept)
    fs(distant, "teardown", "--yes")
    assert list_files(offline) == {}
    assert list_files(there) != {}


@pytest.fixture
def guarded(s3_server: S3Server) -> Iterator[S3Server]:
    """The S3-compatible server while it checks credentials."""
    s3_server.guard(True)
    yield s3_server
    s3_server.guard(False)


@pytest.fixture(params=["source", "offline store"])
def using(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    """A repository that needs a URI: its source lies there, or its offline store does."""

    def made(uri: str) -> Path:
        if request.param == "source":
            return make(tmp_path / "repo", definitions=MINIMAL.format(path=f"{uri}/users", stream="null"))
        pushed = MINIMAL.format(path="data/users.csv", stream="{push: true}")
        root = make(tmp_path / "repo", definitions=pushed, offline_store=f"{uri}/offline")
        (root / "data/users.csv").write_text("user_id,age,at\n1,30,2024-01-01\n")
        return root

    return made


def said(root: Path, **environment: str | None) -> str:
    """The line that an apply ends with, in an environment with some variables other than here, or unset."""
    changed = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    done = subprocess.run([FS, "-c", str(root), "apply"], capture_output=True, text=True, timeout=100, env=changed)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert "fault of feature_store" not in done.stderr
    return done.stderr


def test_without_credentials(using: Callable[[str], Path], s3_url: str) -> None:
    message = said(using(s3_url), AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    assert s3_url in message
    assert "there are no credentials for it. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message


def test_with_a_profile(s3_url: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server.client().put_object(Bucket=s3_url[5:], Key="users/a.csv", Body=b"user_id,age,at\n1,30,2024-01-01\n")
    root = make(tmp_path / "repo", definitions=MINIMAL.format(path=f"{s3_url}/users", stream="null"))
    credentials = tmp_path / "credentials"
    credentials.write_text("[me]\naws_access_key_id = tester\naws_secret_access_key = secret\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_PROFILE", "me")
    assert "ages" in fs(root, "apply")


def test_with_wrong_credentials(using: Callable[[str], Path], s3_url: str, guarded: S3Server) -> None:
    message = said(using(s3_url), AWS_ACCESS_KEY_ID="wrong")
    assert "(InvalidAccessKeyId). Check AWS_ACCESS_KEY_ID" in message


def test_without_the_bucket(using: Callable[[str], Path], s3_url: str) -> None:
    message = said(using("s3://no-such-bucket"))
    assert "s3://no-such-bucket/" in message
    assert "The specified bucket does not exist (NoSuchBucket). Make the bucket" in message


def test_without_a_server(using: Callable[[str], Path], s3_url: str) -> None:
    message = said(using(s3_url), AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
    assert s3_url in message and "Connection refused" in message


def test_without_a_name_node(using: Callable[[str], Path]) -> None:
    uri = f"hdfs://127.0.0.1:{free_port()}/folder"
    message = said(using(uri))
    assert uri in message and "Connection refused" in message


def test_a_scheme_that_nothing_reads(using: Callable[[str], Path]) -> None:
    root = using("ftp://host/folder")
    done = subprocess.run([FS, "-c", str(root), "apply"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "files at ftp:// are not supported. Use a path, s3:// or hdfs://" in done.stderr
