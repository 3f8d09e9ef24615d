.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
TESTS ?= tests

.PHONY: help
help: ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# What is missing is installed where that can be, else said.
define installed
{ if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(1) >/dev/null; \
  else echo "something is missing: sudo apt-get install $(1)" >&2; exit 1; fi; }
endef

$(BIN)/fs: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	  || { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(call installed,python3-venv)
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@test -x $(UV) || $(BIN)/python -m pip install --quiet uv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]' --constraint requirements.lock
	@touch $@

.PHONY: install
install: $(BIN)/fs ## make .venv with the package and what its tests need

SERVERS := redis-server postgresql openjdk-17-jre-headless maven

.PHONY: services
services: ## install the servers that the tests start (Redis, PostgreSQL, HBase, Kafka), by apt when root, and by Maven
	@{ command -v redis-server && { command -v pg_ctl || ls /usr/lib/postgresql/*/bin/pg_ctl; } \
	  && command -v java && command -v mvn; } >/dev/null 2>&1 || $(call installed,$(SERVERS))
	@$(PYTHON) tests/jars.py

FEAST := benchmarks/.feast/bin/python

$(FEAST): | $(BIN)/fs
	$(PYTHON) -m venv benchmarks/.feast
	$(UV) pip install --quiet --compile-bytecode --python $@ 'feast[redis,duckdb]==0.67.*'

.PHONY: feast
feast: $(FEAST) ## install Feast in an environment of its own: its client is tested against, its speed measured
	@true

AIRFLOW := build/airflow/bin/python

$(AIRFLOW): | $(BIN)/fs
	$(PYTHON) -m venv build/airflow
	$(UV) pip install --quiet --python $@ 'apache-airflow==3.1.*'

.PHONY: airflow
airflow: $(AIRFLOW) ## install Airflow in an environment of its own: it reads what fs schedule export writes
	@true

PYSPARK4 := build/pyspark4/bin/python

$(PYSPARK4): | $(BIN)/fs
	$(PYTHON) -m venv build/pyspark4
	$(UV) pip install --quiet --compile-bytecode --python $@ --editable '.[spark]' 'pyspark==4.0.*' 'delta-spark==4.0.*'

.PHONY: pyspark4
pyspark4: $(PYSPARK4) ## install PySpark 4 in an environment of its own: the other tests run on 3.5
	@true

.PHONY: demo
demo: install ## generate, apply, materialize, serve, read: five minutes in one
	$(BIN)/python docs/examples/demo.py

.PHONY: test
test: install services feast airflow pyspark4 ## all tests, with real servers
	$(BIN)/python -m pytest -n auto $(TESTS)

NEWEST := build/newest/bin/python

.PHONY: test-newest
test-newest: install services ## engines, stores and retrieval with the newest of every dependency, without Flink, which pins old ones
	@test -d build/newest || $(PYTHON) -m venv build/newest
	$(UV) pip install --quiet --compile-bytecode --upgrade --python $(NEWEST) --editable '.[tests]'
	$(NEWEST) -m pytest -n auto tests/engines tests/storage tests/conformance tests/retrieval tests/registry

.PHONY: lint
lint: install ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: install ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: install services feast ## measure side by side; writes benchmarks/README.md
	$(BIN)/python -m benchmarks.run

.PHONY: lock
lock: install ## resolve requirements.lock anew, all extras together
	$(UV) pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-emit-index-url --no-header \
	  --no-annotate --constraint .ci/constraints.txt --output-file requirements.lock
