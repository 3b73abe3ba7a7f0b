# `make demo` and `make test` set up all they need on a machine with make and Python 3.10 or newer.
# VENV= and PYTHON= choose where the virtual environment lies and what it is made from; PIP_FLAGS= goes to pip, e.g.
# PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" for a small PyTorch without CUDA.

VENV ?= .venv
PYTHON ?= python3
PIP_FLAGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test lint docs clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo ## Train and apply SwIPE on synthetic data in a few minutes, in demo/
	@$(BIN)/python scripts/demo.py --folder demo

test: lint ## Check style and types, then run the tests
	@$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(VENV)/.installed-docs ## Build the documentation into site/
	@$(BIN)/mkdocs build --strict

clean: ## Remove what the other targets made, except the virtual environment
	rm -rf demo site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find nnunetv2_swipe scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment's interpreter is an order-only prerequisite: it is a link to a file whose age says nothing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	@echo "Making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PIP) install $(PIP_FLAGS) --upgrade pip

# A stamp per set of extras; pip runs again only after pyproject.toml has changed.
$(VENV)/.installed-demo: pyproject.toml | $(BIN)/python
	@echo "Installing the package (PyTorch is large: minutes the first time)"
	@$(PIP) install $(PIP_FLAGS) --editable .
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing the package with what '$*' needs (PyTorch is large: minutes the first time)"
	@$(PIP) install $(PIP_FLAGS) --editable '.[$*]'
	@touch $@
