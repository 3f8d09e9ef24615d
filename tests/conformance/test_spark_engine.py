from __future__ import annotations

import pytest

from feature_store.engines.spark import SparkEngine
from tests.conformance.engine import EngineConformance

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def engine(spark_engine: SparkEngine) -> SparkEngine:
    return spark_engine


class TestSparkEngine(EngineConformance):
    pass
