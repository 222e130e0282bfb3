# Needs Python 3.11 or newer, make and git. Everything else comes from requirements.lock.
#
#   make install       install txclf and its pinned dependencies into .venv
#   make demo          train on a corpus made of Python's own source
#   make test          run the test suite, except faults
#   make test-faults   run the tests that kill processes, nodes and disks
#   make test-browser  test the reports and the documentation in a headless Chromium
#   make check         check lint, format, types, layers and the documentation; warnings are errors
#   make docs          build the documentation into site/
#   make docs-serve    serve the documentation and rebuild it on change
#   make bench         measure txclf and its peers; BENCH="--short FILE …" names your own data
#   make clean         remove .venv and caches
#   make lock          upgrade every dependency within the ranges of pyproject.toml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.PHONY: install demo test test-faults test-browser check docs docs-serve bench lock clean

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "txclf needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: install
	$(BIN)/txclf demo

# Two processes, because most tests wait for others of their own; the tests of one file share what they set up.
test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 -m "not faults"

# One process: stalled workers and lost nodes are told by timeouts of seconds.
test-faults: install
	$(BIN)/python -m pytest -m faults

# Uses the system's Chromium (Debian: apt-get install chromium); without one Playwright downloads its own.
test-browser: install
	$(BIN)/python -m pip install --quiet 'playwright>=1.50' 'axe-playwright-python>=0.1.8'
	command -v chromium || command -v google-chrome || $(BIN)/python -m playwright install chromium
	$(BIN)/python -m pytest tests/end_to_end/test_browser_*.py tests/docs/test_site.py -k "browser"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MKDOCS) build --strict

docs: install
	$(MKDOCS) build --strict

docs-serve: install
	$(MKDOCS) serve

# Pins torch to the tested version: a newer one would bring its own CUDA.
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-lock/bin/python -m pip install --quiet '.[cluster,dev]' hatchling editables
	{ echo "# Made by 'make lock' with Python 3.11; the exact versions that are tested."; \
	  $(VENV)-lock/bin/python -m pip freeze --exclude txclf | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > requirements.lock
	rm -rf $(VENV)-lock

# What `make bench` needs for the `Trainer` of Transformers; nothing else does, so it is not in requirements.lock.
PEERS := accelerate==1.15.0

bench: install
	$(BIN)/python -m pip install --quiet $(PEERS)
	$(BIN)/python benchmarks/bench.py $(BENCH)

clean:
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache
