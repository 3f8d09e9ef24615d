"""What a source's path holds: Parquet, CSV or Delta, in which files, partitioned by what."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal

from feature_store.errors import SourceError
from feature_store.expressions.relations import Rows
from feature_store.storage.offline import delta_files, is_delta, is_uri

Format = Literal["parquet", "csv", "delta"]
_FORMATS: dict[str, Format] = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv"}
_COMPRESSIONS = (".gz", ".zst")


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
    """What the rows are read from now: their path, then the log of pushed rows where there is one."""
    if rows.table is not None:
        raise SourceError(
            f'source "{rows.name}" is the metastore table {rows.table}, which the local engine cannot read',
            hint="Give the source a path, or run its views with engine: spark",
        )
    found = [_at(rows.name, rows.path)] if rows.path is not None else []
    if rows.pushed is not None and is_delta(rows.pushed):
        found.append(Files(rows.pushed, "delta", delta_files(rows.pushed)))
    return tuple(found)


def _at(name: str, path: str) -> Files:
    path = path.removeprefix("file://")
    if is_delta(path):
        return Files(path, "delta", delta_files(path))
    if is_uri(path):
        raise SourceError(f'source "{name}": there is no Delta table at {path}', hint="Remote sources must be Delta")
    paths = sorted(_walk(path)) if not glob.has_magic(path) else sorted(glob.glob(path, recursive=True))
    if not paths and not os.path.isdir(path):
        raise SourceError(f'source "{name}": there is nothing at {path}', hint="Check the path, or restore the files")
    formats = {format_ for each in paths if (format_ := _format(each))}
    if len(formats) > 1:
        raise SourceError(f'source "{name}": {path} mixes Parquet and CSV files', hint="Keep them in two sources")
    if not formats and os.path.isfile(path):
        raise SourceError(f'source "{name}": {path} is no Parquet or CSV file', hint="It must end in .parquet or .csv")
    files = [each for each in paths if _format(each)]
    return Files(path, formats.pop() if formats else "parquet", _fingerprints(files), _partitions(path, files))


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


def _fingerprints(paths: list[str]) -> dict[str, str]:
    """Files without a byte hold no rows and are left out: writers leave such files behind."""
    stats = {path: os.stat(path) for path in paths}
    return {path: f"{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats.items() if stat.st_size}


def _partitions(root: str, paths: list[str]) -> tuple[str, ...]:
    if not paths:
        return ()
    folders = PurePath(os.path.relpath(paths[0], base_of(root) or ".")).parts[:-1]
    return tuple(part.split("=", 1)[0] for part in folders if "=" in part)


def base_of(path: str) -> str:
    """The folder below which folders named column=value are partitions."""
    return path if os.path.isdir(path) else os.path.dirname(glob.escape(path).split("[")[0])


def csv_misfit(path: str) -> tuple[int, int, int]:
    """The first line of a CSV file that has not as many values as its header: (line, values wanted, values found);
    line 0 where all have, or where it is compressed."""
    if path.endswith(_COMPRESSIONS):
        return 0, 0, 0
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = csv.reader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",")
        try:
            wanted = len(next(lines, []))
            for values in lines:
                if values and len(values) != wanted:
                    return lines.line_num, wanted, len(values)
        except csv.Error:  # such as a quote that never ends
            pass
    return 0, 0, 0
