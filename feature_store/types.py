"""Value types and schemas, with the one table of their spellings in Arrow, DuckDB, Spark and Python."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_store.errors import DefinitionError, nearest

if TYPE_CHECKING:
    from pydantic_core import CoreSchema


@dataclass(frozen=True, slots=True)
class _Spelling:
    arrow: pa.DataType | None
    duckdb: str
    spark: str
    aliases: tuple[str, ...] = ()


_SPELLINGS: dict[str, _Spelling] = {
    "INT32": _Spelling(pa.int32(), "INTEGER", "INT", ("SMALLINT", "TINYINT", "INT16", "INT8")),
    "INT64": _Spelling(pa.int64(), "BIGINT", "BIGINT", ("INT", "INTEGER", "BIGINT", "LONG")),
    "FLOAT32": _Spelling(pa.float32(), "FLOAT", "FLOAT", ("FLOAT", "REAL")),
    "FLOAT64": _Spelling(pa.float64(), "DOUBLE", "DOUBLE", ("DOUBLE",)),
    "STRING": _Spelling(pa.string(), "VARCHAR", "STRING", ("VARCHAR", "TEXT", "CHAR")),
    "BYTES": _Spelling(pa.binary(), "BLOB", "BINARY", ("BINARY", "BLOB")),
    "BOOL": _Spelling(pa.bool_(), "BOOLEAN", "BOOLEAN", ("BOOLEAN",)),
    "TIMESTAMP": _Spelling(pa.timestamp("us", "UTC"), "TIMESTAMPTZ", "TIMESTAMP", ("UNIX_TIMESTAMP", "DATETIME")),
    "DATE": _Spelling(pa.date32(), "DATE", "DATE"),
    "DECIMAL": _Spelling(None, "DECIMAL", "DECIMAL", ("NUMERIC",)),
    "ARRAY": _Spelling(None, "", "ARRAY", ("LIST",)),
}
_KIND_BY_NAME = {name: kind for kind, s in _SPELLINGS.items() for name in (kind, *s.aliases)}
_DECIMAL = re.compile(r"\w+\(\s*(\d+)\s*,\s*(\d+)\s*\)")
_ARRAY = re.compile(r"\w+<(.*)>")


@dataclass(frozen=True, slots=True)
class Type:
    """The type of a value: a kind, with precision and scale for DECIMAL and an item type for ARRAY.

    `str(t)` is the canonical spelling, and `Type.parse(str(t)) == t`.
    """

    kind: str
    precision: int = 0
    scale: int = 0
    item: Type | None = None

    @classmethod
    def parse(cls, text: str) -> Type:
        """Read any accepted spelling, in any case; `DefinitionError` names the nearest one otherwise."""
        spelling = text.strip().upper()
        kind = _KIND_BY_NAME.get(re.split(r"[(<]", spelling, maxsplit=1)[0].strip())
        if kind == "DECIMAL":
            match = _DECIMAL.fullmatch(spelling)
            if match and 1 <= int(match[1]) <= 38 and int(match[2]) <= int(match[1]):
                return cls(kind, int(match[1]), int(match[2]))
            raise DefinitionError(f'"{text}" is not a decimal type', hint="Write DECIMAL(p,s), 1 <= p <= 38, s <= p")
        if kind == "ARRAY":
            match = _ARRAY.fullmatch(spelling)
            if match:
                return cls(kind, item=cls.parse(match[1]))
            raise DefinitionError(f'"{text}" is not an array type', hint="Write ARRAY<T>, for example ARRAY<INT64>")
        if kind and spelling in _KIND_BY_NAME:
            return cls(kind)
        hint = nearest(spelling, _KIND_BY_NAME) or f"Types are {', '.join(_SPELLINGS)}"
        raise DefinitionError(f'"{text}" is not a type', hint=hint)

    def __str__(self) -> str:
        if self.kind == "DECIMAL":
            return f"DECIMAL({self.precision},{self.scale})"
        if self.item:
            return f"ARRAY<{self.item}>"
        return self.kind

    @property
    def arrow(self) -> pa.DataType:
        if self.kind == "DECIMAL":
            return pa.decimal128(self.precision, self.scale)
        if self.item:
            return pa.list_(self.item.arrow)
        return _SPELLINGS[self.kind].arrow

    @property
    def duckdb(self) -> str:
        """How DuckDB spells it. TIMESTAMP is TIMESTAMPTZ: an instant, as everywhere here."""
        if self.kind == "DECIMAL":
            return str(self)
        if self.item:
            return f"{self.item.duckdb}[]"
        return _SPELLINGS[self.kind].duckdb

    @property
    def spark(self) -> str:
        if self.kind == "DECIMAL":
            return str(self)
        if self.item:
            return f"ARRAY<{self.item.spark}>"
        return _SPELLINGS[self.kind].spark

    @property
    def is_integer(self) -> bool:
        return self.kind in ("INT32", "INT64")

    @property
    def is_float(self) -> bool:
        return self.kind in ("FLOAT32", "FLOAT64")

    @property
    def is_numeric(self) -> bool:
        return self.is_integer or self.is_float or self.kind == "DECIMAL"

    @classmethod
    def from_arrow(cls, arrow: pa.DataType) -> Type:
        """The type that holds any value of an Arrow type; `DefinitionError` if none does."""
        if pa.types.is_decimal(arrow):
            return cls("DECIMAL", arrow.precision, arrow.scale)
        if pa.types.is_list(arrow) or pa.types.is_large_list(arrow) or pa.types.is_fixed_size_list(arrow):
            return cls("ARRAY", item=cls.from_arrow(arrow.value_type))
        if pa.types.is_dictionary(arrow):
            return cls.from_arrow(arrow.value_type)
        if pa.types.is_timestamp(arrow):
            return TIMESTAMP
        if pa.types.is_date(arrow):
            return DATE
        if pa.types.is_unsigned_integer(arrow) or pa.types.is_signed_integer(arrow):
            return INT32 if arrow.bit_width < 32 or arrow == pa.int32() else INT64
        if pa.types.is_floating(arrow):
            return FLOAT64 if arrow == pa.float64() else FLOAT32
        if arrow in (pa.string(), pa.large_string(), pa.null()):
            return STRING
        if pa.types.is_binary(arrow) or pa.types.is_large_binary(arrow) or pa.types.is_fixed_size_binary(arrow):
            return BYTES
        if pa.types.is_boolean(arrow):
            return BOOL
        raise DefinitionError(f"no feature type holds Arrow's {arrow}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        from pydantic_core import core_schema

        def read(value: object) -> Type:
            if isinstance(value, Type):
                return value
            if isinstance(value, str):
                try:
                    return cls.parse(value)
                except DefinitionError as error:
                    raise ValueError(str(error)) from None
            raise ValueError(f"{value!r} is not a type")

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.to_string_ser_schema(when_used="always")
        )


INT32, INT64 = Type("INT32"), Type("INT64")
FLOAT32, FLOAT64 = Type("FLOAT32"), Type("FLOAT64")
STRING, BYTES, BOOL = Type("STRING"), Type("BYTES"), Type("BOOL")
TIMESTAMP, DATE = Type("TIMESTAMP"), Type("DATE")


def decimal(precision: int, scale: int) -> Type:
    return Type.parse(f"DECIMAL({precision},{scale})")


def array(item: Type) -> Type:
    return Type("ARRAY", item=item)


@dataclass(frozen=True, slots=True)
class Column:
    """A named, typed column."""

    name: str
    type: Type


@dataclass(frozen=True, slots=True)
class Schema:
    """Named, typed columns in declared order."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, **columns: Type) -> Schema:
        return cls(tuple(Column(name, type_) for name, type_ in columns.items()))

    @classmethod
    def from_arrow(cls, schema: pa.Schema) -> Schema:
        return cls(tuple(Column(field.name, Type.from_arrow(field.type)) for field in schema))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(column.name, column.type.arrow) for column in self.columns])

    @property
    def texts(self) -> frozenset[str]:
        """The columns of text."""
        return frozenset(column.name for column in self.columns if column.type == STRING)

    def get(self, name: str) -> Type | None:
        return next((column.type for column in self.columns if column.name == name), None)

    def select(self, names: Iterable[str]) -> Schema:
        by_name = {column.name: column for column in self.columns}
        return Schema(tuple(by_name[name] for name in names))

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __contains__(self, name: object) -> bool:
        return any(column.name == name for column in self.columns)
