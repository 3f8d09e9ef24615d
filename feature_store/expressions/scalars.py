"""Scalar expressions: text in Spark's dialect, bound once to a typed tree of our own, then lowered.

    bind(text, schema) -> Scalar        names and types settled, or ExpressionError
    to_sql(scalar, dialect)             SQL of an engine, every identifier quoted
    compile_rows(scalar, names)         a Python function over columns of raw row values
    compile_all(scalars, names)         the same for several at once

What operators there are and what they mean is the table in `operators`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from sqlglot import exp, parse_one
from sqlglot.dialects.spark import Spark
from sqlglot.errors import ParseError, SqlglotError, TokenError
from sqlglot.parsers.spark import SparkParser
from sqlglot.tokenizer_core import TokenType

from feature_store.errors import DefinitionError, ExpressionError, nearest
from feature_store.expressions import row_functions
from feature_store.expressions.operators import (
    CAST_VIA,
    CONVERSIONS,
    INTERVAL,
    NULL,
    OPERATORS,
    REFUSED,
    REFUSED_CASTS,
    Operator,
    Parameter,
)
from feature_store.expressions.row_compiler import compile_all, compile_rows
from feature_store.expressions.sql_writer import to_sql
from feature_store.expressions.tree import Call, Case, Cast, Literal, Ref, Scalar
from feature_store.types import BOOL, DATE, FLOAT64, INT64, STRING, TIMESTAMP, Schema, Type, array, decimal

__all__ = [
    "Call", "Case", "Cast", "Literal", "Ref", "Scalar", "bind", "cast", "compile_all", "compile_rows", "to_sql",
]  # fmt: skip


class Bare(Spark):
    """Spark's grammar without sqlglot's knowledge of functions: a call stays its name and arguments. It knows the names
    of our types."""

    class Tokenizer(Spark.Tokenizer):
        KEYWORDS = {  # noqa: RUF012
            **Spark.Tokenizer.KEYWORDS,
            "INT32": TokenType.SMALLINT,
            "FLOAT32": TokenType.FLOAT,
            "FLOAT64": TokenType.DOUBLE,
            "BYTES": TokenType.BINARY,
        }

    class Parser(SparkParser):
        FUNCTIONS = {}  # noqa: RUF012
        FUNCTION_PARSERS = {  # noqa: RUF012
            name: parse for name, parse in SparkParser.FUNCTION_PARSERS.items() if name in ("CAST", "TRY_CAST")
        }
        NO_PAREN_FUNCTIONS = {}  # noqa: RUF012


_BINARY: dict[type[exp.Expr], str] = {
    exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.IntDiv: "div", exp.Mod: "%",
    exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
    exp.NullSafeEQ: "<=>", exp.And: "and", exp.Or: "or", exp.Like: "like", exp.DPipe: "concat",
}  # fmt: skip
_REFUSED_NODES: dict[type[exp.Expr], str] = {
    exp.Window: "window functions are not for one row. Use a feature view's aggregations, or sql",
    exp.Query: "a scalar expression has no subqueries. Use a feature view with sql",
    exp.Subquery: "a scalar expression has no subqueries. Use a feature view with sql",
    exp.Alias: 'leave out "AS": the feature already has a name',
    exp.RegexpLike: REFUSED["rlike"],
    exp.ILike: "ILIKE folds letters differently by engine. Use lower(x) LIKE 'pattern'",
    exp.Bracket: "x[i] counts from 0 or 1 by engine. Use element_at(x, i), which counts from 1",
    exp.Escape: "LIKE takes no ESCAPE here. The escape character is the backslash",
    exp.Star: "* is no value. Name a column",
    exp.Lambda: "lambdas are not supported",
}
_MICROS = {"MICROSECOND": 1, "MILLISECOND": 1000, "SECOND": 1_000_000, "MINUTE": 60_000_000, "HOUR": 3_600_000_000}
_MICROS |= {"DAY": row_functions.DAY, "WEEK": 7 * row_functions.DAY}

_DEEPEST = 150  # nodes in each other; every lowering is recursive, and Python's stack is finite


def bind(text: str, schema: Schema) -> Scalar:
    """The typed tree of `text` over the columns of `schema`; `ExpressionError` says what is wrong and what to do."""
    try:
        tree = parse_one(text, read=Bare)
        scalar = Binder(schema).bind(tree)
        if _depth(scalar) > _DEEPEST:
            raise RecursionError
        if scalar.type == NULL:
            raise ExpressionError("a bare NULL has no type", hint="Write for example CAST(NULL AS INT64)")
        if scalar.type == INTERVAL:
            raise ExpressionError("an interval is no value of a feature", hint="Add it to a TIMESTAMP or a DATE")
    except (SqlglotError, ValueError) as error:
        raise ExpressionError(f"expression {text!r} cannot be read: {_reason(error)}") from None
    except RecursionError:
        raise ExpressionError(
            "the expression is nested too deeply", hint="Split it over several features, or group terms in parentheses"
        ) from None
    except ExpressionError as error:
        raise ExpressionError(
            f"expression {text!r}: {error.message}", location=error.location, hint=error.hint
        ) from None
    return scalar


def _reason(error: Exception) -> str:
    """Why a text cannot be read, in a few words: sqlglot's own name its classes."""
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, TokenError):
        return "a quote or a comment is not closed"
    if not isinstance(error, ParseError) or not error.errors:
        return "it is empty"
    first = error.errors[0]
    what, near = str(first["description"]), f'"{first["highlight"]}" (line {first["line"]}, column {first["col"]})'
    if what.startswith("Required keyword"):
        return f"something is missing after {near}"
    if expected := re.match(r"Expect(?:ed|ing) (\S+)", what):
        return f"{_EXPECTED.get(expected[1], expected[1])} is missing near {near}"
    return f"it makes no sense near {near}"


