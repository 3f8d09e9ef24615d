"""Features as of then, for the entity rows of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from feature_store.cli.command import (
    Invocation,
    chosen_features,
    command,
    existing_file,
    features_options,
    json_option,
)
from feature_store.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feature_store.cli.output import Output

_ENDINGS = (".parquet", ".csv")


@command("get-historical-features")
@click.option("--entities", metavar="FILE", required=True,
              help="Parquet or CSV: the join keys, and event_timestamp as the time to look from.")  # fmt: skip
@features_options
@click.option(
    "-o", "--output-file", metavar="FILE", help="Write Parquet or CSV, by the ending; with Spark also a folder."
)
@click.option("--as-known", is_flag=True, help="Only rows that were known at the time.")
@click.option("--statuses", is_flag=True, help="Also a column FEATURE__status for each.")
@click.option("--engine", metavar="NAME", help="Another engine than the settings' default.")
@json_option
def get_historical_features(
    invocation: Invocation,
    output: Output,
    entities: str,
    features: tuple[str, ...],
    service: str | None,
    full_feature_names: bool,
    output_file: str | None,
    as_known: bool,
    statuses: bool,
    engine: str | None,
) -> None:
    """Join features to rows, as of their times."""
    asked = chosen_features(features, service)
    if output_file is not None:
        _check_target(output_file)
    rows = entities if "://" in entities else existing_file(entities)
    job = invocation.store.get_historical_features(
        rows, asked, full_feature_names, as_known=as_known, statuses=statuses, engine=engine
    )
    if output_file is None:
        table = job.to_arrow()
        output.rows(table.to_pylist(), table.column_names)
    else:
        if not (job.writes_folders or _ends_well(output_file)):
            raise UsageError(f"{output_file} ends in neither {' nor '.join(_ENDINGS)}: a folder needs the Spark engine")
        job.to_file(output_file)
        click.echo(f"Wrote {_summary(job.metadata)} to {output_file}.", err=True)


def _check_target(text: str) -> None:
    """Before anything is opened: a file's ending is known, and none is that of a folder."""
    if Path(text).suffix and "://" not in text and not _ends_well(text):
        raise UsageError(f"{text} ends in neither {' nor '.join(_ENDINGS)}")


def _ends_well(text: str) -> bool:
    return Path(text).suffix.lower() in _ENDINGS


def _summary(metadata: Mapping[str, Any]) -> str:
    hidden = sum(metadata.get("hidden", {}).values()) if metadata.get("as_known") else None
    text = f"{metadata['rows']:,} rows"
    if hidden is not None:
        text += f" as known at the time ({hidden:,} later rows not seen)"
    if computed := metadata.get("computed_snapshots"):
        text += f", having computed {sum(map(len, computed.values()))} missing snapshots of {', '.join(computed)},"
    return text
