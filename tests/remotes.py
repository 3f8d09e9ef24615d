"""Places for files that are not on this machine's disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers import S3Server


@dataclass(frozen=True)
class Remote:
    """An empty folder in S3 or HDFS. `put` copies a local file, or all that a local folder holds, to a name in it and
    gives its URI."""

    url: str
    put: Callable[[Path, str], str]


@pytest.fixture(params=["s3", "hdfs"])
def remote(request: pytest.FixtureRequest) -> Remote:
    if request.param == "s3":
        return _in_s3(request.getfixturevalue("s3_server"), request.getfixturevalue("s3_url"))
    server, url = request.getfixturevalue("hdfs_server"), request.getfixturevalue("hdfs_url")

    def put(path: Path, name: str) -> str:
        server.put(path, f"{url}-{name}")
        return f"{url}-{name}"

    return Remote(url, put)


def _in_s3(server: S3Server, url: str) -> Remote:
    client, bucket = server.client(), url.removeprefix("s3://")

    def put(path: Path, name: str) -> str:
        for file in [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]:
            key = "/".join([name, *file.relative_to(path).parts])
            client.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())
        return f"{url}/{name}"

    return Remote(url, put)
