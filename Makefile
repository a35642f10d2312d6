# Every target makes the environment that it needs in .venv, and is safe to repeat.
PYTHON ?= python3
# A requirement, and options of pip if need be. Installed first and by its exact version, so that no dependency
# picks another build.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test coverage servers lint docs bench weights clean help force

demo: $(VENV)/.runtime  ## fuse made-up heads, images and a volume, into demo/
	$(BIN)/dmfnet-demo demo

# Processes share the cores, one thread each: threads of several would wait for each other. tests/conftest.py says how
# many there are, and orders the files.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist loadfile --no-loadscope-reorder

test: lint  ## run linter, type checker and tests
	$(PYTEST)

# Apart from `make test`, as Python runs at half its speed meanwhile.
coverage: $(VENV)/.dev  ## run the tests with branch coverage, and fail below the limit in pyproject.toml
	$(PYTEST) --cov

servers: $(VENV)/.servers  ## run a real Triton Inference Server, and two workers of a local Ray cluster
	DMFNET_TRITON=$(VENV)/triton $(BIN)/python -m pytest tests/export/test_python_backend.py tests/commands/test_fuse_on_ray.py

lint: $(VENV)/.dev  ## run linter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev  ## build the documents into site/
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.dev  ## run all benchmarks and write docs/benchmarks.md
	@mkdir -p .benchmarks
	$(BIN)/python -m pytest --benchmark-only --benchmark-json=.benchmarks/last.json
	$(BIN)/python -m benchmarks.report .benchmarks/last.json

# The recipe of the shipped weights, from DATA to dmfnet_fast/weights: about eight hours on two cores. Interrupted, it goes
# on where it stopped. nano ships as this makes it; turbo had more steps, which the model card lists.
RUNS ?= runs
SHIPPED := dmfnet_fast/weights
STAGE1 = $(BIN)/python -m train.stage1 --data "$(DATA)" --learning-rate 1e-3
STAGE2 = $(BIN)/python -m train.stage2 --data "$(DATA)"

ifeq ($(MAKECMDGOALS)$(DATA),weights)
$(error say where the training pairs are: make weights DATA=DIR)
endif

weights: $(VENV)/.dev  ## train the shipped weights on DATA=DIR
	$(STAGE2) --preset nano --out $(RUNS)/nano-1 --steps 30000 --batch 32 --learning-rate 2e-3
	$(STAGE2) --init $(RUNS)/nano-1/dmfnet.safetensors --out $(RUNS)/nano --steps 15000 --batch 32 --learning-rate 1.5e-3
	$(STAGE1) --preset tiny --out $(RUNS)/1 --steps 2400 --batch 8 --ema 0.998
	$(STAGE2) --denoiser $(RUNS)/1/denoiser.safetensors --out $(RUNS)/2 --steps 5500 --batch 16 --learning-rate 1e-3 --ema 0.998
	$(STAGE2) --init $(RUNS)/2/dmfnet.safetensors --preset turbo --unfreeze --out $(RUNS)/turbo --steps 15000 --batch 8 \
		--learning-rate 1e-3
	for name in nano turbo; do \
		$(BIN)/python -m train.release $(RUNS)/$$name/dmfnet.safetensors -o $(SHIPPED)/dmfnet-$$name.safetensors && \
		$(BIN)/dmfnet-export $(SHIPPED)/dmfnet-$$name.safetensors --target onnx -o $(SHIPPED)/dmfnet-$$name.onnx && \
		$(BIN)/dmfnet-export $(SHIPPED)/dmfnet-$$name.safetensors --target onnx --fp16 -o $(SHIPPED)/dmfnet-$$name-fp16.onnx \
		|| exit 1; \
	done

clean:  ## remove the environment and what was built
	rm -rf $(VENV) demo site

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# Changes only when $(TORCH) does.
$(VENV)/.torch: force
	@mkdir -p $(VENV)
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[cpu,dicom]"
	touch $@

$(VENV)/.dev: $(VENV)/.runtime $(VENV)/.torch
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	# Types alone: what they depend on is TensorRT itself.
	$(BIN)/python -m pip install --quiet --no-deps tensorrt-stubs==10.13.0.35.1
	touch $@

# Large, and not needed by `make test`. The server has an environment of its own, as it needs a numpy before 2.
$(VENV)/.servers: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)/triton
	$(VENV)/triton/bin/python -m pip install --quiet "nvidia-pytriton==0.7.0" "numpy<2" --editable ".[cpu]"
	$(BIN)/python -m pip install --quiet --editable ".[ray]"
	touch $@
