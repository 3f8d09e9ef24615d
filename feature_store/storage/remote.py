"""Files at URIs, in S3 and HDFS, through the client with which Delta's driver reads and writes its tables there.

Credentials and addresses come from the environment, as that client reads it: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so
on for S3, HADOOP_CONF_DIR for HDFS.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

import pyarrow as pa
import pyarrow.fs as fs
from deltalake.fs import DeltaStorageHandler

from feature_store.errors import SettingsError, StoreUnavailableError

_SCHEMES = {"s3": "s3", "s3a": "s3", "hdfs": "hdfs"}
_MAGIC = re.compile(r"[*?[]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ANSWER = re.compile(r"<Code>(.*?)</Code>(?:.*?<Message>(.*?)</Message>)?", re.DOTALL)
_NO_CREDENTIALS = ("loading credentials", "no providers in chain provided credentials", "http://169.254.169.254/")
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_REFUSED = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "403 Forbidden",
)
_RETRIES = {"max_retries": "4", "retry_timeout": "30s", "connect_timeout": "5s"}


def is_uri(location: str) -> bool:
    """Whether a location is a URI and no local path."""
    return "://" in location


def storage_options(location: str) -> dict[str, str]:
    """What Delta's driver is told about a location besides what it finds in the environment; nothing for a path.

    A commit in S3 is an upload on the condition that nobody made that version before: no lock besides is needed. A
    store that does not answer is given up within a minute.
    """
    if not is_uri(location):
        return {}
    scheme = location.partition("://")[0]
    if scheme not in _SCHEMES:
        raise SettingsError(
            f'"{location}": files at {scheme}:// are not supported', hint="Use a path, s3:// or hdfs://"
        )
    if _SCHEMES[scheme] != "s3":
        return {}
    options = {**_RETRIES, "aws_conditional_put": os.environ.get("AWS_CONDITIONAL_PUT", "etag")}
    endpoint, region = s3_address(os.environ)
    if endpoint:
        # A store of one's own: whoever writes http means it.
        options |= {"aws_endpoint_url": endpoint, "aws_region": region}
        options |= {"aws_allow_http": "true"} if endpoint.startswith("http://") else {}
        if not os.environ.get("AWS_ACCESS_KEY_ID"):
            options["aws_force_credential_load"] = "true"  # profiles and roles, which a store of one's own goes without
    return options


def s3_address(said: Mapping[str, str]) -> tuple[str, str]:
    """The endpoint and the region of S3 where the environment says this; "" for Amazon's own, and for one not known."""
    endpoint = said.get("AWS_ENDPOINT_URL_S3") or said.get("AWS_ENDPOINT_URL", "")
    region = said.get("AWS_REGION") or said.get("AWS_DEFAULT_REGION", "")
    return endpoint, region or ("us-east-1" if endpoint else "")  # a store of one's own seldom looks at it


def reason(error: BaseException) -> str:
    """What went wrong in one line: the driver gives a chain of reasons, of which the last says most."""
    text = _COLOUR.sub("", str(error)).partition("\n\tat ")[0]  # HDFS sends a Java stack along
    if answer := _ANSWER.search(text):
        code, message = answer.groups()
        return f"{(message or code).rstrip('.')} ({code})"
    if any(mark in text for mark in _NO_CREDENTIALS):
        return "there are no credentials for it"
    chain = [" ".join(part.split()) for part in text.split("↳") if part.strip()]
    return chain[-1] if len(chain) > 1 else " ".join(text.split()) or type(error).__name__


def unavailable(uri: str, error: BaseException) -> StoreUnavailableError:
    """The error of this package that an error of the client means."""
    why = reason(error)
    if "no credentials" in why:
        hint = f"Set {_CREDENTIALS}"
    elif any(word in f"{why} {error}" for word in _REFUSED):
        hint = f"Check {_CREDENTIALS}, and what they may do there"
    elif isinstance(error, FileNotFoundError):
        why, hint = "it is gone", "Run it again: other files may be there now"
    elif "NoSuchBucket" in why:
        hint = "Make the bucket, or correct the URI"
    else:
        hint = "Check the URI, and that it can be reached from here; nothing was committed"
    return StoreUnavailableError(f"{uri} cannot be read or written now: {why}", hint=hint)


def list_files(uri: str) -> dict[str, str]:
    """The files at a URI of a file, a folder or a pattern (with *, ? or ** for folders), each with a fingerprint that
    changes when it does."""
    root, path = _split(uri)
    parts = path.strip("/").split("/")
    steady = next((index for index, part in enumerate(parts) if _MAGIC.search(part)), None)
    base = "/".join(parts if steady is None else parts[:steady])
    found = _below(root, base)
    if steady is not None:
        found = [info for info in found if _matches(info.path.split("/"), parts)]
    return {f"{root}/{info.path}": f"{info.size}:{info.mtime_ns}" for info in found}


def remove(uri: str) -> None:
    """Remove all files below a URI; nothing happens if there are none."""
    root, path = _split(uri)
    client = _client(root)
    for info in _below(root, path.strip("/")):
        client.delete_file(info.path)


def open_file(uri: str) -> pa.NativeFile:
    """A file to read; `FileNotFoundError` if there is none."""
    root, path = _split(uri)
    return _client(root).open_input_file(path)


def file_info(uri: str) -> fs.FileInfo:
    """The kind, size and time of what lies at a URI."""
    root, path = _split(uri)
    return _client(root).get_file_info([path])[0]


def _below(root: str, base: str) -> list[fs.FileInfo]:
    client = _client(root)
    itself = client.get_file_info([base])[0] if base else None
    if itself is not None and itself.type == fs.FileType.File:
        return [itself]
    selector = fs.FileSelector(base, allow_not_found=True, recursive=True)
    return [info for info in client.get_file_info_selector(selector) if info.type == fs.FileType.File]


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        deeper = bool(path) and not path[0].startswith(".") and _matches(path[1:], pattern)
        return deeper or _matches(path, pattern[1:])
    if not path or (path[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])


def _split(uri: str) -> tuple[str, str]:
    """The bucket or name node, as a URI, and the path in it."""
    scheme, _, rest = uri.partition("://")
    authority, _, path = rest.partition("/")
    return f"{scheme}://{authority}", path


def _client(root: str) -> DeltaStorageHandler:
    """The client of a bucket or name node; another one once the environment says something else."""
    said = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "HADOOP_"))}
    return _opened(root, frozenset(storage_options(root).items()), frozenset(said.items()))


@lru_cache(maxsize=16)
def _opened(root: str, options: frozenset[tuple[str, str]], _said: frozenset[tuple[str, str]]) -> DeltaStorageHandler:
    return DeltaStorageHandler(root, dict(options))
