# Two commands: `make run` answers with real models, `make test` passes the tests. Both set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILT := pyproject.toml CMakeLists.txt $(wildcard src/geode/native/csrc/*)

.PHONY: run test check docs bench clean

run: $(VENV)/.run
	$(BIN)/geode run gemma3:270m "The capital of France is" --temperature 0 --max-tokens 48
	$(BIN)/geode run assistant "Name three farm animals, one on each line." --temperature 0 --max-tokens 48

test: $(VENV)/.test
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

check: test

docs: $(VENV)/.test
	$(BIN)/python scripts/docs
	$(BIN)/python scripts/docs_api
	GEODE_WRITE_DOCS=1 $(BIN)/python -m pytest tests/test_parity.py -q

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Geode needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make a virtual environment. On Debian: apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

# The native engine needs no framework: a compiler, and a minute or two.
$(VENV)/.run: $(VENV)/.made $(BUILT)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# PyTorch first and exactly, so that nothing later pulls another build of it.
$(VENV)/.test: $(VENV)/.made $(BUILT)
	$(BIN)/python -m pip install --quiet 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --editable '.[jax,torch,tensorflow,dev]'
	@touch $@
