# One environment in .venv, made when it is missing or when pyproject.toml changed. PYTHON and VENV may be set.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-gpu lint docs bench clean

demo: $(READY)  ## sample the bundled model and write a contact sheet
	$(BIN)/python -m ldmkit demo --out demo

test: $(READY)  ## everything that needs neither a GPU nor more than a few minutes
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

lint: $(READY)
	$(BIN)/pip install --quiet -e ".[lint]"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## write docs/components/ from the registry; a test holds it true
	$(BIN)/python docs/generate.py

bench: $(READY)  ## measure against diffusers, side by side in one process
	$(BIN)/pip install --quiet -e ".[bench]"
	$(BIN)/python -m tests.benchmarks

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[test]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist demo
