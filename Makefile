# make demo and make test need Linux, make and Python 3.12 or later; everything else they set up in .venv.

PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.14 python3.15; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin
# Most tests wait for processes: one more at a time than there are cores. Each has servers of its own.
PARALLEL = --numprocesses auto --dist worksteal
INSTALLED = $(VENV)/.installed
BENCH = $(VENV)/.bench
SUPPLY = $(VENV)/.supply
# Each file that is installed must have a hash that the locks list. HASHES=no installs the versions of constraints.txt
# instead, for a platform or a mirror of the package index that has files of its own.
HASHES ?= yes
# Tests, demo and benchmarks start several hundred processes: without bytecode each compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types imports docs unit coverage acceptance model mutants fuzz resume faults hosts neighbours peers systemd upgrade compat bench bench-small soak supply release-check lock format clean

help:  ## Say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(INSTALLED)  ## Run the main job on the real Orcheo, from nothing, and kill a worker in the middle of a run; leaves nothing running
	$(BIN)/orcheo-dispatch demo

test: $(INSTALLED) lint types imports docs  ## Lint, types, import contracts, the documentation site and the whole suite
	$(BIN)/python -m pytest --cache-clear $(PARALLEL) || $(BIN)/python -m tests.again $$?

check: test  ## What CI runs

lint: $(INSTALLED)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

imports: $(INSTALLED)  ## Import contracts
	$(BIN)/lint-imports

docs: $(INSTALLED)  ## The documentation site, strictly, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

unit: $(INSTALLED)  ## The quick half of the suite
	$(BIN)/python -m pytest $(PARALLEL) tests/unit tests/plans tests/integration

coverage: $(INSTALLED)  ## Share of the product's lines that unit and integration tests execute, in all processes
	rm -rf build/coverage && mkdir -p build/coverage
	COVERAGE_CORE=sysmon $(BIN)/coverage run -m pytest $(PARALLEL) tests/unit tests/plans tests/integration
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

acceptance: $(INSTALLED)  ## The suite on the real Orcheo
	$(BIN)/python -m pytest tests/acceptance

model: $(INSTALLED)  ## The protocol in every state within wider bounds, and without each of its rules; some 6 minutes
	$(BIN)/python -m tests.model

mutants: $(INSTALLED)  ## Each condition and arm of the SQL dropped or negated, and the tests that notice it; hours, can be continued; ARGS='--only CLAIM'
	$(BIN)/python -m tests.mutants $(ARGS)

fuzz: $(INSTALLED)  ## Any values and bytes from Redis, HTTP, runners and the environment; 10 minutes for EXAMPLES=10000 of each test
	TEST_FUZZ_EXAMPLES=$(or $(EXAMPLES),10000) $(BIN)/python -m pytest --timeout 7200 $(PARALLEL) tests/fuzz

resume: $(INSTALLED)  ## Workers, runners and servers killed in and after each step of ten shapes of graph; 40 minutes
	TEST_RESUME=all $(BIN)/python -m pytest tests/resume

faults: $(INSTALLED)  ## The fault suite: 500 runs a seed under kills, flushes and cuts; two minutes each, SEEDS=3
	$(BIN)/python -m tests.faults --seeds $(or $(SEEDS),3)

hosts: $(INSTALLED)  ## Cuts, one-way cuts, delay, loss and failover between hosts of their own: root, iproute2; 15 minutes; ARGS='--only Redis'
	$(BIN)/python -m tests.hosts $(ARGS)

neighbours: $(INSTALLED)  ## Some 80 bad neighbours beside good runs, under each isolation and policy; two hours; ARGS='--only GIL'
	$(BIN)/python -m tests.neighbours $(ARGS)

peers: $(INSTALLED)  ## Runs whose process is killed or paused, here and in systems of the same kind; 25 minutes; ARGS='--only aegra'
	$(BIN)/python -m tests.peers $(ARGS)

systemd: $(INSTALLED)  ## The units in a booted systemd: root, debootstrap and systemd-nspawn
	TEST_SYSTEMD=1 $(BIN)/python -m pytest tests/systemd

upgrade: $(INSTALLED)  ## The last release and this one beside each other, forth and back under load; 20 minutes; ARGS='--only 0.1.0', '--all'
	$(BIN)/python -m tests.upgrade $(ARGS)

