"""What every engine must do. An engine's tests are a subclass that gives the fixture `engine`."""

from __future__ import annotations

from tests.conformance.engine_expressions import ExpressionConformance


class EngineConformance(ExpressionConformance):
    """Subclasses define the fixture `engine`, which may be shared by all tests."""
