# Everything from a fresh clone: `make quickstart` and `make test` set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: help setup quickstart test lint clean

help:
	@echo "make quickstart   set up, then pretrain, fine-tune and score on rendered hands (CPU, minutes)"
	@echo "make test         set up, then run the tests"
	@echo "make lint         set up, then ruff and mypy"
	@echo "make setup        only create $(VENV)"
	@echo "make clean        remove caches and rendered pictures; runs/ and $(VENV) stay"
	@echo "ARGS='...' is passed on; PYTHON=... picks the interpreter (3.10 or newer)"

setup: $(STAMP)

# Installed again only when what is installed changes.
$(STAMP): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "handmim needs Python 3.10 or newer, '$(PYTHON)' is older: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@if command -v uv >/dev/null 2>&1; then \
	  echo "setting up $(VENV) with uv (about 6 GB with torch, a few minutes)"; \
	  test -d $(VENV) || uv venv --python $(PYTHON) $(VENV); \
	  uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
	  echo "setting up $(VENV) with venv and pip (about 6 GB with torch, a few minutes)"; \
	  test -d $(VENV) || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@touch $@

quickstart: setup
	$(BIN)/python tools/quickstart.py $(ARGS)

# A file's tests share what they render, so a process takes whole files.
test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache data/cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