_EXPECTED = {"TYPE": "a type"}


def _depth(scalar: Scalar) -> int:
    return 1 + max(map(_depth, scalar.children), default=0)


class Binder:
    """Binds the nodes of a parsed expression. `lenient` converts STRING to and from other types as Spark does."""

    lenient = False

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def call(self, name: str, operands: Sequence[Scalar]) -> Scalar:
        return call(name, operands, self.lenient)

    def bind(self, node: exp.Expr) -> Scalar:
        for refused, reason in _REFUSED_NODES.items():
            if isinstance(node, refused):
                what, _, hint = reason.partition(". ")
                raise ExpressionError(f"{node.sql('spark')}: {what}", hint=hint or None)
        name = _BINARY.get(type(node))
        if name:
            return self.call(name, [self.bind(node.this), self.bind(node.expression)])
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise ExpressionError(f"{node.sql('spark')} is not supported in a scalar expression")
        scalar: Scalar = method(node)
        return scalar

    def _paren(self, node: exp.Paren) -> Scalar:
        return self.bind(node.this)

    def _column(self, node: exp.Column) -> Scalar:
        if node.args.get("table"):
            raise ExpressionError(f"{node.sql('spark')}: columns have no prefix here", hint=f"Write {node.name}")
        type_ = self.schema.get(node.name)
        if type_ is None:
            if node.name.lower() in REFUSED and not node.this.quoted:
                raise _refused(node.name)
            hint = nearest(node.name, self.schema.names) or f"There are {', '.join(self.schema.names) or 'none'}"
            raise ExpressionError(f'no column "{node.name}"', hint=hint)
        return Ref(type_, node.name)

    def _literal(self, node: exp.Literal) -> Scalar:
        if node.is_string:
            if "\0" in node.this:
                raise ExpressionError("a text cannot hold the NUL character")
            return Literal(STRING, node.this)
        return _number(node.this)

    def _boolean(self, node: exp.Boolean) -> Scalar:
        return Literal(BOOL, bool(node.this))

    def _null(self, node: exp.Null) -> Scalar:
        return Literal(NULL, None)

    def _neg(self, node: exp.Neg) -> Scalar:
        if isinstance(node.this, exp.Literal) and not node.this.is_string:
            return _number("-" + node.this.this)  # so that the least integer can be written
        operand = self.bind(node.this)
        if isinstance(operand, Literal) and operand.type.kind in ("INTERVAL", "FLOAT64"):
            return Literal(operand.type, -operand.value)
        return self.call("negative", [operand])

    def _not(self, node: exp.Not) -> Scalar:
        return self.call("not", [self.bind(node.this)])

    def _is(self, node: exp.Is) -> Scalar:
        operand = self.bind(node.this)
        if isinstance(node.expression, exp.Null):
            return self.call("isnull", [operand])
        if isinstance(node.expression, exp.Boolean):
            return self.call("<=>", [operand, self.bind(node.expression)])
        raise ExpressionError(f"{node.sql('spark')}: IS takes NULL, TRUE or FALSE")

    def _nullsafeneq(self, node: exp.NullSafeNEQ) -> Scalar:
        return self.call("not", [self.call("<=>", [self.bind(node.this), self.bind(node.expression)])])

    def _in(self, node: exp.In) -> Scalar:
        if node.args.get("query"):
            return self.bind(node.args["query"])  # which refuses it
        if not node.expressions:
            raise ExpressionError("IN () has no values")
        return self.call("in", [self.bind(node.this), *map(self.bind, node.expressions)])

    def _between(self, node: exp.Between) -> Scalar:
        value, low, high = (self.bind(node.args[name]) for name in ("this", "low", "high"))
        return self.call("and", [self.call(">=", [value, low]), self.call("<=", [value, high])])

    def _if(self, node: exp.If) -> Scalar:
        otherwise = node.args.get("false")
        default = self.bind(otherwise) if otherwise else Literal(NULL, None)
        return _case([(self.bind(node.this), self.bind(node.args["true"]))], default)

    def _case(self, node: exp.Case) -> Scalar:
        subject = self.bind(node.this) if node.this else None
        branches = []
        for branch in node.args["ifs"]:
            when = self.bind(branch.this)
            branches.append((self.call("=", [subject, when]) if subject else when, self.bind(branch.args["true"])))
        default = node.args.get("default")
        return _case(branches, self.bind(default) if default else Literal(NULL, None))

    def _cast(self, node: exp.Cast) -> Scalar:
        operand = self.bind(node.this)
        if node.args.get("format"):
            raise ExpressionError("CAST takes no FORMAT here")
        return cast(operand, _type_of(node.to))

    _trycast = _cast

    def _interval(self, node: exp.Interval) -> Scalar:
        unit = node.text("unit").upper().removesuffix("S")
        count = node.this.this if isinstance(node.this, exp.Literal) else None
        if unit not in _MICROS or count is None or not re.fullmatch(r"[+-]?\d+", str(count)):
            raise ExpressionError(
                f"{node.sql('spark')}: an interval is a whole constant number of {', '.join(_MICROS)}",
                hint="Months and years have no fixed length",
            )
        return Literal(INTERVAL, int(count) * _MICROS[unit])

    def _anonymous(self, node: exp.Anonymous) -> Scalar:
        name = str(node.this).lower()
        if name in REFUSED:
            raise _refused(name)
        rewrite = _REWRITES.get(name)
        operands = [self.bind(operand) for operand in node.expressions]
        if rewrite:
            least, most, build = rewrite
            if not least <= len(operands) <= most:
                raise ExpressionError(f"{name} does not take {len(operands)} arguments")
            return build(self.call, *operands)
        return self.call(name, operands)


