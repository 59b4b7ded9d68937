# Everything here needs only python3 (>= 3.10) and make; the first call of any target sets up .venv.
#   make demo        an agent learns a web shop, results in runs/demo   (SEED=1 for another seed)
#   make test        the tests            make test-slow   the learning tests
#   make check       lint, format, types  make hooks       the same before every commit
PYTHON ?= python3
TORCH ?= torch==2.13.0
SEED ?= 0

BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test test-slow check hooks setup clean

demo: $(STAMP)
	$(BIN)/python examples/webshop.py --output_dir runs/demo --seed $(SEED)

# One thread each, two at a time: most of them wait for games, Java and other processes.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

hooks: $(STAMP)
	$(BIN)/pre-commit install

setup: $(STAMP)

# The stamp is touched last: an interrupted installation is taken up again by the next call.
$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit("trl-mise needs Python >= 3.10, but $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install '$(TORCH)'
	$(BIN)/python -m pip install '$(TORCH)' --editable '.[test,dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info runs/demo .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find trl_mise tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
