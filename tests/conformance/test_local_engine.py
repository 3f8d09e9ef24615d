from __future__ import annotations

from collections.abc import Iterator

import pytest

from feature_store.engines.local import LocalEngine
from tests.conformance.engine import EngineConformance


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(memory_limit="500MB", threads=2)
    yield engine
    engine.close()


class TestLocalEngine(EngineConformance):
    pass
