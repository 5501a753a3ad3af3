# Every target builds what it needs in .venv, from the pinned versions of requirements-dev.txt.
PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) 2>/dev/null || command -v python3)
BIN := .venv/bin
BENCH_EVENTS ?= 1000000

.PHONY: help demo test test-long test-airflow test-dagster test-destinations coverage check bench soak format clean
help:
	@echo "make demo    load real data over HTTP into DuckDB and show answers from it"
	@echo "make test    the test suite"
	@echo "make test-long  the tests that take longer: many runs, random data, real time"
	@echo "make test-airflow, make test-dagster  the DAGs and the assets of pipelines/, each in an environment of its own"
	@echo "make test-destinations  Postgres, DuckLake, SQLite, Delta and Iceberg to load into, in an environment of its own; starts Postgres"
	@echo "make coverage  all tests, and what of the code they do not reach"
	@echo "make check   lint and types"
	@echo "make bench   speed and memory against plain DuckDB and plain dlt (BENCH_EVENTS=$(BENCH_EVENTS))"
	@echo "make soak    hours of trials: kills, shared limits, storms, long histories, broken servers (TRIALS=...)"
	@echo "make format  put the code in its form"
	@echo "make clean   remove what the targets made"

.venv/ready: requirements-dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: .venv/ready
	$(BIN)/mpload demo

test: .venv/ready
	$(BIN)/pytest -n 2 -m "not long"

test-long: .venv/ready
	$(BIN)/pytest -n 2 -m long

.venv-%/ready: requirements-%.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

test-dagster: .venv-dagster/ready
	.venv-dagster/bin/python -m pytest tests/orchestrators

# The tests start Postgres themselves: apt-get install postgresql, or initdb and pg_ctl on the PATH.
test-destinations: .venv-destinations/ready
	.venv-destinations/bin/python -m pytest -n 2 tests/destinations

# Airflow keeps its own database there, made anew each time.
AIRFLOW := AIRFLOW_HOME=$(CURDIR)/.venv-airflow/home AIRFLOW__CORE__LOAD_EXAMPLES=False \
	AIRFLOW__CORE__DAGS_FOLDER=$(CURDIR)/pipelines

test-airflow: .venv-airflow/ready
	rm -rf .venv-airflow/home
	$(AIRFLOW) .venv-airflow/bin/airflow db migrate >/dev/null
	$(AIRFLOW) .venv-airflow/bin/python -m pytest tests/orchestrators

coverage: .venv/ready
	$(BIN)/pytest -n 2 --cov --cov-report=term-missing:skip-covered

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python -m bench $(BENCH_EVENTS)

soak: .venv/ready
	$(BIN)/python -m soak $(TRIALS)

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-airflow .venv-dagster .venv-destinations .coverage* bench/data .mypy_cache .ruff_cache .pytest_cache .hypothesis
