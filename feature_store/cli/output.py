"""Where answers go: the Output port, as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from feature_store.cli.explanation import explain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from feature_store.definitions.difference import Plan

Row = Mapping[str, Any]


class _Null(str):
    """The cell of a null, which a terminal shows dim: the text "null" is another."""

    __slots__ = ()


_NULL = _Null("null")

_FEW_ROWS = 4  # up to so many rows that are wider than the terminal are shown a line a column


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
    """Tables on a terminal; elsewhere the same as whole lines without colour."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console: Console | None = None
        if stream.isatty():
            from rich.console import Console

            self._console = Console(file=stream, markup=False, highlight=False, emoji=False)

    def rows(
        self, rows: Sequence[Row], columns: Sequence[str], brief: Sequence[Row] | None = None, empty: str = ""
    ) -> None:
        if empty and not rows:
            self._line(empty)
            return
        shown = rows if brief is None else brief
        cells = [[_cell(row[column]) if column in row else "" for column in columns] for row in shown]
        numbers = [bool(shown) and all(_is_number(row.get(column)) for row in shown) for column in columns]
        if self._console:
            self._print_table(columns, cells, numbers)
        else:
            self._stream.writelines(_lines([list(columns), *cells], numbers))

    def record(self, record: Row) -> None:
        listings = {key: value for key, value in record.items() if _is_listing(value)}
        width = max((len(key) for key in record if key not in listings), default=0)
        for key, value in record.items():
            if key not in listings:
                self._line(f"{key:<{width}}  ", "bold", _words(value))
        for key, rows in listings.items():
            self._line("")
            self._line(key, "bold")
            self.rows(rows, list(dict.fromkeys(column for row in rows for column in row)))

    def plan(self, plan: Plan, done: bool) -> None:
        for line in explain(plan, done):
            self._line(line.text, line.style)

    def _print_table(self, columns: Sequence[str], cells: Sequence[Sequence[str]], numbers: Sequence[bool]) -> None:
        assert self._console is not None
        needed = sum(_widths([columns, *cells])) + 2 * len(columns)
        if needed > self._console.width and 0 < len(cells) <= _FEW_ROWS:
            turned = [[column, *values] for column, *values in zip(columns, *cells, strict=True)]
            header = ["", *(str(number) for number in range(1, len(cells) + 1))]
            self._console.print(_table(header, turned, [False] * len(header)))
        else:
            self._console.print(_table(columns, cells, numbers))

    def _line(self, styled: str, style: str = "", rest: str = "") -> None:
        if self._console is None:
            self._stream.write(f"{styled}{rest}".rstrip() + "\n")
            return
        from rich.text import Text

        self._console.print(Text.assemble((styled, style), rest), soft_wrap=True)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> RichTable:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column, right in zip(columns, numbers, strict=True):
        whole = column in ("kind", "name")
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*(Text(cell, "dim") if isinstance(cell, _Null) else cell for cell in row))
    return table


def _lines(rows: Sequence[Sequence[str]], numbers: Sequence[bool]) -> Iterator[str]:
    """Columns two spaces apart, as wide as their widest cell; line breaks in cells become spaces."""
    from rich.cells import cell_len

    rows = [[" ".join(cell.splitlines()) for cell in row] for row in rows]
    widths = _widths(rows)
    for row in rows:
        padded = []
        for cell, width, right in zip(row, widths, numbers, strict=True):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if right else cell + space)
        yield "  ".join(padded).rstrip() + "\n"


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    from rich.cells import cell_len

    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


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
    """A value in a table: text as it is, lists and the rest as JSON."""
    value = plain(value)
    if value is None:
        return _NULL
    return str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _words(value: Any) -> str:
    """A part of a definition: names, tags and schemas without brackets."""
    value = plain(value)
    if value is None or value == []:
        return "-"
    if isinstance(value, Mapping) and all(item == "" for item in value.values()):
        return ", ".join(value)  # tags given as a list
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    if isinstance(value, list) and all(isinstance(item, list) and len(item) == 2 for item in value):
        return ", ".join(f"{name} {type_}" for name, type_ in value)  # a schema
    return _cell(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_listing(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)
