"""An S3-compatible server of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import boto3
import httpx
from botocore.exceptions import BotoCoreError, ClientError

from tests.servers.processes import free_port


class S3Server:
    """An S3-compatible server (moto's), which keeps nothing. It lets everyone in until `guard`."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which clients find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """A connection around the store."""
        found = self.environment
        return boto3.client(
            "s3",
            endpoint_url=found["AWS_ENDPOINT_URL"],
            region_name=found["AWS_REGION"],
            aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
        )

    def start(self) -> S3Server:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._works():
            if time.monotonic() > deadline:
                self.close()
                raise RuntimeError("moto's server did not answer within 60 s")
            time.sleep(0.05)
        return self

    def guard(self, guarded: bool) -> None:
        """Whether it checks credentials from now on; those that it knows are none."""
        count = "0" if guarded else "1000000000"
        httpx.post(
            f"http://127.0.0.1:{self.port}/moto-api/reset-auth", content=count, trust_env=False
        ).raise_for_status()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _works(self) -> bool:
        try:
            client = self.client()
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="x", Body=b"x")
            return bool(client.get_object(Bucket="ready", Key="x")["Body"].read() == b"x")
        except (BotoCoreError, ClientError):
            return False
