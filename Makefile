# `make demo` and `make test` need Python >= 3.11 and nothing else: both set up .venv on the first call and reuse it after.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# Modules are compiled when they are first imported: to compile all of them now costs half a gigabyte and a minute.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
# Images of containers often turn that off; then every command compiles torch once more.
unexport PYTHONDONTWRITEBYTECODE
# Each worker takes tests from the other once it has none of its own; each uses one thread (tests/conftest.py).
TESTS := $(BIN)/pytest --numprocesses=$(WORKERS) --dist=worksteal
BUSY := $(BIN)/python -c 'while True: pass'

STUDIES := $(filter-out index,$(basename $(notdir $(wildcard docs/studies/*.md))))

.PHONY: help demo test chromium test-random test-busy coverage fuzz kills mutants lint slow gpu docs package studies $(STUDIES:%=study-%) clean

help:  ## List the targets. PYTHON=python3.12 chooses the interpreter that .venv is made with.
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## Run the demo: train, extract, analyze and interpolate on packaged data.
	$(BIN)/ckpt-probe demo --overwrite

test: $(VENV)/.installed-dev chromium  ## Run all tests but the slow ones, two at a time (WORKERS=4: four), and lint beside them.
	@$(MAKE) --no-print-directory lint > $(VENV)/lint.log 2>&1 & lint=$$!; $(TESTS); tests=$$?; \
		wait $$lint; lint=$$?; cat $(VENV)/lint.log; exit $$((tests + lint))

chromium:  ## Install Debian's Chromium, which the tests of the report's page drive; they skip themselves without it.
	@command -v chromedriver > /dev/null || { command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver > /dev/null; } || \
		echo "no Chromium: the tests of the report's page will be skipped; install chromium and chromium-driver to run them"

test-random: $(VENV)/.installed-dev  ## Run the tests in another order each time; its seed is told at the start.
	$(TESTS) -p randomly

test-busy: $(VENV)/.installed-dev  ## Run the tests beside two processes that keep two cores busy.
	$(BUSY) & one=$$!; $(BUSY) & two=$$!; trap "kill $$one $$two" EXIT; $(TESTS)

coverage: $(VENV)/.installed-dev  ## Run the tests and measure which branches they take; below 92 % is an error.
	$(TESTS) --cov=ckpt_probe --cov-branch --cov-report=term:skip-covered --cov-fail-under=92

fuzz: $(VENV)/.installed-dev  ## Read hostile files and 10,000 mutated ones, each in a process of 1 GiB and 10 s.
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzzing.py --hostile
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzzing.py --cases 10000

kills: $(VENV)/.installed-dev  ## Kill commands 200 times at random moments, run them again, and compare the files.
	OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/kills.py --kills 200

mutants: $(VENV)/.installed-dev  ## Change an operator at a time, 400 drawn at random; below 85 % noticed is an error.
	OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/mutants.py --sample 400

lint: $(VENV)/.installed-dev  ## Check style, formatting, types and the direction of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

slow: $(VENV)/.installed-dev  ## Run the tests that take minutes.
	$(BIN)/pytest -m slow

gpu: $(VENV)/.installed-dev  ## On a machine with CUDA: the tests marked gpu, then extraction, moments and losses there.
	$(BIN)/python benchmarks/gpu.py

docs: $(VENV)/.installed-docs  ## Build the documentation into site/; a warning or a broken link is an error.
	$(BIN)/mkdocs build --strict --quiet

package: $(VENV)/.installed-dev  ## Build wheel and sdist, install each in an empty environment, and run the demo there.
	$(BIN)/pytest -m slow tests/test_distributions.py

# Each study's page is its script: it goes on where it was interrupted. -j2 runs two at a time, with one thread each.
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
