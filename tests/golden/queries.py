"""Scheduled SQL with what it answers, for every engine: queries over the tables `TABLES`, for the date `DAY`."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

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
_NAN = float("nan")


def _at(text: str) -> int:
    moment = datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def _on(text: str) -> int:
    return (datetime.date.fromisoformat(text) - datetime.date(1970, 1, 1)).days


_CLICKS: list[tuple[Any, ...]] = [
    (1, "2024-01-09", _on("2024-01-09"), _at("2024-01-09T10:00:00"), 1.5, 3, 10, True, Decimal("1.10")),
    (1, "2024-01-03", _on("2024-01-03"), _at("2024-01-03T23:59:59"), 2.5, 4, 20, False, Decimal("2.20")),
    (1, "2024-01-02", _on("2024-01-02"), _at("2024-01-02T00:00:00"), _NAN, 5, 30, None, Decimal("3.30")),
    (2, "2024-01-10", _on("2024-01-10"), _at("2024-01-07T12:00:00"), None, -7, 40, True, None),
    (2, "garbage", None, None, 4.0, None, None, None, Decimal("0.05")),
]
TABLES: dict[str, list[tuple[Any, ...]]] = {
    "dwd_ad_click": _CLICKS,
    "users": [(1, "Oslo", 20240110), (3, "Rome", None)],
}
"""Rows of raw row values, in the order of `SCHEMAS`."""

FEATURE = """
SELECT user_id, COUNT(*) as value
FROM dwd_ad_click
WHERE dt >= date_sub('${date}', 7)
GROUP BY user_id
"""

VALUES = [
    ("7 / 2", 3.5),
    ("7 div 2", 3),
    ("1 / 0", None),
    ("sum(n)", 5),
    ("avg(n)", 1.25),
    ("sum(cost)", Decimal("6.65")),
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
    ("sum(cost + 1)", 10.65),
    ("avg(cost)", 1.6625),
    ("min(price)", 1.5),
    ("max(cost)", Decimal("3.30")),
    ("min(ts) = '2024-01-02'", True),
    ("var_pop(big * 0 + 1000000000 + user_id)", 0.1875),
    ("round(stddev(n), 6)", 5.560276),
    ("greatest(max(n), NULL)", 5),
    ("nullif(count(*), 5)", None),
    ("ln(sum(n) - 5)", None),
    ("7 % 0", None),
    ("-7 % 3", -1),
    ("count(*) / 2", 2.5),
    ("count(*) div 2", 2),
    ("max(upper('straße'))", "STRAẞE"),
    ("percentile(price, 0.25)", 2.0),
    ("min(weekofyear(ts))", 1),
    ("max(date_trunc('month', ts)) = '2024-01-01'", True),
    ("cast(max(cost) as bigint)", 3),
    ("cast(max(cost) as string)", "3.30"),
    ("max(size(array(n, big)))", 2),
    ("isnan(max(price))", False),
    ("isnan(max(price) filter (where user_id > 5))", None),
]

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
    ("SELECT user_id, price FROM dwd_ad_click ORDER BY price DESC LIMIT 2", [(1, float("nan")), (2, 4.0)]),
    ("SELECT user_id, n FROM dwd_ad_click ORDER BY n LIMIT 2", [(2, None), (2, -7)]),
    ("SELECT DISTINCT price FROM dwd_ad_click WHERE price > 2", [(2.5,), (4.0,), (float("nan"),)]),
    ("SELECT ok, count(*) AS k FROM dwd_ad_click GROUP BY ok", [(False, 1), (None, 2), (True, 2)]),
    ("SELECT user_id FROM users INTERSECT SELECT user_id FROM dwd_ad_click", [(1,)]),
    ("SELECT user_id FROM dwd_ad_click EXCEPT SELECT user_id FROM users", [(2,)]),
    ("SELECT n FROM dwd_ad_click WHERE NOT (n > 3)", [(-7,), (3,)]),
    (
        "SELECT u.user_id AS u, c.user_id AS c FROM users u FULL JOIN dwd_ad_click c "
        "ON u.user_id = c.user_id AND c.n = 3",
        [(1, 1), (3, None), (None, 1), (None, 1), (None, 2), (None, 2)],
    ),
    (
        "SELECT user_id, lag(n) OVER (PARTITION BY user_id ORDER BY ts) AS l, rank() OVER (ORDER BY user_id) AS r"
        " FROM dwd_ad_click",
        [(1, 4, 1), (1, 5, 1), (1, None, 1), (2, None, 4), (2, None, 4)],
    ),
    (
        "SELECT user_id, avg(price) OVER (PARTITION BY user_id) AS a FROM dwd_ad_click WHERE n > 0",
        [(1, 2.0), (1, 2.0), (1, 2.0)],
    ),
    (
        "SELECT t.m, sum(t.k) AS s FROM (SELECT month(ts) AS m, 1 AS k FROM dwd_ad_click) t GROUP BY t.m",
        [(1, 4), (None, 1)],
    ),
    (
        "SELECT c.user_id AS `a b`, u.dt AS `select` FROM dwd_ad_click c LEFT JOIN users u ON c.user_id = u.user_id"
        " WHERE c.n > 4",
        [(1, 20240110)],
    ),
    ("SELECT user_id FROM dwd_ad_click WHERE dt = '2024-01-09' OR n / 0 > 1", [(1,)]),
    ("SELECT element_at(array(n, 7), 2) AS v FROM dwd_ad_click WHERE n = 3", [(7,)]),
]

OVERFLOW = "SELECT sum(big + 9223372036854775000) AS v FROM dwd_ad_click WHERE big = 10 OR big = 20"
