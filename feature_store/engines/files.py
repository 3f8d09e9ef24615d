"""What a source's path holds: Parquet, CSV or Delta, in which files, partitioned by what."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal

from feature_store.errors import SourceError
from feature_store.expressions.relations import Rows
from feature_store.storage.offline import delta_files, is_delta
from feature_store.storage.remote import is_uri, list_files, open_file

Format = Literal["parquet", "csv", "delta"]
_FORMATS: dict[str, Format] = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv"}
_COMPRESSIONS = (".gz", ".zst")
_BLOCK = 2**20  # bytes of a remote file to ask for at once


@dataclass(frozen=True, slots=True)
class Files:
    """The files under a path, each with a fingerprint that changes when it does.

    `partitions` are the columns that folders named column=value hold; Delta knows its own. `partial`: not all files.
    """

    path: str
    format: Format
    fingerprints: Mapping[str, str]
    partitions: tuple[str, ...] = ()
    partial: bool = False

    def only(self, names: frozenset[str]) -> Files:
        """Those of the files that are among `names`."""
        kept = {name: mark for name, mark in self.fingerprints.items() if name in names}
        return replace(self, fingerprints=kept, partial=True)


def find_files(rows: Rows) -> tuple[Files, ...]:
    """What the rows are read from now: their path, then the logs of pushed and of streamed rows where there are any."""
    if rows.table is not None:
        raise SourceError(
            f'source "{rows.name}" is the metastore table {rows.table}, which the local engine cannot read',
            hint="Give the source a path, or run its views with engine: spark",
        )
    found = [_at(rows.name, rows.path)] if rows.path is not None else []
    for log in (rows.pushed, rows.streamed if _is_needed(rows) else None):
        if log is not None and is_delta(log):
            found.append(Files(log, "delta", delta_files(log)))
    return tuple(found)


def _is_needed(rows: Rows) -> bool:
    """Whether what a stream read has rows to read, or tells which others not to."""
    return rows.before is None or bool(rows.unique) or any(offset > 0 for _, offset in rows.before)


def _at(name: str, path: str) -> Files:
    path = path.removeprefix("file://")
    if is_delta(path):
        return Files(path, "delta", delta_files(path))
    remote = _remote(path) if is_uri(path) else {}
    paths = sorted(remote or _local(path))
    if not paths and not os.path.isdir(path):
        raise SourceError(f'source "{name}": there is nothing at {path}', hint="Check the path, or restore the files")
    formats = {format_ for each in paths if (format_ := _format(each))}
    if len(formats) > 1:
        raise SourceError(f'source "{name}": {path} mixes Parquet and CSV files', hint="Keep them in two sources")
    if not formats and paths == [path]:
        raise SourceError(f'source "{name}": {path} is no Parquet or CSV file', hint="It must end in .parquet or .csv")
    files = [each for each in paths if _format(each)]
    marks = {each: remote.get(each) or _fingerprint(each) for each in files}
    # Files without a byte hold no rows and are left out: writers leave such files behind.
    kept = {each: mark for each, mark in marks.items() if not mark.startswith("0:")}
    return Files(path, formats.pop() if formats else "parquet", kept, _partitions(path, files))


def _remote(uri: str) -> dict[str, str]:
    """The files of a URI, each with its fingerprint, chosen as those of a path are."""
    base = base_of(uri)
    chosen = glob.has_magic(uri)
    return {each: mark for each, mark in list_files(uri).items() if chosen or each == uri or _is_data(each, base)}


def _is_data(path: str, base: str) -> bool:
    *folders, name = path.removeprefix(base).strip("/").split("/")
    hidden = [each for each in folders if each.startswith(("_", ".")) and "=" not in each]
    return not hidden and not name.startswith(("_", "."))


def _local(path: str) -> Iterable[str]:
    return glob.glob(path, recursive=True) if glob.has_magic(path) else _walk(path)


def _fingerprint(path: str) -> str:
    stat = os.stat(path)
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _walk(path: str) -> Iterator[str]:
    """Data files under a path; names that begin with a dot or an underscore are no data."""
    if os.path.isfile(path):
        yield path
        return
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = [each for each in folders if "=" in each or not each.startswith(("_", "."))]
        yield from (os.path.join(folder, each) for each in names if not each.startswith(("_", ".")))


def _format(path: str) -> Format | None:
    stem, ending = os.path.splitext(path.lower())
    return _FORMATS.get(os.path.splitext(stem)[1] if ending in _COMPRESSIONS else ending)


def _partitions(root: str, paths: list[str]) -> tuple[str, ...]:
    if not paths:
        return ()
    folders = PurePath(os.path.relpath(paths[0], base_of(root) or ".")).parts[:-1]
    return tuple(part.split("=", 1)[0] for part in folders if "=" in part)


def base_of(path: str) -> str:
    """The folder below which folders named column=value are partitions."""
    folder = (not _format(path) and not glob.has_magic(path)) if is_uri(path) else os.path.isdir(path)
    return path if folder else os.path.dirname(glob.escape(path).split("[")[0])


def csv_misfit(path: str) -> tuple[int, int, int]:
    """The first line of a CSV file that has not as many values as its header: (line, values wanted, values found);
    line 0 where all have, or where it is compressed."""
    if path.endswith(_COMPRESSIONS):
        return 0, 0, 0
    raw = io.BufferedReader(open_file(path) if is_uri(path) else io.FileIO(path), _BLOCK)
    with io.TextIOWrapper(raw, newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = csv.reader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",")
        try:
            wanted = len(next(lines, []))
            for values in lines:
                if values and len(values) != wanted:
                    return lines.line_num, wanted, len(values)
        except csv.Error:  # such as a quote that never ends
            pass
    return 0, 0, 0
