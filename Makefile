# make run    everything set up, then a real RL run of a tiny model under a real controller
# make test   everything set up, then lint, types, import rules, all tests
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run compare test test-cluster test-vllm lint unit bench clean help

help:  ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

run: $(VENV)/.done  ## the demo: a run that is broken on purpose and has to be brought back
	@$(BIN)/scalerl demo

compare: $(VENV)/.done  ## the demo three times: guarded, only observed, undisturbed
	@$(BIN)/scalerl demo --compare

test: lint unit  ## lint, types, import rules, all tests

test-cluster: $(VENV)/.done  ## faults of a run on a Ray cluster on this machine, at most 20 minutes on two cores
	@$(BIN)/python -m pytest tests/cluster -m cluster

test-vllm:  ## the tests that need vLLM, in an environment of their own (2.7 GB)
	@tools/setup-vllm.sh
	@build/vllm-env/bin/python -m pytest tests/vllm

lint: $(VENV)/.done
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

unit: $(VENV)/.done
	@$(BIN)/python -m pytest

bench: $(VENV)/.done  ## what is measured and written down in docs/
	@$(BIN)/python bench/agent_overhead.py
	@$(BIN)/python bench/detectors.py

$(VENV)/.done: pyproject.toml constraints.txt tools/setup.sh
	@VENV=$(VENV) tools/setup.sh

clean:  ## remove what set-up and runs made here
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
