# Every target sets up .venv by itself; PYTHON names the interpreter to build it with (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SERVING := .venv-serving
VERL := .venv-verl
CORES := $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')

# Models and data come from the package index or from local files, never from a hub.
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-serving test-verl check docs format bench clean

help:  ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch goes first and exactly: an open range would let the resolver weigh every CUDA build of it.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up $(VENV); the first time takes a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install -qq -c constraints.txt -e '.[all,dev,docs]'
	touch $@

install: $(INSTALLED)  ## set up .venv with the tested versions

demo: $(INSTALLED)  ## train a small model as LoRA and as AFA-LoRA, merge, compare (under 10 minutes on 2 cores)
	$(BIN)/afa demo

# One single-threaded worker a core: the tests' models are far too small for a second thread to help them.
test: $(INSTALLED)  ## run the tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --durations=15 $(PYTEST_ARGS)

# An environment of its own: vLLM holds many packages to other versions. Nothing is resolved, the file lists everything.
$(SERVING)/.installed: pyproject.toml constraints-serving.txt
	@echo "Setting up $(SERVING); the first time takes a few minutes."
	test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install -qq "$$(grep '^torch==' constraints-serving.txt)" -c constraints-serving.txt
	$(SERVING)/bin/python -m pip install -qq --no-deps -r constraints-serving.txt
	$(SERVING)/bin/python -m pip install -qq --no-deps -e .
	touch $@

test-serving: $(SERVING)/.installed  ## serve exported adapters and models with real vLLM and llama.cpp
	OMP_NUM_THREADS=$(CORES) $(SERVING)/bin/python -m pytest tests/serving -m serving --durations=10 $(PYTEST_ARGS)

# Another one: verl needs an older transformers, and no TRL.
$(VERL)/.installed: pyproject.toml constraints-verl.txt
	@echo "Setting up $(VERL); the first time takes a few minutes."
	test -x $(VERL)/bin/python || $(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install -qq "$$(grep '^torch==' constraints-verl.txt)" -c constraints-verl.txt
	$(VERL)/bin/python -m pip install -qq --no-deps -r constraints-verl.txt
	$(VERL)/bin/python -m pip install -qq --no-deps -e .
	touch $@

test-verl: $(VERL)/.installed  ## train a tiny model in verl's FSDP2 engine on two CPU ranks
	OMP_NUM_THREADS=1 PYTHONPATH=tests/verl $(VERL)/bin/python -m pytest tests/verl -m '' --durations=10 $(PYTEST_ARGS)

check: $(INSTALLED)  ## lint, formatting, types, import contracts, documentation links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_links.py

docs: $(INSTALLED)  ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## time and memory of a training step beside PEFT's
	$(BIN)/python benchmarks/step.py $(BENCH_ARGS)

clean:  ## remove the environment and every cache
	rm -rf $(VENV) $(SERVING) $(VERL) site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
