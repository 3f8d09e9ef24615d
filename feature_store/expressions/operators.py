"""The one table of what scalar expressions can do.

A line is an operator on given types: its type rule, how DuckDB and Spark write it, and what it does to one row in
Python. All three mean the same, whatever the engine's own function of that name does.

- Signatures: `name(types) type`. `T` is any one type, `K` any one type that compares exactly (not floats, not arrays),
  `T...` one or more. `=STRING` must be a constant.
- SQL templates take the operands as {0}, {1}, ...; {*} is all of them comma-separated, {+} all but the first, {||}
  all between bars. `same` means DuckDB's text. {UPPERCASE} and {LOWERCASE} are two texts: the letters that change, and
  what they become (Java's own mapping goes by its version and locale, and makes SS of ß).
  Spark's run with ANSI mode on (overflow is an error) and the session's time zone UTC, DuckDB's with TimeZone UTC.
- Row templates are Python over raw row values, evaluated where no operand is None (NULL in, NULL out), with the names
  of `row_functions` and `math` in scope; {*} is a tuple of all operands.
  `checked` answers are tested for 64-bit overflow, `partial` ones may be None though no operand is.
- Operators that are lazy or look at NULLs themselves have no row template: `row_compiler` knows them by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from feature_store.expressions import row_functions as rows
from feature_store.types import Type

NULL = Type("NULL")  # of a bare NULL, until its context gives it a type
INTERVAL = Type("INTERVAL")  # a fixed length of time, only as a constant: int microseconds


@dataclass(frozen=True)
class Parameter:
    """What an operator takes in one place: a type, or a type variable `T` or `K`, or an array of either."""

    type: Type | None
    variable: str = ""
    in_array: bool = False
    constant: bool = False


@dataclass(frozen=True)
class Operator:
    """One line of the table. `check` gets the constants (None for other operands) and says what is wrong."""

    name: str
    takes: tuple[Parameter, ...]
    variadic: bool
    gives: Parameter
    duckdb: str
    spark: str
    row: str | None
    checked: bool = False
    partial: bool = False
    check: Callable[..., str | None] | None = None

    def __hash__(self) -> int:
        return hash((self.name, self.takes))

    @property
    def signature(self) -> str:
        return f"{self.name}({', '.join(map(_spell, self.takes))}{', ...' if self.variadic else ''})"


def _spell(parameter: Parameter) -> str:
    text = str(parameter.type) if parameter.type else "any"
    return f"ARRAY<{text}>" if parameter.in_array else f"constant {text}" if parameter.constant else text


def _parameter(text: str) -> Parameter:
    constant, text = text.startswith("="), text.lstrip("=")
    in_array, text = text.startswith("ARRAY<"), text.removeprefix("ARRAY<").removesuffix(">")
    if text in ("T", "K"):
        return Parameter(None, text, in_array, constant)
    return Parameter(INTERVAL if text == "INTERVAL" else Type.parse(text), "", in_array, constant)


OPERATORS: dict[str, list[Operator]] = {}
_SIGNATURE = re.compile(r"(\S+?)\((.*)\) (\S+)")


def _add(
    signature: str,
    duckdb: str,
    spark: str,
    row: str | None,
    *aliases: str,
    checked: bool = False,
    partial: bool = False,
    check: Callable[..., str | None] | None = None,
    into: dict[str, list[Operator]] = OPERATORS,
) -> None:
    match = _SIGNATURE.fullmatch(signature)
    assert match, signature
    name, takes, gives = match.groups()
    variadic = takes.endswith("...")
    operator = Operator(
        name,
        tuple(_parameter(text) for text in takes.removesuffix("...").split(", ") if text),
        variadic,
        _parameter(gives),
        duckdb,
        duckdb if spark == "same" else spark,
        row,
        checked,
        partial,
        check,
    )
    for each in (name, *aliases):
        into.setdefault(each, []).append(operator)


def _not_negative(*constants: Any) -> str | None:
    return "the count of characters must be from 0 to 2147483647" if not 0 <= constants[-1] < 2**31 else None


def _substring_bounds(*constants: Any) -> str | None:
    bad = any(not -(2**31) < constant < 2**31 for constant in constants[1:])
    return "start and length must be constants within 32 bits" if bad else None


def _digits(_: Any, digits: int) -> str | None:
    return None if 0 <= digits <= 15 else "the number of digits must be from 0 to 15"


def _pattern(_: Any, pattern: str) -> str | None:
    bad = re.search(r"\\(?![%_\\])", re.sub(r"\\\\", "", pattern))
    return "a backslash in a LIKE pattern must be followed by %, _ or a backslash" if bad else None


_UNITS = ("SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR")


def _unit(unit: str, _: Any) -> str | None:
    return None if unit in _UNITS else f"the unit must be one of {', '.join(_UNITS)}"


def _whole_days(_: Any, interval: int) -> str | None:
    return "only whole days can be added to a DATE: cast it to TIMESTAMP first" if interval % rows.DAY else None


# Arithmetic. Integers are 64-bit and overflow is an error; decimals and FLOAT32 become FLOAT64.
for _symbol in "+-*":
    _add(f"{_symbol}(INT64, INT64) INT64", f"({{0}} {_symbol} {{1}})", "same", f"{{0}} {_symbol} {{1}}", checked=True)
    _add(f"{_symbol}(FLOAT64, FLOAT64) FLOAT64", f"({{0}} {_symbol} {{1}})", "same", f"{{0}} {_symbol} {{1}}")
_add(
    "/(FLOAT64, FLOAT64) FLOAT64",
    "({0} / nullif({1}, 0))",
    "same",
    "({0} / {1} if {1} else None)",
    partial=True,
)
_add(
    "div(INT64, INT64) INT64",
    "({0} // nullif({1}, 0))",
    "({0} div nullif({1}, 0))",
    "(({0} // {1} if ({0} >= 0) == ({1} > 0) else -(-{0} // {1})) if {1} else None)",
    checked=True,
    partial=True,
)
_add(
    "%(INT64, INT64) INT64",
    "({0} % nullif(CASE WHEN {1} = -1 THEN 1 ELSE {1} END, 0))",  # DuckDB refuses -2^63 % -1
    "({0} % nullif({1}, 0))",
    "(({0} % abs({1}) if {0} >= 0 else -(-{0} % abs({1}))) if {1} else None)",
    "mod",
    partial=True,
)
_add(
    "%(FLOAT64, FLOAT64) FLOAT64",
    "({0} % nullif({1}, 0))",
    "same",
    "(fmod({0}, {1}) if {1} else None)",
    "mod",
    partial=True,
)
_add("negative(INT64) INT64", "(CAST(0 AS BIGINT) - {0})", "(0L - {0})", "-{0}", checked=True)
_add("negative(FLOAT64) FLOAT64", "(-{0})", "same", "-{0}")
_add("abs(INT64) INT64", "abs({0})", "same", "abs({0})", checked=True)
_add("abs(FLOAT64) FLOAT64", "abs({0})", "same", "abs({0})")
_add("sign(INT64) INT64", "CAST(sign({0}) AS BIGINT)", "same", "(({0} > 0) - ({0} < 0))", "signum")
_add(
    "sign(FLOAT64) FLOAT64",
    "CASE WHEN isnan({0}) THEN {0} ELSE CAST(sign({0}) AS DOUBLE) END",
    "sign({0})",
    "sign({0})",
    "signum",
)
_FLOOR = (
    "({f}({{0}}) if -9.3e18 < {{0}} < 9.3e18 and -9223372036854775808 <= {f}({{0}}) <= 9223372036854775807 else None)"
)
for _name, _alias in (("ceil", "ceiling"), ("floor", "floor")):
    _others = () if _alias == _name else (_alias,)
    _add(f"{_name}(INT64) INT64", "{0}", "same", "{0}", *_others)
    _add(
        f"{_name}(FLOAT64) INT64",
        f"TRY_CAST({_name}({{0}}) AS BIGINT)",
        f"CASE WHEN {{0}} >= -9223372036854775808D AND {{0}} < 9223372036854775808D THEN {_name}({{0}}) END",
        _FLOOR.format(f=f"math.{_name}"),
        *_others,
        partial=True,
    )
_add("round(INT64) INT64", "{0}", "same", "{0}")
_add("round(INT64, =INT64) INT64", "{0}", "same", "{0}", check=_digits)
_add("round(FLOAT64) FLOAT64", "round({0})", "same", "rounded({0})")
_add(
    "round(FLOAT64, =INT64) FLOAT64",
    "round({0}, CAST({1} AS INTEGER))",
    "CASE WHEN abs({0} * pow(10D, {1})) < CAST('Infinity' AS DOUBLE)"
    " THEN round({0} * pow(10D, {1})) / pow(10D, {1}) ELSE {0} END",
    "rounded({0}, {1})",
    check=_digits,
)
_add(
    "sqrt(FLOAT64) FLOAT64",
    "CASE WHEN {0} >= 0 THEN sqrt({0}) END",
    "same",
    "(math.sqrt({0}) if {0} >= 0 else {0} if {0} != {0} else None)",
    partial=True,
)
_add("exp(FLOAT64) FLOAT64", "exp({0})", "same", "exp({0})")
_LOG = "{name}(nullif(greatest({{0}}, CAST(0 AS DOUBLE)), 0))"
# Spark's log2 is ln(x) / ln(2), which misses many powers of two.
_LOG2 = "CASE WHEN pow(2D, round({log})) = {{0}} THEN round({log}) ELSE {log} END".format(log=_LOG.format(name="log2"))
for _name, _python, _aliases in (("ln", "log", ("log",)), ("log10", "log10", ()), ("log2", "log2", ())):
    _add(
        f"{_name}(FLOAT64) FLOAT64",
        _LOG.format(name=_name),
        _LOG2 if _name == "log2" else "same",
        f"(math.{_python}({{0}}) if {{0}} > 0 else {{0}} if {{0}} != {{0}} else None)",
        *_aliases,
        partial=True,
    )
_add(
    "log1p(FLOAT64) FLOAT64",
    "ln(nullif(greatest(1 + {0}, CAST(0 AS DOUBLE)), 0))",
    "same",
    "(math.log(1 + {0}) if 1 + {0} > 0 else {0} if {0} != {0} else None)",
    partial=True,
)
_add(
    "pow(FLOAT64, FLOAT64) FLOAT64",
    "CASE WHEN ({0} = 0 AND {1} < 0) OR ({0} < 0 AND {1} <> floor({1})) THEN NULL ELSE pow({0}, {1}) END",
    # Java's floor is a BIGINT, and its pow of 1, or of -1 to an infinite power, is NaN where IEEE's is 1.
    "CASE WHEN ({0} = 0 AND {1} < 0) OR ({0} < 0 AND abs({1}) < 9007199254740992D AND {1} <> floor({1})) THEN NULL"
    " WHEN ({0} = 1 AND {1} IS NOT NULL) OR ({0} = -1 AND abs({1}) = CAST('Infinity' AS DOUBLE)) THEN 1D"
    " ELSE pow({0}, {1}) END",
    "power({0}, {1})",
    "power",
    partial=True,
)
_add("isnan(FLOAT64) BOOL", "isnan({0})", "({0} = CAST('NaN' AS DOUBLE))", "({0} != {0})", "is_nan")

# Comparison: NaN equals NaN and is greater than anything else.
_FLOATS = {
    "=": "({0} == {1} or ({0} != {0} and {1} != {1}))",
    "<>": "({0} != {1} and ({0} == {0} or {1} == {1}))",
    "<": "({0} < {1} or ({1} != {1} and {0} == {0}))",
    "<=": "({0} <= {1} or {1} != {1})",
    ">": "({0} > {1} or ({0} != {0} and {1} == {1}))",
    ">=": "({0} >= {1} or {0} != {0})",
}
_PYTHON = {"=": "==", "<>": "!="}
for _symbol, _row in _FLOATS.items():
    _sql = f"({{0}} {_symbol} {{1}})"
    _add(f"{_symbol}(K, K) BOOL", _sql, "same", f"({{0}} {_PYTHON.get(_symbol, _symbol)} {{1}})")
    _add(f"{_symbol}(FLOAT64, FLOAT64) BOOL", _sql, "same", _row)
_DISTINCT = "({0} IS NOT DISTINCT FROM {1})"
_add("<=>(K, K) BOOL", _DISTINCT, "({0} <=> {1})", None)
_add("<=>(FLOAT64, FLOAT64) BOOL", _DISTINCT, "({0} <=> {1})", None)
_add("in(K...) BOOL", "({0} IN ({+}))", "same", None)
_add("in(FLOAT64...) BOOL", "({0} IN ({+}))", "same", None)
for _type in ("K", "FLOAT64"):
    _add(f"least({_type}...) {_type}", "least({*})", "same", None)
    _add(f"greatest({_type}...) {_type}", "greatest({*})", "same", None)

# Logic and NULLs: three-valued, lazy where it matters.
_add("and(BOOL, BOOL) BOOL", "({0} AND {1})", "same", None)
_add("or(BOOL, BOOL) BOOL", "({0} OR {1})", "same", None)
_add("not(BOOL) BOOL", "(NOT {0})", "same", "(not {0})")
_add("isnull(T) BOOL", "({0} IS NULL)", "same", None)
_add("coalesce(T...) T", "coalesce({*})", "same", None, "ifnull", "nvl")

# Text. Lengths and positions count code points.
_add("concat(STRING...) STRING", "({||})", "concat({*})", "''.join({*})")
_add("upper(STRING) STRING", "upper({0})", "translate({0}, {UPPERCASE})", "upper({0})", "ucase")
_add("lower(STRING) STRING", "lower({0})", "translate({0}, {LOWERCASE})", "lower({0})", "lcase")
for _name, _python in (("trim", "strip"), ("ltrim", "lstrip"), ("rtrim", "rstrip")):
    _add(f"{_name}(STRING) STRING", f"{_name}({{0}}, ' ')", f"{_name}({{0}})", f"{{0}}.{_python}(' ')")
_add("length(STRING) INT64", "length({0})", "CAST(length({0}) AS BIGINT)", "len({0})", "len", "char_length")
_add(
    "substring(STRING, =INT64, =INT64) STRING",
    "CASE WHEN {2} <= 0 THEN left({0}, 0) WHEN {1} > 0 THEN substring({0}, {1}, {2})"
    " WHEN {1} = 0 THEN substring({0}, 1, {2}) WHEN length({0}) + {1} >= 0 THEN substring({0}, {1}, {2})"
    " ELSE left({0}, greatest({2} + length({0}) + {1}, 0)) END",
    "substring({0}, CAST({1} AS INT), CAST({2} AS INT))",
    "substring({0}, {1}, {2})",
    "substr",
    check=_substring_bounds,
)
_add(
    "left(STRING, =INT64) STRING",
    "left({0}, {1})",
    "left({0}, CAST({1} AS INT))",
    "{0}[:{1}]",
    check=_not_negative,
)
_add(
    "right(STRING, =INT64) STRING",
    "right({0}, {1})",
    "right({0}, CAST({1} AS INT))",
    "{0}[max(len({0}) - {1}, 0):]",
    check=_not_negative,
)
_add("replace(STRING, STRING, STRING) STRING", "replace({0}, {1}, {2})", "same", "replaced({0}, {1}, {2})")
_add(
    "startswith(STRING, STRING) BOOL",
    "starts_with({0}, {1})",
    "startswith({0}, {1})",
    "{0}.startswith({1})",
    "starts_with",
)
_add("endswith(STRING, STRING) BOOL", "ends_with({0}, {1})", "endswith({0}, {1})", "{0}.endswith({1})", "ends_with")
_add("contains(STRING, STRING) BOOL", "contains({0}, {1})", "same", "({1} in {0})")
_add("instr(STRING, STRING) INT64", "instr({0}, {1})", "CAST(instr({0}, {1}) AS BIGINT)", "({0}.find({1}) + 1)")
_add(
    "like(STRING, =STRING) BOOL",
    "({0} LIKE {1} ESCAPE '\\')",
    "({0} LIKE {1} ESCAPE '\\\\')",
    "(like({1})({0}) is not None)",
    check=_pattern,
)
_add("md5(STRING) STRING", "md5({0})", "same", "md5({0})")

# Time, all UTC.
for _name, _row in (
    ("hour", "{0} // 3600000000 % 24"),
    ("minute", "{0} // 60000000 % 60"),
    ("second", "{0} // 1000000 % 60"),
):
    _add(f"{_name}(TIMESTAMP) INT64", f"{_name}({{0}})", f"CAST({_name}({{0}}) AS BIGINT)", _row)
_DATE_PARTS = (
    ("year", "year", "year", "civil({d})[0]", ()),
    ("quarter", "quarter", "quarter", "(civil({d})[1] + 2) // 3", ()),
    ("month", "month", "month", "civil({d})[1]", ()),
    ("day", "day", "day", "civil({d})[2]", ("dayofmonth",)),
    ("dayofyear", "dayofyear", "dayofyear", "day_of_year({d})", ()),
    ("weekofyear", "weekofyear", "weekofyear", "week_of_year({d})", ()),
)
for _name, _duckdb, _spark, _row, _aliases in _DATE_PARTS:
    for _type, _days in (("DATE", "{0}"), ("TIMESTAMP", "{0} // 86400000000")):
        _sql = f"CAST({_spark}({{0}}) AS BIGINT)"
        _add(f"{_name}({_type}) INT64", f"{_duckdb}({{0}})", _sql, _row.replace("{d}", _days), *_aliases)
for _type, _days in (("DATE", "{0}"), ("TIMESTAMP", "{0} // 86400000000")):
    _add(
        f"dayofweek({_type}) INT64",
        "isodow({0})",
        "CAST(weekday({0}) + 1 AS BIGINT)",
        f"({_days} + 3) % 7 + 1",
        "isodow",
    )
_add("datediff(DATE, DATE) INT64", "({0} - {1})", "CAST(datediff({0}, {1}) AS BIGINT)", "{0} - {1}", "date_diff")
for _name, _symbol in (("date_add", "+"), ("date_sub", "-")):
    _moved = f"date_from_unix_date(CAST(CAST(unix_date({{0}}) AS BIGINT) {_symbol} {{days}} AS INT))"
    _add(
        f"{_name}(DATE, INT64) DATE",
        f"({{0}} {_symbol} CAST({{1}} AS INTEGER))",
        _moved.replace("{days}", "{1}"),
        f"in_date_range({{0}} {_symbol} {{1}})",
    )
    _add(
        f"{_symbol}(DATE, INTERVAL) DATE",
        f"({{0}} {_symbol} CAST({{1}} // 86400000000 AS INTEGER))",
        _moved.replace("{days}", "{1} div 86400000000"),
        f"in_date_range({{0}} {_symbol} {{1}} // 86400000000)",
        check=_whole_days,
    )
    _add(
        f"{_symbol}(TIMESTAMP, INTERVAL) TIMESTAMP",
        f"({{0}} {_symbol} to_microseconds({{1}}))",
        f"timestamp_micros(unix_micros({{0}}) {_symbol} {{1}})",
        f"in_timestamp_range({{0}} {_symbol} {{1}})",
    )
_add(
    "+(INTERVAL, TIMESTAMP) TIMESTAMP",
    "({1} + to_microseconds({0}))",
    "timestamp_micros(unix_micros({1}) + {0})",
    "in_timestamp_range({0} + {1})",
)
_add(
    "unix_seconds(TIMESTAMP) INT64",
    "(epoch_us(date_trunc('second', {0})) // 1000000)",
    "unix_seconds({0})",
    "{0} // 1000000",
)
_add(
    "unix_millis(TIMESTAMP) INT64",
    "(epoch_us(date_trunc('millisecond', {0})) // 1000)",
    "unix_millis({0})",
    "{0} // 1000",
)
_add("unix_micros(TIMESTAMP) INT64", "epoch_us({0})", "unix_micros({0})", "{0}")
for _name, _micros in (("seconds", 1_000_000), ("millis", 1000), ("micros", 1)):
    _add(
        f"timestamp_{_name}(INT64) TIMESTAMP",
        f"make_timestamptz({{0}} * {_micros})",
        f"timestamp_{_name}({{0}})",
        f"in_timestamp_range({{0}} * {_micros})",
    )
_add("date_trunc(=STRING, TIMESTAMP) TIMESTAMP", "date_trunc({0}, {1})", "same", "truncated({0}, {1})", check=_unit)

# Arrays.
_add(
    "size(ARRAY<T>) INT64",
    "len({0})",
    "CASE WHEN {0} IS NOT NULL THEN CAST(size({0}) AS BIGINT) END",
    "len({0})",
    "array_size",
    "cardinality",
)
_add(
    "array_contains(ARRAY<T>, T) BOOL",
    "CASE WHEN {0} IS NULL OR {1} IS NULL THEN NULL WHEN list_contains({0}, {1}) THEN TRUE"
    " WHEN list_count({0}) < len({0}) THEN NULL ELSE FALSE END",
    "array_contains({0}, {1})",
    "contains({0}, {1})",
    partial=True,
)
_add(
    "element_at(ARRAY<T>, INT64) T",
    "list_extract({0}, {1})",
    "try_element_at({0}, TRY_CAST(nullif(nullif({1}, 0), -2147483648L) AS INT))",
    "element_at({0}, {1})",
    partial=True,
)
_add("array(T...) ARRAY<T>", "list_value({*})", "array({*})", None)

# Aggregates of queries. {distinct} and {over} stand where DISTINCT and a window go. NaN counts as NULL: whoever binds
# a call passes floats through nullif(x, NaN).
AGGREGATES: dict[str, list[Operator]] = {}
for _type in ("INT64", "FLOAT64"):
    _sum = "sum({distinct}{0}){over}"
    _add(f"sum({_type}) {_type}", f"CAST({_sum} AS BIGINT)" if _type == "INT64" else _sum, _sum, None, into=AGGREGATES)
_add("count(T) INT64", "count({distinct}{0}){over}", "same", None, into=AGGREGATES)
_add("avg(FLOAT64) FLOAT64", "avg({distinct}{0}){over}", "same", None, "mean", into=AGGREGATES)
for _name in ("min", "max"):
    for _type in ("K", "FLOAT64"):
        _add(f"{_name}({_type}) {_type}", f"{_name}({{0}}){{over}}", "same", None, into=AGGREGATES)
for _name, _spellings in (
    ("var_pop", ()),
    ("var_samp", ("variance",)),
    ("stddev_pop", ()),
    ("stddev_samp", ("stddev", "std")),
):
    _add(f"{_name}(FLOAT64) FLOAT64", f"{_name}({{0}}){{over}}", "same", None, *_spellings, into=AGGREGATES)
_add("count_if(BOOL) INT64", "count(CASE WHEN {0} THEN 1 END){over}", "same", None, into=AGGREGATES)
_add("bool_and(BOOL) BOOL", "bool_and({0}){over}", "same", None, "every", into=AGGREGATES)
_add("bool_or(BOOL) BOOL", "bool_or({0}){over}", "same", None, "some", into=AGGREGATES)
_add(
    "percentile(FLOAT64, =FLOAT64) FLOAT64",
    "quantile_cont({0}, {1}){over}",
    "percentile({0}, {1}){over}",
    None,
    into=AGGREGATES,
)
_add("median(FLOAT64) FLOAT64", "quantile_cont({0}, 0.5){over}", "percentile({0}, 0.5){over}", None, into=AGGREGATES)
for _name, _duckdb in (("max_by", "arg_max_null"), ("min_by", "arg_min_null")):
    _add(
        f"{_name}(T, K) T", f"{_duckdb}({{0}}, {{1}}){{over}}", f"{_name}({{0}}, {{1}}){{over}}", None, into=AGGREGATES
    )

# Functions that only windows have.
WINDOWED: dict[str, list[Operator]] = {}
for _name in ("row_number", "rank", "dense_rank"):
    _add(f"{_name}() INT64", f"{_name}(){{over}}", f"CAST({_name}(){{over}} AS BIGINT)", None, into=WINDOWED)
for _name in ("lag", "lead"):
    _add(f"{_name}(T) T", f"{_name}({{0}}){{over}}", "same", None, into=WINDOWED)
    _add(
        f"{_name}(T, =INT64) T", f"{_name}({{0}}, {{1}}){{over}}", f"{_name}({{0}}, CAST({{1}} AS INT)){{over}}", None,
        into=WINDOWED,
    )  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """How a cast is written; templates as in `Operator`, and {type} the target, {p} and {s} its precision and scale,
    a name in capitals a
    pattern of `row_functions`. None for the row: the raw value stays as it is. A cast that fails is NULL."""

    duckdb: str
    spark: str
    row: str | None
    partial: bool = False


_PLAIN = Conversion("CAST({0} AS {type})", "CAST({0} AS {type})", None)
_UNSIGNED = "trim(LEADING '+' FROM CAST({0} AS {type}))"  # Spark writes +10000-01-01
_IN_INT64 = "(int({0}) if -9223372036854775808.0 <= {0} < 9223372036854775808.0 else None)"
_IN_INT32 = "(int({0}) if -2147483649.0 < {0} < 2147483648.0 else None)"


def _of_text(pattern: str, row: str) -> Conversion:
    sql = "TRY_CAST(regexp_extract({0}, {pattern}, 1) AS {type})".replace("{pattern}", "{" + pattern + "}")
    return Conversion(sql, sql, row, partial=True)


def _by_words(true: tuple[str, ...], false: tuple[str, ...]) -> str:
    def listed(words: tuple[str, ...]) -> str:
        return ", ".join(f"'{word}'" for word in words)

    word = "lower(regexp_replace({0}, '^[ \\t\\n\\r]+|[ \\t\\n\\r]+$', ''{global}))"
    return f"CASE WHEN {word} IN ({listed(true)}) THEN TRUE WHEN {word} IN ({listed(false)}) THEN FALSE END"


CONVERSIONS: dict[tuple[str, str], Conversion] = {
    ("INT32", "INT64"): _PLAIN,
    ("FLOAT32", "FLOAT64"): _PLAIN,
    ("INT32", "FLOAT64"): Conversion(_PLAIN.duckdb, _PLAIN.spark, "float({0})"),
    ("INT64", "FLOAT64"): Conversion(_PLAIN.duckdb, _PLAIN.spark, "float({0})"),
    ("DECIMAL", "FLOAT64"): Conversion(_PLAIN.duckdb, _PLAIN.spark, "float({0})"),
    ("INT64", "INT32"): Conversion(
        "TRY_CAST({0} AS {type})", "TRY_CAST({0} AS {type})", "({0} if -2147483648 <= {0} < 2147483648 else None)", True
    ),
    ("FLOAT64", "FLOAT32"): Conversion(
        "TRY_CAST({0} AS {type})",
        "CASE WHEN abs(CAST({0} AS FLOAT)) < CAST('Infinity' AS FLOAT) OR isnan({0})"
        " OR abs({0}) = CAST('Infinity' AS DOUBLE) THEN CAST({0} AS FLOAT) END",
        "float32_of({0})",
        True,
    ),
    ("FLOAT64", "INT64"): Conversion(
        "TRY_CAST(trunc({0}) AS {type})",
        "CASE WHEN {0} >= -9223372036854775808D AND {0} < 9223372036854775808D THEN CAST({0} AS {type}) END",
        _IN_INT64,
        True,
    ),
    ("FLOAT64", "INT32"): Conversion(
        "TRY_CAST(trunc({0}) AS {type})",
        "CASE WHEN {0} > -2147483649D AND {0} < 2147483648D THEN CAST({0} AS {type}) END",
        _IN_INT32,
        True,
    ),
    ("DECIMAL", "INT64"): Conversion(
        "TRY_CAST(trunc({0}) AS {type})",
        "TRY_CAST({0} AS {type})",
        "(int({0}) if -9223372036854775809 < {0} < 9223372036854775808 else None)",
        True,
    ),
    ("INT64", "DECIMAL"): Conversion(
        "TRY_CAST({0} AS {type})", "TRY_CAST({0} AS {type})", "decimal_of({0}, {p}, {s})", True
    ),
    ("DECIMAL", "DECIMAL"): Conversion(
        "TRY_CAST({0} AS {type})", "TRY_CAST({0} AS {type})", "decimal_of({0}, {p}, {s})", True
    ),
    ("BOOL", "INT64"): Conversion(_PLAIN.duckdb, _PLAIN.spark, "int({0})"),
    ("BOOL", "FLOAT64"): Conversion(_PLAIN.duckdb, _PLAIN.spark, "float({0})"),
    ("INT64", "BOOL"): Conversion("({0} <> 0)", "({0} <> 0)", "({0} != 0)"),
    ("FLOAT64", "BOOL"): Conversion("({0} <> 0)", "({0} <> 0)", "({0} != 0)"),
    ("STRING", "INT64"): _of_text("INTEGER_TEXT", "integer_of_text({0})"),
    ("STRING", "FLOAT64"): _of_text("FLOAT_TEXT", "float_of_text({0})"),
    ("STRING", "DECIMAL"): _of_text("DECIMAL_TEXT", "decimal_of_text({0}, {p}, {s})"),
    ("STRING", "DATE"): _of_text("DATE_TEXT", "date_of_text({0})"),
    ("STRING", "TIMESTAMP"): Conversion(
        _of_text("TIMESTAMP_TEXT", "").duckdb,
        # Spark takes an offset after the seconds only.
        "TRY_CAST(regexp_replace(regexp_extract({0}, {TIMESTAMP_TEXT}, 1), {MINUTES_LAST}, '$1:00') AS {type})",
        "timestamp_of_text({0})",
        True,
    ),
    ("STRING", "BOOL"): Conversion(
        _by_words(rows.TRUE_TEXT, rows.FALSE_TEXT).replace("{global}", ", 'g'"),
        _by_words(rows.TRUE_TEXT, rows.FALSE_TEXT).replace("{global}", "").replace("\\", "\\\\"),
        "bool_of_text({0})",
        True,
    ),
    ("INT64", "STRING"): Conversion(_PLAIN.duckdb, _PLAIN.spark, "str({0})"),
    ("BOOL", "STRING"): Conversion(_PLAIN.duckdb, _PLAIN.spark, "('true' if {0} else 'false')"),
    ("DATE", "STRING"): Conversion(_PLAIN.duckdb, _UNSIGNED, "text_of_date({0})"),
    ("TIMESTAMP", "STRING"): Conversion("CAST(CAST({0} AS TIMESTAMP) AS VARCHAR)", _UNSIGNED, "text_of_timestamp({0})"),
    ("DECIMAL", "STRING"): Conversion(_PLAIN.duckdb, _PLAIN.spark, "format({0}, 'f')"),
    ("STRING", "BYTES"): Conversion("encode({0})", _PLAIN.spark, "{0}.encode()"),
    ("DATE", "TIMESTAMP"): Conversion(_PLAIN.duckdb, _PLAIN.spark, "{0} * 86400000000"),
    ("TIMESTAMP", "DATE"): Conversion(_PLAIN.duckdb, _PLAIN.spark, "{0} // 86400000000"),
}

# Casts that go by way of another type, and those that no two engines do alike.
CAST_VIA = {"INT32": "INT64", "FLOAT32": "FLOAT64"}
REFUSED_CASTS: dict[tuple[str, str], str] = {
    ("FLOAT64", "STRING"): "engines write floats differently. Cast it to an integer first, or keep the number",
    ("FLOAT64", "DECIMAL"): "engines round floats to decimals differently. Keep FLOAT64, or cast through an integer",
    (
        "INT64",
        "TIMESTAMP",
    ): "an integer does not say its unit. Use timestamp_seconds, timestamp_millis or timestamp_micros",
    ("TIMESTAMP", "INT64"): "the unit is not clear. Use unix_seconds, unix_millis or unix_micros",
    ("FLOAT64", "TIMESTAMP"): "a float does not hold microseconds. Use timestamp_micros of an integer",
    ("TIMESTAMP", "FLOAT64"): "a float does not hold microseconds. Use unix_micros",
    ("BYTES", "STRING"): "bytes that are not UTF-8 are an error or garbage, by engine. Store the column as STRING",
}

_AGGREGATE = "it is an aggregate. Aggregate in a feature view's aggregations, or in sql"
_NOW = "its value changes with the clock. Pass the time in as a request value or a column"
_RANDOM = (
    "its value differs from run to run, so training and serving would not agree. Hash a key column with md5 instead"
)
_REGEX = "the engines' regular expressions differ. Use like, startswith, contains or replace"
_HASH = "each engine hashes differently. Use md5"
_WEEKDAY = "engines number the days differently. Use dayofweek (ISO: Monday is 1)"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        [
            "sum",
            "count",
            "avg",
            "mean",
            "min",
            "max",
            "first",
            "last",
            "first_value",
            "last_value",
            "any_value",
            "stddev",
            "stddev_pop",
            "stddev_samp",
            "variance",
            "var_pop",
            "var_samp",
            "collect_list",
            "collect_set",
            "approx_count_distinct",
            "percentile",
            "percentile_approx",
            "median",
            "mode",
            "skewness",
            "kurtosis",
            "corr",
            "covar_pop",
            "covar_samp",
            "max_by",
            "min_by",
            "bool_and",
            "bool_or",
            "every",
            "some",
            "count_if",
        ],
        _AGGREGATE,
    ),
    **dict.fromkeys(
        ["row_number", "rank", "dense_rank", "percent_rank", "ntile", "lag", "lead", "cume_dist", "nth_value"],
        "it is a window function. Use a feature view's aggregations, or sql",
    ),
    **dict.fromkeys(
        ["now", "current_timestamp", "current_date", "curdate", "current_time", "localtimestamp", "getdate"], _NOW
    ),
    **dict.fromkeys(
        ["rand", "random", "randn", "uuid", "shuffle", "monotonically_increasing_id", "spark_partition_id"], _RANDOM
    ),
    **dict.fromkeys(
        ["rlike", "regexp", "regexp_like", "regexp_replace", "regexp_extract", "regexp_extract_all", "split"], _REGEX
    ),
    **dict.fromkeys(["hash", "xxhash64", "crc32"], _HASH),
    "weekday": _WEEKDAY,
    "day_of_week": _WEEKDAY,
    "typeof": "type names differ by engine",
    "bround": "engines differ on rounding half to even. Use round (half away from zero)",
}
