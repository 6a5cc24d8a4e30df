# Tritext. `make serve` starts the service; `make help` lists the rest.

PYTHON ?= python3
TORCH ?= torch==2.13.0
PORT ?= 8000
TEST_PROCESSES ?= 2
QUICK_TESTS := tests/unit tests/api tests/integration/stores tests/integration/checkpoints
PEERS ?= llamacpp openvino vllm transformers-serve

SHELL := bash
.SHELLFLAGS := -o pipefail -c

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
LOCKED := $(PIP) --require-hashes --no-deps
# Of pip's output, a line for each package that it fetches; its warnings and errors go to the terminal untouched.
PROGRESS := | sed -unE 's/^ *(Downloading|Using cached) ([^ ]*) ?(.*)/  \2 \3/p'
OR_FAIL := || { echo "make: the packages could not be installed; above stands why (is the package index reachable?)" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help install install-dev serve test chaos check soak soak-service bench compare peers format lock clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

install: $(VENV)/serve.stamp ## the environment .venv with what the service needs
install-dev: $(VENV)/dev.stamp ## the same with the tools for tests and checks

serve: $(VENV)/serve.stamp ## start the service on 127.0.0.1 (PORT=8000) until Ctrl-C
	@$(BIN)/tritext serve --port $(PORT)

# What starts no Ray runs side by side; clusters would take the processors and the ports from each other.
test: $(VENV)/dev.stamp ## every test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(QUICK_TESTS)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests $(QUICK_TESTS:%=--ignore=%)

chaos: $(VENV)/dev.stamp ## the tests that kill things, at full length: 100 fine-tuning jobs, 200 streams
	TRITEXT_CHAOS_JOBS=100 TRITEXT_CHAOS_STREAMS=200 TRITEXT_CHAOS_KILLS=10 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -s tests/chaos

check: $(VENV)/dev.stamp ## format, lint, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(VENV)/dev.stamp ## ten thousand random requests with cancels through the engine: exact, nothing left, no growth
	HF_HUB_OFFLINE=1 $(BIN)/python -m load_tests.soak

soak-service: $(VENV)/dev.stamp ## an hour of mixed load on the whole service: flat, nothing open, every answer right; to docs/benchmarks/soak (OUT=)
	HF_HUB_OFFLINE=1 $(BIN)/python -m load_tests.service_soak --out $(or $(OUT),docs/benchmarks/soak) $(SOAK_ARGS)

bench: $(VENV)/dev.stamp ## measure the service and its engine alone; tables and plots go to docs/benchmarks/bench (OUT=)
	$(BIN)/python -m load_tests.bench tritext engine --out $(or $(OUT),docs/benchmarks/bench) $(BENCH_ARGS)

compare: $(VENV)/dev.stamp ## the same beside those of PEERS that are installed; to docs/benchmarks/compare (OUT=)
	$(BIN)/python -m load_tests.bench tritext engine $(PEERS) --out $(or $(OUT),docs/benchmarks/compare) $(BENCH_ARGS)

peers: $(VENV)/dev.stamp ## install PEERS for make compare, each in an environment of its own outside of this directory
	$(BIN)/python -m load_tests.peers.install --torch "$(TORCH)" $(PEERS)

format: $(VENV)/dev.stamp ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The lock files name every package but torch, whose build (CPU or CUDA) the machine decides. serve.txt is made from
# dev.txt, so that both name the same versions. pip-compile ends its output with a warning that torch is missing.
lock: $(VENV)/dev.stamp ## lock the dependencies of pyproject.toml anew, keeping versions that still fit
	$(BIN)/pip-compile --extra dev --extra distributed --output-file requirements/dev.txt pyproject.toml
	cp requirements/dev.txt requirements/serve.txt
	$(BIN)/pip-compile --output-file requirements/serve.txt pyproject.toml
	@for file in requirements/serve.txt requirements/dev.txt; do \
	    sed '/^# WARNING/,$$d' $$file > $$file.new && mv $$file.new $$file || exit; \
	done
	@! grep -E '^(nvidia|cuda|triton)' requirements/*.txt || \
	    { echo "make: the lock took packages of the CUDA build; lock where pip finds the CPU build of torch" >&2; exit 1; }

clean: ## remove the environment and what the tools left
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python.stamp:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here; install Python 3.11 or later, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "make: $(PYTHON) is $$($(PYTHON) --version), and 3.11 or later is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "make: this Python has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Making the environment $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/serve.stamp: $(VENV)/python.stamp requirements/serve.txt requirements/model.txt pyproject.toml
	@echo "Installing what the service needs (some minutes the first time) ..."
	@$(LOCKED) -r requirements/serve.txt -r requirements/model.txt $(PROGRESS) $(OR_FAIL)
	@$(PIP) "$(TORCH)" $(PROGRESS) $(OR_FAIL)
	@$(PIP) --quiet --no-deps --no-build-isolation --editable . $(OR_FAIL)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/serve.stamp requirements/dev.txt
	@echo "Installing the tools for tests and checks ..."
	@$(LOCKED) -r requirements/dev.txt $(PROGRESS) $(OR_FAIL)
	@touch $@
