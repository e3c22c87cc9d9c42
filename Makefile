# One virtual environment, made on first use and left alone afterwards.
# Nothing here needs more than Python 3.11, its pip, and make.

PYTHON  ?= python3
VENV    ?= .venv
CONFIG  ?= config.toml
ARGS    ?=
UPGRADE ?=
SEEDS   ?= 2000
SECONDS ?= 120

PY      := $(VENV)/bin/python
# pip fills the environment from outside: the environment needs no pip of its own,
# so this also works where the system's Python came without ensurepip.
INSTALL := $(PYTHON) -m pip --python $(PY) --disable-pip-version-check install -qq
COMPILE := $(PY) -m uv pip compile pyproject.toml --quiet $(UPGRADE) \
           --universal --python-version 3.11 --generate-hashes \
           --no-emit-index-url --custom-compile-command "make lock"
TYPED   := $(wildcard durable_actor workflows examples benchmarks tests)

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo run setup test lint check parity bench kill programs simulate sweep \
        flips fuzz overload recovery lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.run ## a counter, an alarm and a run that survives a crash
	$(PY) -m durable_actor demo

run: $(VENV)/.run ## the daemon, in the foreground (CONFIG=config.toml)
	$(PY) -m durable_actor serve --config $(CONFIG)

setup: $(VENV)/.dev ## the development environment, and nothing else

test: $(VENV)/.dev ## the test suite (ARGS=... for pytest)
	$(PY) -m pytest -q -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.dev ## format, rules, types and the floors of imports
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy $(TYPED)
	$(VENV)/bin/lint-imports

check: lint test ## everything a change must pass

parity: $(VENV)/.dev ## ours beside the original, case by case (ARGS=--write: its page)
	$(PY) -m tests.parity.report $(ARGS)

bench: $(VENV)/.dev ## the benchmarks: one question per file
	$(PY) -m benchmarks

kill: $(VENV)/.dev ## kill the daemon 500 times and audit what it kept
	$(PY) -m tests.support.kill_loop --kills 500

programs: $(VENV)/.dev ## 10,000 programs of storage against a sorted dict (ARGS=...)
	$(PY) -m tests.simulation.storage_programs --programs 10000 $(ARGS)

simulate: $(VENV)/.dev ## seeds of the simulation (SEEDS=2000; ARGS=--mutants: planted bugs)
	$(PY) -m tests.simulation.simulate --seeds $(SEEDS) $(ARGS)

sweep: $(VENV)/.dev ## 2,000 power cuts at the I/O calls of a host (ARGS=...)
	$(PY) -m tests.support.sweep --cuts 2000 --modes none,prefix,torn,subset $(ARGS)

flips: $(VENV)/.dev ## flip 10,000 bits of data directories, one at a time
	$(PY) -m tests.support.flips --flips 10000 $(ARGS)

fuzz: $(VENV)/.dev ## each parser and the described API (SECONDS=120 for each target)
	$(PY) -m tests.fuzz --all --seconds $(SECONDS)
	$(PY) -m tests.fuzz.openapi --examples 100

overload: $(VENV)/.dev ## ten times the load that a daemon can take
	$(PY) -m tests.support.overload --factor 10 $(ARGS)

recovery: $(VENV)/.dev ## kill a daemon with much to do, and time its next start
	$(PY) -m tests.support.recovery_time $(ARGS)

# The development lock comes first, and the runtime lock is held to it, so that
# what is tested is what is run. `make lock UPGRADE=--upgrade` moves the versions.
lock: $(VENV)/.uv ## write both lock files anew
	$(COMPILE) --group dev --output-file requirements-dev.lock
	$(COMPILE) --constraint requirements-dev.lock --output-file requirements.lock

clean: ## remove the environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
	       .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "Python 3.11 or newer is needed; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv --without-pip $(VENV)

$(VENV)/.run: requirements.lock | $(PY)
	$(INSTALL) --require-hashes -r $<
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(PY)
	$(INSTALL) --require-hashes -r $<
	$(INSTALL) --no-deps --no-build-isolation --no-index --editable .
	@touch $@ $(VENV)/.run

$(VENV)/.uv: | $(PY)
	$(INSTALL) uv
	@touch $@
