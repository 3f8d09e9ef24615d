"""Scheduled SQL: bound, and run on DuckDB for real."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from feature_store.errors import ExpressionError
from feature_store.expressions.queries import bind_query, render
from feature_store.types import BOOL, DATE, FLOAT64, INT32, INT64, STRING, TIMESTAMP, Schema, Type

SCHEMAS = {
    "dwd_ad_click": Schema.of(
        user_id=INT64,
        dt=STRING,
        day=DATE,
        ts=TIMESTAMP,
        price=FLOAT64,
        n=INT32,
        big=INT64,
        ok=BOOL,
        cost=Type.parse("DECIMAL(10,2)"),
    ),
    "users": Schema.of(user_id=INT64, city=STRING, dt=INT64),
}
DAY = datetime.date(2024, 1, 10)
CLICKS = """
  (1, '2024-01-09', DATE '2024-01-09', TIMESTAMPTZ '2024-01-09 10:00:00Z', 1.5, 3, 10, true, 1.10),
  (1, '2024-01-03', DATE '2024-01-03', TIMESTAMPTZ '2024-01-03 23:59:59Z', 2.5, 4, 20, false, 2.20),
  (1, '2024-01-02', DATE '2024-01-02', TIMESTAMPTZ '2024-01-02 00:00:00Z', 'nan', 5, 30, NULL, 3.30),
  (2, '2024-01-10', DATE '2024-01-10', TIMESTAMPTZ '2024-01-07 12:00:00Z', NULL, -7, 40, true, NULL),
  (2, 'garbage', NULL, NULL, 4.0, NULL, NULL, NULL, 0.05)
