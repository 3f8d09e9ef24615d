"""What every engine must do. An engine's tests are a subclass that gives the fixture `engine`."""

from __future__ import annotations

from tests.conformance.engine_expressions import ExpressionConformance
from tests.conformance.engine_history import HistoryConformance
from tests.conformance.engine_queries import QueryConformance
from tests.conformance.engine_sources import SourceConformance


class EngineConformance(ExpressionConformance, HistoryConformance, SourceConformance, QueryConformance):
    """Subclasses define the fixture `engine`, which may be shared by all tests."""
