# Two commands do everything on a machine with Python >= 3.11 and pip:
#   make demo    set up, then the main job on real digits (no download); prints where the report is
#   make test    set up, then the tests and the examples in the docstrings
# Both install the versions of requirements/locked.txt, which were tested.
# For developers: make check (format, lint, types, structure), make bench (benchmarks and slow tests), make docs (the site), make format, make clean;
# make test-newest and make test-oldest (the tests on the ends of the ranges in pyproject.toml), make lock (lock anew).
# Another interpreter: make PYTHON=python3.12 test.  More processes for the tests: make JOBS=8 test.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# The tests start hundreds of processes, and without it each would compile all it imports anew.
unexport PYTHONDONTWRITEBYTECODE
BENCHMARKS := $(filter-out %/machine.py,$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help demo test test-newest test-oldest fuzz check docs format bench lock clean

help:
	@sed -n 's/^#   //p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo
	$(BIN)/anydepth demo --out runs/demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

# Each in an environment of its own, made anew. On the oldest, warnings of the libraries to their users are none of ours.
test-newest: WARNINGS := error
test-newest: RESOLUTION := highest
test-oldest: WARNINGS := default
test-oldest: RESOLUTION := lowest-direct
test-newest test-oldest: test-%: $(VENV)/.installed-dev
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python $(VENV)-$*
	$(BIN)/uv pip install --quiet --python $(VENV)-$*/bin/python --resolution $(RESOLUTION) --compile-bytecode --editable '.[dev]'
	$(BIN)/uv pip list --python $(VENV)-$*/bin/python
	$(VENV)-$*/bin/python -m pytest -n $(JOBS) -m "not slow" -o filterwarnings=$(WARNINGS)

# What anydepth does with anything at all: 2,000 tries of the command line on damaged, odd and missing things.
fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reliability/fuzz.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/structure.py

# The site, into site/: refused with a warning, with a dead link, or with anything that a reader's browser would fetch from elsewhere.
# Sphinx and what it needs are installed apart, without torch.
docs: $(VENV)-docs/.installed
	rm -rf site .cache/site
	$(VENV)-docs/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --jobs auto \
	  --conf-dir docs/sphinx --doctree-dir .cache/site/doctrees . .cache/site/html
	mv .cache/site/html site
	$(VENV)-docs/bin/python tools/check_site.py site

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# pytest's status 5: there was no slow test.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow || [ $$? -eq 5 ]
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script; done

# For Python 3.11 to 3.13, on Linux and macOS; every package in the newest version that pyproject.toml allows.
lock: $(VENV)/.installed-dev
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --no-annotate \
	  --no-emit-index-url --custom-compile-command "make lock" --output-file requirements/locked.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --group pyproject.toml:docs --no-annotate \
	  --no-emit-index-url --custom-compile-command "make lock" --output-file requirements/docs.txt

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest $(VENV)-docs site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# torch and torchvision are always resolved together: a pair that does not match breaks the import of
# most image models. torchvision pins its torch, so one call of pip is enough to keep them in step.
$(VENV)/.installed-%: pyproject.toml requirements/locked.txt | $(BIN)/python
	$(BIN)/python requirements/install.py $* torch torchvision
	@touch $@

$(VENV)-docs/.installed: requirements/docs.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-docs
	$(BIN)/uv pip sync --quiet --python $(VENV)-docs/bin/python requirements/docs.txt
	@touch $@

$(BIN)/uv: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements/locked.txt uv

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "anydepth needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -1); name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
