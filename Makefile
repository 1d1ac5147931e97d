# Two commands do everything: `make demo` and `make test`. Both install what they need on their first run, into .venv,
# and start at once, offline too, from then on.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

QUESTION ?= How can I get my neighbour to stop playing loud music at night?
MODEL ?= bundled:0.5b

define PREPARE
import sys
from matrix_graph.errors import MatrixGraphError
from matrix_graph.models.bundled import resolve_model
try:
    resolve_model(sys.argv[1], print)
except MatrixGraphError as error:
    sys.exit(str(error))
endef

.DEFAULT_GOAL := help
.PHONY: help demo test check unit integration real audit format clean

help: ## Show this list.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F '\t' '{printf "make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.engine ## Rehearse a question on a small bundled model; leaves runs/demo. QUESTION="..." asks another, MODEL=... plays another.
	@model="$$MODEL"; $(BIN)/python -c "$$PREPARE" "$$model" || { model=bundled:135m; \
		echo "$$MODEL cannot be had. The 135M model plays in its place: it shows that everything runs, and no more."; }; \
	$(BIN)/matrix-graph rehearse "$$QUESTION" --model "$$model" --config configs/demo.yaml --out runs/demo
	$(BIN)/matrix-graph export runs/demo --format messages --include scene --out runs/demo/sft.jsonl

test: check unit integration real ## Everything that CI runs: format, lint, types, unit, integration and real-model tests.
	@echo "all tests passed"

check: $(VENV)/.dev ## Format, lint and strict types; changes nothing.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(VENV)/.dev ## Unit tests: no sockets, under a minute.
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest tests/unit -n 2

integration: $(VENV)/.dev $(VENV)/.train ## Integration tests: real processes and real HTTP; with the unit tests at least 90% coverage.
	$(BIN)/coverage run -m pytest tests/integration -n 3 --dist loadscope --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

real: $(VENV)/.dev $(VENV)/.train ## Tests on a real vLLM server with the bundled model.
	$(BIN)/python -m pytest tests/real

audit: $(VENV)/.dev ## Look up known holes of what is installed with pip-audit, where its source can be reached.
	@$(PIP) install --quiet 'pip-audit>=2.10,<3' || { echo "audit: pip-audit cannot be installed, so nothing was looked up."; exit 2; }
	@$(BIN)/python .ci/audit.py

format: $(VENV)/.dev ## Format the code and mend what lint can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove the virtual environment and what the tests left.
	rm -rf $(VENV) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis

export QUESTION MODEL PREPARE

$(VENV)/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "The virtual environment cannot be made. On Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.engine: $(VENV)/.base
	$(BIN)/matrix-graph install-engine
	@touch $@

# After the engine, which brings the torch build that fits this machine.
$(VENV)/.train: $(VENV)/.engine
	$(PIP) install --quiet --editable '.[train]'
	@touch $@
