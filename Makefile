# Start with `make help`.
#
# The environment is made once, from a lock, into .venv; nothing is downloaded the second time.
# It takes the CPU build of torch from wherever pip finds it (pip.conf, PIP_FIND_LINKS,
# PIP_EXTRA_INDEX_URL), else from TORCH_INDEX, by default PyTorch's own index:
#     make env TORCH_INDEX=https://my.mirror/whl/cpu
# For NVIDIA GPUs:  make env KIND=gpu
# Another Python:   make env PYTHON=python3.12

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

KIND ?= cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready-$(KIND)
PYTEST_FLAGS ?=
# Test files side by side. A job is three processes that mostly wait for one another: two
# fill two cores, and all limits of the tests hold. PYTEST_FLAGS="-n 0 --pdb" is none beside another.
WORKERS ?= 2
SOAK_FLAGS ?=
FAULTS_FLAGS ?=
MUTATION_FLAGS ?=

export PYTHON
# torch asks for ninja on PATH at every load of an extension: the environment's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Compiled extensions belong to the environment, see learner/deepspeed/build_lock.py.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
# What is started here may keep its bytecode, see scripts/setup.sh.
unexport PYTHONDONTWRITEBYTECODE
# Nothing here asks a model hub for anything.
export HF_HUB_OFFLINE ?= 1
export VLLM_NO_USAGE_STATS ?= 1

.PHONY: help
help:  ## show this list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## /\1\t/' \
	  | while IFS=$$'\t' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

.PHONY: quickstart
quickstart: env  ## install, then train the tiny model into a new folder under runs/
	@echo '==> darts train configs/quickstart.yaml'
	@$(BIN)/darts train configs/quickstart.yaml

.PHONY: env
env: $(STAMP)  ## make the environment in .venv (about 3 minutes, once)

# The stamp holds the checksum of what it was made from: a new date alone (a checkout, a copy) is no reason.
INPUTS := requirements/$(KIND).txt requirements/build.txt pyproject.toml scripts/setup.sh
$(STAMP): $(INPUTS)
	@sum="$$(cat $(INPUTS) | sha256sum)"; \
	if [ ! -f $@ ] || [ "$$(cat $@)" != "$$sum" ]; then \
	  echo '==> make env: about 3 minutes, once'; \
	  bash scripts/setup.sh $(KIND) $(VENV); \
	  echo "$$sum" > $@; \
	  echo '==> environment ready in $(VENV)'; \
	else touch $@; fi

.PHONY: test
test: env  ## everything that CI runs: lint, types, all tests
	@$(MAKE) lint
	@echo '==> pytest'
	@$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_FLAGS)

.PHONY: test-fast
test-fast: env  ## the tests of what decides: no engine, socket or worker process; half a minute
	@echo '==> pytest tests/pipeline'
	@$(BIN)/python -m pytest tests/pipeline -m 'not slow' \
	  --ignore tests/pipeline/workers/test_pool.py --ignore tests/pipeline/wire/test_server.py $(PYTEST_FLAGS)

.PHONY: test-long
test-long: env  ## tests marked long, then deliberate bugs: is each noticed? (tens of minutes; MUTATION_FLAGS="--only 'learner/*'")
	@$(BIN)/python -m pytest --long -m long $(PYTEST_FLAGS)
	@$(BIN)/python -m scripts.mutation $(MUTATION_FLAGS)

.PHONY: test-multinode
test-multinode: env  ## jobs over two network namespaces, real vLLM too (root; ten minutes)
	@DARTS_MULTINODE=1 $(BIN)/python -m pytest tests/launch/torchrun/test_two_machines.py -v $(PYTEST_FLAGS)

.PHONY: docs
docs: env  ## the documents as a site, in site/index.html; fails at a broken link
	@$(BIN)/python -m launch.docs.site

# Standard library only, so it needs no environment.
.PHONY: architecture
architecture:  ## draw docs/architecture.svg anew and print the figures
	@$(PYTHON) scripts/architecture.py --svg docs/architecture.svg

.PHONY: lint
lint: env  ## ruff (rules, format) and pyright
	@echo '==> ruff check'
	@$(BIN)/ruff check .
	@echo '==> ruff format --check'
	@$(BIN)/ruff format --check .
	@echo '==> pyright'
	@$(BIN)/pyright

.PHONY: format
format: env  ## apply ruff's fixes and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: show
show: env  ## measure, and make the tables of the docs (takes its time)
	@$(BIN)/python -m scripts.bench.show

.PHONY: soak
soak: env  ## twenty minutes of random faults: does anything grow? (SOAK_FLAGS="--minutes 3")
	@$(BIN)/python -m scripts.bench.soak $(SOAK_FLAGS)

.PHONY: faults
faults: env  ## two hundred random faults: is anything lost? (an hour or two; FAULTS_FLAGS="--seed 7 --count 1")
	@$(BIN)/python -m scripts.faults $(FAULTS_FLAGS)

.PHONY: simulate
simulate: env  ## the simulator's tables (half an hour; what is made is kept in runs/simulate)
	@$(BIN)/python -m scripts.bench.simulated_page

.PHONY: build
build: env  ## wheel and source archive into dist/
	@$(BIN)/uv build --no-build-isolation --offline

# uv reads none of pip's settings: on a machine with its own index, say so in LOCK_FLAGS.
LOCK_FLAGS ?=
COMPILE = $(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--generate-hashes --no-header $(LOCK_FLAGS)
.PHONY: lock
lock: env  ## pin requirements/*.txt anew (LOCK_FLAGS=--upgrade for newer versions)
	@echo '==> requirements/cpu.txt'
	@$(COMPILE) --override requirements/cpu-overrides.txt pyproject.toml --group dev requirements/cpu.in \
	  -o requirements/cpu.txt >/dev/null
	@echo '==> requirements/build.txt'
	@$(COMPILE) -c requirements/cpu.txt requirements/build.in -o requirements/build.txt >/dev/null
	@echo '==> requirements/gpu.txt'
	@$(COMPILE) pyproject.toml --group dev requirements/gpu.in -o requirements/gpu.txt >/dev/null
	@sed -i '1i # Linux x86-64 with NVIDIA GPUs, CUDA 13. Solved, never installed by CI: it has no GPU.' \
	  requirements/gpu.txt

.PHONY: clean
clean:  ## remove caches and build outputs; keeps .venv and runs/
	rm -rf dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: clean-env
clean-env:  ## remove the environment
	rm -rf $(VENV)
