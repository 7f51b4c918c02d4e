# Carina's tasks. CI calls only these.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v /usr/bin/python3 || command -v python3)
# Twice quiet: errors only, no warnings of pip's about itself.
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-warn-script-location
PACKAGES := python3 python3-venv containerd runc docker.io docker-registry skopeo umoci busybox-static iproute2 btrfs-progs e2fsprogs tmux
# A cache for each user: one that `sudo make check` wrote would fail everybody else's tools.
CACHE := .cache-$(shell id -u)
export RUFF_CACHE_DIR := $(CACHE)/ruff
export MYPY_CACHE_DIR := $(CACHE)/mypy

.PHONY: help setup packages clients fmt lint types imports test check faults fuzz demo bench protos check-protos documents check-documents compatibility reference check-reference up down clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: packages $(VENV)/.ready ## system packages (as root), virtual environment, install

packages:
	@deploy/install-packages $(PACKAGES)

$(VENV)/.ready: pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup: installing into $(VENV)"
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q services shared # or whoever may not write there compiles at each start
	@touch $@

clients: ## newer clients to test with (containerd 2.x, Docker 28), from another suite of Debian, into .clients
	@deploy/install-clients .clients

fmt: setup ## format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: setup ## style and common mistakes
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: setup ## static types, strict
	$(BIN)/mypy

imports: setup ## who may import whom
	$(BIN)/lint-imports --no-logo --cache-dir $(CACHE)/imports

test: setup ## the whole test suite (as root)
	$(BIN)/python -m pytest --numprocesses 2 --quiet $(TESTS)

check: lint types imports check-protos check-documents check-reference ## what needs no running system

DURATION ?= 60
SEED ?= 1

faults: setup ## rounds of work under faults: DURATION=seconds SEED=n (as root)
	@PYTHONPATH=tests $(BIN)/python -m support.storm --duration $(DURATION) --seed $(SEED) $(FAULTS)

fuzz: setup ## feed every parser of foreign bytes with what is near its corpus: DURATION=seconds SEED=n
	@PYTHONPATH=tests $(BIN)/python -m fuzz --duration $(DURATION) --seed $(SEED)

demo: setup ## the main job, start to end, in a scratch root (as root)
	$(BIN)/python deploy/demo/demo.py

bench: setup ## figures beside the machine's own containerd, as ratios (as root)
	$(BIN)/python -m bench

protos: setup ## generate shared/carina/api from proto/
	$(BIN)/python deploy/protos.py

check-protos: setup ## generated code in step with proto/, and proto/ with the wire table where that is at hand
	$(BIN)/python deploy/protos.py --check
	@if [ -x ../shared/bin/check-wire ]; then $(BIN)/python ../shared/bin/check-wire proto; fi

documents: setup ## generate the pages of docs/ that are made from code and tests
	$(BIN)/python deploy/documents.py

check-documents: setup ## generated pages in step with what they are made from
	$(BIN)/python deploy/documents.py --check

# What calls methods of the API from the process of a test; the rest goes through ctr, dockerd and the command line.
RECORDED := tests/conformance tests/system/test_every_method.py tests/system/test_client.py tests/system/test_plugged_in.py tests/imaged/test_wire.py \
	tests/imaged/test_differ.py tests/gatewayd tests/taskd tests/carina/test_plugin.py \
	tests/carina/test_served_interfaces.py
compatibility: setup ## record which methods the suites call, and make the table of them (as root, minutes)
	rm -rf $(CACHE)/recorded
	CARINA_RECORD=$(CURDIR)/$(CACHE)/recorded $(BIN)/python -m pytest --numprocesses 2 --quiet $(RECORDED)
	$(BIN)/python deploy/documents.py --recorded $(CACHE)/recorded

reference: setup ## generate docs/commands.md and docs/ctr.md from the command line
	$(BIN)/python deploy/reference.py

check-reference: setup ## both in step with it
	$(BIN)/python deploy/reference.py --check

up: setup ## bring the constellation up, in the foreground (as root)
	$(BIN)/carina up

down: ## stop it (as root)
	$(BIN)/carina down

clean: ## remove what setup and the checks made
	rm -rf $(VENV) .cache-*
