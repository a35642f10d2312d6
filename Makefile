# Every target makes the environment that it needs in .venv, and is safe to repeat.
PYTHON ?= python3
# A requirement, and options of pip if need be. Installed first and by its exact version, so that no dependency
# picks another build.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean force

demo: $(VENV)/.runtime
	$(BIN)/dmfnet-demo demo

# Processes share the cores, one thread each: threads of several would wait for each other.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	@mkdir -p .benchmarks
	$(BIN)/python -m pytest --benchmark-only --benchmark-json=.benchmarks/last.json
	$(BIN)/python -m benchmarks.report .benchmarks/last.json

clean:
	rm -rf $(VENV) demo

# Changes only when $(TORCH) does.
$(VENV)/.torch: force
	@mkdir -p $(VENV)
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[cpu]"
	touch $@

$(VENV)/.dev: $(VENV)/.runtime $(VENV)/.torch
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	# Types alone: what they depend on is TensorRT itself.
	$(BIN)/python -m pip install --quiet --no-deps tensorrt-stubs==10.13.0.35.1
	touch $@
