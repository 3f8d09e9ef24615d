"""Where answers go: the Output port, as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from feature_store.cli.explanation import explain

if TYPE_CHECKING:
    from feature_store.definitions.difference import Plan

Row = Mapping[str, Any]

_UNBOUNDED = 10_000  # a width that no line reaches: pipes and files get whole lines


class Output(Protocol):
    """What commands print to."""

    def rows(
        self, rows: Sequence[Row], columns: Sequence[str], brief: Sequence[Row] | None = None, empty: str = ""
    ) -> None:
        """A listing. JSON has all of `rows`; a table the columns, of `brief` where that is given, and if there is no
        row the sentence `empty`."""

    def record(self, record: Row) -> None:
        """One object."""

    def plan(self, plan: Plan, done: bool) -> None:
        """A plan, before or after it was carried out."""


class JsonOutput:
    """One JSON document on the stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def rows(
        self, rows: Sequence[Row], columns: Sequence[str], brief: Sequence[Row] | None = None, empty: str = ""
    ) -> None:
        self._write([plain(row) for row in rows])

    def record(self, record: Row) -> None:
        self._write(plain(record))

    def plan(self, plan: Plan, done: bool) -> None:
        self._write(plain({**plan.to_dict(), "applied": done}))

    def _write(self, value: Any) -> None:
        self._stream.write(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


class TextOutput:
    """Tables; whole lines without colour where the stream is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._terminal = stream.isatty()
        self._console = Console(
            file=stream, width=None if self._terminal else _UNBOUNDED, markup=False, highlight=False, emoji=False
        )

    def rows(
        self, rows: Sequence[Row], columns: Sequence[str], brief: Sequence[Row] | None = None, empty: str = ""
    ) -> None:
        if empty and not rows:
            self._line(empty, "", "")
        else:
            self._table(rows if brief is None else brief, columns)

    def _table(self, rows: Sequence[Row], columns: Sequence[str]) -> None:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD if self._terminal else None, pad_edge=False, header_style="bold")
        for column in columns:
            numbers = all(isinstance(row.get(column), (int, float, type(None))) for row in rows)
            table.add_column(column, justify="right" if numbers and rows else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_cell(row.get(column)) for column in columns))
        self._console.print(table)

    def record(self, record: Row) -> None:
        listings = {key: value for key, value in record.items() if _is_listing(value)}
        width = max((len(key) for key in record if key not in listings), default=0)
        for key, value in record.items():
            if key not in listings:
                self._line(f"{key:<{width}}  ", "bold", _cell(value))
        for key, rows in listings.items():
            self._line(f"\n{key}", "bold", "")
            self.rows(rows, list(dict.fromkeys(column for row in rows for column in row)))

    def plan(self, plan: Plan, done: bool) -> None:
        for line in explain(plan, done):
            self._line(line.text, line.style, "")

    def _line(self, styled: str, style: str, rest: str) -> None:
        from rich.text import Text

        self._console.print(Text.assemble((styled, style), rest), soft_wrap=True)


def plain(value: Any) -> Any:
    """A value as JSON has it: times ISO 8601 in UTC, bytes base64, NaN and infinities as words, decimals as text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else "NaN" if math.isnan(value) else _infinity(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        from base64 import b64encode

        return b64encode(value).decode()
    if hasattr(value, "isoformat"):
        return value.isoformat().replace("+00:00", "Z")
    return str(value)


def _infinity(value: float) -> str:
    return "Infinity" if value > 0 else "-Infinity"


def _cell(value: Any) -> str:
    """A value in a table; nothing for null."""
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and all(item == "" for item in value.values()):
        return ", ".join(value)  # tags given as a list
    if isinstance(value, list) and all(isinstance(item, (str, int)) for item in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)


def _is_listing(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)
