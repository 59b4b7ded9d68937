# Everything here needs only python3 (>= 3.10) and make; the first call of any target sets up .venv.
#   make demo        an agent learns a web shop, results in runs/demo   (SEED=1 for another seed)
#   make test        the tests            make test-slow   the learning tests
#   make check       lint, format, types  make hooks       the same before every commit
#   make dist        what is published, in dist/
#   make test-dist   the same, checked in a clean environment   make release-check   and what a release still needs
#   make docs        the documentation site, into site/
#   make notebooks   executes the notebooks and saves them in place
#   make test-ppo    the tests that TRL can reach, with the last one that has a PPOTrainer of its own (beside .venv)
PYTHON ?= python3
TORCH ?= torch==2.13.0
SEED ?= 0

COMMA := ,
BIN := .venv/bin
STAMP := .venv/installed
PPO_STAMP := .venv-ppo/installed

.PHONY: demo test test-ppo test-slow check docs notebooks dist test-dist release-check hooks setup clean

demo: $(STAMP)
	$(BIN)/python examples/webshop.py --output_dir runs/demo --seed $(SEED)

# One thread each, two at a time: most of them wait for games, Java and other processes.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-ppo: $(PPO_STAMP)
	OMP_NUM_THREADS=1 .venv-ppo/bin/python -m pytest -n 2 --reaching trl_mise._trl

# ARGS: more arguments for pytest.
test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The source distribution first, the wheel from it; --strict: warnings are failures.
dist: $(STAMP)
	rm -rf dist build *.egg-info/SOURCES.txt
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

test-dist: dist
	$(BIN)/python tests/distribution/check_dist.py dist --torch '$(TORCH)'

release-check: dist
	$(BIN)/python tests/distribution/check_dist.py dist --torch '$(TORCH)' --release

# What it would print otherwise is that there will be no MkDocs for it to go on with: mkdocs.yml says more.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

notebooks: $(STAMP)
	$(BIN)/python notebooks/execute.py

hooks: $(STAMP)
	$(BIN)/pre-commit install

setup: $(STAMP)

# $(1): the environment's folder, $(2): what of this project goes in, $(3): more requirements.
# The stamp is touched last: an interrupted installation is taken up again by the next call.
define install
	@$(PYTHON) -c 'import sys; sys.exit("trl-mise needs Python >= 3.10, but $(PYTHON) is %d.%d; name another one: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install '$(TORCH)'
	$(1)/bin/python -m pip install '$(TORCH)' --editable '$(2)' $(3)
	@touch $(1)/installed
endef

$(STAMP): pyproject.toml Makefile
	$(call install,.venv,.[test$(COMMA)dev])

$(PPO_STAMP): pyproject.toml Makefile
	$(call install,.venv-ppo,.[test],'trl<1.13')

clean:
	rm -rf .venv .venv-ppo build dist site *.egg-info runs/demo .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find trl_mise tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
