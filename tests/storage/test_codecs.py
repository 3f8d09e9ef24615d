from __future__ import annotations

import pytest

from feature_store.storage import codecs as module
from feature_store.storage.codecs import codecs
from feature_store.storage.online import Table
from feature_store.types import FLOAT64, INT64, STRING, Schema


def table(name: str = "t") -> Table:
    return Table(name, Schema.of(k=INT64), Schema.of(x=FLOAT64))


def test_equal_tables_share_codecs() -> None:
    one, other = table(), table("other")
    assert codecs(one) is codecs(one)
    assert codecs(one).rows is codecs(other).rows
    assert codecs(Table("t", Schema.of(k=STRING), Schema.of(x=FLOAT64))).keys is not codecs(one).keys


def test_many_passing_tables_are_forgotten_and_never_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 10)
    for n in range(50):
        passing = Table(f"t{n}", Schema.of(**{f"k{n}": INT64}), Schema.of(x=INT64))
        assert codecs(passing).table is passing
        assert len(module._by_identity) <= 10
