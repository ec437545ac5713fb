# `make demo` and `make test` need nothing but Python 3.11+ and make: they set up .venv themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.procreward-installed
EXTRAS := robosuite,metaworld,report,dev
# In an environment of its own, so that everything else is tested without RoboCasa.
ROBOCASA_VENV ?= .venv-robocasa
ROBOCASA_BIN := $(ROBOCASA_VENV)/bin
ROBOCASA_STAMP := $(ROBOCASA_VENV)/.procreward-installed

# One thread a process: the simulators and torch fight over cores otherwise (5-10x slower).
export OMP_NUM_THREADS ?= 1
export MUJOCO_GL ?= egl
# Nothing here may reach for weights on a hub.
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo demo-short test test-robocasa lint types format bench sample-data verify-formats verify-hdf5 verify-lerobot clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) scripts/check_system.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	touch $(STAMP)

setup: $(STAMP) ## Create .venv with pinned dependencies

demo: $(STAMP) ## Lift with the nano model: table, videos and curves under runs/demo
	$(BIN)/python -m procreward demo

demo-short: $(STAMP) ## The demo in about a minute: one rollout a policy
	$(BIN)/python -m procreward demo --episodes 1 --out runs/demo-short

test: $(STAMP) ## Run all tests
	$(BIN)/python -m pytest -n 2

# --no-deps: what the wheel declares beyond these is for its own scripts, and would move our pins.
$(ROBOCASA_STAMP): pyproject.toml constraints.txt
	$(PYTHON) scripts/check_system.py
	$(PYTHON) -m venv $(ROBOCASA_VENV)
	$(ROBOCASA_BIN)/pip install --quiet -c constraints.txt -e ".[robosuite,train]" pytest pytest-xdist lxml
	$(ROBOCASA_BIN)/pip install --quiet -c constraints.txt --no-deps rlinf-robocasa365
	touch $(ROBOCASA_STAMP)

test-robocasa: $(ROBOCASA_STAMP) ## RoboCasa's own environments in a tiny kitchen, without its assets
	$(ROBOCASA_BIN)/python -m pytest tests/robocasa -n 2 --dist loadfile

lint: $(STAMP) ## ruff, format check and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# mypy cannot follow setuptools' package-dir, so it gets the package as it is when installed.
types: $(STAMP) ## mypy --strict
	rm -rf build/types && mkdir -p build/types/procreward
	ln -s $(CURDIR)/procreward/* $(CURDIR)/envs $(CURDIR)/configs build/types/procreward/
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p procreward

format: $(STAMP) ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Every figure the README prints
	$(BIN)/python benchmarks/engine.py --device cpu --out benchmarks/results/engine_cpu.json
	$(BIN)/python benchmarks/wrapper_overhead.py --out benchmarks/results/wrapper_overhead.json
	$(BIN)/python benchmarks/nano_quality.py --out benchmarks/results/nano_quality.json
	$(BIN)/python benchmarks/vector_overhead.py --out benchmarks/results/vector_overhead.json
	$(BIN)/python benchmarks/relabel.py --out benchmarks/results/relabel_cpu.json
	$(BIN)/python benchmarks/relabel.py --clock cpu --out benchmarks/results/relabel_cpu_time.json
	$(BIN)/python benchmarks/learning.py --jobs 2

sample-data: $(STAMP) ## Small datasets in every format, from scripted robosuite episodes
	$(BIN)/python -m scripts.sample_data

# Each owner in an environment of its own, under .venv-formats; LeRobot's two bring torch along.
verify-formats: verify-hdf5 verify-lerobot ## LeRobot, robomimic and Minari read what the relabeller wrote

verify-hdf5: $(STAMP) ## robomimic and Minari alone, which install in a minute
	PYTHON=$(PYTHON) BIN=$(BIN) sh scripts/verify_hdf5/run.sh

verify-lerobot: $(STAMP) ## LeRobot alone
	PYTHON=$(PYTHON) BIN=$(BIN) sh scripts/verify_lerobot/run.sh

clean: ## Remove what the commands above made
	rm -rf $(VENV) $(ROBOCASA_VENV) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
