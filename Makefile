# One environment in .venv, made when it is missing or when pyproject.toml changed. PYTHON and VENV may be set.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

PLUGINS := ldmkit-transformers ldmkit-openclip ldmkit-timm

.PHONY: demo test test-slow test-gpu test-plugins lint docs bench clean

demo: $(READY)  ## sample the bundled model and write a contact sheet
	$(BIN)/python -m ldmkit demo --out demo

test: $(READY)  ## everything that needs neither a GPU nor more than a few minutes
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

test-plugins: $(READY)  ## build and install the plug-ins' wheels, then run the tests of each from its own folder
	for name in $(PLUGINS); do $(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheels plugins/$$name || exit 1; done
	$(BIN)/pip install --quiet torchvision
	$(BIN)/pip install --quiet --force-reinstall --no-deps build/wheels/*.whl
	$(BIN)/pip install --quiet --find-links build/wheels $(PLUGINS)
	for name in $(PLUGINS); do (cd plugins/$$name && $(abspath $(BIN))/python -P -m pytest) || exit 1; done

lint: $(READY)
	$(BIN)/pip install --quiet -e ".[lint]"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## write docs/components/ from the registry; a test holds it true
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/authors.py

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
