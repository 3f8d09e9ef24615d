"""The bodies of the service's requests, as models: Feast's names, and unknown members ignored.

The hot route reads its own body; its model is here for the documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_store.errors import InvalidInputError
from feature_store.expressions.instants import to_datetime
from feature_store.serving.exchange import wrong_member
from feature_store.types import TIMESTAMP, Schema
from feature_store.values import read_column, read_value


class OnlineRequest(BaseModel):
    """Features of entities as of now. Either `features` or `feature_service`."""

    features: list[str] | None = Field(default=None, examples=[["user_stats:clicks"]])
    feature_service: str | None = None
    entities: dict[str, list[Any]] = Field(examples=[{"user_id": [1, 999]}])
    full_feature_names: bool = False
    request_data: dict[str, Any] | None = None
    timestamps: Literal["iso", "epoch"] | None = None
    tiers: bool = False


class Body(BaseModel):
    """A JSON body whose values must have the types it names: none is converted. Other members are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")
    example: ClassVar[str]


M = TypeVar("M", bound=Body)


class PushRequest(Body):
    """Rows for a source: its columns, each a list."""

    example = '{"push_source_name": "clicks", "df": {"user_id": [1], "event_time": ["2026-11-23T12:00:00Z"]}}'

    push_source_name: str
    df: dict[str, list[Any]]
    to: str = "online"


class WriteRequest(Body):
    """Rows for a view over columns: its join keys and features, `event_timestamp` and `created`."""

    example = '{"feature_view_name": "user_stats", "df": {"user_id": [1], "event_timestamp": ["2026-11-23T12:00:00Z"]}}'

    feature_view_name: str
    df: dict[str, list[Any]]


class MaterializeRequest(Body):
    """Compute [start_ts, end_ts] and write it online. Times are ISO 8601, or seconds since the epoch."""

    example = '{"start_ts": "2026-11-22", "end_ts": "2026-11-23", "feature_views": ["user_stats"]}'

    start_ts: str | int | float | None = None
    end_ts: str | int | float | None = None
    feature_views: list[str] | None = None
    disable_event_timestamp: bool = False


class IncrementalRequest(Body):
    """Compute what is new up to end_ts and write it online."""

    example = '{"end_ts": "2026-11-23", "feature_views": ["user_stats"]}'

    end_ts: str | int | float
    feature_views: list[str] | None = None


class OnlineVector(BaseModel):
    """One column of the answer."""

    values: list[Any]
    statuses: list[Literal["PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"]]
    event_timestamps: list[str]


class OnlineMetadata(BaseModel):
    """The names of the columns in `results`, in order."""

    feature_names: list[str]
    tiers: dict[str, dict[str, int]] | None = None


class OnlineAnswer(BaseModel):
    """One element of `results` per name in `metadata.feature_names`, entity columns first."""

    results: list[OnlineVector]
    metadata: OnlineMetadata


class Failure(BaseModel):
    """What is wrong, for programs (`code`) and for people, and what to do."""

    code: str
    message: str
    hint: str | None = None


class FailureAnswer(BaseModel):
    """The body of every answer that is not 200."""

    error: Failure


class RowsAnswer(BaseModel):
    """How many rows were written."""

    rows: int


_WRITE_TIME = "Send ISO 8601, for example 2026-11-23T12:00:00Z"
_TIME = "a time: ISO 8601, or seconds since the epoch"
_WANTED = {
    "push_source_name": "the name of a source or view",
    "feature_view_name": "the name of a view",
    "df": "an object of lists, one a column",
    "to": '"online", "offline" or "online_and_offline"',
    "start_ts": _TIME,
    "end_ts": _TIME,
    "feature_views": "a list of names",
    "disable_event_timestamp": "true or false",
}


def read_model(model: type[M], body: dict[str, Any]) -> M:
    """The body as a model; `InvalidInputError` names the first member that is wrong."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        name, *inner = error.errors(include_url=False, include_input=False)[0]["loc"]
        hint = f"Send for example {model.example}"
        value = body.get(str(name))
        if name == "df" and inner and isinstance(value, dict):
            raise wrong_member(f"df: {inner[0]}", "a list", value[inner[0]], hint) from None
        raise wrong_member(str(name), _WANTED[str(name)], value, hint) from None


def read_time(name: str, value: Any) -> Any:
    """A time of a request as a datetime."""
    if value is None:
        raise InvalidInputError(f'the request lacks "{name}"', hint=_WRITE_TIME)
    try:
        return to_datetime(read_value(TIMESTAMP, value))
    except InvalidInputError:
        raise InvalidInputError(f'"{name}": {value!r} is not a time', hint=_WRITE_TIME) from None


def typed_table(df: Mapping[str, Sequence[Any]], schema: Schema) -> pa.Table:
    """JSON columns as Arrow, in the types of `schema`; a column it lacks gets whatever type its values have.

    `InvalidInputError` names the column, row and value that is not of its type, or columns of unequal length.
    """
    if not df:
        raise InvalidInputError('"df" has no columns')
    rows = len(next(iter(df.values())))
    arrays = {}
    for name, values in df.items():
        if len(values) != rows:
            first = next(iter(df))
            raise InvalidInputError(f'column "{name}" has {len(values)} values and column "{first}" {rows}')
        type_ = schema.get(name)
        if type_ is None:
            arrays[name] = _untyped(name, values)
        else:
            arrays[name] = pa.array(read_column(name, type_, values), type_.arrow)
    return pa.table(arrays)


def _untyped(name: str, values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(f'column "{name}" holds values of different types: {error}') from None
