"""Writes bound scalars as SQL of an engine, by the table of operators."""

from __future__ import annotations

from typing import Any

from feature_store.errors import ExpressionError
from feature_store.expressions import row_functions
from feature_store.expressions.operators import CONVERSIONS, INTERVAL
from feature_store.expressions.tree import Call, Case, Cast, Literal, Ref, Scalar, Text
from feature_store.types import BOOL, INT64, STRING, Type

_PATTERNS = ("INTEGER_TEXT", "FLOAT_TEXT", "DECIMAL_TEXT", "DATE_TEXT", "TIMESTAMP_TEXT", "MINUTES_LAST")
_CASES = {"UPPERCASE": row_functions.upper, "LOWERCASE": row_functions.lower}


def to_sql(scalar: Scalar, dialect: str = "duckdb") -> str:
    """SQL of `scalar`, every identifier quoted: `dialect` is duckdb (its session in UTC) or spark (ANSI mode, UTC).

    Columns are taken to have the types they were bound with."""
    if dialect not in ("duckdb", "spark"):
        raise ExpressionError(f'no SQL dialect "{dialect}"', hint="There are duckdb and spark")
    return Writer(dialect).write(scalar)


def duckdb_order(text: str, type_: Type) -> str:
    """What to order values of a type by in DuckDB, which takes nulls in arrays for greatest: they are lowest."""
    if type_.item is None:
        return text
    return f"list_transform({text}, lambda v: row(v IS NOT NULL, {duckdb_order('v', type_.item)}))"


class Writer:
    """Writes a tree of bound scalars as SQL of one dialect, node by node."""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect

    def write(self, node: Scalar) -> str:
        if isinstance(node, Ref):
            return f"{self.quoted(node.table)}.{self.quoted(node.name)}" if node.table else self.quoted(node.name)
        if isinstance(node, Text):
            return node.text
        if isinstance(node, Literal):
            return self._literal(node.type, node.value)
        if isinstance(node, Cast):
            return self._cast(self.write(node.operand), node.operand.type, node.type)
        if isinstance(node, Case):
            branches = "".join(f" WHEN {self.write(when)} THEN {self.write(then)}" for when, then in node.branches)
            return f"CASE{branches} ELSE {self.write(node.default)} END"
        assert isinstance(node, Call)
        return self.call(node)

    def call(self, node: Call, **marks: str) -> str:
        """`marks` fill what else the operator's template names."""
        template = node.operator.duckdb if self.dialect == "duckdb" else node.operator.spark
        places = [f"{{{index}}}" for index in range(len(node.operands))]
        for mark, text in (("{*}", ", ".join(places)), ("{+}", ", ".join(places[1:])), ("{||}", " || ".join(places))):
            template = template.replace(mark, text)
        for mark, change in _CASES.items():
            if f"{{{mark}}}" in template:
                marks[mark] = ", ".join(map(self._text, row_functions.case_pairs(change)))
        return template.format(*map(self.write, node.operands), **marks)

    def quoted(self, name: str) -> str:
        quote = '"' if self.dialect == "duckdb" else "`"
        return quote + name.replace(quote, quote * 2) + quote

    def _text(self, value: str) -> str:
        escaped = value if self.dialect == "duckdb" else value.replace("\\", "\\\\")
        doubled = escaped.replace("'", "''" if self.dialect == "duckdb" else "\\'")
        return f"'{doubled}'"

    def _type(self, type_: Type) -> str:
        return type_.duckdb if self.dialect == "duckdb" else type_.spark

    def _literal(self, type_: Type, value: Any) -> str:
        if value is None:
            return f"CAST(NULL AS {self._type(type_)})"
        if type_ == STRING:
            return self._text(value)
        if type_ == BOOL:
            return "TRUE" if value else "FALSE"
        if type_.item:
            items = ", ".join(self._literal(type_.item, item) for item in value)
            return f"list_value({items})" if self.dialect == "duckdb" else f"array({items})"
        if type_.kind == "BYTES":
            return f"unhex('{value.hex()}')"
        texts = {"DATE": row_functions.text_of_date, "TIMESTAMP": row_functions.text_of_timestamp}
        text = texts.get(type_.kind, str)(value)
        if type_.kind in texts or type_.kind == "DECIMAL" or (type_.is_float and not text[-1].isdigit()):
            text = f"'{text}'"
        elif type_.is_float and "e" not in text:
            text += "e0"
        return f"CAST({text} AS {self._type(INT64 if type_ == INTERVAL else type_)})"

    def _cast(self, text: str, source: Type, target: Type) -> str:
        if source.item and target.item:
            item = self._cast("v", source.item, target.item)
            if self.dialect == "duckdb":
                return f"list_transform({text}, lambda v: {item})"
            return f"transform({text}, v -> {item})"
        conversion = CONVERSIONS[source.kind, target.kind]
        template = conversion.duckdb if self.dialect == "duckdb" else conversion.spark
        patterns = {name: self._text(getattr(row_functions, name)) for name in _PATTERNS}
        return template.format(text, type=self._type(target), **patterns)
