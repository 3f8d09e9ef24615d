"""Remote files as DuckDB opens them: by `feature_store.storage.remote`, where it has no extension of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from threading import Lock, get_ident
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as fs
from fsspec import AbstractFileSystem

from feature_store.storage.remote import file_info, open_file, unavailable

_KNOWN = 100_000  # files whose size is kept in mind
_attaching = Lock()


class Version(NamedTuple):
    """A file as it was when it was listed."""

    uri: str
    size: int
    time: int


class Handles:
    """The driver's open files that nobody reads from now: each is for one thread at a time, and to open one takes a
    request. DuckDB opens a file many times over."""

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._lock = Lock()
        self._idle: list[tuple[Version, pa.NativeFile]] = []

    def take(self, version: Version) -> pa.NativeFile:
        with self._lock:
            for index, (found, file) in enumerate(self._idle):
                if found == version:
                    del self._idle[index]
                    return file
        return open_file(version.uri)

    def give(self, version: Version, file: pa.NativeFile) -> None:
        with self._lock:
            self._idle.append((version, file))
            del self._idle[: -self._limit]


class SharedFile:
    """A file that threads read at once.

    DuckDB seeks, then reads, and lets other threads in between; or it reads on from where any thread stopped. So the
    place that a thread sought is its own, until somebody reads on without having sought.
    """

    def __init__(self, version: Version, handles: Handles) -> None:
        self._version = version
        self._handles = handles
        self._size = version.size
        self._lock = Lock()
        self._next = 0
        self._sought: dict[int, int] = {}

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._lock:
            base = {os.SEEK_SET: 0, os.SEEK_CUR: self._next, os.SEEK_END: self._size}[whence]
            self._next = self._sought[get_ident()] = base + offset
            return self._next

    def tell(self) -> int:
        with self._lock:
            return self._sought.get(get_ident(), self._next)

    def read(self, size: int = -1) -> bytes:
        start, size = self._advance(size)
        if not size:
            return b""
        try:
            file = self._handles.take(self._version)
            file.seek(start)
            data = bytes(file.read(size))
        except OSError as error:
            raise unavailable(self._version.uri, error) from None  # DuckDB passes on no more than its text
        self._handles.give(self._version, file)
        return data

    def close(self) -> None:
        """Its handles wait for whoever opens the file next."""

    def _advance(self, size: int) -> tuple[int, int]:
        """Where to read, and how much of what is there."""
        with self._lock:
            start = self._sought.pop(get_ident(), None)
            if start is None:
                start = self._next
                self._sought.clear()
            left = max(0, self._size - start)
            size = left if size < 0 else min(size, left)
            self._next = start + size
            return start, size


class RemoteFiles(AbstractFileSystem):  # type: ignore[misc]
    """Files to read by their whole URI. DuckDB is given no patterns and asks for no more than this."""

    protocol = ("s3", "s3a", "hdfs")
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.listed: dict[str, Version] = {}
        self.handles = Handles()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def open(self, path: str, mode: str = "rb", **_: Any) -> SharedFile:
        return SharedFile(self._version(path), self.handles)

    def know(self, fingerprints: Mapping[str, str]) -> None:
        """Take sizes and times from what was listed, so as not to ask for each file again."""
        for uri, mark in fingerprints.items():
            size, _, time = mark.partition(":")
            self.listed.pop(uri, None)
            self.listed[uri] = Version(uri, int(size), int(time))
        for uri in list(islice(self.listed, max(0, len(self.listed) - _KNOWN))):
            self.listed.pop(uri, None)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        version = self._version(path)
        return {"name": path, "size": version.size, "type": "file", "mtime": version.time}

    def exists(self, path: str, **_: Any) -> bool:
        return path in self.listed or file_info(path).type == fs.FileType.File

    def glob(self, path: str, **_: Any) -> list[str]:
        return [path] if self.exists(path) else []

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self._version(path).time / 1e9, UTC)

    def _version(self, uri: str) -> Version:
        if uri in self.listed:
            return self.listed[uri]
        found = file_info(uri)
        if found.type != fs.FileType.File:
            raise FileNotFoundError(uri)
        return Version(uri, found.size, found.mtime_ns)


_files = RemoteFiles()


def attach(connection: Any, fingerprints: Mapping[str, str]) -> None:
    """Let all connections to a database read remote files, of which these were listed now."""
    with _attaching:
        _files.know(fingerprints)
        if not connection.filesystem_is_registered("s3"):
            connection.register_filesystem(_files)
