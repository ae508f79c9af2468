# `make demo` and `make test` need only Python 3.11 to 3.13, make and a C compiler; they make .venv themselves.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	&& echo $$p && break; done)
BIN := .venv/bin
# Installed from the lock of this content; another lock or another package layout installs again.
STAMP := .venv/installed
# Python keeps what it compiled: otherwise every process compiles Ray anew, which takes 4 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo up down test bench soak lint lock install
.DEFAULT_GOAL := demo

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml .ci/install.py
	@test -n "$(PYTHON)" || { echo "Fenix needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) .ci/install.py
	@touch $@

demo: $(STAMP)  ## trains, deploys and queries the demo network, then stops everything
	@$(BIN)/python -m fenix.demo

up: $(STAMP)  ## brings the cluster up and leaves it up
	@$(BIN)/fenix up

down: $(STAMP)  ## ends what `make up` started
	@$(BIN)/fenix down

lint: $(STAMP)
	@echo "ruff check";  $(BIN)/ruff check .
	@echo "ruff format"; $(BIN)/ruff format --check .
	@echo "mypy";        $(BIN)/mypy

test: lint  ## everything, from lint to end-to-end tests on a real local cluster
	@echo "pytest, two at a time";  $(BIN)/python -m pytest -m "not cluster and not alone" -n 2 --dist loadfile
	@echo "pytest, one at a time";  $(BIN)/python -m pytest -m "cluster or alone"

bench: $(STAMP)  ## speed, beside plain Ray Serve in the same run
	@$(BIN)/python -m tests.benchmarks

soak: $(STAMP)  ## half an hour of mixed load with faults; watches memory and errors
	@$(BIN)/python -m tests.benchmarks.soak

lock:  ## renews requirements.lock from pyproject.toml and configs/pins.txt
	@$(PYTHON) .ci/lock.py
