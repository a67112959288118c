# Two commands do everything on a machine with Python >= 3.11 and pip:
#   make demo    set up, then the main job on real digits (no download); prints where the report is
#   make test    set up, then the tests and the examples in the docstrings
# For developers: make check (format, lint, types), make bench (benchmarks and slow tests), make format, make clean.
# Another interpreter: make PYTHON=python3.12 test.  More processes for the tests: make JOBS=8 test.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
BENCHMARKS := $(filter-out %/machine.py,$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench clean

help:
	@sed -n 's/^#   //p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo
	$(BIN)/anydepth demo --out runs/demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pytest's status 5: there was no slow test.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow || [ $$? -eq 5 ]
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch and torchvision are always resolved together: a pair that does not match breaks the import of
# most image models. torchvision pins its torch, so one call of pip is enough to keep them in step.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]' torch torchvision
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "anydepth needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -1); name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
