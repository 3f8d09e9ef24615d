"""Scheduled SQL: a query in Spark's dialect, bound against the schemas of its tables and written for an engine.

    bind_query(sql, schemas) -> BoundQuery      tables, output columns with types, lineage; or ExpressionError
    render(sql, dialect, schemas, date, names)  the query of one `${date}`, its meaning forced

The shape of the query (FROM, JOIN, GROUP BY, ...) is written as it stands; every expression in it is bound to the
typed tree of `scalars` and written by its table, so it means the same in a query as in an expression.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlglot import exp, parse
from sqlglot.errors import SqlglotError

from feature_store.errors import ExpressionError, nearest
from feature_store.expressions.operators import AGGREGATES, INTERVAL, NULL, REFUSED, WINDOWED
from feature_store.expressions.scalars import Bare, Binder, cast, common_type, resolve
from feature_store.expressions.sql_writer import Writer
from feature_store.expressions.tree import Call, Case, Literal, Ref, Scalar, Text
from feature_store.types import BOOL, Column, Schema, Type, decimal

Origin = tuple[str, str]  # a table and a column of it
_DATE = re.compile(r"\$\{(\w*)\}")
_CLAUSES = {"expressions", "distinct", "from_", "joins", "where", "group", "having", "order", "limit", "with_"}
_NONDETERMINISTIC = {
    **dict.fromkeys(
        ("first", "last", "any_value", "first_value", "last_value"),
        "which row comes first is not settled. Use max_by(x, time) or min_by(x, time)",
    ),
    **dict.fromkeys(
        ("collect_list", "collect_set", "array_agg"),
        "the order of the items is not settled. Use a feature view's aggregation last_n",
    ),
    **dict.fromkeys(
        ("approx_count_distinct", "approx_percentile", "percentile_approx"),
        "each engine approximates differently. Use count(DISTINCT x) or percentile(x, p)",
    ),
    **dict.fromkeys(("explode", "posexplode", "inline", "stack"), "it makes rows. Flatten the source first"),
}


@dataclass(frozen=True)
class BoundQuery:
    """A query whose names and types are settled. `lineage` says which source columns each output column is made of;
    `filters` which decide about rows (WHERE, JOIN, GROUP BY, HAVING, subqueries)."""

    sql: str
    tables: tuple[str, ...]
    columns: Schema
    lineage: Mapping[str, tuple[Origin, ...]]
    filters: tuple[Origin, ...]


def bind_query(sql: str, schemas: Mapping[str, Schema], sample: bool = False) -> BoundQuery:
    """Check `sql` (Spark's dialect, `${date}` for the date) against its tables by name; `ExpressionError` says what is
    unknown, or cannot mean the same on every engine, and what to do. For a `sample` LIMIT needs no ORDER BY."""
    bound, tables = _bind(sql, "duckdb", schemas, datetime.date(2024, 1, 31), {}, sample)
    lineage = {name: tuple(sorted(column.origins)) for name, column in bound.columns.items()}
    columns = Schema(tuple(Column(name, column.type) for name, column in bound.columns.items()))
    return BoundQuery(sql, tables, columns, lineage, tuple(sorted(bound.filters)))


def render(
    sql: str,
    dialect: str,
    schemas: Mapping[str, Schema],
    date: datetime.date,
    table_names: Mapping[str, str],
    sample: bool = False,
) -> str:
    """The query of `date` for `duckdb` (session in UTC) or `spark` (ANSI mode, UTC). Tables are called by
    `table_names` where it has them; their columns must have the types in `schemas`."""
    return _bind(sql, dialect, schemas, date, table_names, sample)[0].text


@dataclass(frozen=True)
class _Out:
    """A column of a relation: its type and the source columns that it is made of."""

    type: Type
    origins: frozenset[Origin]


@dataclass(frozen=True)
class _Relation:
    """A query or a table as text, with its columns in order and the source columns that decide about its rows."""

    text: str
    columns: Mapping[str, _Out]
    filters: frozenset[Origin] = frozenset()


@dataclass(frozen=True)
class _Context:
    """What is the same throughout one query; `tables` collects the source tables met."""

    dialect: str
    schemas: Mapping[str, Schema]
    names: Mapping[str, str]
    sample: bool
    tables: list[str]
    common: Mapping[str, _Relation] = field(default_factory=dict)

    def quoted(self, name: str) -> str:
        return Writer(self.dialect).quoted(name)


def _bind(
    sql: str,
    dialect: str,
    schemas: Mapping[str, Schema],
    date: datetime.date,
    names: Mapping[str, str],
    sample: bool,
) -> tuple[_Relation, tuple[str, ...]]:
    context = _Context(dialect, schemas, names, sample, [])
    try:
        relation = _query(_parse(_fill(sql, date)), context)
    except SqlglotError as error:
        reason = re.sub(r"\x1b\[\d+m", "", str(error)).split("\n")[0].rstrip(".")
        raise ExpressionError(f"the sql cannot be read: {reason}") from None
    except RecursionError:
        raise ExpressionError("the sql is nested too deeply") from None
    unnamed = next((place for place, name in enumerate(relation.columns, 1) if re.fullmatch(r"_c\d+", name)), None)
    if unnamed:
        raise ExpressionError(f"column {unnamed} of the sql has no name", hint="Write ... AS name")
    return relation, tuple(dict.fromkeys(context.tables))


def _fill(sql: str, date: datetime.date) -> str:
    unknown = next((match[0] for match in _DATE.finditer(sql) if match[1] != "date"), None)
    if unknown:
        raise ExpressionError(f"the sql has {unknown}", hint="Only ${date} is filled in")
    return _DATE.sub(date.isoformat(), sql)


def _parse(sql: str) -> exp.Expr:
    trees = [tree for tree in parse(sql.strip().rstrip(";"), read=Bare) if tree is not None]
    if len(trees) != 1 or not isinstance(trees[0], exp.Query):
        raise ExpressionError("the sql must be one SELECT statement")
    return trees[0]


def _query(node: exp.Expr, context: _Context) -> _Relation:
    """A SELECT, a UNION and the like, or either in parentheses, after its WITH."""
    with_ = node.args.get("with_")
    texts: list[str] = []
    if with_:
        if with_.args.get("recursive"):
            raise ExpressionError("WITH RECURSIVE is not supported")
        for cte in with_.expressions:
            bound = _query(cte.this, context)
            _only(cte.args["alias"], {"this"}, "names of columns after a WITH name")
            named = replace(bound, text=context.quoted(cte.alias))
            context = replace(context, common={**context.common, cte.alias: named})
            texts.append(f"{context.quoted(cte.alias)} AS ({bound.text})")
    if isinstance(node, exp.Subquery):
        _only(node, {"this", "alias", "with_"}, "a subquery with")
        relation = _query(node.this, context)
    elif isinstance(node, exp.SetOperation):
        relation = _set_operation(node, context)
    elif isinstance(node, exp.Select):
        relation = _Select(node, context).relation()
    else:
        raise ExpressionError(f"{node.sql('spark')} is not supported", hint="Write a SELECT")
    return replace(relation, text=f"WITH {', '.join(texts)} {relation.text}") if texts else relation


def _only(node: exp.Expr, allowed: set[str], what: str) -> None:
    """Refuse a node with a part that is not known here."""
    for name, value in node.args.items():
        if value and name not in allowed:
            raise ExpressionError(
                f"{what} {name.strip('_').upper().replace('_', ' ')} is not supported in scheduled sql"
            )


def _set_operation(node: exp.SetOperation, context: _Context) -> _Relation:
    _only(node, {"this", "expression", "distinct", "with_"}, "UNION, INTERSECT or EXCEPT with")
    word = {exp.Union: "UNION", exp.Intersect: "INTERSECT", exp.Except: "EXCEPT"}[type(node)]
    sides = [_query(side, context) for side in (node.this, node.expression)]
    left, right = (list(side.columns.items()) for side in sides)
    if len(left) != len(right):
        raise ExpressionError(f"the sides of {word} have {len(left)} and {len(right)} columns")
    columns = {}
    for (name, one), (_, other) in zip(left, right, strict=True):
        type_ = common_type([Ref(one.type, ""), Ref(other.type, "")])
        if type_ is None:
            raise ExpressionError(f'column "{name}" of {word} is {one.type} on one side and {other.type} on the other')
        columns[name] = _Out(type_, one.origins | other.origins)
    text = f" {word}{'' if node.args.get('distinct') else ' ALL'} ".join(
        _as_types(side, [column.type for column in columns.values()], context) for side in sides
    )
    return _Relation(text, columns, sides[0].filters | sides[1].filters)


def _as_types(relation: _Relation, types: Sequence[Type], context: _Context) -> str:
    writer = Writer(context.dialect)
    items = [
        f"{writer.write(cast(Ref(column.type, name), type_))} AS {writer.quoted(name)}"
        for (name, column), type_ in zip(relation.columns.items(), types, strict=True)
    ]
    return f"SELECT {', '.join(items)} FROM ({relation.text}) AS {writer.quoted('side')}"


class _Select(Binder):
    """One SELECT: its scope of tables, and the binder of the expressions in it."""

    lenient = True

    def __init__(self, node: exp.Select, context: _Context) -> None:
        super().__init__(Schema(()))
        _only(node, _CLAUSES, "SELECT with")
        self.node, self.context, self.writer = node, context, Writer(context.dialect)
        self.scope: dict[str, _Relation] = {}
        self.merged: set[str] = set()  # columns of USING
        self.filters: set[Origin] = set()
        self.aggregates = False
        self.within = ""  # the clause or function that takes no aggregates
        self.outputs: dict[str, Scalar] = {}

    def relation(self) -> _Relation:
        text = self._from()
        where = self._condition("where", "WHERE")
        self._items()
        groups, group_text = self._group()
        having = self._condition("having", "HAVING")
        if self.aggregates or groups:
            for name, scalar in self.outputs.items():
                self._check_grouped(scalar, groups, name)
        items = ", ".join(
            f"{self.writer.write(scalar)} AS {self.writer.quoted(n)}" for n, scalar in self.outputs.items()
        )
        distinct = self.node.args.get("distinct")
        if distinct:
            _only(distinct, set(), "DISTINCT")
        columns = {name: _Out(scalar.type, self._origins(scalar)) for name, scalar in self.outputs.items()}
        head = f"SELECT {'DISTINCT ' if distinct else ''}{items}"
        return _Relation(f"{head}{text}{where}{group_text}{having}{self._order()}", columns, frozenset(self.filters))

    # FROM

    def _from(self) -> str:
        from_ = self.node.args.get("from_")
        if not from_:
            return ""
        text = f" FROM {self._source(from_.this)}"
        for join in self.node.args.get("joins") or ():
            text += self._join(join)
        return text

    def _source(self, node: exp.Expr) -> str:
        if isinstance(node, exp.Subquery):
            relation, alias = _query(node, self.context), node.alias or f"subquery{len(self.scope)}"
            text = f"({relation.text})"
        elif isinstance(node, exp.Table):
            _only(node, {"this", "db", "catalog", "alias"}, "a table with")
            relation = self._table(node)
            alias, text = node.alias or node.name, relation.text
        else:
            raise ExpressionError(f"{node.sql('spark')} in FROM is not supported")
        if node.args.get("alias"):
            _only(node.args["alias"], {"this"}, "an alias with")
        if alias in self.scope:
            raise ExpressionError(f'two tables are called "{alias}"', hint="Give one of them an alias")
        self.scope[alias] = relation
        self.filters |= relation.filters
        return f"{text} AS {self.writer.quoted(alias)}"

    def _table(self, node: exp.Table) -> _Relation:
        name = ".".join(part.name for part in node.parts)
        if name in self.context.common:
            return self.context.common[name]
        schema = self.context.schemas.get(name)
        if schema is None:
            known = [*self.context.schemas, *self.context.common]
            hint = nearest(name, known) or f"There are {', '.join(known) or 'none'}"
            raise ExpressionError(f'no source "{name}"', hint=hint)
        self.context.tables.append(name)
        columns = {c.name: _Out(c.type, frozenset({(name, c.name)})) for c in schema}
        return _Relation(self.writer.quoted(self.context.names.get(name, name)), columns)

    def _join(self, node: exp.Join) -> str:
        _only(node, {"this", "side", "kind", "on", "using"}, "JOIN with")
        kind = " ".join(word for word in (node.side, node.kind) if word).upper() or "INNER"
        kind = kind.replace("OUTER", "").strip()
        before = set(self.scope)
        source = self._source(node.this)
        if kind == "CROSS" and not node.args.get("on"):
            return f" CROSS JOIN {source}"
        semi = kind.removeprefix("LEFT ") in ("SEMI", "ANTI")
        if kind not in ("INNER", "LEFT", "RIGHT", "FULL") and not semi:
            raise ExpressionError(f"{kind} JOIN is not supported")
        word = kind.removeprefix("LEFT ") if semi and self.context.dialect == "duckdb" else kind
        if node.args.get("using"):
            if semi:
                raise ExpressionError(f"{kind} JOIN with USING is not supported", hint="Write ON")
            condition = self._using([identifier.name for identifier in node.args["using"]], kind)
        elif node.args.get("on"):
            condition = f"ON {self.writer.write(self._boolean_of(node.args['on'], 'ON'))}"
        else:
            raise ExpressionError(f"{kind} JOIN has no ON", hint="Write CROSS JOIN for all pairs")
        if semi:
            for alias in set(self.scope) - before:
                del self.scope[alias]
        return f" {word} JOIN {source} {condition}"

    def _using(self, names: Sequence[str], kind: str) -> str:
        if kind in ("RIGHT", "FULL"):
            raise ExpressionError(f"{kind} JOIN with USING is not supported", hint="Write ON, and coalesce the keys")
        *_, right = self.scope
        pairs = []
        for name in names:
            left = next((alias for alias in self.scope if alias != right and name in self.scope[alias].columns), None)
            if left is None or name not in self.scope[right].columns:
                raise ExpressionError(f'USING: column "{name}" is not on both sides')
            one, other = (Ref(self.scope[alias].columns[name].type, name, alias) for alias in (left, right))
            self.filters |= self._origins(one) | self._origins(other)
            pairs.append(self.writer.write(self.call("=", [one, other])))
            self.merged.add(name)
        return f"ON {' AND '.join(pairs)}"

    # Expressions

    def bind(self, node: exp.Expr) -> Scalar:
        if isinstance(node, exp.Subquery):
            return self._scalar_subquery(node)
        if isinstance(node, exp.Exists):
            inner = self._subquery(node.this)
            return Text(BOOL, f"EXISTS ({inner.text})")
        if isinstance(node, exp.In) and node.args.get("query"):
            return self._in_subquery(node)
        if isinstance(node, exp.Filter):
            return self._aggregate(node.this, "", node.expression.this)
        if isinstance(node, exp.Window):
            return self._window(node)
        if isinstance(node, exp.Any):
            return self._aggregate(exp.Anonymous(this="bool_or", expressions=[node.this.unnest()]), "")
        return super().bind(node)

    def _anonymous(self, node: exp.Anonymous) -> Scalar:
        name = str(node.this).lower()
        if name in AGGREGATES:
            return self._aggregate(node, "")
        if name in _NONDETERMINISTIC:
            what, _, hint = _NONDETERMINISTIC[name].partition(". ")
            raise ExpressionError(f"{name} cannot be used: {what}", hint=hint)
        if name in WINDOWED:
            raise ExpressionError(f"{name} needs OVER (...)")
        if REFUSED.get(name, "").startswith("its value changes with the clock"):
            raise ExpressionError(f"{name} cannot be used: its value changes with the clock", hint="Use '${date}'")
        return super()._anonymous(node)

    def _column(self, node: exp.Column) -> Scalar:
        if isinstance(node.this, exp.Star):
            raise ExpressionError("* is no value", hint="Name a column")
        if node.args.get("db"):
            raise ExpressionError(
                f"{node.sql('spark')}: a column has one prefix at most", hint="Give the table an alias"
            )
        if node.table and node.table not in self.scope:
            hint = nearest(node.table, self.scope) or f"There are {', '.join(self.scope) or 'none'}"
            raise ExpressionError(f'no table "{node.table}" in FROM', hint=hint)
        within = [node.table] if node.table else list(self.scope)
        for matches in (str.__eq__, lambda one, other: one.lower() == other.lower()):
            found = [
                Ref(column.type, name, alias)
                for alias in within
                for name, column in self.scope[alias].columns.items()
                if matches(name, node.name)
            ]
            if len(found) > 1 and not (node.name in self.merged and not node.table):
                raise ExpressionError(f'column "{node.name}" is in several tables', hint="Write table.column")
            if found:
                return found[0]
        if node.name.lower() in REFUSED and not node.this.quoted:
            return self._anonymous(exp.Anonymous(this=node.name))
        known = [name for alias in within for name in self.scope[alias].columns]
        raise ExpressionError(
            f'no column "{node.name}" in {" or ".join(within) or "the query"}',
            hint=nearest(node.name, known) or f"There are {', '.join(dict.fromkeys(known)) or 'none'}",
        )

    def _boolean_of(self, node: exp.Expr, clause: str) -> Scalar:
        outer, self.within = self.within, clause if clause != "HAVING" else ""
        scalar = self.bind(node)
        self.within = outer
        if scalar.type not in (BOOL, NULL):
            raise ExpressionError(f"{clause} must be BOOL, not {scalar.type}")
        self.filters |= self._origins(scalar)
        return cast(scalar, BOOL)

    def _condition(self, name: str, word: str) -> str:
        clause = self.node.args.get(name)
        if not clause:
            return ""
        if name == "having":
            clause = exp.Having(this=_with_aliases(clause.this, self.node, self.scope))
            self.aggregates = True
        return f" {word} {self.writer.write(self._boolean_of(clause.this, word))}"

    def _aggregate(self, node: exp.Expr, over: str, where: exp.Expr | None = None) -> Scalar:
        name = str(node.this).lower() if isinstance(node, exp.Anonymous) else node.key
        if name not in AGGREGATES:
            raise ExpressionError(f'no aggregate "{name}"', hint=nearest(name, AGGREGATES))
        if self.within:
            raise ExpressionError(f"{name} cannot be used inside {self.within}: it is an aggregate")
        outer, self.within = self.within, name
        arguments, distinct = node.expressions, False
        if len(arguments) == 1 and isinstance(arguments[0], exp.Distinct):
            arguments, distinct = arguments[0].expressions, True
        if len(arguments) == 1 and isinstance(arguments[0], exp.Star) and name == "count":
            arguments = [exp.Literal.number(1)]
        operands = [self.bind(argument) for argument in arguments]
        condition = self._boolean_of(where, "FILTER") if where else None
        self.within = outer
        if not over:
            self.aggregates = True
        if distinct and (name not in ("count", "sum", "avg", "mean", "min", "max") or len(operands) != 1):
            raise ExpressionError(f"{name}(DISTINCT ...) of {len(operands)} columns is not supported")
        return self._written(name, operands, condition, over, distinct)

    def _written(
        self, name: str, operands: Sequence[Scalar], condition: Scalar | None, over: str, distinct: bool
    ) -> Scalar:
        """The aggregate as text: NaN is NULL in it, rows that do not meet the condition are, too."""
        reads = tuple(ref for operand in operands for ref in _refs(operand))
        is_decimal = name == "sum" and len(operands) == 1 and operands[0].type.kind == "DECIMAL"
        call = resolve(AGGREGATES[name], name, operands, lenient=True) if not is_decimal else None
        taken = list(call.operands) if call else list(operands)
        if condition is not None:
            taken[0] = Case(taken[0].type, ((condition, taken[0]),), Literal(taken[0].type, None))
        if taken[0].type.is_float:
            nan = Literal(taken[0].type, float("nan"))
            taken[0] = Text(taken[0].type, f"nullif({self.writer.write(taken[0])}, {self.writer.write(nan)})")
        mark = "DISTINCT " if distinct else ""
        if call:
            return Text(
                call.type, self.writer.call(replace(call, operands=tuple(taken)), over=over, distinct=mark), reads
            )
        type_ = decimal(38, operands[0].type.scale)
        return Text(type_, f"CAST(sum({mark}{self.writer.write(taken[0])}){over} AS DECIMAL(38,{type_.scale}))", reads)

    def _window(self, node: exp.Window) -> Scalar:
        _only(node, {"this", "partition_by", "order", "spec", "over"}, "a window with")
        if self.within:
            raise ExpressionError(f"a window function cannot be used inside {self.within}")
        self.within = "a window"
        keys = [self.bind(key) for key in node.args.get("partition_by") or ()]
        order = node.args.get("order")
        parts = [f"PARTITION BY {', '.join(map(self.writer.write, keys))}"] if keys else []
        if order:
            parts.append(f"ORDER BY {', '.join(map(self._ordered, order.expressions))}")
        if node.args.get("spec"):
            parts.append(_frame(node.args["spec"]))
        self.within = ""
        over = f" OVER ({' '.join(parts)})"
        function = node.this
        name = str(function.this).lower() if isinstance(function, exp.Anonymous) else ""
        if name in WINDOWED:
            if not order:
                raise ExpressionError(f"{name} needs ORDER BY in its window, or its value is not settled")
            call = resolve(WINDOWED[name], name, [self.bind(each) for each in function.expressions])
            made: Scalar = Text(call.type, self.writer.call(call, over=over), tuple(_refs(call)))
        else:
            if isinstance(function, exp.Filter):
                made = self._aggregate(function.this, over, function.expression.this)
            else:
                made = self._aggregate(function, over)
        refs = tuple(ref for scalar in keys for ref in _refs(scalar))
        assert isinstance(made, Text)
        return Text(made.type, made.text, made.reads + refs)

    def _subquery(self, node: exp.Expr) -> _Relation:
        inner = _query(node, self.context)
        self.filters |= inner.filters | frozenset[Origin]().union(*(c.origins for c in inner.columns.values()))
        return inner

    def _scalar_subquery(self, node: exp.Subquery) -> Scalar:
        inner = self._subquery(node.this)
        if len(inner.columns) != 1:
            raise ExpressionError(f"a subquery that is a value has one column, not {len(inner.columns)}")
        return Text(next(iter(inner.columns.values())).type, f"({inner.text})")

    def _in_subquery(self, node: exp.In) -> Scalar:
        value, inner = self.bind(node.this), self._subquery(node.args["query"].this)
        if len(inner.columns) != 1:
            raise ExpressionError(f"IN takes a subquery of one column, not {len(inner.columns)}")
        equal = self.call("=", [value, Ref(next(iter(inner.columns.values())).type, "")])
        assert isinstance(equal, Call)
        side, types = equal.operands[0], [equal.operands[1].type]
        return Text(
            BOOL, f"({self.writer.write(side)} IN ({_as_types(inner, types, self.context)}))", tuple(_refs(value))
        )

    # SELECT items, GROUP BY, ORDER BY

    def _items(self) -> None:
        for item in self.node.expressions:
            if isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star)):
                _only(item, {"this", "table"}, "* with")
                self._star(item.args.get("table"))
                continue
            name = item.alias if isinstance(item, exp.Alias) else item.name if isinstance(item, exp.Column) else ""
            name = name or f"_c{len(self.outputs)}"
            scalar = self.bind(item.this if isinstance(item, exp.Alias) else item)
            if scalar.type in (NULL, INTERVAL):
                raise ExpressionError(f'column "{name}" has no type', hint="Write for example CAST(NULL AS BIGINT)")
            self._output(name, scalar)

    def _star(self, table: exp.Identifier | None) -> None:
        for alias in [table.name] if table else list(self.scope):
            if alias not in self.scope:
                raise ExpressionError(f'no table "{alias}" in FROM', hint=nearest(alias, self.scope))
            for name, column in self.scope[alias].columns.items():
                if not (name in self.merged and name in self.outputs and not table):
                    self._output(name, Ref(column.type, name, alias))

    def _output(self, name: str, scalar: Scalar) -> None:
        if name in self.outputs:
            raise ExpressionError(f'two columns are called "{name}"', hint="Give one of them another name with AS")
        self.outputs[name] = scalar

    def _group(self) -> tuple[list[Scalar], str]:
        group = self.node.args.get("group")
        if not group:
            return [], ""
        _only(group, {"expressions"}, "GROUP BY")
        outer, self.within = self.within, "GROUP BY"
        groups = [self._named(node) for node in group.expressions]
        self.within = outer
        for scalar in groups:
            self.filters |= self._origins(scalar)
        return groups, f" GROUP BY {', '.join(map(self.writer.write, groups))}"

    def _named(self, node: exp.Expr) -> Scalar:
        """An expression, or the place or the name of a SELECT item."""
        if isinstance(node, exp.Literal) and not node.is_string and node.this.isdigit():
            place = int(node.this)
            if not 1 <= place <= len(self.outputs):
                raise ExpressionError(f"there is no column {place} in SELECT")
            return list(self.outputs.values())[place - 1]
        if isinstance(node, exp.Column) and not node.table and node.name in self.outputs:
            in_scope = any(node.name in relation.columns for relation in self.scope.values())
            if not in_scope or self.within != "GROUP BY":
                return self.outputs[node.name]
        return self.bind(node)

    def _check_grouped(self, scalar: Scalar, groups: Sequence[Scalar], name: str) -> None:
        if scalar in groups or isinstance(scalar, Text):
            return
        if isinstance(scalar, Ref):
            raise ExpressionError(
                f'column "{name}" uses "{scalar.name}", which is neither grouped by nor in an aggregate',
                hint=f"Add {scalar.name} to GROUP BY, or use max_by({scalar.name}, time)",
            )
        for child in scalar.children:
            self._check_grouped(child, groups, name)

    def _order(self) -> str:
        order, limit = self.node.args.get("order"), self.node.args.get("limit")
        text = f" ORDER BY {', '.join(map(self._ordered, order.expressions))}" if order else ""
        if limit:
            if not order and not self.context.sample:
                raise ExpressionError("LIMIT without ORDER BY: which rows come is not settled", hint="Add ORDER BY")
            count = limit.expression
            if not isinstance(count, exp.Literal) or count.is_string or not count.this.isdigit():
                raise ExpressionError("LIMIT takes a constant")
            text += f" LIMIT {count.this}"
        return text

    def _ordered(self, node: exp.Ordered) -> str:
        descending, nulls_first = bool(node.args.get("desc")), bool(node.args.get("nulls_first"))
        way = f"{'DESC' if descending else 'ASC'} NULLS {'FIRST' if nulls_first else 'LAST'}"
        return f"{self._sorted_by(self._named(node.this))} {way}"

    def _sorted_by(self, scalar: Scalar) -> str:
        """After DISTINCT only the columns that came out of it are there to sort by."""
        if self.within or not self.node.args.get("distinct"):
            return self.writer.write(scalar)
        found = next((name for name, output in self.outputs.items() if output == scalar), None)
        if found is None:
            raise ExpressionError(
                "ORDER BY after DISTINCT takes columns of the SELECT only", hint="Select what it sorts by, or GROUP BY"
            )
        return self.writer.quoted(found)

    def _origins(self, scalar: Scalar) -> frozenset[Origin]:
        found = (self.scope[ref.table].columns[ref.name].origins for ref in _refs(scalar) if ref.table in self.scope)
        return frozenset[Origin]().union(*found)


def _refs(scalar: Scalar) -> list[Ref]:
    if isinstance(scalar, Ref):
        return [scalar]
    if isinstance(scalar, Text):
        return list(scalar.reads)
    return [ref for child in scalar.children for ref in _refs(child)]


def _frame(node: exp.WindowSpec) -> str:
    _only(node, {"kind", "start", "start_side", "end", "end_side"}, "a window frame with")

    def edge(bound: Any, side: str | None) -> str:
        if isinstance(bound, exp.Expr):
            if not isinstance(bound, exp.Literal) or bound.is_string or not bound.this.isdigit():
                raise ExpressionError("the bounds of a window frame must be whole constants")
            return f"{bound.this} {side}".upper()
        return f"{bound} {side or ''}".strip().upper()

    if str(node.args.get("kind")).upper() != "ROWS" and any(
        isinstance(node.args.get(name), exp.Expr) for name in ("start", "end")
    ):
        raise ExpressionError("RANGE with a distance is not supported", hint="Use ROWS")
    start = edge(node.args["start"], node.args.get("start_side"))
    end = edge(node.args["end"], node.args.get("end_side")) if node.args.get("end") else "CURRENT ROW"
    return f"{str(node.args['kind']).upper()} BETWEEN {start} AND {end}"


def _with_aliases(condition: exp.Expr, select: exp.Select, scope: Mapping[str, _Relation]) -> exp.Expr:
    """HAVING may use the names of SELECT items: put what they stand for in their place."""
    items = {item.alias: item.this for item in select.expressions if isinstance(item, exp.Alias)}

    def put(node: exp.Expr) -> exp.Expr:
        is_alias = isinstance(node, exp.Column) and not node.table and node.name in items
        if is_alias and not any(node.name in relation.columns for relation in scope.values()):
            return exp.Paren(this=items[node.name].copy())
        return node

    return condition.copy().transform(put)
