# make setup      .venv with everything pinned      make demo       the main job, end to end
# make test       ruff, types, tests                make test-all   the slow tests too
# make gpu-check  what needs a real GPU, on a machine that has one
# make vllm-env   .venv-vllm, for the tests of `backend: vllm`
# make lm-eval-env  .venv-lm-eval, for the tests of LMEVAL
# make system-deps  SLURM for the tests of `engine: slurm` (Debian, as root)
# make browser    a Chromium for the viewer's tests in a browser (Debian, as root)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: setup vllm-env lm-eval-env system-deps browser demo test test-all gpu-check lint types
setup: .venv/ready

# One marker for a whole environment: it is made last, so that an interrupted installation is begun again.
.venv/ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

vllm-env: .venv-vllm/ready

.venv-vllm/ready: tests/generate/vllm_env.sh tests/generate/vllm_constraints.txt
	sh tests/generate/vllm_env.sh $(PYTHON)

lm-eval-env: .venv-lm-eval/ready

.venv-lm-eval/ready: tests/lmeval/lm_eval_env.sh tests/lmeval/lm_eval_constraints.txt
	sh tests/lmeval/lm_eval_env.sh $(PYTHON)

system-deps:
	sh tests/engine/system_deps.sh

browser:
	sh tests/viewer/browser.sh

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
	# where it cannot be had, the viewer's tests in a browser are skipped
	-@sh tests/viewer/browser.sh >/dev/null 2>&1
	# a process for each core; tests of one file stay together, for they share what they made
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m 'not slow'

test-all: lint types vllm-env lm-eval-env
	$(BIN)/python -m pytest

gpu-check: setup
	$(BIN)/python -m pytest -m gpu