_Caller = Callable[[str, Sequence[Scalar]], Scalar]


def _nullif(call: _Caller, value: Scalar, other: Scalar) -> Scalar:
    return _case([(call("=", [value, other]), Literal(NULL, None))], value)


def _nvl2(call: _Caller, value: Scalar, there: Scalar, missing: Scalar) -> Scalar:
    return _case([(call("isnull", [value]), missing)], there)


def _to(type_: Type) -> Callable[..., Scalar]:
    """A cast, of a text by a pattern if one is given."""

    def build(call: _Caller, value: Scalar, pattern: Scalar | None = None) -> Scalar:
        return cast(_by_pattern(call, value, pattern) if pattern else value, type_)

    return build


# The parts of the text of a timestamp, 2024-01-31 10:20:30, by the letters that Spark's patterns have for them.
_PARTS = {"yyyy": (1, 4), "MM": (6, 2), "dd": (9, 2), "HH": (12, 2), "mm": (15, 2), "ss": (18, 2)}
_PATTERN = re.compile(r"yyyy|MM|dd|HH|mm|ss|'[^']*'|[^A-Za-z']+")


def _pattern_of(scalar: Scalar) -> list[str]:
    pattern = scalar.value if isinstance(scalar, Literal) and scalar.type == STRING else None
    pieces = _PATTERN.findall(pattern or "")
    if not pattern or "".join(pieces) != pattern:
        raise ExpressionError(
            f"{pattern!r} is not a date pattern that all engines read alike",
            hint="It must be a constant of yyyy, MM, dd, HH, mm, ss and punctuation",
        )
    return pieces


