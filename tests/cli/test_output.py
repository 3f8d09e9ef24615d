from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from feature_store.cli.explanation import explain
from feature_store.cli.output import JsonOutput, TextOutput, plain
from feature_store.definitions import Entity
from feature_store.definitions.difference import FieldChange, Plan, PlannedChange, Stored
from feature_store.expressions.instants import DAY

VALUES = {
    "int": 2**53 + 1,
    "nan": float("nan"),
    "infinite": [float("inf"), -float("inf"), 1.5],
    "bytes": b"\x00\xff",
    "time": datetime(2026, 11, 23, 12, 0, 0, 5, tzinfo=UTC),
    "day": date(2026, 11, 23),
    "price": Decimal("1.10"),
    "null": None,
    "text": "用户 [bold]",
}


def test_json_values_are_valid_and_lossless() -> None:
    assert plain(VALUES) == {
        "int": 9007199254740993,
        "nan": "NaN",
        "infinite": ["Infinity", "-Infinity", 1.5],
        "bytes": "AP8=",
        "time": "2026-11-23T12:00:00.000005Z",
        "day": "2026-11-23",
        "price": "1.10",
        "null": None,
        "text": "用户 [bold]",
    }
    stream = io.StringIO()
    JsonOutput(stream).rows([VALUES], ["int"])
    assert json.loads(stream.getvalue()) == [plain(VALUES)]


def test_a_table_for_a_pipe_has_whole_lines_and_no_colour() -> None:
    stream = io.StringIO()
    TextOutput(stream).rows([{"name": "x" * 300, "n": 1}, {"name": "[bold]ARRAY<INT64>[/]", "n": None}], ["name", "n"])
    lines = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    assert lines == [["name", "n"], ["x" * 300, "1"], ["[bold]ARRAY<INT64>[/]", "null"]]
    assert "\x1b" not in stream.getvalue()


def test_lists_nulls_and_empty_texts_differ() -> None:
    rows = [{"a": value} for value in ([], [1], ["x"], [None, 1.5], "", None, "null", [date(2026, 1, 2)], True)]
    pipe = io.StringIO()
    TextOutput(pipe).rows(rows, ["a"])
    assert pipe.getvalue().splitlines() == [
        "a", "[]", "[1]", '["x"]', "[null, 1.5]", "", "null", "null", '["2026-01-02"]', "true",
    ]  # fmt: skip


def test_a_terminal_shows_null_dim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    TextOutput(stream).rows([{"a": None, "b": "null"}], ["a", "b"])
    assert "\x1b[2mnull" in stream.getvalue()
    assert stream.getvalue().count("\x1b[2m") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_few_wide_rows_are_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    names = [f"feature_{number}" for number in range(20)]
    wide, narrow = Terminal(), Terminal()
    TextOutput(wide).rows([dict.fromkeys(names, 1), dict.fromkeys(names, 2)], names)
    lines = [line.split() for line in wide.getvalue().splitlines()]
    assert ["feature_19", "1", "2"] in lines
    TextOutput(narrow).rows([dict.fromkeys(names[:2], 1)], names[:2])
    assert ["feature_0", "feature_1"] in [line.split() for line in narrow.getvalue().splitlines()]


def test_an_empty_listing_is_a_sentence_or_an_empty_list() -> None:
    text, listing = io.StringIO(), io.StringIO()
    TextOutput(text).rows([], ["name"], empty="Nothing.")
    JsonOutput(listing).rows([], ["name"], empty="Nothing.")
    assert text.getvalue() == "Nothing.\n"
    assert json.loads(listing.getvalue()) == []


def test_a_record_lists_its_parts_below() -> None:
    stream = io.StringIO()
    record = {
        "kind": "feature_view",
        "name": "v",
        "tags": {"a": "", "b": ""},
        "features": [{"name": "f", "type": "INT64"}],
    }
    TextOutput(stream).record(record)
    lines = [line.split() for line in stream.getvalue().splitlines() if line.strip()]
    assert lines == [
        ["kind", "feature_view"],
        ["name", "v"],
        ["tags", "a,", "b"],
        ["features"],
        ["name", "type"],
        ["f", "INT64"],
    ]


@pytest.fixture
def plan() -> Plan:
    user = Entity(name="user", join_key="user_id")
    view = ("feature_view", "profile")
    return Plan(
        "ads",
        (
            PlannedChange("create", "entity", "ad", None, Entity(name="ad"), affects=(("feature_service", "new"),)),
            PlannedChange(
                "update", "entity", "user", user, user, (FieldChange("type", "INT64", "STRING"),), affects=(view,)
            ),
            PlannedChange(
                "update", *view, None, None, (FieldChange("keys.user_id", "INT64", "STRING"),),
                data_changed=True, destructive=True,
                affects=(("feature_service", "ctr"),), because=(("entity", "user"),),
                stored=Stored(20_000 * DAY),
            ),
            PlannedChange("delete", "feature_view", "old", None, None, destructive=True, stored=Stored()),
        ),
        serial=3,
        warnings=("alias missing",),
    )  # fmt: skip


def test_a_plan_in_words(plan: Plan) -> None:
    assert [line.text for line in explain(plan, done=False)] == [
        "+ entity ad",
        "~ entity user",
        "    ~ type: INT64 -> STRING",
        "    touches: feature view profile",
        "~ feature view profile",
        "    ~ keys.user_id: INT64 -> STRING",
        "    because of: entity user",
        "    touches: feature service ctr",
        "    stored rows up to 2024-10-04T00:00:00Z no longer hold (destructive): materialize again",
        "- feature view old",
        "    stored rows (destructive)",
        "",
        "Plan: 1 to create, 2 to update, 1 to delete.",
        "Stored data would go: fs apply needs --allow-destructive.",
    ]
    assert "Applied: 1 created, 2 updated, 1 deleted." in [line.text for line in explain(plan, done=True)]
    assert [line.text for line in explain(Plan("ads"), done=False)] == ['Project "ads": nothing to change.']


def test_a_plan_as_json(plan: Plan) -> None:
    stream = io.StringIO()
    JsonOutput(stream).plan(plan, done=True)
    answer = json.loads(stream.getvalue())
    assert answer["applied"] is True
    assert answer["warnings"] == ["alias missing"]
    assert answer["changes"][2] == {
        "action": "update",
        "kind": "feature_view",
        "name": "profile",
        "fields_changed": [{"path": "keys.user_id", "before": "INT64", "after": "STRING"}],
        "data_changed": True,
        "destructive": True,
        "affects": [{"kind": "feature_service", "name": "ctr"}],
        "because": [{"kind": "entity", "name": "user"}],
        "stored": {"through": "2024-10-04T00:00:00Z"},
    }
