# Two commands to start with: make quickstart, make test.  They need python3 >= 3.11, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-processors lint notebooks clean

quickstart: $(VENV)/installed  ## train seven networks on pictures drawn by code, compare them (5 minutes on 2 cores)
	$(BIN)/dilated-seg ablate experiments/quickstart.yaml

test: $(VENV)/installed  ## everything CI runs
	$(BIN)/python -m pytest -n 2

test-processors: $(VENV)/installed  ## the tests with the kernels of older processors, whose sums round differently
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -n 2
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE $(BIN)/python -m pytest -n 2

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dilated_seg

notebooks: $(VENV)/installed  ## execute every notebook
	$(BIN)/python -m pytest --nbmake notebooks

clean:  ## what can be made again; runs stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/installed: requirements.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python3 >= 3.11 is needed; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@
