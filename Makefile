# make demo | test | bench | chaos | mutants | lint: each needs only Python 3.11+, make and the network; the rest is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test bench chaos mutants lint ui clean
demo: ui
	$(BIN)/farm demo -o demo-out

test: $(VENV)/sprites $(VENV)/browser lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

bench: $(VENV)/browser
	$(BIN)/python -m tests.bench

chaos: $(STAMP)
	$(BIN)/python -m tests.chaos --out chaos-out $(CHAOS_ARGS)

mutants: $(STAMP)
	$(BIN)/python -m tests.mutants lua
	$(BIN)/python -m tests.mutants rules
	$(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

lint: ui
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python farm/ui/build.py check

# The installation builds the dashboard; this does so again where its sources have changed.
ui: $(STAMP)
	$(BIN)/python farm/ui/build.py

# torch first and pinned: an index with a CPU build then offers it, and nothing later pulls another.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[api,worker,local,train,dev]'
	touch $@

# The pictures that the demo family learnt from: its tests compare with them.
$(VENV)/sprites: $(STAMP)
	$(BIN)/python -m workers.demo.sprites $@

# Tests of the dashboard look at it in Chromium.
$(VENV)/browser: $(STAMP)
	$(BIN)/python -m tests.ui.browser
	touch $@

clean:
	rm -rf $(VENV) demo-out chaos-out mutants build dist
