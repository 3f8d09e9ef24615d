"""What a benchmark hands back: figures with their targets, and a table of everything that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One measured value against its target; `met` is None where there is no target or nothing to compare with."""

    name: str
    value: str
    target: str = ""
    met: bool | None = None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "missed", None: "n/a" if self.target else ""}[self.met]


@dataclass
class Report:
    """One benchmark: its figures, and the rows of its table side by side."""

    title: str
    head: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.figures = [figure if isinstance(figure, Figure) else Figure(**figure) for figure in self.figures]

    def add(self, *cells: str) -> None:
        self.rows.append(cells)

    def at_most(self, name: str, value: float | None, most: float, unit: str = "x") -> None:
        """A figure that should not exceed `most`; None: it could not be measured."""
        shown = "not measured" if value is None else number(value, unit)
        self.figures.append(Figure(name, shown, f"<= {number(most, unit)}", None if value is None else value <= most))

    def at_least(self, name: str, value: float | None, least: float, unit: str = "x") -> None:
        """A figure that should reach `least`; None: it could not be measured."""
        shown = "not measured" if value is None else number(value, unit)
        target = f">= {number(least, unit)}"
        self.figures.append(Figure(name, shown, target, None if value is None else value >= least))

    def holds(self, name: str, value: str, target: str, met: bool | None) -> None:
        """A figure whose verdict is known already."""
        self.figures.append(Figure(name, value, target, met))

    def state(self, name: str, value: str) -> None:
        """A figure without a target."""
        self.figures.append(Figure(name, value))


def number(value: float, unit: str = "") -> str:
    """Three significant digits and a unit: `0.123 ms`, `12.3x`, `73,100 rows/s`."""
    size = abs(value)
    digits = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value:,.{digits}f}"
    return f"{text}x" if unit == "x" else f"{text} {unit}".strip()


def ratio(over: float | None, under: float | None) -> float | None:
    """How many times `under` goes into `over`; None where either is unknown."""
    return None if over is None or not under else over / under
