# make demo    environment, data, both trainings, their evaluation, one report: demo/REPORT.md
# make test    environment, format, lint, types, all tests
# make quick   the same without the tests that start, kill or compare whole processes
# make fix     format, and fix what ruff can

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
RUN := $(BIN)/python
PYTEST := $(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick lint fix benchmark soak clean

demo: $(VENV)/.ready
	$(RUN) -m tools.demo

test: lint
	$(PYTEST) --durations 8

quick: lint
	$(PYTEST) -m "not slow"

lint: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(VENV)/.ready
	$(RUN) -m tools.benchmark

soak: $(VENV)/.ready
	KILLS=10 $(RUN) -m pytest -q tests/training/test_interruption.py -k kill_9

# Torch brings its CUDA libraries, 5 GB; a requirements file that changes is installed again.
$(VENV)/.ready: requirements.txt requirements-extra.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf demo .pytest_cache .ruff_cache .mypy_cache
