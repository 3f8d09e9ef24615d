"""Expressions and the SQL they become: pairs in `scalars.txt`, the expression, DuckDB's line and Spark's.

Run this file as a program to write the pairs anew; read the difference before committing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_store.expressions.scalars import bind, to_sql
from feature_store.types import BOOL, DATE, FLOAT32, FLOAT64, INT32, INT64, STRING, TIMESTAMP, Schema, Type, array

SCHEMA = Schema.of(
    i=INT64,
    k=INT32,
    x=FLOAT64,
    f=FLOAT32,
    s=STRING,
    b=BOOL,
    t=TIMESTAMP,
    d=DATE,
    p=Type.parse("DECIMAL(10,2)"),
    a=array(INT64),
)
FILE = Path(__file__).with_name("scalars.txt")


def cases() -> list[tuple[str, str, str]]:
    blocks = [block.split("\n") for block in FILE.read_text().strip().split("\n\n")]
    return [(text, duckdb, spark) for text, duckdb, spark in blocks]


@pytest.mark.parametrize(("text", "duckdb", "spark"), cases(), ids=[text for text, *_ in cases()])
def test_is_written_as(text: str, duckdb: str, spark: str) -> None:
    scalar = bind(text, SCHEMA)
    assert (to_sql(scalar, "duckdb"), to_sql(scalar, "spark")) == (duckdb, spark)


if __name__ == "__main__":
    texts = [text for text, *_ in cases()]
    blocks = [[text, *(to_sql(bind(text, SCHEMA), dialect) for dialect in ("duckdb", "spark"))] for text in texts]
    FILE.write_text("\n\n".join("\n".join(block) for block in blocks) + "\n")
