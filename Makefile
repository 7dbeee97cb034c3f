# Two commands to start with: make quickstart, make test.  They need python3 >= 3.11, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow test-processors test-oldest lint docs results gpu bench notebooks clean

quickstart: $(VENV)/installed  ## train seven networks with three seeds each on images drawn by code, compare them (8 minutes on 2 cores)
	$(BIN)/dilated-seg ablate experiments/quickstart.yaml

# Two workers take neighbouring tests, which share fixtures. Without bytecode, every process would compile the package again.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
FAST := $(PYTEST) -m "not slow"

test: $(VENV)/installed  ## what guards a change (12 minutes on 2 cores)
	$(FAST)

test-slow: $(VENV)/installed  ## the rest: repeated kills, simulations, every notebook, every experiment's steps
	$(PYTEST) -m slow

test-processors: $(VENV)/installed  ## the tests of `make test` on simulated processors and with two threads, which round differently
	ONEDNN_MAX_CPU_ISA=AVX2 $(FAST)
	ATEN_CPU_CAPABILITY=default $(FAST)
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=default $(FAST)
	DILATED_SEG_TEST_THREADS=2 $(FAST)

test-oldest: $(VENV)-oldest/installed  ## the tests of `make test` with the oldest versions that setup.cfg admits
	$(VENV)-oldest/bin/python -m pytest -n 2 --dist worksteal -W default::DeprecationWarning -m "not slow"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dilated_seg

docs: $(VENV)/docs-installed  ## the documentation site, in site/; a warning or a dead link fails
	$(BIN)/mkdocs build --strict

results: $(VENV)/installed  ## fill the tables of README and docs/ from experiments/results/
	$(BIN)/python docs/results.py

BUDGET ?= 8
gpu: $(VENV)/installed  ## on a machine with a GPU: its tests, throughput of every network, CamVid in the minutes that remain
	$(BIN)/python experiments/gpu.py --budget $(BUDGET)

bench: $(VENV)/installed  ## the benchmarks, and docs/performance.md from them (half an hour on 2 idle cores)
	$(BIN)/python experiments/benchmarks/all.py

notebooks: $(VENV)/installed  ## execute every notebook and keep its outputs
	$(BIN)/python notebooks/execute.py

$(VENV)-oldest/installed: requirements.txt setup.cfg tests/support/oldest_requirements.py
	$(PYTHON) -m venv $(VENV)-oldest
	$(PYTHON) tests/support/oldest_requirements.py > $(VENV)-oldest/requirements.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r $(VENV)-oldest/requirements.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/docs-installed: docs/requirements.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

clean:  ## what can be made again; runs stay
	rm -rf $(VENV) $(VENV)-oldest build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/installed: requirements.txt setup.cfg setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python3 >= 3.11 is needed; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
