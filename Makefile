# `make demo` and `make test` need only Python >= 3.11: the first call sets up .venv, and later calls reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# Modules are compiled at their first import, since compiling all of them here takes half a gigabyte and a minute.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
# Container images often disable cached bytecode, so that every command would compile torch again.
unexport PYTHONDONTWRITEBYTECODE
# A worker that has finished takes tests from another one; each uses one thread (tests/conftest.py).
TESTS := $(BIN)/pytest --numprocesses=$(WORKERS) --dist=worksteal
BUSY := $(BIN)/python -c 'while True: pass'

STUDIES := $(filter-out index,$(basename $(notdir $(wildcard docs/studies/*.md))))

.PHONY: help demo test chromium test-random test-busy coverage fuzz kills mutants lint slow gpu docs package studies $(STUDIES:%=study-%) clean

help:  ## List the targets. PYTHON=python3.12 chooses the interpreter of .venv.
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## Run the demo: train, extract, analyze and interpolate on packaged data.
	$(BIN)/ckpt-probe demo --overwrite

test: $(VENV)/.installed-dev chromium  ## Run all tests except the slow ones in 2 processes (WORKERS=4: in 4), and lint at the same time.
	@$(MAKE) --no-print-directory lint > $(VENV)/lint.log 2>&1 & lint=$$!; $(TESTS); tests=$$?; \
		wait $$lint; lint=$$?; cat $(VENV)/lint.log; exit $$((tests + lint))

chromium:  ## Install Debian's Chromium for the tests of the report's page, which are skipped without it.
	@command -v chromedriver > /dev/null || { command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver > /dev/null; } || \
		echo "no Chromium: the tests of the report's page will be skipped; install chromium and chromium-driver to run them"

test-random: $(VENV)/.installed-dev  ## Run the tests in a random order; its seed is printed first.
	$(TESTS) -p randomly

test-busy: $(VENV)/.installed-dev  ## Run the tests while two other processes keep two cores busy.
	$(BUSY) & one=$$!; $(BUSY) & two=$$!; trap "kill $$one $$two" EXIT; $(TESTS)

coverage: $(VENV)/.installed-dev  ## Run the tests and measure the coverage of branches; less than 95 % is an error.
	$(TESTS) --cov=ckpt_probe --cov-branch --cov-report=term:skip-covered --cov-fail-under=95

fuzz: $(VENV)/.installed-dev  ## Read hostile files and 10,000 mutated ones, each in a process limited to 1 GiB and 10 s.
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzzing.py --hostile
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzzing.py --cases 10000

kills: $(VENV)/.installed-dev  ## Kill commands at 200 random moments, run them again, and compare the files they write.
	OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/kills.py --kills 200

mutants: $(VENV)/.installed-dev  ## Change 400 random operators, one at a time, and run the tests; less than 85 % detected is an error.
	OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/mutants.py --sample 400

lint: $(VENV)/.installed-dev  ## Check style, formatting, types and the layers of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

slow: $(VENV)/.installed-dev  ## Run the tests that take minutes.
	$(BIN)/pytest -m slow

gpu: $(VENV)/.installed-dev  ## Run the tests marked gpu, then measure extraction, moments and losses, on a machine with CUDA.
	$(BIN)/python benchmarks/gpu.py

docs: $(VENV)/.installed-docs  ## Build the documentation into site/; a warning or a broken link is an error.
	$(BIN)/mkdocs build --strict --quiet

package: $(VENV)/.installed-dev  ## Build wheel and sdist, install each in an empty environment, and run the demo in it.
	$(BIN)/pytest -m slow tests/test_distributions.py

# Each study runs the commands of its page, and resumes after an interruption. -j2 runs two at a time, with one thread each.
studies: $(STUDIES:%=study-%)  ## Run the commands of all studies and draw their figures; study-NAME runs one.

$(STUDIES:%=study-%): study-%: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python docs/blocks.py docs/studies/$*.md

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ckpt-probe needs Python 3.11 or later; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[docs]'
	touch $@ $(VENV)/.installed

clean:  ## Remove .venv, the demo, caches and builds.
	rm -rf $(VENV) mutants ckpt-probe-demo .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist site
