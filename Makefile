# One command for each thing that people do here; `make` alone lists them.
# Each makes what it needs: .venv once, and its packages again when setup.cfg changes.

VENV := .venv
BIN := $(VENV)/bin

# The default is a first guess: an older python3 is passed over for a newer interpreter beside it.
PYTHON ?= python3
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
PACKAGE := setup.cfg pyproject.toml

# Most tests wait, for programs and for what they do: more processes than cores are worth it.
TESTERS ?= 4

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check soak services services-stop bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.runtime ## both programs with sample blobs; prints two links and stays up
	@$(BIN)/python tools/demo.py

test: $(VENV)/.test ## the whole test suite (ARGS="-k zip" picks some, ARGS="-n 0" runs one after the other)
	@$(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.test ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks tools
	$(MAKE) --no-print-directory test

soak: $(VENV)/.test ## faults and fuzzing at full size; writes what it saw to docs/evidence/
	@$(BIN)/python -m tools.soak $(ARGS)

services: $(BIN)/pip ## install and start the real services on loopback, for tests and benchmarks
	@$(BIN)/python -m tools.services start

services-stop: ## stop them
	@test ! -x $(BIN)/python || $(BIN)/python -m tools.services stop

bench: $(VENV)/.test ## compare with peers on a real S3 server (ARGS="--small" for a quick look)
	@test -x .services/bin/versitygw || $(BIN)/python -m tools.services start s3
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## stop the services, and remove what was made here except the blobs in var/
	@-$(MAKE) --no-print-directory services-stop
	@rm -rf $(VENV) .services .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that a venv gets: where it stands, the venv is whole.
$(BIN)/pip:
	@for python in $(PYTHONS); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "make: $$python cannot make a virtual environment: install the package python3-venv" >&2; exit 1; }; \
	  echo "making $(VENV) with $$python ($$("$$python" -V))" >&2; \
	  exec "$$python" -m venv $(VENV); \
	done; \
	echo "make: no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1

$(VENV)/.runtime: $(BIN)/pip $(PACKAGE)
	@echo "installing into $(VENV) ..." >&2
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(BIN)/pip $(PACKAGE)
	@echo "installing into $(VENV), with what the tests need ..." >&2
	@$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.runtime
