# `make run` starts everything; `make test` proves it. Both build .venv first, and only what is missing.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
UV ?= uv
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate

.PHONY: run test test-slow soak faults check bench lock clean
.DELETE_ON_ERROR:

run: $(VENV)/.installed-cpu
	@exec $(BIN)/python -m penstock up

test: check
	$(BIN)/python -m pytest -m "not slow and not faults"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

SOAK_S ?= 600
soak: $(VENV)/.installed-dev
	SOAK_S=$(SOAK_S) $(BIN)/python -m pytest tests/soak

# Skips the cases that this very code has passed; FAULTS=again runs them all.
FAULTS ?= resume
faults: $(VENV)/.installed-dev
	FAULTS=$(FAULTS) $(BIN)/python -m pytest tests/faults; result=$$?; $(BIN)/python -m tests.faults.table; exit $$result

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks

# Needs uv; every other target needs Python and make only.
lock:
	cd requirements && for set in base cpu gpu dev; do $(LOCK) --output-file $$set.txt $$set.in || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

# The embedded Redis's wheel exists for 3.11 and 3.12, so these come first.
$(VENV)/.created:
	@for python in python3.12 python3.11 python3.13 python3; do \
		if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then \
			[ -x $(BIN)/python ] || $$python -m venv $(VENV) || exit 1; touch $@; exit 0; \
		fi; \
	done; \
	echo 'penstock: Python 3.11, 3.12 or 3.13 with its venv module is needed (Debian: apt install python3 python3-venv)' >&2; exit 1

$(VENV)/.installed-cpu: $(VENV)/.created requirements/cpu.txt pyproject.toml
	@echo 'penstock: installing what it needs into $(VENV); this takes a minute or two, once'
	@$(PIP) install --require-hashes -r requirements/cpu.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-cpu requirements/dev.txt
	@echo 'penstock: installing what the tests need into $(VENV)'
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
