# One environment in .venv, made when it is missing or when pyproject.toml or a plug-in changed. PYTHON and VENV may be set.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WHEELS := $(VENV)/wheels

# Test files are shared by up to four processes, each with one thread of arithmetic.
SPREAD := OMP_NUM_THREADS=1
WORKERS ?= -n auto --maxprocesses 4 --dist loadfile

PLUGINS := ldmkit-transformers ldmkit-openclip ldmkit-timm
PLUGIN_FILES := $(shell find plugins -name '*.py' -path '*/ldmkit_*' -o -name pyproject.toml -path 'plugins/*')

.PHONY: demo test test-slow test-gpu test-plugins lint docs bench clean

demo: $(READY)  ## sample the bundled model and write a contact sheet
	$(BIN)/python -m ldmkit demo --out demo

test: $(READY)  ## everything that needs neither a GPU nor more than a few minutes, then the plug-ins' own tests
	$(SPREAD) $(BIN)/python -m pytest $(WORKERS) -m "not slow and not gpu"
	$(MAKE) test-plugins

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

test-plugins: $(READY)  ## the tests of each plug-in, from its own folder, on the wheel that is installed
	for name in $(PLUGINS); do (cd plugins/$$name && $(SPREAD) $(abspath $(BIN))/python -P -m pytest $(WORKERS)) || exit 1; done

lint: $(READY)
	$(BIN)/pip install --quiet -e ".[lint]"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## write docs/components/ from the registry; a test holds it true
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/authors.py
	$(BIN)/python docs/models.py

bench: $(READY)  ## measure against diffusers, side by side in one process
	$(BIN)/pip install --quiet -e ".[bench]"
	$(BIN)/python -m tests.benchmarks

# One resolution for everything: torch and torchvision must come from the same index, the plug-ins from their wheels.
$(READY): pyproject.toml $(PLUGIN_FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	rm -rf $(WHEELS)
	for name in $(PLUGINS); do $(BIN)/pip wheel --quiet --no-deps --wheel-dir $(WHEELS) plugins/$$name || exit 1; done
	$(BIN)/pip install --quiet --find-links $(WHEELS) -e ".[test]" torchvision $(PLUGINS)
	$(BIN)/pip install --quiet --force-reinstall --no-deps $(WHEELS)/*.whl
	touch $(READY)

clean:
	rm -rf $(VENV) dist demo
