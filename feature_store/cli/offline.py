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
@click.option("-o", "--output-file", metavar="FILE", help="Write Parquet or CSV, by the ending, instead of a table.")
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
    target = _target(output_file) if output_file else None
    rows = existing_file(entities)
    job = invocation.store.get_historical_features(
        rows, asked, full_feature_names, as_known=as_known, statuses=statuses, engine=engine
    )
    if target is None:
        table = job.to_arrow()
        output.rows(table.to_pylist(), table.column_names)
    else:
        job.to_file(target)
        click.echo(f"Wrote {_summary(job.metadata)} to {target}.", err=True)


def _target(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(f"{text} ends in neither {' nor '.join(_ENDINGS)}")
    return path


def _summary(metadata: Mapping[str, Any]) -> str:
    hidden = sum(metadata.get("hidden", {}).values()) if metadata.get("as_known") else None
    text = f"{metadata['rows']:,} rows"
    if hidden is not None:
        text += f" as known at the time ({hidden:,} later rows not seen)"
    if computed := metadata.get("computed_snapshots"):
        text += f", having computed {sum(map(len, computed.values()))} missing snapshots of {', '.join(computed)},"
    return text
