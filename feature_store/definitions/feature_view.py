"""Features of entities from one source: its columns, windowed aggregates over it, or a scheduled query."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, model_validator

from feature_store.definitions.base import Field, Name, Strict, View, check_names, names_of
from feature_store.definitions.defaults import plain
from feature_store.definitions.mistakes import mistake
from feature_store.errors import nearest
from feature_store.expressions.aggregates import FUNCTIONS
from feature_store.expressions.instants import DAY, Duration, default_hop

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
    default: Annotated[Any, BeforeValidator(plain)] = None
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
            hint = nearest(self.function, FUNCTIONS) or f"They are {', '.join(FUNCTIONS)}"
            raise mistake(f'"{self.function}" is not an aggregate function. {hint}', "function")
        if (self.function == "last_n") != (self.n is not None):
            raise mistake("last_n, and only last_n, takes n. Write function: last_n(10)", "function")
        if self.n is not None and not 1 <= self.n <= 1000:
            raise mistake(f"n must be from 1 to 1000, not {self.n}", "function")
        if self.function != "count" and not self.column:
            raise mistake(f"{self.function} needs a column", "function")
        if self.hop and (DAY % self.hop if self.hop <= DAY else self.hop % DAY):
            raise mistake(f"hop {self.hop} must divide a day, or be whole days", "hop")
        if self.hop and self.hop > self.window:
            raise mistake(f"hop {self.hop} is longer than window {self.window}", "hop")
        return self

    @property
    def effective_hop(self) -> int:
        """The hop in microseconds: as given, or by the length of the window."""
        return int(self.hop) if self.hop else default_hop(self.window)


class Storage(Strict):
    """Stores by URI, an alias of the settings as the host: hbase://feature_store/user_features, redis://feature_cache."""

    offline: str | None = None
    online: str | None = None


class FeatureView(View):
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
            raise mistake("a feature view needs at least one entity", "entities")
        if not self.features and not self.aggregations:
            raise mistake("a feature view needs features or aggregations")
        if self.features and self.aggregations:
            raise mistake("a feature view has features or aggregations, not both", "aggregations")
        if not self.sql and not self.source:
            raise mistake("a feature view needs a source, or sql")
        self._check_sql()
        self._check_times()
        check_names(self.feature_names, "features" if self.features else "aggregations")
        return self

    def _check_sql(self) -> None:
        if not self.sql:
            return
        if self.aggregations:
            raise mistake("a feature view has sql or aggregations, not both", "aggregations")
        if not self.schedule:
            raise mistake("a feature view with sql needs a schedule. Write schedule: daily", "sql")
        for index, field in enumerate(self.features):
            if field.expression:
                path = ("features", index, "expression")
                raise mistake(
                    f'feature "{field.name}" of a view with sql cannot have an expression. Write it into the sql', *path
                )

    def _check_times(self) -> None:
        if self.ttl and not self.is_latest_row:
            raise mistake(
                "ttl is for views over columns; windows and snapshots say themselves how far they look", "ttl"
            )
        if self.delay and not self.sql:
            raise mistake("delay is for views with sql", "delay")
        if self.schedule and self.schedule not in ("daily", "hourly") and not _CRON.fullmatch(self.schedule.strip()):
            raise mistake(f'schedule "{self.schedule}" is not daily, hourly or a cron line of five fields', "schedule")

    @property
    def is_latest_row(self) -> bool:
        return not self.sql and not self.aggregations

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(item.name for item in (self.aggregations or self.features))
