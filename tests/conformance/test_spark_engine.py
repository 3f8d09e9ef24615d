from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_store.engines.spark import SparkEngine
from tests.conformance.engine import EngineConformance
from tests.conformance.histories import event, write

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def engine(spark_engine: SparkEngine) -> SparkEngine:
    return spark_engine


class TestSparkEngine(EngineConformance):
    @pytest.fixture
    def metastore_table(self, engine: SparkEngine, tmp_path: Path) -> Iterator[str]:  # type: ignore[override]
        path = write(tmp_path / "rows", [event(1, 5, x=1.0), event(1, 6, x=2.0), event(2, 5, x=1.0)])
        engine.session.sql("CREATE DATABASE conformance")
        engine.session.sql(f"CREATE TABLE conformance.rows USING parquet LOCATION 'file://{path}'")
        yield "conformance.rows"
        engine.session.sql("DROP DATABASE conformance CASCADE")
