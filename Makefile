# The two commands: `make demo` and `make test`. Each makes the environment it needs on the first run.
#
#   make test VENV=/path/to/venv            another environment
#   make test PYTEST_ARGS="-x tests/data"   one process, one folder, stop at the first failure
#   make test-quick METHOD=fastv            one method: its own tests, its rows of the catalogue's, its golden vectors
#   make test-quick                         import order of rooms, tokens, plans and sites, catalogue entries
#   make test PIP_ARGS="..."                options for pip (such as an index with CPU-only builds of torch, which the
#                                           default index lacks for some platforms)

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?= -n 2 --dist worksteal

PY := $(VENV)/bin/python

QUICK := tests/test_rooms.py tests/test_tokens.py tests/methods/test_plans.py tests/test_catalogue_entry.py

.PHONY: demo demo-all test test-quick slow lint format clean

demo: $(VENV)/.installed
	$(PY) experiments/demo.py

demo-all: $(VENV)/.installed
	$(PY) experiments/demo.py --all

test: $(VENV)/.installed-test
	$(PY) -m pytest -q -m "not slow" --durations=15 $(PYTEST_ARGS)

# One process, for an early first failure. Under two minutes each.
test-quick: $(VENV)/.installed-test
	$(PY) -m pytest -q -x -m "not slow" $(if $(METHOD),--method=$(METHOD) tests/methods tests/parity,$(QUICK))

# Tests too long for every day, one at a time because some of them measure time.
slow: $(VENV)/.installed-test
	$(PY) -m pytest -q -x -m slow --durations=15 $(SLOW_ARGS)

lint: $(VENV)/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(VENV)/.installed-test
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jtok needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py pyproject.toml | $(PY)
	$(PY) -m pip install -q $(PIP_ARGS) -e .
	touch $@

$(VENV)/.installed-test: setup.py pyproject.toml | $(PY)
	$(PY) -m pip install -q $(PIP_ARGS) -e '.[test]'
	touch $@ $(VENV)/.installed
