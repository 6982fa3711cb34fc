# Works with GNU make 3.81, which macOS ships. Everything is set up in .venv, once.

PYTHON ?=
TORCH ?= torch==2.13.0

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Set up: to run; to develop; to recompute the stored references.
RUN := .venv/.ready-to-run
DEV := .venv/.ready-to-develop
REFERENCE := .venv/.ready-for-reference

# An upgrade of the Python behind .venv can leave it dead: then it is made anew.
STATE := $(shell $(BIN)/python -c 'import pip; print("alive")' 2>/dev/null)
ifneq ($(STATE),alive)
.PHONY: $(RUN) $(DEV) $(REFERENCE)
endif

.PHONY: help demo test test-all check static format clean

help:
	@echo 'make demo      set up, and ask the bundled demo model for 27 + 58'
	@echo 'make test      set up, and run the tests (offline, no torch)'
	@echo 'make check     formatter, linter, type checker and tests, as CI does'
	@echo 'make test-all  also the slow tests and those that need torch'
	@echo 'make format    format the code and fix what the linter can fix'
	@echo 'make clean     remove .venv and caches'

demo: $(RUN)
	@echo '$$ mlx-qwen3 generate "What is 27 + 58?"'
	@$(BIN)/mlx-qwen3 generate "What is 27 + 58?"

test: $(DEV)
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile -m 'not slow and not reference'

check: static test

static: $(DEV)
	@$(BIN)/python -m ruff format --check --quiet . || { echo 'Not formatted: make format'; exit 1; }
	@$(BIN)/python -m ruff check --quiet .
	@$(BIN)/python -m mypy

test-all: $(REFERENCE)
	@$(BIN)/python -m pytest -q

format: $(DEV)
	@$(BIN)/python -m ruff format .
	@$(BIN)/python -m ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

$(RUN): pyproject.toml
	@[ '$(STATE)' = alive ] || { \
	    python=$$(PYTHON='$(PYTHON)' sh scripts/find-python.sh) && \
	    echo "Setting up .venv with $$python (once, a minute or two)" && \
	    "$$python" -m venv --clear .venv; }
	@$(PIP) install --editable .
	@touch $@

$(DEV): $(RUN)
	@echo 'Setting up for development (once)'
	@$(PIP) install --editable '.[dev]'
	@touch $@

$(REFERENCE): $(DEV)
	@echo 'Installing torch and transformers (once; on Linux this can be gigabytes)'
	@$(PIP) install '$(TORCH)' transformers accelerate
	@touch $@
