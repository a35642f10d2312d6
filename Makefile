# Every target makes the environment that it needs in .venv, and is safe to repeat.
PYTHON ?= python3
# Installed first and by its exact version, so that no dependency picks another build of it.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint benchmark clean

demo: $(VENV)/.runtime
	$(BIN)/dmfnet-demo demo

test: lint
	$(BIN)/python -m pytest tests

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/.dev
	$(BIN)/python -m pytest --benchmark-only

clean:
	rm -rf $(VENV) demo

$(VENV)/.$(subst /,-,$(TORCH)):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.runtime: $(VENV)/.$(subst /,-,$(TORCH)) pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[torch]"
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
