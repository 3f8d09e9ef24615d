"""What Hadoop's client of S3 is told, and when Spark has one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from feature_store.engines.spark_s3 import client_settings

KEYS = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}
PROVIDER = "fs.s3a.aws.credentials.provider"


def test_a_store_of_ones_own() -> None:
    found = client_settings({**KEYS, "AWS_ENDPOINT_URL": "http://minio:9000"}, "3.3.4")
    assert found["fs.s3a.endpoint"] == "http://minio:9000"
    assert found["fs.s3a.endpoint.region"] == "us-east-1"
    assert found["fs.s3a.path.style.access"] == "true"
    assert found["fs.s3a.connection.ssl.enabled"] == "false"
    assert (found["fs.s3a.access.key"], found["fs.s3a.secret.key"]) == ("me", "secret")
    assert found[PROVIDER] == "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider"


def test_amazons_own_with_a_token() -> None:
    found = client_settings({**KEYS, "AWS_SESSION_TOKEN": "t", "AWS_DEFAULT_REGION": "eu-west-1"}, "3.3.4")
    assert "fs.s3a.endpoint" not in found and "fs.s3a.path.style.access" not in found
    assert found["fs.s3a.endpoint.region"] == "eu-west-1"
    assert found["fs.s3a.session.token"] == "t"
    assert found[PROVIDER] == "org.apache.hadoop.fs.s3a.TemporaryAWSCredentialsProvider"


@pytest.mark.parametrize(
    ("hadoop", "package"), [("3.3.4", "com.amazonaws.auth."), ("3.4.1", "software.amazon.awssdk.")]
)
def test_without_keys_a_profile_or_a_role_is_looked_for(hadoop: str, package: str) -> None:
    found = client_settings({}, hadoop)
    assert found[PROVIDER].startswith(package)
    assert "fs.s3a.access.key" not in found and "fs.s3a.endpoint.region" not in found


def test_without_a_signature() -> None:
    found = client_settings({**KEYS, "AWS_SKIP_SIGNATURE": "true"}, "3.3.4")
    assert found[PROVIDER] == "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider"
    assert "fs.s3a.access.key" not in found


_ASK = """
from feature_store.engines.spark import SparkEngine
from feature_store.engines.spark_rows import spark_path
from feature_store.engines.spark_s3 import _CLIENT
engine = SparkEngine("local[1]", {"spark.hadoop.fs.s3a.endpoint.region": "eu-north-1"})
session = engine.session
conf = session.sparkContext._jsc.hadoopConfiguration()
for path in ("/data", "hdfs://name/data", "s3://bucket/a b"):
    found = spark_path(session, path)
    print(found, conf.getClassLoader().getResource(_CLIENT) is not None)
print(conf.get("fs.s3a.endpoint.region"))
engine.close()
"""


@pytest.mark.timeout(600)
def test_the_client_is_there_once_something_lies_in_s3_and_the_users_conf_goes_first() -> None:
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=500)
    assert done.stdout.splitlines() == [
        "file:///data False",
        "hdfs://name/data False",
        "s3a://bucket/a b True",
        "eu-north-1",
    ], done.stderr
