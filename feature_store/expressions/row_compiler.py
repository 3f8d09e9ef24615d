"""Compiles scalars to a Python function over columns of raw row values.

The source text of one loop is generated and compiled: each node is a local variable, computed once (equal nodes
share it) and only where it is needed (branches of CASE, later operands of COALESCE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from feature_store.errors import ExpressionError
from feature_store.expressions import row_functions
from feature_store.expressions.operators import CONVERSIONS
from feature_store.expressions.tree import Call, Case, Cast, Literal, Ref, Scalar

_SCOPE: dict[str, Any] = {
    **{name: value for name, value in vars(row_functions).items() if not name.startswith("_")},
    "math": math,
    "unset": object(),
}
_Columns = Sequence[Sequence[Any]]
_MOST_BLOCKS = 90  # Python's parser takes 100 levels of indentation


class _Loop:
    """The body of the loop as it grows. A value is (atom, nullable): the atom is a local name or a constant."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 2
        self.constants: dict[str, Any] = {}
        self.known: list[dict[Scalar, tuple[str, bool]]] = [{}]
        self.count = 0

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def local(self) -> str:
        self.count += 1
        return f"t{self.count}"

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """An indented block, whose values are not known after it."""
        if self.depth > _MOST_BLOCKS:
            raise ExpressionError("the expression is nested too deeply", hint="Split it over several features")
        self.line(head)
        self.depth += 1
        self.known.append({})
        yield
        self.known.pop()
        self.depth -= 1

    def value(self, node: Scalar) -> tuple[str, bool]:
        for scope in self.known:
            if node in scope:
                return scope[node]
        result = self._compute(node)
        self.known[-1][node] = result
        return result

    def _compute(self, node: Scalar) -> tuple[str, bool]:
        if isinstance(node, Literal):
            return self._constant(node.value), node.value is None
        if isinstance(node, Cast):
            return self._cast(node)
        if isinstance(node, Case):
            return self._case(node)
        assert isinstance(node, Call)
        special = _SPECIAL.get(node.operator.name)
        if special:
            return special(self, node)
        operands = [self.value(operand) for operand in node.operands]
        assert node.operator.row is not None
        return self._strict(node.operator.row, operands, node.operator.checked, node.operator.partial)

    def _constant(self, value: Any) -> str:
        if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
            return f"({value!r})"
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def _strict(
        self, template: str, operands: Sequence[tuple[str, bool]], checked: bool, partial: bool
    ) -> tuple[str, bool]:
        """NULL if an operand is, else the template."""
        atoms = [atom for atom, _ in operands]
        every = "(" + "".join(f"{{{index}}}, " for index in range(len(atoms))) + ")"
        text = template.replace("{*}", every).format(*atoms)
        guard = " or ".join(dict.fromkeys(f"{atom} is None" for atom, nullable in operands if nullable))
        name, nullable = self.local(), bool(guard) or partial
        self.line(f"{name} = None if {guard} else {text}" if guard else f"{name} = {text}")
        if checked:
            bounds = f"not -9223372036854775808 <= {name} <= 9223372036854775807"
            self.line(
                f"if {name} is not None and {bounds}: overflow({name})"
                if nullable
                else f"if {bounds}: overflow({name})"
            )
        return name, nullable

    def _cast(self, node: Cast) -> tuple[str, bool]:
        operand = self.value(node.operand)
        template, partial = cast_template(node)
        return self._strict(template, [operand], False, partial) if template else operand

    def _case(self, node: Case) -> tuple[str, bool]:
        name, nullables = self.local(), []

        def give(value: Scalar) -> None:
            atom, nullable = self.value(value)
            nullables.append(nullable)
            self.line(f"{name} = {atom}")

        condition, _ = self.value(node.branches[0][0])
        with self.block(f"if {condition}:"):
            give(node.branches[0][1])
        if len(node.branches) == 1:
            with self.block("else:"):
                give(node.default)
            return name, any(nullables)
        self.line(f"else: {name} = unset")
        for when, then in node.branches[1:]:
            with self.block(f"if {name} is unset:"):
                condition, _ = self.value(when)
                with self.block(f"if {condition}:"):
                    give(then)
        with self.block(f"if {name} is unset:"):
            give(node.default)
        return name, any(nullables)


def cast_template(node: Cast) -> tuple[str | None, bool]:
    """The row template of a cast (None: the value stays) and whether it may fail."""
    source, target = node.operand.type, node.type
    if source.item and target.item:
        item = cast_template(Cast(target.item, Ref(source.item, "v")))
        each = item[0].format("v") if item[0] else "v"
        return (f"[None if v is None else {each} for v in {{0}}]" if item[0] else None), False
    conversion = CONVERSIONS[source.kind, target.kind]
    row = conversion.row and conversion.row.replace("{p}", str(target.precision)).replace("{s}", str(target.scale))
    return row, conversion.partial


def _and(loop: _Loop, node: Call) -> tuple[str, bool]:
    (a, a_null), (b, b_null) = map(loop.value, node.operands)
    name = loop.local()
    text = f"{b} if {a} else False if {b} is False else {a}" if a_null or b_null else f"{a} and {b}"
    loop.line(f"{name} = {text}")
    return name, a_null or b_null


def _or(loop: _Loop, node: Call) -> tuple[str, bool]:
    (a, a_null), (b, b_null) = map(loop.value, node.operands)
    name = loop.local()
    text = f"True if {a} or {b} else None if {a} is None or {b} is None else False"
    loop.line(f"{name} = {text if a_null or b_null else f'{a} or {b}'}")
    return name, a_null or b_null


