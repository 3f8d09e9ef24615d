"""Delta tables: what the platform itself keeps offline, and how any Delta table is read."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as fs
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from feature_store.errors import (
    ConflictError,
    DefinitionError,
    FeatureStoreError,
    InvalidInputError,
    NotFoundError,
    SettingsError,
    StoreUnavailableError,
)
from feature_store.storage.remote import file_info, is_uri, open_file, remove, storage_options, unavailable
from feature_store.types import Schema

if TYPE_CHECKING:
    import pyarrow.dataset as ds

    from feature_store.storage.hbase_snapshots import HBaseSnapshots

_COMMIT_RETRIES = 50
_FIRST_RETRIES = 5
_LOG_FOLDER = "_delta_log"
_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
_IN_FOLDERS = (pa.string(), pa.large_string(), pa.string_view(), pa.date32(), pa.int32(), pa.int64())
"""The types that are written in one way only as a folder's name."""
FILE_NAME = "__file"
"""The column that names the file of a row."""


class OfflineStore:
    """Delta tables under one location: a path (relative to `root`), or a URI such as s3://bucket/prefix.

    A commit shows all of its rows or none. Timestamps are kept as microseconds UTC; naive ones are UTC.
    `StoreUnavailableError` where the location cannot be read or written now, `ConflictError` where another writer
    changed the same partition meanwhile.
    """

    def __init__(
        self, location: str, root: Path, elsewhere: Callable[[str], HBaseSnapshots | None] = lambda table: None
    ) -> None:
        self.elsewhere = elsewhere
        """What keeps the snapshots of a table that rests in HBase instead, None for one that rests here."""
        self.location = location.rstrip("/") if is_uri(location) else str((root / location).resolve())
        self._options = storage_options(location) or None

    def path(self, table: str) -> str:
        """Where a table lies; slashes in its name are folders."""
        if not table or any(part in ("", ".", "..") for part in table.split("/")):
            raise SettingsError(f'"{table}" is not a name of an offline table')
        return f"{self.location}/{table}"

    def exists(self, table: str) -> bool:
        with _mapped(self.path(table)):
            return is_delta(self.path(table))

    def schema(self, table: str) -> pa.Schema | None:
        """The columns of a table; None where there is none."""
        path = self.path(table)
        with _mapped(path):
            return delta_dataset(path).schema if is_delta(path) else None

    def append(self, table: str, rows: pa.Table, partition_by: Sequence[str] = ()) -> None:
        """Add rows in one commit. The first append makes the table; columns that it lacks are added to it."""
        data = _normal(rows)
        options: dict[str, Any] = {"schema_mode": "merge", "partition_by": list(partition_by) or None}
        with _mapped(self.path(table)):
            for _ in range(_FIRST_RETRIES):
                try:
                    self._write(table, data, mode="append", **options)
                    return
                except CommitFailedError:  # another writer made the table, or added a column, in between
                    continue
            self._write(table, data, mode="append", **options)

    def move(self, table: str, rows: pa.Table, positions: Mapping[str, tuple[int | None, int]]) -> None:
        """Add rows, and in the same commit say how far whatever is copied into the table has come: by name, from where
        to where. `ConflictError` if a position is not where it is said to be, or another writer moves it at the same
        time: then nothing is added."""
        path, data = self.path(table), _normal(rows)
        with _mapped(path):
            opened = _opened(path) if is_delta(path) else None
            for name, (before, _) in positions.items():
                found = opened.transaction_version(name) if opened else None
                if found != before:
                    raise ConflictError(f"another writer moved {name} of {path} from {before} to {found}")
            moved = _commit({name: after for name, (_, after) in positions.items()})
            try:  # on what was looked at: what is committed meanwhile is a conflict if it moves the same
                write_deltalake(
                    opened or path,
                    data,
                    mode="append" if opened else "error",
                    schema_mode="merge" if opened else None,
                    storage_options=None if opened else self._options,
                    commit_properties=moved,
                )
            except (FileExistsError, DeltaError) as error:
                if isinstance(error, CommitFailedError) or "already exists" not in str(error):
                    raise
                raise ConflictError(f"another writer made {path}", hint="Run it again") from error

    def positions(self, table: str, names: Iterable[str]) -> dict[str, int]:
        """How far what is copied into a table has come, of those names that `move` took."""
        with _mapped(self.path(table)):
            if not is_delta(self.path(table)):
                return {}
            opened = _opened(self.path(table))
            found = {name: opened.transaction_version(name) for name in names}
        return {name: at for name, at in found.items() if at is not None}

    def compact(self, table: str, keep_hours: int) -> int:
        """Put small files of a table together, and remove those that were replaced longer ago than this; how many
        were put together. Readers and writers go on meanwhile."""
        with _mapped(self.path(table)):
            opened = _opened(self.path(table))
            found = opened.optimize.compact(commit_properties=_commit({}))
            opened.vacuum(keep_hours, dry_run=False, enforce_retention_duration=False)
            opened.create_checkpoint()
        return int(found["numFilesRemoved"])

    def replace(self, table: str, rows: pa.Table | pa.RecordBatchReader, where: Mapping[str, str]) -> None:
        """Put rows in the place of one partition, in one commit; every row must lie in that partition."""
        data = _normal(rows)
        with _mapped(self.path(table)):
            if not is_delta(self.path(table)):
                try:
                    self._write(table, data, mode="error", partition_by=list(where))
                    return
                except FileExistsError:
                    pass
                except DeltaError as error:
                    if "already exists" not in str(error):
                        raise
            self._write(table, data, mode="overwrite", predicate=_predicate(where), replaced=where)

    def adopt(self, table: str, folder: str, schema: pa.Schema, where: Mapping[str, str]) -> None:
        """Put the rows of a Delta table of one commit, which `folder` of this table's own folder holds, in the place of
        one partition, in one commit: its files become this table's. `schema`: of its rows."""
        path = self.path(table)
        fields = [*schema, *(pa.field(name, pa.string()) for name in where if name not in schema.names)]
        columns = pa.schema(fields)
        with _mapped(path):
            DeltaTable.create(path, columns, mode="ignore", partition_by=list(where), storage_options=self._options)
            _opened(path).create_write_transaction(
                _added(f"{path}/{folder}", folder, where),
                "overwrite",
                columns,
                list(where),
                [(name, "=", value) for name, value in where.items()],
                commit_properties=_properties(where),
            )

    def _write(
        self,
        table: str,
        data: pa.Table | pa.RecordBatchReader,
        replaced: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        write_deltalake(
            self.path(table),
            data,
            storage_options=self._options,
            commit_properties=_properties(replaced or {}),
            **options,
        )

    def partitions(self, table: str) -> list[dict[str, str]]:
        """The partitions that hold rows, sorted; empty where there is no such table."""
        with _mapped(self.path(table)):
            if not is_delta(self.path(table)):
                return []
            found = _opened(self.path(table)).partitions()
        return sorted((dict(each) for each in found), key=lambda each: sorted((k, str(v)) for k, v in each.items()))

    def read(self, table: str, where: Mapping[str, str] | None = None) -> pa.Table:
        """All rows of a table, or of the partitions that `where` names; `NotFoundError` if there is no such table."""
        with _mapped(self.path(table)):
            if not is_delta(self.path(table)):
                raise NotFoundError(f'there is no offline table "{table}"', hint="It is made when it is first written")
            opened = _opened(self.path(table))
            rows = opened.to_pyarrow_table(
                filters=[(name, "=", value) for name, value in (where or {}).items()] or None,
                filesystem=_filesystem(self.path(table)),
            )
            return _normal(rows)

    def drop(self, table: str) -> None:
        """Remove a table and its files, and the folders that are empty then; nothing happens if there is none."""
        if snapshots := self.elsewhere(table):
            snapshots.drop()
        path = self.path(table)
        with _mapped(path):
            if is_uri(path):
                remove(path)
            elif is_delta(path):
                shutil.rmtree(path)
                self._prune(Path(path).parent)

    def _prune(self, folder: Path) -> None:
        """Remove empty folders, upwards to the location itself."""
        while folder.is_relative_to(self.location):
            try:
                folder.rmdir()
            except OSError:  # it holds another table, or another process removed it
                return
            folder = folder.parent


def _commit(positions: Mapping[str, int]) -> CommitProperties:
    moved = [Transaction(name, at) for name, at in positions.items()]
    return CommitProperties(max_commit_retries=_COMMIT_RETRIES, app_transactions=moved or None)


def is_delta(path: str) -> bool:
    """Whether a path or URI holds a Delta table."""
    if not is_uri(path):
        return os.path.isdir(os.path.join(path, _LOG_FOLDER)) and DeltaTable.is_deltatable(path)
    with _mapped(path):
        if path.startswith("hdfs:") and file_info(path).type == fs.FileType.File:
            return False  # HDFS refuses to look below a file
        return DeltaTable.is_deltatable(path, storage_options(path))


def _opened(path: str) -> DeltaTable:
    return DeltaTable(path, storage_options=storage_options(path) or None)


def delta_files(path: str) -> dict[str, str]:
    """The files of the current version of a Delta table, each with its fingerprint: a Delta file never changes."""
    with _mapped(path):
        actions = pa.table(_opened(path).get_add_actions(flatten=True))
        names, sizes, times = (actions.column(name).to_pylist() for name in ("path", "size_bytes", "modification_time"))
    return {f"{path}/{unquote(name)}": f"{size}:{time}" for name, size, time in zip(names, sizes, times, strict=True)}


def delta_dataset(path: str, files: Collection[str] | None = None) -> ds.Dataset:
    """The rows of the current version of a Delta table, or of those of its files (as `delta_files` names them)."""
    with _mapped(path):
        dataset = _opened(path).to_pyarrow_dataset(filesystem=_filesystem(path))
    if files is None:
        return dataset
    chosen = [part for part in dataset.get_fragments() if f"{path}/{part.path}" in files]
    return type(dataset)(chosen, dataset.schema, dataset.format, dataset.filesystem)


class DeltaParquet(NamedTuple):
    """How the files of a Delta table are read as Parquet: its `columns`, and where those are that the files lack: in
    `folders` named column=value, or in a table `beside` them, one row a file, named by its URI in `FILE_NAME`."""

    columns: pa.Schema
    folders: tuple[str, ...] = ()
    beside: pa.Table | None = None


def delta_parquet(path: str) -> DeltaParquet | None:
    """The files of a Delta table as Parquet, if they can be read so: no deletion vectors or renamed columns, and a
    local table's partitions in folders that say what they are. Else None."""
    with _mapped(path):
        table = _opened(path)
        protocol = table.protocol()
        plain = protocol.min_reader_version == 1 or set(protocol.reader_features or ()) <= {"timestampNtz"}
        partitions = table.metadata().partition_columns
        schema = pa.schema(table.schema().to_arrow())
        if not plain or not partitions:
            return DeltaParquet(schema) if plain else None
        actions = pa.table(table.get_add_actions(flatten=True))
        if not is_uri(path):
            named = _folders_tell(os.path.abspath(path), schema, partitions, actions)
            return DeltaParquet(schema, tuple(partitions)) if named else None
        columns = {FILE_NAME: [f"{path}/{unquote(name)}" for name in actions.column("path").to_pylist()]}
        columns |= {name: actions.column(f"partition.{name}").cast(schema.field(name).type) for name in partitions}
        return DeltaParquet(schema, beside=pa.table(columns))


def _folders_tell(path: str, schema: pa.Schema, partitions: Sequence[str], actions: pa.Table) -> bool:
    """Whether each file lies in folders from which its partition is read as the table's log has it: by custom only
    they do, and a folder around the table or a pattern in a name must not be taken for one of them."""
    if "=" in path or glob.has_magic(path) or any(schema.field(name).type not in _IN_FOLDERS for name in partitions):
        return False
    columns = (actions.column(f"partition.{name}").to_pylist() for name in partitions)
    for name, *values in zip(actions.column("path").to_pylist(), *columns, strict=True):
        *folders, _ = unquote(name).split("/")
        told = dict(folder.split("=", 1) for folder in folders if "=" in folder)
        if len(folders) != len(partitions) or list(told) != list(partitions):
            return False
        for text, value in zip(told.values(), values, strict=True):
            if (None if text == _NULL_FOLDER else unquote(text)) != (None if value is None else str(value)):
                return False
    return True


def _filesystem(path: str) -> fs.FileSystem | None:
    """Arrow's own files for a local path: the driver's are written in Python, and Arrow's threads may still be at work
    in them when the process ends, which aborts it."""
    return None if is_uri(path) else fs.SubTreeFileSystem(path, fs.LocalFileSystem())


def _properties(replaced: Mapping[str, str]) -> CommitProperties:
    """Commits that replace the same partition conflict even where neither finds rows to remove: they name the same
    application's transaction."""
    return _commit({f"replace {json.dumps(dict(replaced), sort_keys=True)}": 0} if replaced else {})


def _added(uri: str, folder: str, where: Mapping[str, str]) -> list[AddAction | RemoveAction]:
    """The files of a Delta table's first commit, as those of the table around it."""
    with _open(f"{uri}/{_LOG_FOLDER}/{0:020}.json") as log:
        found = [said["add"] for line in log.read().splitlines() if "add" in (said := json.loads(line))]
    return [
        AddAction(
            f"{folder}/{each['path']}",
            each["size"],
            dict(where),
            each["modificationTime"],
            True,
            each.get("stats", "{}"),
        )
        for each in found
    ]


def _open(path: str) -> Any:
    return open_file(path) if is_uri(path) else open(path, "rb")


def _predicate(where: Mapping[str, str]) -> str:
    terms = []
    for name, value in where.items():
        column, text = name.replace('"', '""'), value.replace("'", "''")
        terms.append(f"\"{column}\" = '{text}'")
    return " AND ".join(terms)


def _normal(rows: pa.Table | pa.RecordBatchReader) -> pa.Table | pa.RecordBatchReader:
    """The same rows in the types that `Type.arrow` spells: no dictionaries, no naive or nanosecond times."""
    try:
        schema = Schema.from_arrow(rows.schema).arrow
    except DefinitionError as error:
        raise InvalidInputError(f"rows cannot be kept offline: {error}") from None
    if isinstance(rows, pa.Table):
        return _cast(rows, schema)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows:
            yield from _cast(pa.Table.from_batches([batch]), schema).to_batches()

    return pa.RecordBatchReader.from_batches(schema, batches())


def _cast(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    if rows.schema.equals(schema):
        return rows
    columns = [
        column.cast(field.type, safe=not pa.types.is_timestamp(field.type))
        for column, field in zip(rows.columns, schema, strict=True)
    ]
    return pa.table(columns, schema=schema)


@contextmanager
def _mapped(path: str) -> Iterator[None]:
    """Turns errors of the driver and of the disk into ours."""
    try:
        yield
    except CommitFailedError as error:
        raise ConflictError(
            f"another writer changed {path} at the same time: {_first_line(error)}", hint="Run it again"
        ) from error
    except (TableNotFoundError, OSError) as error:
        raise _unavailable(path, error) from error
    except FeatureStoreError:
        raise
    except Exception as error:  # the driver raises bare ones, too, for what Arrow inside it refuses
        if "cast" in str(error).lower() or "failed validation" in str(error):
            raise InvalidInputError(f"rows do not fit the table at {path}: {_first_line(error)}") from error
        raise _unavailable(path, error) from error


def _unavailable(path: str, error: Exception) -> StoreUnavailableError:
    if is_uri(path):
        return unavailable(path, error)
    return StoreUnavailableError(
        f"{path} cannot be read or written now: {_first_line(error)}",
        hint="Check that it exists, its permissions and the free space; nothing was committed",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
