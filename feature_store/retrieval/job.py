"""What a historical retrieval is until somebody asks for its answer, and in which forms it can be had."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from feature_store.errors import InvalidInputError
from feature_store.expressions.relations import Rows
from feature_store.frames import require, write_file


@dataclass(frozen=True)
class Selection:
    """Entity rows that are the result of a SELECT over sources."""

    sql: str
    sources: Collection[Rows]


class HistoricalJob(ABC):
    """A historical retrieval, computed when its answer is first asked for. `writes_folders`: `to_file` may be given a
    folder."""

    writes_folders = False

    @abstractmethod
    def to_arrow(self) -> pa.Table:
        """The entity rows, all of them in their order, followed by a column a feature."""

    @property
    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """`features`, `rows`, `as_known`; `hidden`: rows of each view that as_known left out (of a scheduled query,
        out of each snapshot that was computed: stored ones stay as served); `computed_snapshots`: per view the
        boundaries that were not stored and were computed for this answer."""

    def to_df(self) -> Any:
        """The same as a pandas DataFrame."""
        require("pandas", "to_df()")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> Any:
        """The same as a polars DataFrame."""
        return require("polars", "to_polars()").from_arrow(self.to_arrow())

    def to_file(self, path: str | Path) -> None:
        """Write Parquet or CSV, by the file's ending; a Parquet file carries the metadata. Spark's executors write a
        folder of Parquet files, the rows in any order, where the path does not end so."""
        metadata = {b"feature_store": json.dumps(self.metadata).encode()}
        write_file(self.to_arrow().replace_schema_metadata(metadata), Path(path))

    def to_spark_df(self) -> Any:
        """The same as a Spark DataFrame, computed by the cluster when it is asked for rows; they come in any order."""
        raise InvalidInputError(
            "to_spark_df() needs a retrieval by the Spark engine", hint='Call get_historical_features(engine="spark")'
        )
