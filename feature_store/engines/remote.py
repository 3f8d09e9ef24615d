"""Remote files as DuckDB opens them: by `feature_store.storage.remote`, where it has no extension of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from threading import Lock, get_ident
from typing import Any

import pyarrow.fs as fs
from fsspec import AbstractFileSystem

from feature_store.storage.remote import file_info, open_file

_KNOWN = 100_000  # files whose size is kept in mind
_attaching = Lock()


class SharedFile:
    """A file that threads read at once.

    DuckDB seeks, then reads, and lets other threads in between; or it reads on from where any thread stopped. So the
    place that a thread sought is its own, until somebody reads on without having sought.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = Lock()
        self._idle = [open_file(uri)]  # the driver's files are for one thread at a time
        self._size: int = self._idle[0].size()
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
        with self._lock:
            file = self._idle.pop() if self._idle else None
        file = file or open_file(self._uri)
        file.seek(start)
        data = bytes(file.read(size))
        with self._lock:
            self._idle.append(file)
        return data

    def close(self) -> None:
        with self._lock:
            self._idle.clear()

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
        self.listed: dict[str, tuple[int, int]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def open(self, path: str, mode: str = "rb", **_: Any) -> SharedFile:
        return SharedFile(path)

    def know(self, fingerprints: Mapping[str, str]) -> None:
        """Take sizes and times from what was listed, so as not to ask for each file again."""
        for uri, mark in fingerprints.items():
            size, _, time = mark.partition(":")
            self.listed.pop(uri, None)
            self.listed[uri] = int(size), int(time)
        for uri in list(islice(self.listed, max(0, len(self.listed) - _KNOWN))):
            self.listed.pop(uri, None)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        size, time = self.listed.get(path) or _look_up(path)
        return {"name": path, "size": size, "type": "file", "mtime": time}

    def exists(self, path: str, **_: Any) -> bool:
        return path in self.listed or file_info(path).type == fs.FileType.File

    def glob(self, path: str, **_: Any) -> list[str]:
        return [path] if self.exists(path) else []

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["mtime"] / 1e9, UTC)


def _look_up(uri: str) -> tuple[int, int]:
    found = file_info(uri)
    if found.type != fs.FileType.File:
        raise FileNotFoundError(uri)
    return found.size, found.mtime_ns


_files = RemoteFiles()


def attach(connection: Any, fingerprints: Mapping[str, str]) -> None:
    """Let all connections to a database read remote files, of which these were listed now."""
    with _attaching:
        _files.know(fingerprints)
        if not connection.filesystem_is_registered("s3"):
            connection.register_filesystem(_files)
