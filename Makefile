# make setup      .venv with everything pinned      make demo       the main job, end to end
# make test       ruff, types, tests                make test-all   the slow tests too
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: setup demo test test-all lint types
setup: .venv/ready

# One marker for a whole environment: it is made last, so that an interrupted installation is begun again.
.venv/ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/cdpo prep
	$(BIN)/cdpo execute
	$(BIN)/cdpo results

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest -m 'not slow'

test-all: lint types
	$(BIN)/python -m pytest
