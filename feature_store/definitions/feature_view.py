from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, model_validator

from feature_store.definitions.base import Definition, Field, Name, Strict, names_of
from feature_store.expressions.instants import DAY, Duration, default_hop

FUNCTIONS = (
    "count", "sum", "mean", "min", "max", "variance", "stddev", "first", "last", "last_n", "count_distinct",
)  # fmt: skip
_LAST_N = re.compile(r"last_n\(\s*(\d+)\s*\)")
_CRON = re.compile(r"\S+(\s+\S+){4}")


class Aggregation(Strict):
    """One windowed aggregate: `function` of `column` (a column or an expression) over the events of the last `window`
    that satisfy `where`. The window's far end moves in steps of `hop`."""

    name: Name
    function: str
    column: str | None = None
    window: Duration
    hop: Duration | None = None
    where: str | None = None
    n: int | None = None
    default: Any = None
    description: str = ""

    @model_validator(mode="before")
    @classmethod
    def _split_last_n(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("function"), str):
            function = data["function"].strip().lower()
            if match := _LAST_N.fullmatch(function):
                return {**data, "function": "last_n", "n": int(match[1])}
            return {**data, "function": {"avg": "mean"}.get(function, function)}
        return data

    @model_validator(mode="after")
    def _is_whole(self) -> Aggregation:
        if self.function not in FUNCTIONS:
            from feature_store.errors import nearest

            raise ValueError(
                f'"{self.function}" is not an aggregate function. '
                + (nearest(self.function, FUNCTIONS) or f"They are {', '.join(FUNCTIONS)}")
            )
        if (self.function == "last_n") != (self.n is not None):
            raise ValueError("last_n, and only last_n, takes n: write function: last_n(10)")
        if self.n is not None and not 1 <= self.n <= 1000:
            raise ValueError(f"n must be from 1 to 1000, not {self.n}")
        if self.function != "count" and not self.column:
            raise ValueError(f"{self.function} needs a column")
        if self.hop and (DAY % self.hop if self.hop <= DAY else self.hop % DAY):
            raise ValueError(f"hop {self.hop} must divide a day, or be whole days")
        return self

    @property
    def effective_hop(self) -> int:
        """The hop in microseconds: as given, or by the length of the window."""
        return int(self.hop) if self.hop else default_hop(self.window)


class Storage(Strict):
    """Stores by URI, an alias of the settings as the host: hbase://feature_store/user_features, redis://feature_cache."""

    offline: str | None = None
    online: str | None = None


class FeatureView(Definition):
    """Features of entities from one source, in one of three forms:

    - `features`: columns (or expressions over columns) of the source; at T the latest row wins.
    - `aggregations`: windowed aggregates over the source's events.
    - `sql` with a `schedule`: a Spark SQL query over sources by name, run once per `${date}`; `features` name and
      type its columns, and the entities' join keys are among them.
    """

    kind: ClassVar[str] = "feature_view"

    entities: Annotated[tuple[str, ...], BeforeValidator(names_of)]
    source: Name | None = None
    features: tuple[Field, ...] = ()
    aggregations: tuple[Aggregation, ...] = ()
    sql: str | None = None
    ttl: Duration | None = None
    schedule: str | None = None
    delay: Duration | None = None
    engine: str | None = None
    online: bool = True
    storage: Storage | None = None

    @model_validator(mode="after")
    def _is_of_one_form(self) -> FeatureView:
        if not self.entities:
            raise ValueError("a feature view needs at least one entity")
        if not self.features and not self.aggregations:
            raise ValueError("a feature view needs features or aggregations")
        if self.features and self.aggregations:
            raise ValueError("a feature view has features or aggregations, not both")
        if self.sql and self.aggregations:
            raise ValueError("a feature view has sql or aggregations, not both")
        if self.sql and not self.schedule:
            raise ValueError("a feature view with sql needs a schedule, for example schedule: daily")
        if not self.sql and not self.source:
            raise ValueError("a feature view needs a source, or sql")
        if self.ttl and not self.is_latest_row:
            raise ValueError("ttl is for views over columns; windows and snapshots say themselves how far they look")
        if self.delay and not self.sql:
            raise ValueError("delay is for views with sql")
        if self.schedule and self.schedule not in ("daily", "hourly") and not _CRON.fullmatch(self.schedule.strip()):
            raise ValueError(f'schedule "{self.schedule}" is not daily, hourly or a cron line of five fields')
        names = self.feature_names
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f'feature "{twice}" is defined twice')
        if self.sql and any(field.expression for field in self.features):
            raise ValueError("a feature of a view with sql cannot have an expression: write it into the sql")
        return self

    @property
    def is_latest_row(self) -> bool:
        return not self.sql and not self.aggregations

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(item.name for item in (self.aggregations or self.features))


