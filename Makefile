# Needs Python 3.11, 3.12 or 3.13, pip, make and git. `make` alone lists the targets.
# PYTHON is the one that .venv was made with, else the first of these that is there.
PYTHON ?= $(shell for python in .venv/bin/python python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import os, sys; print(os.path.realpath(sys.executable))' 2>/dev/null && exit; \
	done; echo python3)
ACCELERATOR ?= auto
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup test test-fast check demo bench torture docs lock packages lowest

help: ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## make .venv, the default model and the data; a second run takes seconds
	@$(PYTHON) packaging/bootstrap.py setup --accelerator $(ACCELERATOR)

test: setup ## run every test that this machine can run (ARGS="-k store" for some)
	$(BIN)/python -m tests $(ARGS)

test-fast: setup ## those of a minute: no server, no scheduler, no fault, no benchmark's run, no study
	$(BIN)/python -m pytest tests/unit -m "not slow" $(ARGS)

check: setup ## ruff, its formatter, and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

demo: setup ## serve the default model, run the main job on it, leave all under output/demo/
	$(BIN)/python -m activation_logging.demo

bench: setup ## measure what logging costs; about an hour
	$(BIN)/activation-logging bench --candidate off --candidate logging \
		--candidate logging:1,8,15,22,last $(ARGS)

torture: setup ## kills, power cuts, full disks, and a hundred thousand requests that end in any way
	$(BIN)/python -m tests.faults --long $(ARGS)
	$(BIN)/python -m tests.schedules --requests 100000

docs: setup ## write what is generated in docs/: measured tables, the page of commands
	$(BIN)/python -m bench.docs

lock: ## resolve the packages of one Python anew (PYTHON=python3.12); 3.11 comes first
	@$(PYTHON) packaging/bootstrap.py lock

packages: ## try the wheel in fresh environments, alone and with each extra (PYTHON=python3.10)
	@$(PYTHON) packaging/trial.py packages $(ARGS)

lowest: ## try the lowest versions that pyproject.toml allows (PYTHON=python3.10)
	@$(PYTHON) packaging/trial.py lowest $(ARGS)
