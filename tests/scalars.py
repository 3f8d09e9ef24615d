"""Scalar expressions with what they mean, and generated ones: for the evaluator and for every engine.

`TABLE` has an expression over the one row `ROW` and its answer, `EDGES` one over a column of values and its answers.
Values are raw row values.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import pyarrow as pa

from feature_store.errors import ExpressionError, InvalidInputError
from feature_store.expressions.scalars import Scalar, bind, compile_all
from feature_store.types import BOOL, DATE, FLOAT32, FLOAT64, INT32, INT64, STRING, TIMESTAMP, Schema, Type, array

SCHEMA = Schema.of(
    i=INT64,
    j=INT64,
    k=INT32,
    x=FLOAT64,
    y=FLOAT64,
    f=FLOAT32,
    s=STRING,
    u=STRING,
    b=BOOL,
    c=BOOL,
    t=TIMESTAMP,
    d=DATE,
    p=Type.parse("DECIMAL(18,4)"),
    q=Type.parse("DECIMAL(38,2)"),
    a=array(INT64),
    z=array(FLOAT64),
)


def to_arrow(values: list[Any], type_: Type) -> pa.Array:
    physical = {"TIMESTAMP": pa.int64(), "DATE": pa.int32()}.get(type_.kind)
    return pa.array(values, physical).cast(type_.arrow) if physical else pa.array(values, type_.arrow)


def from_arrow(column: Any, type_: Type) -> list[Any]:
    """Raw row values of an Arrow column."""
    physical = {"TIMESTAMP": pa.int64(), "DATE": pa.int32()}
    item = physical.get(type_.item.kind) if type_.item else None
    stored = pa.list_(item) if item else physical.get(type_.kind)
    return list((column.cast(stored) if stored else column).to_pylist())


def same(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return (left != left and right != right) or left == right or math.isclose(left, right, rel_tol=1e-12)
    return type(left) is type(right) and bool(left == right)


NAN, INF = float("nan"), float("inf")
_WIDE = [Decimal("-0.04"), Decimal("9" * 36 + ".99"), Decimal("-999.95"), None]
_MOMENTS = {
    "2024-01-31T10:20Z": 1_706_696_400_000_000,
    "2024-01-31 10:20": 1_706_696_400_000_000,
    "2024-01-31T12:20+02:00": 1_706_696_400_000_000,
    "2024-01-31 04:50:00-0530": 1_706_696_400_000_000,
    "2024-01-31 15:20+05": 1_706_696_400_000_000,
    "2024-01-31T10:20:00.1234567": 1_706_696_400_123_456,
    "2024-01-31": 1_706_659_200_000_000,
    "1969-12-31 23:59:59.9999999": -1,
    "1582-10-10 00:00:00": -12_219_724_800_000_000,
    "2024-01-31 24:00": None,
    "2024-01-31T10": None,
    "T10:20": None,
    "now": None,
}
TABLE = [  # the contract's table, and what belongs to it
    ("7 / 2", 3.5),
    ("7 div 2", 3),
    ("-7 div 2", -3),
    ("7 div 0", None),
    ("i / 0", None),
    ("x / 0", None),
    ("ln(0)", None),
    ("ln(-1)", None),
    ("ln(x - 1.5)", None),
    ("log10(0)", None),
    ("log2(-1.0)", None),
    ("sqrt(-1)", None),
    ("pow(-1, 0.5)", None),
    ("pow(0, -1)", None),
    ("pow(2, 10)", 1024.0),
    ("exp(0)", 1.0),
    ("log1p(-1)", None),
    ("log1p(0)", 0.0),
    ("cast('abc' as bigint)", None),
    ("cast(s as bigint)", None),
    ("cast(2.7 as bigint)", 2),
    ("cast(-2.7 as bigint)", -2),
    ("cast(x as bigint)", 1),
    ("cast(1e300 as bigint)", None),
    ("cast(3000000000 as INT32)", None),
    ("cast('2.7' as bigint)", 2),
    ("cast(' 12 ' as bigint)", 12),
    ("cast('1e3' as bigint)", None),
    ("cast('1_000' as bigint)", None),
    ("cast('0x10' as bigint)", None),
    ("cast('1e3' as double)", 1000.0),
    ("cast(cast('nan' as double) as bigint)", None),
    ("cast(true as bigint)", 1),
    ("cast(p as bigint)", 2),
    ("cast('yes' as bool)", True),
    ("cast('maybe' as bool)", None),
    ("cast(0 as bool)", False),
    ("least(1, NULL)", 1),
    ("greatest(NULL, i, 3)", 7),
    ("least(NULL, NULL)", None),
    ("greatest(cast('nan' as double), 1)", NAN),
    ("least(cast('nan' as double), 1)", 1.0),
    ("concat(NULL, 'x')", None),
    ("concat(s, 'x')", "abcx"),
    ("s || u", "abc"),
    ("concat('a', 'b', 'c')", "abc"),
    ("dayofweek(date '2024-01-07')", 7),
    ("dayofweek(date '2024-01-01')", 1),
    ("isodow(t)", 3),
    ("round(2.5)", 3.0),
    ("round(-2.5)", -3.0),
    ("round(0.125, 2)", 0.13),
    ("round(1234.5678, 2)", 1234.57),
    ("7 % 3", 1),
    ("-7 % 3", -1),
    ("7 % -3", 1),
    ("7 % 0", None),
    ("-7.5 % 2", -1.5),
    ("mod(7.5, 0)", None),
    ("cast('nan' as double) = cast('nan' as double)", True),
    ("cast('nan' as double) > cast('inf' as double)", True),
    ("1 < cast('nan' as double)", True),
    ("cast('nan' as double) in (1, cast('nan' as double))", True),
    ("NULL and false", False),
    ("NULL and true", None),
    ("NULL or true", True),
    ("not NULL", None),
    ("1 in (2, NULL)", None),
    ("1 in (1, NULL)", True),
    ("1 not in (2, 3)", True),
    ("NULL in (1)", None),
    ("i between 1 and NULL", None),
    ("i between 8 and NULL", False),
    ("i between 7 and 7", True),
    ("NULL is null", True),
    ("s is not null", True),
    ("NULL <=> NULL", True),
    ("i <=> NULL", False),
    ("nullif(i, 7)", None),
    ("nullif(i, 8)", 7),
    ("coalesce(NULL, NULL, i)", 7),
    ("nvl(NULL, 'x')", "x"),
    ("if(i > 3, 'big', 'small')", "big"),
    ("if(NULL, 1, 2)", 2),
    ("case i when 7 then 'seven' end", "seven"),
    ("case when i < 0 then 1 when i > 100 then 2 end", None),
    ("case when false then 1 else 2.5 end", 2.5),
    ("'abc' like 'a%'", True),
    ("'abc' like 'A%'", False),
    (r"'a%c' like 'a\%c'", True),
    ("'a_' like 'ab'", False),
    ("upper('straße')", "STRAẞE"),
    ("lower('ÀÉ')", "àé"),
    ("length('😀a')", 2),
    ("trim('\t a ')", "\t a"),
    ("substring('hello', 2, 3)", "ell"),
    ("substring('hello', 0, 2)", "he"),
    ("substring('hello', -7, 3)", "h"),
    ("substring('hello', -3, 2)", "ll"),
    ("substring('hello', 2, -1)", ""),
    ("left('hello', 2)", "he"),
    ("right('hello', 2)", "lo"),
    ("replace('aXbX', 'X', '')", "ab"),
    ("replace('ab', '', 'x')", "ab"),
    ("startswith('abc', 'ab')", True),
    ("contains('abc', '')", True),
    ("instr('héllo', 'l')", 3),
    ("md5('a')", "0cc175b9c0f1b6a831c399e269772661"),
    ("hour(t)", 10),
    ("minute(t)", 20),
    ("second(t)", 30),
    ("year(t)", 2024),
    ("month(d)", 2),
    ("day(d)", 29),
    ("quarter(d)", 1),
    ("dayofyear(d)", 60),
    ("weekofyear(date '2024-12-30')", 1),
    ("hour(d)", 0),
    ("unix_timestamp(timestamp '1969-12-31 23:59:59.5')", -1),
    ("unix_millis(timestamp_millis(-5))", -5),
    ("unix_seconds(timestamp_seconds(5))", 5),
    ("datediff('2024-03-01', d)", 1),
    ("cast(d as string)", "2024-02-29"),
    ("cast(t as string)", "2024-01-31 10:20:30.5"),
    ("date_add(d, 1) = '2024-03-01'", True),
    ("t + interval 1 day = '2024-02-01 10:20:30.5'", True),
    ("d - interval 1 week = '2024-02-22'", True),
    ("to_timestamp('2024-01-31T10:20:30.5Z') = t", True),
    ("to_date('2024-02-30')", None),
    ("to_timestamp('2024-01-31 12:20:30.5000009+02:00') = t", True),
    ("date(t) = '2024-01-31'", True),
    ("date_trunc('MONTH', t) = '2024-01-01'", True),
    ("date_trunc('WEEK', t) = '2024-01-29'", True),
    ("size(a)", 3),
    ("array_contains(a, 2)", True),
    ("array_contains(a, 9)", None),
    ("element_at(a, 1)", 1),
    ("element_at(a, -2)", 2),
    ("element_at(a, 9)", None),
    ("element_at(a, 0)", None),
    ("is_nan(x)", False),
    ("array_contains(array(1.0, cast('nan' as double)), cast('nan' as double))", True),
    ("f * 2", 0.20000000298023224),
    ("p + 1", 3.75),
    ("coalesce(p, 0)", Decimal("2.7500")),
    ("-i", -7),
    ("abs(-7)", 7),
    ("sign(-2.5)", -1.0),
    ("sign(i)", 1),
    ("ceil(1.2)", 2),
    ("floor(-1.2)", -2),
    ("floor(cast('inf' as double))", None),
    ("k + 1", 6),
    ("cast(k as INT32)", 5),
    ("9007199254740993 + 0", 9007199254740993),
    ("1.5", 1.5),
    ("1e3", 1000.0),
]
ROW = {
    "i": [7],
    "j": [0],
    "k": [5],
    "x": [1.5],
    "y": [-2.0],
    "f": [0.10000000149011612],
    "s": ["abc"],
    "u": [""],
    "b": [True],
    "c": [None],
    "t": [1_706_696_430_500_000],
    "d": [19782],
    "p": [Decimal("2.7500")],
    "q": [None],
    "a": [[1, 2, None]],
    "z": [[]],
}

EDGES: list[tuple[str, str, list[Any], list[Any]]] = [
    ("is_nan(x)", "x", [None, NAN, INF, 0.0], [None, True, False, False]),
    ("element_at(a, 9223372036854775807)", "a", [[1, 2], None], [None, None]),
    ("element_at(a, -2147483648)", "a", [[1, 2], []], [None, None]),
    ("pow(x, y)", "x", [1.0, None, -1.0, 0.0], [1.0, None, 1.0, None]),  # y is -inf
    ("pow(-2, x)", "x", [INF, -INF, 1e300, 0.5, 3.0, -1.0], [INF, 0.0, INF, None, -8.0, -0.5]),
    ("pow(1, x)", "x", [NAN, INF, None], [1.0, 1.0, None]),
    ("pow(x, 0)", "x", [NAN, INF, None], [1.0, 1.0, None]),
    ("floor(log2(x))", "x", [2.0**n for n in range(-60, 61)], [*range(-60, 61)]),
    ("floor(log10(x))", "x", [10.0**n for n in range(20)], [*range(20)]),
    ("cast(d as string)", "d", [2_932_897, -719_162, None], ["10000-01-01", "0001-01-01", None]),
    (
        "cast(t as string)",
        "t",
        [253_402_300_800_000_001, -1],
        ["10000-01-01 00:00:00.000001", "1969-12-31 23:59:59.999999"],
    ),
    ("datediff(date_add(d, 1), d)", "d", [-719_162, 2_932_896, -1], [1, 1, 1]),
    (
        "cast(x as FLOAT32)",
        "x",
        [0.1, 1e300, None, INF],
        [struct.unpack("f", struct.pack("f", 0.1))[0], None, None, INF],
    ),
    (
        "cast(x as INT32)",
        "x",
        [2147483647.9, 2147483648.0, -2147483648.9, -2147483649.0],
        [2**31 - 1, None, -(2**31), None],
    ),
    ("cast(x as bigint)", "x", [2.0**63, -(2.0**63), NAN, -INF, 2.7, -2.7], [None, -(2**63), None, None, 2, -2]),
    ("ceil(x)", "x", [-0.5, 9.3e18, NAN, -(2.0**63)], [0, None, None, -(2**63)]),
    ("round(x)", "x", [0.49999999999999994, 4503599627370497.5, -INF, 1e300], [0.0, 4503599627370498.0, -INF, 1e300]),
    ("i % -1", "i", [-(2**63), 5, None], [0, 0, None]),
    ("abs(i)", "i", [-(2**63) + 1, None], [2**63 - 1, None]),
    ("cast(cast(q as decimal(38,1)) as string)", "q", _WIDE, ["0.0", "1" + "0" * 36 + ".0", "-1000.0", None]),
    ("cast(q as decimal(4,1))", "q", _WIDE, [Decimal("0.0"), None, None, None]),
    ("q", "q", _WIDE, _WIDE),
    ("s = u", "s", ["a", "A", "a ", None], [True, False, False, None]),  # u is a
    ("s < u", "s", ["B", "\uffff", "😀", "aa"], [True, False, False, False]),
    (
        "cast(s as bigint)",
        "s",
        ["9223372036854775808", "+7", "\n8\t", "8_0", "٣", "", ".", "-2.7", "1" * 5000, "-" + "0" * 5000 + "7"],
        [None, 7, 8, None, None, None, None, -2, None, -7],
    ),
    (
        "cast(s as double)",
        "s",
        ["1e400", "-Infinity", " nan", "1d", "0x1p3", "5.", ".5"],
        [INF, -INF, NAN, None, None, 5.0, 0.5],
    ),
    ("cast(s as boolean)", "s", [" T ", "no", "1", "on", ""], [True, False, True, None, None]),
    (
        "cast(s as decimal(6,2))",
        "s",
        ["1.005", "-1.005", "9999.995", "1e2", " .5 ", "1" * 100, "0" * 100 + "7." + "1" * 100],
        [*map(Decimal, ("1.01", "-1.01")), None, None, Decimal("0.50"), None, Decimal("7.11")],
    ),
    (
        "cast(s as date)",
        "s",
        ["2024-02-29 junk", "2024-02-30", "1582-10-10", "0000-01-01", "24-01-01"],
        [19782, None, -141_432, None, None],
    ),
    ("unix_micros(cast(s as timestamp))", "s", list(_MOMENTS), list(_MOMENTS.values())),
    ("size(a)", "a", [None, [], [None]], [None, 0, 1]),
    ("array_contains(z, x)", "z", [[NAN], [None], [], None], [False, None, False, None]),  # x is 0
    ("least(x, y, 1)", "x", [NAN, None, -INF, 2.0], [-INF, -INF, -INF, -INF]),
]
EDGE_ROW: dict[str, Any] = {"x": 0.0, "y": -INF, "u": "a"}
"""What the other columns of `EDGES` are."""
OVERFLOWS = [
    "i + 9223372036854775807",
    "i * 9223372036854775807",
    "-(j - 9223372036854775807 - 1)",
    "abs(j - 9223372036854775807 - 1)",
    "(j - 9223372036854775807 - 1) div -1",
]
GRAMMAR: dict[str, list[str]] = {
    "int": [
        "i",
        "j",
        "k",
        "0",
        "3",
        "-2",
        "NULL",
        "(int + int)",
        "(int - int)",
        "(int * int)",
        "(int div int)",
        "(int % int)",
        "(- int)",
        "abs(int)",
        "sign(int)",
        "floor(float)",
        "ceil(float)",
        "cast(float as bigint)",
        "cast(str as bigint)",
        "cast(dec as bigint)",
        "cast(bool as bigint)",
        "length(str)",
        "instr(str, str)",
        "hour(time)",
        "minute(time)",
        "second(time)",
        "dayofweek(day)",
        "dayofweek(time)",
        "year(day)",
        "month(time)",
        "day(time)",
        "quarter(day)",
        "dayofyear(day)",
        "weekofyear(day)",
        "datediff(day, day)",
        "unix_seconds(time)",
        "unix_millis(time)",
        "unix_micros(time)",
        "size(ints)",
        "element_at(ints, int)",
        "if(bool, int, int)",
        "coalesce(int, int)",
        "nullif(int, int)",
        "least(int, int)",
        "greatest(int, int, int)",
        "case int when int then int when int then int else int end",
        "cast(int as INT32)",
    ],
    "float": [
        "x",
        "y",
        "f",
        "1.5",
        "-0.5",
        "(float + float)",
        "(float - float)",
        "(float * float)",
        "(float / float)",
        "(int / int)",
        "(float % float)",
        "(- float)",
        "abs(float)",
        "sign(float)",
        "round(float)",
        "round(float, 2)",
        "sqrt(float)",
        "exp(float)",
        "ln(float)",
        "log10(float)",
        "log2(float)",
        "pow(float, float)",
        "pow(float, int)",
        "cast(int as double)",
        "cast(str as double)",
        "cast(dec as double)",
        "cast(float as FLOAT32)",
        "element_at(floats, int)",
        "(int + float)",
        "if(bool, float, int)",
        "coalesce(float, float)",
        "least(float, float)",
        "greatest(float, int)",
        "nullif(float, float)",
    ],
    "bool": [
        "b",
        "c",
        "true",
        "NULL",
        "(bool and bool)",
        "(bool or bool)",
        "(not bool)",
        "(int = int)",
        "(int < float)",
        "(float = float)",
        "(float <> float)",
        "(float < float)",
        "(float <= float)",
        "(float > float)",
        "(float >= float)",
        "(str = str)",
        "(str < str)",
        "(time >= time)",
        "(day < time)",
        "(bool < bool)",
        "(dec <= dec)",
        "(dec > int)",
        "(int is null)",
        "(float is not null)",
        "(float <=> float)",
        "(int <=> int)",
        "int in (1, int, NULL)",
        "float in (float, 1.5)",
        "str in ('a', '', '12')",
        "int between int and int",
        "float not between float and float",
        "str like 'a%'",
        "str like '%a_'",
        "startswith(str, str)",
        "endswith(str, str)",
        "contains(str, str)",
        "is_nan(float)",
        "array_contains(ints, int)",
        "array_contains(floats, float)",
        "cast(str as boolean)",
        "cast(float as boolean)",
        "case when bool then bool when bool then bool end",
    ],
    "str": [
        "s",
        "u",
        "'a'",
        "''",
        "concat(str, str)",
        "(str || str)",
        "upper(str)",
        "lower(str)",
        "trim(str)",
        "ltrim(str)",
        "rtrim(str)",
        "substring(str, 2, 3)",
        "substring(str, -3, 2)",
        "substring(str, -5, 4)",
        "substring(str, 0, 2)",
        "left(str, 2)",
        "right(str, 3)",
        "replace(str, str, str)",
        "cast(int as string)",
        "cast(bool as string)",
        "cast(day as string)",
        "cast(time as string)",
        "cast(dec as string)",
        "md5(str)",
        "coalesce(str, str)",
        "least(str, str)",
        "if(bool, str, str)",
    ],
    "time": [
        "t",
        "cast(str as timestamp)",
        "cast(day as timestamp)",
        "timestamp_seconds(k)",
        "date_trunc('WEEK', t)",
        "date_trunc('QUARTER', t)",
        "date_trunc('HOUR', t)",
        "coalesce(time, time)",
        "(t + interval 90 minute)",
    ],
    "day": ["d", "cast(str as date)", "cast(time as date)", "date_add(d, 3)", "date_sub(d, 31)", "greatest(day, day)"],
    "dec": [
        "p",
        "cast(int as decimal(12,3))",
        "cast(str as decimal(6,2))",
        "cast(dec as decimal(7,1))",
        "coalesce(dec, 0)",
    ],
    "ints": ["a", "array(int, int)", "coalesce(ints, ints)"],
    "floats": ["z", "array(float, int)", "cast(ints as array<double>)"],
}

_WHOLE = (0, 1, -1, 7, 3, 2**63 - 1, -(2**63), 2**53 + 1)
_REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, NAN, INF, -INF, 1e308, -1e308, 5e-324, 9.2e18, 2.0**63)
_TEXTS = ("12", " 7 ", "-2.5", "1e400", "nan", "2024-02-29", "2024-02-30", "yes", " F", "0000-01-01", "9999-12-31",
          "9223372036854775808", ".5", "5.", "+inf", "2024-01-31 10:20:30.123456789+0530", *_MOMENTS)  # fmt: skip
_LETTERS = "aAb%_ßéÉ😀 -.:T0123456789"


def _whole(rng: random.Random) -> int:
    return rng.choice([rng.choice(_WHOLE), rng.randint(-9, 9), rng.randint(-(10**6), 10**6)])


def _real(rng: random.Random) -> float:
    return rng.choice([rng.choice(_REAL), rng.randint(-20, 20) / 4, rng.uniform(-1e6, 1e6)])


def _text(rng: random.Random) -> str:
    return rng.choice([rng.choice(_TEXTS), "".join(rng.choices(_LETTERS, k=rng.randint(0, 8)))])


def _moment(rng: random.Random) -> int:
    return rng.choice(
        [rng.randint(-(10**15), 4 * 10**15), rng.randint(-62_135_596_800_000_000, 253_402_300_799_999_999)]
    )


_DRAWN: dict[str, Any] = {
    **dict.fromkeys(("i", "j"), _whole),
    "k": lambda rng: rng.choice([rng.randint(-9, 9), rng.randint(-(2**31), 2**31 - 1)]),
    **dict.fromkeys(("x", "y"), _real),
    "f": lambda rng: struct.unpack(
        "f", struct.pack("f", rng.choice([NAN, INF, rng.uniform(-9, 9), rng.uniform(-1e38, 1e38)]))
    )[0],
    **dict.fromkeys(("s", "u"), _text),
    **dict.fromkeys(("b", "c"), lambda rng: rng.random() < 0.5),
    "t": _moment,
    "d": lambda rng: rng.choice([rng.randint(-9999, 39_999), rng.randint(-719_162, 2_932_896)]),
    "p": lambda rng: Decimal(rng.choice([rng.randint(-99_999, 99_999), rng.randint(-(10**18) + 1, 10**18 - 1)])).scaleb(
        -4
    ),
    "q": lambda rng: Decimal(rng.randint(-(10**38) + 1, 10**38 - 1)).scaleb(-2),
    "a": lambda rng: [None if rng.random() < 0.2 else _whole(rng) for _ in range(rng.randint(0, 3))],
    "z": lambda rng: [None if rng.random() < 0.2 else _real(rng) for _ in range(rng.randint(0, 3))],
}


def rows(rng: random.Random, count: int) -> dict[str, list[Any]]:
    """Columns of rows of `SCHEMA`, the first row all null."""
    every = [
        [None if not n or rng.random() < 0.15 else _DRAWN[name](rng) for n in range(count)] for name in SCHEMA.names
    ]
    return dict(zip(SCHEMA.names, every, strict=True))


def text(rng: random.Random, kind: str, depth: int) -> str:
    """An expression of a kind of `GRAMMAR`."""
    options = GRAMMAR[kind]
    template = rng.choice(options if depth else [o for o in options if not any(k in o for k in GRAMMAR)])
    words = template.replace("(", "( ").replace(")", " )").replace(",", " ,").split(" ")
    return " ".join(text(rng, word, depth - 1) if word in GRAMMAR and depth else word for word in words)


def expressions(rng: random.Random, columns: Mapping[str, list[Any]]) -> Iterator[tuple[str, Scalar, list[Any]]]:
    """Generated expressions with their answers over these rows: those in which nothing overflows, in no branch, as
    engines compute more or fewer of them than need be."""
    while True:
        made = text(rng, rng.choice([*GRAMMAR]), rng.randint(1, 4))
        try:
            scalar = bind(made, SCHEMA)
            answers = compile_all([*_nodes(scalar)], list(columns))(list(columns.values()))
        except (ExpressionError, InvalidInputError):
            continue
        yield made, scalar, answers[0]


def _nodes(scalar: Scalar) -> Iterator[Scalar]:
    yield scalar
    for child in scalar.children:
        yield from _nodes(child)
