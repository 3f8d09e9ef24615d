"""S3 for a Spark that runs: Hadoop's client of it, which is fetched once something lies there, and what the environment
says to `feature_store.storage.remote`, in that client's words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from threading import Lock
from typing import Any

from feature_store.errors import SettingsError
from feature_store.storage.remote import s3_address

_CLIENT = "org/apache/hadoop/fs/s3a/S3AFileSystem.class"
_PREFIX = "fs.s3a."
_PATIENCE = {
    "attempts.maximum": "4",
    "connection.establish.timeout": "5000",
    "connection.timeout": "30000",
    "retry.limit": "3",
}
"""A store that does not answer is given up within a minute."""

_PROVIDER = "aws.credentials.provider"
_OURS = "org.apache.hadoop.fs.s3a."
_CHAIN = "software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider"
_CHAIN_OF_OLD = "com.amazonaws.auth.DefaultAWSCredentialsProviderChain"  # until Hadoop 3.3

_lock = Lock()
_told: tuple[Any, dict[str, str]] | None = None


def connect(context: Any) -> None:
    """Lets the driver and the executors of a SparkContext read and write s3a://; what its conf says goes before what
    the environment does.

    `SettingsError` if the client is not on the class path and cannot be fetched.
    """
    global _told
    with _lock:
        said = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        if _told == (context, said):
            return
        conf = context._jsc.hadoopConfiguration()
        if conf.getClassLoader().getResource(_CLIENT) is None:
            _fetch(context, conf.getClassLoader())
        given = context.getConf()
        for name, value in client_settings(said, _hadoop(context)).items():
            if not given.contains(f"spark.hadoop.{name}"):
                conf.set(name, value)
        context.environment.update(said)  # Python workers read CSV files by the same client as this process
        _told = context, said


def client_settings(said: Mapping[str, str], hadoop: str) -> dict[str, str]:
    """What Hadoop's client of a version is told where the environment says this; without keys it looks for a profile,
    a web identity or the machine's role."""
    endpoint, region = s3_address(said)
    found = dict(_PATIENCE)
    if endpoint:
        by_host = said.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() == "true"
        found |= {"endpoint": endpoint, "path.style.access": str(not by_host).lower()}
        found["connection.ssl.enabled"] = str(not endpoint.startswith("http://")).lower()
    if region:
        found["endpoint.region"] = region
    key, secret, token = (said.get(f"AWS_{name}") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"))
    if said.get("AWS_SKIP_SIGNATURE", "").lower() == "true":
        found[_PROVIDER] = f"{_OURS}AnonymousAWSCredentialsProvider"
    elif key and secret:
        found |= {"access.key": key, "secret.key": secret}
        found |= {"session.token": token} if token else {}
        found[_PROVIDER] = f"{_OURS}{'Temporary' if token else 'Simple'}AWSCredentialsProvider"
    else:
        found[_PROVIDER] = _CHAIN_OF_OLD if hadoop.startswith("3.3.") else _CHAIN
    return {f"{_PREFIX}{name}": value for name, value in found.items()}


def _hadoop(context: Any) -> str:
    return str(context._jvm.org.apache.hadoop.util.VersionInfo.getVersion())


def _fetch(context: Any, loader: Any) -> None:
    """Hadoop looks for its clients with one class loader of the driver's; executors load what the context lists."""
    from py4j.protocol import Py4JError

    package = f"org.apache.hadoop:hadoop-aws:{_hadoop(context)}"
    jvm = context._jvm
    try:
        found = jvm.org.apache.spark.util.DependencyUtils.resolveMavenDependencies(jvm.java.net.URI(f"ivy://{package}"))
        for number in range(found.size()):
            context._jsc.sc().addJar(found.apply(number))
            loader.addURL(jvm.java.io.File(found.apply(number)).toURI().toURL())
    except Py4JError as error:
        lines = [line.strip() for line in str(error).splitlines() if "Exception: " in line]
        raise SettingsError(
            f"Spark has no client of S3, and {package} cannot be fetched from Maven Central: "
            f"{lines[0].partition('Exception: ')[2] if lines else error}",
            hint="Put it and what it needs into Spark's jars, or name a mirror in the conf: spark.jars.ivySettings",
        ) from error
