# A fresh machine needs Python 3.11 or newer, make and git: then `make repro` or `make test` does the rest.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 5000
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help repro test test-slow benchmark benchmark-inception benchmark-transfer benchmark-families benchmark-fashion benchmark-sound benchmark-cifar10 benchmark-data ui lint lock clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:\t/'

.venv/installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # on all cores, where pip takes one; some files are for other Pythons
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	$(MAKE) --no-print-directory .venv/dvc
	touch $@

# DVC's table of hashes is unpickled, and /var/tmp/dvc, where it would be, is every account's. DVC's config takes no path
# relative to the project, so every Python of the environment sets the variable as it starts: `dvc` alone does too.
.venv/dvc:
	mkdir -m 700 $@
	echo 'import os, sys; os.environ.setdefault("DVC_SITE_CACHE_DIR", os.path.join(sys.prefix, "dvc"))' \
		> "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dvc_site_cache_dir.pth"

repro: .venv/installed  ## install the locked environment, then run every stage that is not up to date
	@dvc repro || { status=$$?; python -m pipeline.params > /dev/null; exit $$status; }  # a wrong key's name
	pipeline verify
	pipeline claims
	@echo
	@python -c 'import pathlib; print("The report:          ", pathlib.Path("reports/index.html").resolve().as_uri())'
	@echo "Curves and pictures:  make ui, then open the address that it prints"
	@echo "Your own files:       source $(BIN)/activate, then pipeline own FOLDER"

test: .venv/installed  ## run the default tests, without a network
	OMP_NUM_THREADS=1 python -m pytest -m "not slow" --faults --numprocesses 2

test-slow: .venv/installed  ## run the slow tests: DVC in a fresh clone, training on several processes
	OMP_NUM_THREADS=1 python -m pytest -m slow --faults --numprocesses 4 --dist loadfile --no-loadscope-reorder

benchmark: .venv/installed  ## run the benchmarks and write their tables, such as benchmarks/results.md
	cd benchmarks && dvc repro -P

benchmark-inception: .venv/installed  ## measure FID with the published Inception weights, preferably on a GPU
	cd benchmarks/inception && dvc repro && pipeline results

benchmark-transfer: .venv/installed  ## measure trainings that start from trained models
	cd benchmarks/transfer && pipeline repro -j 2 && pipeline results

benchmark-families: .venv/installed  ## measure families of models on MNIST
	cd benchmarks/families && pipeline repro -j 2 && pipeline results

benchmark-fashion: .venv/installed  ## measure families of models on Fashion-MNIST
	cd benchmarks/fashion && pipeline repro -j 2 && pipeline results

benchmark-sound: .venv/installed  ## measure models of sound and music
	cd benchmarks/sound && pipeline repro -j 2 && pipeline results

benchmark-cifar10: .venv/installed  ## measure models of CIFAR-10 on a GPU
	cd benchmarks/cifar10 && dvc repro && pipeline results

benchmark-data: .venv/installed  ## measure the costs of the data and write benchmarks/data.md
	python benchmarks/data.py

ui: .venv/installed  ## show the runs in MLflow and print the address (PORT=5001 for another port)
	pipeline ui --port $(PORT)

lint: .venv/installed  ## run ruff and mypy
	ruff check .
	ruff format --check .
	mypy

lock: .venv/installed  ## resolve pyproject.toml into requirements.lock (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header -o requirements.lock

clean:  ## delete caches and the state of interrupted trainings; data, runs and reports stay
	rm -rf .state .mypy_cache .pytest_cache .ruff_cache
