"""Scheduled SQL: bound, or refused. What it answers is in `golden.queries`, run on every engine in `conformance`."""

from __future__ import annotations

import pytest

from feature_store.errors import ExpressionError
from feature_store.expressions.queries import bind_query
from feature_store.types import INT64, Schema
from tests.golden.queries import FEATURE, SCHEMAS


def test_the_feature_of_the_contract_is_bound() -> None:
    bound = bind_query(FEATURE, SCHEMAS)
    assert bound.tables == ("dwd_ad_click",)
    assert bound.columns == Schema.of(user_id=INT64, value=INT64)
    assert bound.lineage == {"user_id": (("dwd_ad_click", "user_id"),), "value": ()}
    assert bound.filters == (("dwd_ad_click", "dt"), ("dwd_ad_click", "user_id"))


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
    ("SELECT DISTINCT city FROM users ORDER BY user_id", "columns of the SELECT only"),
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
