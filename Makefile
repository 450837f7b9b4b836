# `make repro` and `make test` are all that a fresh machine needs: Python 3.11 or newer, make and git.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 5000
export PATH := $(CURDIR)/$(BIN):$(PATH)
# `mlflow ui` does not import the package, which sets the first two for everything else; nothing here needs its jobs.
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false

.PHONY: help repro test test-slow benchmark benchmark-inception benchmark-data ui lint lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:\t/'

.venv/installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # on all cores, where pip takes one; some files are for other Pythons
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	touch $@

repro: .venv/installed  ## install the locked environment, then run every stage that is not up to date
	@dvc repro || { status=$$?; python -m pipeline.params > /dev/null; exit $$status; }  # a wrong key's name
	pipeline verify

test: .venv/installed  ## run the default tests (no network)
	OMP_NUM_THREADS=1 python -m pytest -m "not slow" --faults --numprocesses 2

test-slow: .venv/installed  ## run the slow tests: DVC in a fresh clone, several processes
	OMP_NUM_THREADS=1 python -m pytest -m slow --faults --numprocesses 2 --dist loadfile --no-loadscope-reorder

benchmark: .venv/installed  ## run the benchmarks, write the README's tables
	cd benchmarks && dvc repro -P && cd .. && pipeline readme

benchmark-inception: .venv/installed  ## FID by the published Inception weights: needs them, better with a GPU
	cd benchmarks/inception && dvc repro && pipeline results && cd ../.. && pipeline readme

benchmark-data: .venv/installed  ## measure what the data cost, write benchmarks/data.md
	python benchmarks/data.py

ui: .venv/installed  ## show the runs at http://127.0.0.1:5000 (PORT=5001: at another port)
	mlflow ui --host 127.0.0.1 --port $(PORT)

lint: .venv/installed  ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

lock: .venv/installed  ## write requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra dev --extra server --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header -o requirements.lock

clean:  ## delete resume state and caches; data, runs and reports stay
	rm -rf .state .mypy_cache .pytest_cache .ruff_cache