compat: $(INSTALLED)  ## Older and the newest releases of Orcheo, an environment each; half an hour; ARGS='--only newest', '--write'
	$(BIN)/python -m tests.compat $(ARGS)

bench: $(BENCH)  ## The benchmark beside its peers, half an hour on an idle machine; ARGS='--only noop', '--write'
	$(BIN)/python -m tests.bench --json build/bench.json $(ARGS)

bench-small: $(BENCH)  ## A small form of the benchmark, 5 minutes: ratios alone, of a tenth of the sizes
	$(BIN)/python -m tests.bench --only trivial,noop,claim --rounds 2 --share 0.1 --ratios

soak: $(BENCH)  ## A real stack under a steady load, a worker killed now and then, and what grows meanwhile; HOURS=1, ARGS='--minutes 10'
	$(BIN)/python -m tests.soak --minutes $$(( 60 * $(or $(HOURS),1) )) $(ARGS)

release-check: $(SUPPLY)  ## Build sdist and wheel, check them, install the wheel in an empty environment
	rm -rf build/dist build/release
	$(BIN)/python -m build --no-isolation --outdir build/dist
	$(BIN)/python -m twine check --strict build/dist/*
	$(PYTHON) -m venv build/release
	build/release/bin/pip install --quiet --constraint constraints.txt build/dist/*.whl
	build/release/bin/orcheo-dispatch check --help
	$(BIN)/cyclonedx-py environment --output-file build/dist/sbom.json build/release
	cd build/dist && sha256sum *.whl *.tar.gz sbom.json | tee SHA256SUMS

supply: $(SUPPLY)  ## Licences, known vulnerabilities and bill of materials of .venv, into build/supply; Error 3: vulnerabilities unknown
	$(BIN)/python -m tests.supply

lock:  ## Make the locks anew from pyproject.toml and constraints.txt
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(PIP) $(FIRST); } || $(REFUSED)
	$(BIN)/python -m tests.supply.lock $(BIN)/uv

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove what make made
	rm -rf $(VENV) .tox .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .systemd-box build *.egg-info

# uv takes seconds where pip takes minutes; pip is there for who has a package index that only pip is told of.
# What has no wheel for this Python (CONTRIBUTING.md) is built with the setuptools of requirements.build.lock: in an environment
# of its own it would be built with whatever the index has, of which no lock knows.
ifeq ($(HASHES),yes)
FIRST = --require-hashes --requirement requirements.build.lock
WORK = --no-build-isolation --require-hashes --requirement requirements.build.lock --requirement requirements.lock
PEERS = $(WORK) --requirement requirements.bench.lock
TOOLS = $(WORK) --requirement requirements.supply.lock
OURS = --no-build-isolation --no-deps --editable .
else ifeq ($(HASHES),no)
FIRST = --constraint constraints.txt pip setuptools uv
WORK = --constraint constraints.txt --group dev
PEERS = $(WORK) --group bench
TOOLS = $(WORK) --group release --group supply
OURS = --constraint constraints.txt --editable '.[demo]'
else
$(error HASHES='$(HASHES)' is invalid: expected yes or no)
endif
UV = VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet
PIP = $(BIN)/python -m pip install --quiet
REFUSED = { echo "The packages could not be installed. Where a file has another hash than the locks list, HASHES=no \
	installs by version alone (CONTRIBUTING.md)." >&2; exit 1; }

$(INSTALLED): pyproject.toml constraints.txt requirements.build.lock requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.12 or later is needed; PYTHON=... names one" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@$(PIP) $(FIRST) || $(REFUSED)
	$(UV) $(WORK) && $(UV) $(OURS) || { $(PIP) $(WORK) && $(PIP) $(OURS); } || $(REFUSED)
	@touch $@

# The peers, and what draws the plots.
$(BENCH): $(INSTALLED) requirements.bench.lock
	$(UV) $(PEERS) || $(PIP) $(PEERS) || $(REFUSED)
	@touch $@

# What checks a release and its supply chain. Not in .venv otherwise: a library of theirs makes each import of Orcheo take
# seconds longer, since jsonschema imports it where it is installed.
$(SUPPLY): $(INSTALLED) requirements.supply.lock
	$(UV) $(TOOLS) || $(PIP) $(TOOLS) || $(REFUSED)
	@touch $@