"""


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'UTC'")
        types = ", ".join(f"{c.name} {c.type.duckdb}" for c in SCHEMAS["dwd_ad_click"])
        con.execute(f"CREATE TABLE r1 ({types})")
        con.execute(f"INSERT INTO r1 VALUES {CLICKS}")
        con.execute("CREATE TABLE users (user_id BIGINT, city VARCHAR, dt BIGINT)")
        con.execute("INSERT INTO users VALUES (1, 'Oslo', 20240110), (3, 'Rome', NULL)")
        yield con


def run(con: duckdb.DuckDBPyConnection, sql: str, date: datetime.date = DAY) -> list[tuple[Any, ...]]:
    bound = bind_query(sql, SCHEMAS)
    render(sql, "spark", SCHEMAS, date, {})
    table = con.sql(render(sql, "duckdb", SCHEMAS, date, {"dwd_ad_click": "r1"})).to_arrow_table()
    assert table.schema.names == list(bound.columns.names)
    assert [field.type for field in table.schema] == [column.type.arrow for column in bound.columns], sql
    return sorted((tuple(row.values()) for row in table.to_pylist()), key=repr)


FEATURE = """
SELECT user_id, COUNT(*) as value
FROM dwd_ad_click
WHERE dt >= date_sub('${date}', 7)
GROUP BY user_id
"""


def test_the_feature_of_the_contract(connection: Any) -> None:
    assert run(connection, FEATURE) == [(1, 2), (2, 1)]
    assert run(connection, FEATURE.replace("dt >=", "day >=")) == [(1, 2), (2, 1)]
    assert run(connection, FEATURE, datetime.date(2024, 1, 9)) == [(1, 3), (2, 1)]
    bound = bind_query(FEATURE, SCHEMAS)
    assert bound.tables == ("dwd_ad_click",)
    assert bound.columns == Schema.of(user_id=INT64, value=INT64)
    assert bound.lineage == {"user_id": (("dwd_ad_click", "user_id"),), "value": ()}
    assert bound.filters == (("dwd_ad_click", "dt"), ("dwd_ad_click", "user_id"))


VALUES = [
    ("7 / 2", 3.5),
    ("7 div 2", 3),
    ("1 / 0", None),
    ("sum(n)", 5),
    ("avg(n)", 1.25),
    ("sum(cost)", "6.65"),
    ("sum(price)", 8.0),
    ("max(price)", 4.0),
    ("count(price)", 3),
    ("count(DISTINCT n)", 4),
    ("count(DISTINCT price)", 3),
    ("cast(2.7 as int)", 2),
    ("least(1, NULL)", 1),
    ("concat(NULL, 'x')", None),
    ("dayofweek('2024-01-07')", 7),
    ("sum(n) filter (where n > 3)", 9),
    ("count(*) filter (where ok)", 2),
    ("count_if(n > 3)", 2),
    ("round(variance(n), 6)", 30.916667),
    ("round(var_pop(n), 4)", 23.1875),
    ("round(stddev_pop(n), 6)", 4.815340),
    ("max_by(n, ts)", 3),
    ("min_by(n, ts)", 5),
    ("percentile(n, 0.5)", 3.5),
    ("median(n)", 3.5),
    ("some(ok)", True),
    ("every(ok)", False),
    ("any(ok)", True),
    ("sum(if(n > 0, n, 0)) / count(*)", 2.4),
    ("max(date_format(ts, 'yyyyMMdd'))", "20240109"),
    ("datediff('${date}', max(day))", 0),
    ("unix_timestamp('2024-01-01 00:00:00')", 1704067200),
    ("cast(to_date('20240131', 'yyyyMMdd') as string)", "2024-01-31"),
    ("to_date('2024-1-1', 'yyyy-MM-dd')", None),
    ("from_unixtime(0)", "1970-01-01 00:00:00"),
    ("from_unixtime(0, 'yyyy/MM/dd HH')", "1970/01/01 00"),
    ("cast(trunc('2024-03-31', 'MM') as string)", "2024-03-01"),
    ("unix_timestamp('20240101', 'yyyyMMdd')", 1704067200),
    ("cast(date_trunc('day', max(ts)) as string)", "2024-01-09 00:00:00"),
    ("concat(count(*), '!')", "5!"),
    ("cast(date_add('${date}', 1) as string)", "2024-01-11"),
    ("(select max(user_id) from users)", 3),
    ("max_by(price, n)", None),
]


@pytest.mark.parametrize(("text", "expected"), VALUES, ids=[text for text, _ in VALUES])
def test_values(connection: Any, text: str, expected: Any) -> None:
    ((answer,),) = set(run(connection, f"SELECT {text} AS v FROM dwd_ad_click"))
    if text.startswith("sum(cost"):
        answer = str(answer)
    assert answer == expected
    assert type(answer) is type(expected)


ROWS = [
    ("SELECT user_id FROM dwd_ad_click WHERE dt < date '2024-01-03'", [(1,)]),
    ("SELECT user_id FROM users WHERE dt >= date_format('${date}', 'yyyyMMdd')", [(1,)]),
    ("SELECT user_id FROM dwd_ad_click WHERE day BETWEEN date_sub('${date}', 7) AND '2024-01-09'", [(1,), (1,)]),
    ("SELECT c.user_id, u.city FROM dwd_ad_click c JOIN users u ON c.user_id = u.user_id WHERE c.n = 3", [(1, "Oslo")]),
    ("SELECT user_id, city FROM users LEFT JOIN dwd_ad_click USING (user_id) WHERE n IS NULL", [(3, "Rome")]),
    ("SELECT * FROM users u LEFT SEMI JOIN dwd_ad_click c ON u.user_id = c.user_id", [(1, "Oslo", 20240110)]),
    ("SELECT user_id FROM users WHERE user_id NOT IN (SELECT user_id FROM dwd_ad_click)", [(3,)]),
    ("SELECT user_id FROM users WHERE EXISTS (SELECT * FROM dwd_ad_click WHERE n = 99)", []),
    (
        "WITH c AS (SELECT user_id, sum(n) AS s FROM dwd_ad_click GROUP BY 1) SELECT user_id, s FROM c WHERE s > 0",
        [(1, 12)],
    ),
    ("SELECT user_id, count(*) AS k FROM dwd_ad_click GROUP BY user_id HAVING k > 2", [(1, 3)]),
    ("SELECT DISTINCT user_id FROM dwd_ad_click ORDER BY user_id DESC LIMIT 1", [(2,)]),
    (
        "SELECT user_id, n FROM (SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY ts DESC) AS rn"
        " FROM dwd_ad_click) t WHERE rn = 1",
        [(1, 3), (2, -7)],
    ),
    ("SELECT n FROM dwd_ad_click WHERE n > 0 UNION ALL SELECT user_id FROM users", [(1,), (3,), (3,), (4,), (5,)]),
    (
        "SELECT substring(dt, 1, 7) AS m, count(1) AS k FROM dwd_ad_click WHERE day IS NOT NULL GROUP BY m",
        [("2024-01", 4)],
    ),
    (
        "SELECT user_id, sum(big) OVER (PARTITION BY user_id ORDER BY ts"
        " ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS r FROM dwd_ad_click WHERE user_id = 1",
        [(1, 30), (1, 50), (1, 60)],
    ),
]


@pytest.mark.parametrize(("sql", "expected"), ROWS, ids=[sql[:60] for sql, _ in ROWS])
def test_rows(connection: Any, sql: str, expected: list[tuple[Any, ...]]) -> None:
    assert run(connection, sql) == expected


def test_a_sum_that_overflows_is_an_error(connection: Any) -> None:
    with pytest.raises(duckdb.Error, match=r"out of range|Overflow"):
        run(connection, "SELECT sum(big + 9223372036854775000) AS v FROM dwd_ad_click WHERE big = 10 OR big = 20")


def test_lineage_goes_through_subqueries() -> None:
    sql = (
        "WITH c AS (SELECT user_id AS u, n * 2 AS m FROM dwd_ad_click WHERE ok) SELECT u, max(m) AS v FROM c GROUP BY u"
    )
    bound = bind_query(sql, SCHEMAS)
    assert bound.lineage["v"] == (("dwd_ad_click", "n"),)
    assert ("dwd_ad_click", "ok") in bound.filters


REFUSALS = [
    ("SELECT user_ID2 FROM dwd_ad_click", 'Did you mean "user_id"'),
    ("SELECT 1 AS v FROM dwd_ad_clik", 'Did you mean "dwd_ad_click"'),
    ("DELETE FROM users", "one SELECT"),
    ("SELECT 1 AS a; SELECT 2 AS b", "one SELECT"),
    ("SELECT 1 FROM users", "AS name"),
    ("SELECT now() AS v", r"\$\{date\}"),
    ("SELECT current_date AS v FROM users", r"\$\{date\}"),
    ("SELECT rand() AS v", "run to run"),
    ("SELECT first(city) AS v FROM users", "max_by"),
    ("SELECT collect_list(city) AS v FROM users", "last_n"),
    ("SELECT city FROM users LIMIT 3", "ORDER BY"),
    ("SELECT city, count(*) AS k FROM users", "neither grouped"),
    ("SELECT user_id FROM users u JOIN dwd_ad_click c ON u.user_id = c.user_id", "several tables"),
    ("SELECT sum(sum(n)) AS v FROM dwd_ad_click", "inside sum"),
    ("SELECT n FROM dwd_ad_click WHERE sum(n) > 1", "inside WHERE"),
    ("SELECT explode(array(1)) AS v", "makes rows"),
    ("SELECT x FROM users LATERAL VIEW explode(city) t AS x", "LATERALS"),
    ("SELECT '${hour}' AS v", r"Only \$\{date\}"),
    ("SELECT city FROM users TABLESAMPLE (10 PERCENT)", "SAMPLE"),
    ("SELECT user_id FROM users GROUP BY user_id WITH ROLLUP", "ROLLUP"),
    ("SELECT nosuch(city) AS v FROM users", "no function"),
    ("SELECT approx_count_distinct(city) AS v FROM users", "DISTINCT"),
    ("SELECT row_number() OVER () AS v FROM users", "ORDER BY"),
    ("SELECT city FROM users WHERE user_id", "must be BOOL"),
    ("SELECT FROM", ""),
    ("SELECT city AS a, city AS a FROM users", "two columns"),
    ("SELECT cast(price as string) AS v FROM dwd_ad_click", "differently"),
    ("SELECT u.city FROM users", 'no table "u"'),
]


@pytest.mark.parametrize(("sql", "reason"), REFUSALS, ids=[sql for sql, _ in REFUSALS])
def test_refuses_with_a_reason(sql: str, reason: str) -> None:
    with pytest.raises(ExpressionError, match=reason or "read|name|no "):
        bind_query(sql, SCHEMAS)