def _date_format(call: _Caller, value: Scalar, pattern: Scalar) -> Scalar:
    """The text of a timestamp by a pattern: pieces of its standard text."""
    if value.type not in (TIMESTAMP, DATE, STRING):
        raise ExpressionError(f"date_format takes a TIMESTAMP, DATE or STRING, not {value.type}")
    text = cast(cast(value, TIMESTAMP), STRING)
    pieces = [
        call("substring", [text, *(Literal(INT64, at) for at in _PARTS[piece])])
        if piece in _PARTS
        else Literal(STRING, piece.strip("'"))
        for piece in _pattern_of(pattern)
    ]
    return call("concat", pieces)


def _by_pattern(call: _Caller, value: Scalar, pattern: Scalar) -> Scalar:
    """A text read by a pattern, as ISO 8601; NULL where it is not of its form."""
    form, found, at = "", {}, 1
    for piece in _pattern_of(pattern):
        length = len(piece.strip("'"))
        found[piece] = call("substring", [value, Literal(INT64, at), Literal(INT64, length)])
        form += "_" * length if piece in _PARTS else re.sub(r"([%_\\])", r"\\\1", piece.strip("'"))
        at += length
    parts: list[Scalar] = []
    for name, before, default in zip(
        _PARTS, ("", "-", "-", " ", ":", ":"), ("1970", "01", "01", *["00"] * 3), strict=True
    ):
        parts += [Literal(STRING, before), found.get(name, Literal(STRING, default))]
    fits = call("like", [value, Literal(STRING, form)])
    return _case([(fits, call("concat", parts))], Literal(NULL, None))


def _from_unixtime(call: _Caller, seconds: Scalar, pattern: Scalar | None = None) -> Scalar:
    time = call("timestamp_seconds", [seconds])
    return _date_format(call, time, pattern) if pattern else cast(time, STRING)


def _unix_timestamp(call: _Caller, value: Scalar, pattern: Scalar | None = None) -> Scalar:
    time = cast(_by_pattern(call, value, pattern) if pattern else value, TIMESTAMP)
    return call("unix_seconds", [time])


_SPARK_UNITS = {"YYYY": "YEAR", "YY": "YEAR", "MON": "MONTH", "MM": "MONTH", "DD": "DAY"}


def _date_trunc(call: _Caller, unit: Scalar, value: Scalar) -> Scalar:
    if isinstance(unit, Literal) and unit.type == STRING:
        name = unit.value.upper()
        unit = Literal(STRING, _SPARK_UNITS.get(name, name))
    return call("date_trunc", [unit, value])


