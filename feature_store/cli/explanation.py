"""A plan in words: the second reader of plans, beside the one that carries them out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from feature_store.definitions.difference import FieldChange, Node, Plan, PlannedChange

_MARKS = {"create": ("+", "green"), "update": ("~", "yellow"), "delete": ("-", "red")}
_DONE = {"create": "created", "update": "updated", "delete": "deleted"}
_KEPT = 8  # how many names a line lists before it counts the rest


@dataclass(frozen=True, slots=True)
class Line:
    """A line and its colour."""

    text: str
    style: str = ""


def explain(plan: Plan, done: bool) -> Iterator[Line]:
    """What a plan changes and what that touches; `done`: it was carried out."""
    if plan.is_empty:
        yield Line(f'Project "{plan.project}": nothing to change.')
        return
    for change in plan.changes:
        yield from _explain_change(change, done, plan.serving.get(change.name))
    yield Line("")
    yield Line(_summary(plan, done), "bold")
    if plan.destructive and not done:
        yield Line("Stored data would go: fs apply needs --allow-destructive.", "bold red")


def _explain_change(change: PlannedChange, done: bool, serving: str | None) -> Iterator[Line]:
    mark, style = _MARKS[change.action]
    yield Line(f"{mark} {_kind(change.kind)} {change.name}", f"bold {style}")
    for field in change.fields_changed:
        yield Line(f"    {_field(field)}", style)
    if change.because:
        yield Line(f"    because of: {_names(change.because)}")
    if change.affects and change.action != "create":
        yield Line(f"    touches: {_names(change.affects)}")
    if note := _data_note(change, done, serving):
        yield Line(f"    {note}", "red" if change.destructive else "")


def _data_note(change: PlannedChange, done: bool, serving: str | None) -> str:
    """What becomes of stored rows; `serving` is the version that is served until the new one is complete."""
    if change.kind != "feature_view":
        if not change.stored or not change.destructive:
            return ""
        return f"pushed: {change.stored}{_fate(change, done)}"
    if change.stored:
        if change.action == "delete":
            return f"{change.stored}{_fate(change, done)}"
        if change.data_changed and serving:
            fate = " (destructive)" if change.destructive else ""
            fill = f"fs backfill {change.name} START END"
            return f"{change.stored} no longer hold{fate}; they are served until the new version is complete: {fill}"
        if change.data_changed:
            return f"{change.stored} no longer hold{_fate(change, done)}: materialize again"
        return f"{change.stored} stay"
    return "to be materialized" if change.data_changed else ""


def _fate(change: PlannedChange, done: bool) -> str:
    if not change.destructive:
        return ""
    return " (removed)" if done else " (destructive)"


def _field(field: FieldChange) -> str:
    if field.before is None:
        return f"+ {field.path}: {_value(field.after)}"
    if field.after is None:
        return f"- {field.path}: {_value(field.before)}"
    return f"~ {field.path}: {_value(field.before)} -> {_value(field.after)}"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value(item)}" for key, item in value.items() if key != "name") or "{}"
    return json.dumps(value, ensure_ascii=False, default=str)


def _names(nodes: Sequence[Node]) -> str:
    shown = ", ".join(f"{_kind(kind)} {name}" for kind, name in nodes[:_KEPT])
    return f"{shown} and {len(nodes) - _KEPT} more" if len(nodes) > _KEPT else shown


def _kind(kind: str) -> str:
    return kind.replace("_", " ").replace("on demand", "on-demand")


def _summary(plan: Plan, done: bool) -> str:
    counts = {action: sum(change.action == action for change in plan.changes) for action in _DONE}
    if done:
        return f"Applied: {', '.join(f'{counts[action]} {word}' for action, word in _DONE.items())}."
    return f"Plan: {', '.join(f'{count} to {action}' for action, count in counts.items())}."