def _is_null(loop: _Loop, node: Call) -> tuple[str, bool]:
    atom, nullable = loop.value(node.operands[0])
    name = loop.local()
    loop.line(f"{name} = {atom} is None" if nullable else f"{name} = False")
    return name, False


def _coalesce(loop: _Loop, node: Call) -> tuple[str, bool]:
    atom, nullable = loop.value(node.operands[0])
    name = loop.local()
    loop.line(f"{name} = {atom}")
    for operand in node.operands[1:]:
        if not nullable:
            break
        with loop.block(f"if {name} is None:"):
            atom, nullable = loop.value(operand)
            loop.line(f"{name} = {atom}")
    return name, nullable


def _equal(a: str, b: str, is_float: bool) -> str:
    return f"({a} == {b} or ({a} != {a} and {b} != {b}))" if is_float else f"({a} == {b})"


def _same(loop: _Loop, node: Call) -> tuple[str, bool]:
    a, b = (loop.value(operand)[0] for operand in node.operands)
    name = loop.local()
    loop.line(f"{name} = {_equal(a, b, node.operands[0].type.is_float)}")
    return name, False


def _in(loop: _Loop, node: Call) -> tuple[str, bool]:
    value, nullable = loop.value(node.operands[0])
    items, is_float, name = node.operands[1:], node.operands[0].type.is_float, loop.local()
    if all(isinstance(item, Literal) for item in items) and not is_float:
        constants = frozenset(item.value for item in items if isinstance(item, Literal))
        found = f"{value} in {loop._constant(constants - {None})}"
        missing = "None" if None in constants else "False"
    else:
        atoms = [loop.value(item) for item in items]
        found = " or ".join(_equal(value, atom, is_float) for atom, _ in atoms)
        nulls = " or ".join(f"{atom} is None" for atom, may in atoms if may)
        missing = f"None if {nulls} else False" if nulls else "False"
    text = f"True if {found} else {missing}"
    loop.line(f"{name} = None if {value} is None else {text}" if nullable else f"{name} = {text}")
    return name, nullable or missing != "False"


def _extreme(loop: _Loop, node: Call) -> tuple[str, bool]:
    atoms = [loop.value(operand) for operand in node.operands]
    name, suffix = loop.local(), "_float" if node.type.is_float else ""
    loop.line(f"{name} = {node.operator.name}{suffix}(({', '.join(atom for atom, _ in atoms)},))")
    return name, all(nullable for _, nullable in atoms)


def _array(loop: _Loop, node: Call) -> tuple[str, bool]:
    atoms = [loop.value(operand)[0] for operand in node.operands]
    name = loop.local()
    loop.line(f"{name} = [{', '.join(atoms)}]")
    return name, False


_SPECIAL: dict[str, Callable[[_Loop, Call], tuple[str, bool]]] = {
    "and": _and,
    "or": _or,
    "isnull": _is_null,
    "coalesce": _coalesce,
    "<=>": _same,
    "in": _in,
    "least": _extreme,
    "greatest": _extreme,
    "array": _array,
}


def source_of(scalars: Sequence[Scalar], names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The text of the function `compiled(columns)`, and the constants that it uses."""
    loop = _Loop()
    used = sorted({name for scalar in scalars for name in scalar.columns}, key=list(names).index)
    index = {name: position for position, name in enumerate(names)}
    for scalar in scalars:
        for ref in _refs(scalar):
            loop.known[0][ref] = (f"c{index[ref.name]}", True)
    atoms = [loop.value(scalar)[0] for scalar in scalars]
    for position, atom in enumerate(atoms):
        loop.line(f"add{position}({atom})")
    targets = ", ".join(f"c{index[name]}" for name in used)
    over = ", ".join(f"columns[{index[name]}]" for name in used)
    head = f"for {targets}, in zip({over}):" if used else "for _ in (columns[0] if columns else (None,)):"
    outs = ", ".join(f"out{position}" for position in range(len(atoms)))
    return "\n".join(
        [
            "def compiled(columns):",
            *(f"  out{position} = []; add{position} = out{position}.append" for position in range(len(atoms))),
            f"  {head}",
            *loop.lines,
            f"  return [{outs}]",
        ]
    ), loop.constants


def _refs(scalar: Scalar) -> Iterator[Ref]:
    if isinstance(scalar, Ref):
        yield scalar
    for child in scalar.children:
        yield from _refs(child)


def compile_all(scalars: Sequence[Scalar], names: Sequence[str]) -> Callable[[_Columns], list[list[Any]]]:
    """One function that computes several scalars in one pass: columns in the order of `names` (raw row values, equal
    lengths), one column a scalar out. Raises `InvalidInputError` where integers or times overflow."""
    missing = sorted({name for scalar in scalars for name in scalar.columns} - set(names))
    if missing:
        raise ExpressionError(f"the expression reads {', '.join(missing)}, which is not among {', '.join(names)}")
    if not scalars:
        return lambda columns: []
    source, constants = source_of(scalars, names)
    scope = {**_SCOPE, **constants}
    exec(compile(source, "<scalar expression>", "exec"), scope)
    compiled: Callable[[_Columns], list[list[Any]]] = scope["compiled"]
    return compiled


def compile_rows(scalar: Scalar, names: Sequence[str]) -> Callable[[_Columns], list[Any]]:
    """A function from columns (one list per name, equal lengths, raw row values) to the scalar's column."""
    compiled = compile_all([scalar], names)
    return lambda columns: compiled(columns)[0]