_REWRITES: dict[str, tuple[int, int, Callable[..., Scalar]]] = {
    "nullif": (2, 2, _nullif),
    "nvl2": (3, 3, _nvl2),
    "isnotnull": (1, 1, lambda call, value: call("not", [call("isnull", [value])])),
    "date": (1, 1, _to(DATE)),
    "to_date": (1, 2, _to(DATE)),
    "timestamp": (1, 1, _to(TIMESTAMP)),
    "to_timestamp": (1, 2, _to(TIMESTAMP)),
    "date_format": (2, 2, _date_format),
    "from_unixtime": (1, 2, _from_unixtime),
    "unix_timestamp": (1, 2, _unix_timestamp),
    "to_unix_timestamp": (1, 2, _unix_timestamp),
    "date_trunc": (2, 2, _date_trunc),
    "trunc": (2, 2, lambda call, value, unit: cast(_date_trunc(call, unit, value), DATE)),
}


def _refused(name: str) -> ExpressionError:
    what, _, hint = REFUSED[name.lower()].partition(". ")
    return ExpressionError(f"{name.lower()} cannot be used: {what}", hint=hint or None)


def _number(text: str) -> Literal:
    if re.fullmatch(r"-?\d+", text):
        value = int(text)
        if not -(2**63) <= value < 2**63:
            raise ExpressionError(f"{text} does not fit 64 bits", hint=f"Write {text}.0 for a FLOAT64")
        return Literal(INT64, value)
    try:
        return Literal(FLOAT64, float(text))
    except ValueError:
        raise ExpressionError(f"{text} is not a number") from None


_TYPE_NAMES = {"TIMESTAMPTZ": "TIMESTAMP", "TIMESTAMPLTZ": "TIMESTAMP", "TIMESTAMPNTZ": "TIMESTAMP"}
_TYPE_NAMES |= {"VARBINARY": "BYTES"}


def _type_of(node: exp.DataType) -> Type:
    text = re.sub(r"\w+", lambda match: _TYPE_NAMES.get(match[0].upper(), match[0]), node.sql())
    try:
        return Type.parse(text)
    except DefinitionError as error:
        raise ExpressionError(error.message, hint=error.hint) from None


def call(name: str, operands: Sequence[Scalar], lenient: bool = False) -> Scalar:
    """An operator of the table on these operands, converted where that loses nothing; `ExpressionError` if none fits.

    `lenient` also converts STRING to times and numbers in comparisons, and to times elsewhere, as Spark does."""
    candidates = OPERATORS.get(name)
    if not candidates:
        hint = nearest(name, [*OPERATORS, *_REWRITES]) or "Use sql for what scalar expressions lack"
        raise ExpressionError(f'no function "{name}"', hint=hint)
    return resolve(candidates, name, operands, lenient)


def resolve(candidates: Sequence[Operator], name: str, operands: Sequence[Scalar], lenient: bool = False) -> Call:
    """A call of the first of `candidates` that takes the operands."""
    for leniently in (False, True) if lenient else (False,):
        for operator in candidates:
            matched = _match(operator, operands, leniently)
            if matched:
                _check(operator, matched[0])
                return Call(matched[1], operator, matched[0])
    given = ["NULL" if operand.type == NULL else str(operand.type) for operand in operands]
    known = " or ".join(dict.fromkeys(operator.signature for operator in candidates))
    what = (
        f"{name}({', '.join(given)}) is not defined" if name.isidentifier() else f"{name} does not take {_and(given)}"
    )
    raise ExpressionError(what, hint=f"There is {known}. Cast the operands")


