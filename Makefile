# Everything a developer needs; `make demo` and `make test` set up by themselves on a fresh machine with Python 3.11.

PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check lint types format clean

demo: $(READY)   ## Convert the shipped model, measure it, write a report.
	$(BIN)/expertweaver demo --out demo

test: $(READY)   ## Run the tests, two files at a time.
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: lint types test   ## Lint, types and tests: what must pass before a commit.

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and by its exact version: without one installed, pip would fetch the newest build with its GPU libraries.
# A machine that has a torch of its own choice can keep it: VENV=path/to/environment make test
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache
