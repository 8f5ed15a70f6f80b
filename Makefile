# Two commands: `make chat` talks, `make test` checks. Everything is installed into .venv of this checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --progress-bar on --disable-pip-version-check

.PHONY: help chat test setup dev format lint types imports unit bench lock clean

help:
	@echo "make chat   set everything up and open a conversation with the embedded model"
	@echo "make test   set everything up and run all checks"
	@echo "make setup  install for use: then $(BIN)/chinwag works"
	@echo "make bench  print the figures"

chat: setup
	@$(BIN)/chinwag model pull
	@$(BIN)/chinwag chat --backend embedded

setup: $(VENV)/.setup

test: $(VENV)/.dev
	@echo "== format" && $(BIN)/ruff format --check .
	@echo "== lint" && $(BIN)/ruff check .
	@echo "== types" && $(BIN)/mypy
	@echo "== import contracts" && $(BIN)/lint-imports
	@echo "== tests" && $(BIN)/python -m pytest

bench: $(VENV)/.dev
	@for each in core engine tokens knowledge; do \
		[ ! -f benchmarks/$$each.py ] || { echo "== $$each"; $(BIN)/python -m benchmarks.$$each; } || exit 1; done

COMPILE := uv pip compile pyproject.toml --no-header --generate-hashes --universal --python-version 3.11
lock:
	$(COMPILE) --extra embedded --extra knowledge --extra build -o requirements.lock
	$(COMPILE) --all-extras -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@echo "== creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("Chinwag needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.packages: requirements.lock | $(VENV)/bin/python
	@echo "== installing the packages of requirements.lock (about 770 MB on disk)"
	@$(PIP) --require-hashes --no-deps --only-binary :all: -r requirements.lock
	@touch $@

$(VENV)/.setup: pyproject.toml $(VENV)/.packages
	@echo "== installing chinwag"
	@$(PIP) --quiet --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "== ready: $(BIN)/chinwag"

$(VENV)/.dev: requirements-dev.lock $(VENV)/.setup
	@echo "== installing the tools for development"
	@$(PIP) --require-hashes --no-deps --only-binary :all: -r requirements-dev.lock
	@touch $@