def _and(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"


def _check(operator: Operator, operands: Sequence[Scalar]) -> None:
    constants = [operand.value if isinstance(operand, Literal) else None for operand in operands]
    wrong = operator.check(*constants) if operator.check else None
    if wrong:
        raise ExpressionError(f"{operator.name}: {wrong}")


def _match(operator: Operator, operands: Sequence[Scalar], lenient: bool) -> tuple[tuple[Scalar, ...], Type] | None:
    """The operands as the operator takes them and the type it gives, or None if it does not take them."""
    takes = operator.takes
    if operator.variadic and operands:
        takes = takes + (takes[-1],) * (len(operands) - len(takes))
    if len(takes) != len(operands):
        return None
    variables = _variables(takes, operands, lenient)
    if variables is None:
        return None
    converted, unread = [], None
    for parameter, operand in zip(takes, operands, strict=True):
        target = _target(parameter, variables)
        try:
            fits = _promote(operand, target) or (_convert(operand, target) if lenient else None)
        except ExpressionError as error:  # it counts where the other operands fit
            unread = unread or error
            continue
        if fits is None or (parameter.constant and (not isinstance(fits, Literal) or fits.value is None)):
            return None
        converted.append(fits)
    if unread:
        raise unread
    return tuple(converted), _target(operator.gives, variables)


def _target(parameter: Parameter, variables: Mapping[str, Type]) -> Type:
    type_ = parameter.type or variables[parameter.variable]
    return array(type_) if parameter.in_array else type_


def _variables(takes: Sequence[Parameter], operands: Sequence[Scalar], lenient: bool) -> dict[str, Type] | None:
    """What each type variable stands for, or None if no type will do."""
    bound: dict[str, list[Scalar]] = {}
    for parameter, operand in zip(takes, operands, strict=True):
        if parameter.variable and parameter.in_array:
            if not operand.type.item:
                return None
            operand = Ref(operand.type.item, "")
        if parameter.variable:
            bound.setdefault(parameter.variable, []).append(operand)
    variables = {}
    for variable, scalars in bound.items():
        exact = variable == "K"
        common = common_type(scalars) or (_compared(scalars) if lenient and exact else None)
        if common is None or (exact and (common.is_float or common.item or common == INTERVAL)):
            return None
        variables[variable] = common
    return variables


def common_type(scalars: Sequence[Scalar]) -> Type | None:
    """The one type that all of them convert to without loss, or None. Bare NULLs alone are taken for integers."""
    types = {scalar.type for scalar in scalars} - {NULL}
    if len(types) <= 1:
        return types.pop() if types else INT64
    kinds = {type_.kind for type_ in types}
    if kinds <= {"DECIMAL", "INT64"} and "DECIMAL" in kinds:
        common = _common_decimal(scalars)
        if common:
            return common
    if all(type_.is_numeric for type_ in types):
        return INT64 if all(type_.is_integer for type_ in types) else FLOAT64
    times = kinds - {"STRING"}
    if times and times <= {"DATE", "TIMESTAMP"}:
        target = TIMESTAMP if "TIMESTAMP" in times else DATE
        return target if all(_promote(scalar, target) for scalar in scalars) else None
    if kinds == {"ARRAY"}:
        item = common_type([Ref(type_.item, "") for type_ in types if type_.item])
        return array(item) if item else None
    return None


def _compared(scalars: Sequence[Scalar]) -> Type | None:
    """What STRINGs become beside another type in a comparison."""
    others = [scalar for scalar in scalars if scalar.type != STRING]
    common = common_type(others) if others else None
    return common if common and (common in (DATE, TIMESTAMP) or common.is_integer) else None


def _convert(scalar: Scalar, target: Type) -> Scalar | None:
    """Spark's implicit conversions of STRING, and to it."""
    readable = scalar.type == STRING and target in (DATE, TIMESTAMP, INT64, FLOAT64)
    writable = target == STRING and (scalar.type.is_integer or scalar.type in (DATE, TIMESTAMP, BOOL))
    narrows = scalar.type == TIMESTAMP and target == DATE
    return cast(scalar, target) if readable or writable or narrows else None


def _common_decimal(scalars: Sequence[Scalar]) -> Type | None:
    """Of decimals and integer constants."""
    whole = scale = 0
    for scalar in scalars:
        if scalar.type.kind == "DECIMAL":
            whole, scale = max(whole, scalar.type.precision - scalar.type.scale), max(scale, scalar.type.scale)
        elif isinstance(scalar, Literal) and scalar.value is not None:
            whole = max(whole, len(str(abs(scalar.value))))
        elif scalar.type != NULL:
            return None
    return decimal(whole + scale, scale) if whole + scale <= 38 else None


def _promote(scalar: Scalar, target: Type) -> Scalar | None:
    """The operand as `target` if that loses nothing (integers and decimals to FLOAT64 count), else None."""
    source = scalar.type
    if source == target or (source == NULL and target != INTERVAL):
        return cast(scalar, target)
    if isinstance(scalar, Literal) and source == STRING and target in (DATE, TIMESTAMP):
        constant = cast(scalar, target)
        if isinstance(constant, Literal) and constant.value is None:
            raise ExpressionError(f"{scalar.value!r} is no {target}", hint="Write for example '2024-01-31'")
        return constant
    widens = (
        (source.is_integer and target == INT64)
        or (source.is_numeric and target == FLOAT64)
        or (source == DATE and target == TIMESTAMP)
        or (source.kind == target.kind == "DECIMAL")
        or (source == INT64 and isinstance(scalar, Literal) and target.kind == "DECIMAL")
        or (source.item and target.item and _promote(Ref(source.item, ""), target.item))
    )
    return cast(scalar, target) if widens else None


def _case(branches: Sequence[tuple[Scalar, Scalar]], default: Scalar) -> Scalar:
    values = [*(value for _, value in branches), default]
    type_ = common_type(values) if any(value.type != NULL for value in values) else NULL
    if type_ is None:
        kinds = ", ".join(dict.fromkeys(str(value.type) for value in values))
        raise ExpressionError(f"the branches have no type in common: {kinds}", hint="Cast them to one type")
    settled = []
    for when, value in branches:
        if when.type not in (BOOL, NULL):
            raise ExpressionError(f"a condition must be BOOL, not {when.type}", hint="Compare it, for example x <> 0")
        settled.append((cast(when, BOOL), value if type_ == NULL else cast(value, type_)))
    return Case(type_, tuple(settled), default if type_ == NULL else cast(default, type_))


def cast(scalar: Scalar, target: Type) -> Scalar:
    """`scalar` as `target`: floats truncate to integers, what does not fit or cannot be read is NULL; `ExpressionError`
    for casts that engines do differently. Constants are cast here and now."""
    source = scalar.type
    if source == target:
        return scalar
    if source == NULL:
        return _retype(scalar, target)
    if source.item and target.item:
        cast(Ref(source.item, "item"), target.item)
        return Cast(target, scalar)
    if (source.kind, target.kind) not in CONVERSIONS:
        for kind, by in CAST_VIA.items():
            if source.kind == kind and target.kind != by:
                return cast(cast(scalar, Type(by)), target)
            if target.kind == kind and source.kind != by:
                return cast(cast(scalar, Type(by)), target)
        what, _, hint = REFUSED_CASTS.get((source.kind, target.kind), "there is no such conversion").partition(". ")
        raise ExpressionError(f"{source} cannot be cast to {target}: {what}", hint=hint or None)
    if isinstance(scalar, Literal):
        return Literal(target, compile_rows(Cast(target, scalar), [])([])[0])
    return Cast(target, scalar)


def _retype(scalar: Scalar, target: Type) -> Scalar:
    """A NULL of no type yet (a literal, or a CASE of such) as one of `type`."""
    if isinstance(scalar, Case):
        branches = tuple((when, _retype(value, target)) for when, value in scalar.branches)
        return Case(target, branches, _retype(scalar.default, target))
    return Literal(target, None)
