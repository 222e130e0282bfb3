# Needs Python 3.11 or newer, make and git; all else comes from requirements.lock.
#
#   make demo     a first run on a corpus made of Python's own source
#   make test     the whole test suite, but for the faults
#   make test-faults  processes, nodes and disks killed for real
#   make test-browser  the reports and the documentation in a headless Chromium
#   make check    lint, format, types, and the documentation built with warnings as errors
#   make docs     the documentation as a site in site/; make docs-serve shows it while you write
#   make bench    txclf beside its peers; BENCH="--short FILE …" names data of one's own
#   make lock     upgrade every dependency within pyproject.toml's ranges, on purpose

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

test: install
	$(BIN)/python -m pytest -m "not faults"

test-faults: install
	$(BIN)/python -m pytest -m faults

# A Chromium of the system will do (Debian: apt-get install chromium); without one Playwright fetches its own.
test-browser: install
	$(BIN)/python -m pip install --quiet 'playwright>=1.50'
	command -v chromium || command -v google-chrome || $(BIN)/python -m playwright install chromium
	$(BIN)/python -m pytest tests/end_to_end/test_browser.py tests/docs/test_docs.py -k "browser"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MKDOCS) build --strict --quiet

docs: install
	$(MKDOCS) build --strict

docs-serve: install
	$(MKDOCS) serve

# torch is named with the version that is tested: a newer one would slip in with its own CUDA.
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)-lock/bin/python -m pip install --quiet '.[cluster,dev]' hatchling editables
	{ echo "# Made by 'make lock' with Python 3.11; the exact versions that are tested."; \
	  $(VENV)-lock/bin/python -m pip freeze --exclude txclf | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > requirements.lock
	rm -rf $(VENV)-lock

# Of what is measured against; not in requirements.lock, for nothing else needs it.
PEERS := transformers==5.23.0 accelerate==1.15.0

bench: install
	$(BIN)/python -m pip install --quiet $(PEERS)
	$(BIN)/python benchmarks/bench.py $(BENCH)

clean:
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache
