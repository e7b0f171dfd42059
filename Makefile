# Everything runs in .venv, which the targets create and keep in step with the locks in requirements/.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check
PROFILE ?= nano
TORCH  := torch==2.13.0
# Tests run side by side, a file at a time; every worker starts servers of its own, which want a core each.
WORKERS ?= 2
SLOW := $(wildcard tests/integration/test_sdk_*.py) tests/client/hosted/test_faults.py \
  tests/client/test_readme_sdk.py tests/docker/test_scripts.py

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-faults test-export test-wheel lint format quality bench bench-pipeline bench-overhead lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	  || { echo "Cutaway's server needs Python 3.10 to 3.12; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: requirements/serve.txt pyproject.toml | $(PY)
	$(PIP) install --quiet --require-hashes -r requirements/serve.txt
	$(PIP) install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.serve
	$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

# torch stands outside the hashed lock: which build is right (CPU, which CUDA) depends on the machine.
$(VENV)/.export: requirements/export.txt $(VENV)/.dev
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --require-hashes -r requirements/export.txt
	@touch $@

# rembg and the bundled Triton want different numpys, so what the project is compared with has an environment of its own.
$(VENV)-bench/.installed: requirements/bench.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/bench.txt
	@touch $@

demo: $(VENV)/.serve  ## cut people out of the sample pictures with a real Triton; about two minutes the first time
	@$(PY) -m runtime demo

serve: $(VENV)/.serve  ## run the server: make serve [PROFILE=nano]
	@$(PY) -m runtime serve --profile $(PROFILE)

test: $(VENV)/.dev lint  ## format, lint, types, unit and integration tests against a real Triton (no torch)
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile --ignore tests/export --ignore tests/packaging/test_wheel.py \
	  $(addprefix --ignore ,$(SLOW))

test-faults: $(VENV)/.dev  ## what takes longer: servers that are killed, full or slow, containers' scripts, the pages' code
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile $(SLOW)

test-export: $(VENV)/.export  ## the tests that need torch
	$(PY) -m pytest -q tests/export

test-wheel: $(VENV)/.dev  ## install the SDK's wheel for every Python from 3.10 to 3.13 that is found, and try it
	CUTAWAY_TEST_EVERY_PYTHON=1 $(PY) -m pytest -q tests/packaging

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev  ## put the code into shape
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

quality: $(VENV)/.dev  ## mask quality on ../shared/people/eval, with the worst cases as pictures
	$(PY) -m benchmarks.quality

bench: $(VENV)/.dev $(VENV)-bench/.installed  ## beside rembg and a hand-made service, figures into bench-output/side-by-side.md
	$(PY) -m benchmarks.side_by_side --profile $(PROFILE)

bench-pipeline: $(VENV)/.dev  ## milliseconds per stage, and the pipeline against its models' own time
	$(PY) -m benchmarks.pipeline

bench-overhead: $(VENV)/.dev  ## what the SDK adds to a request, against bare tritonclient
	$(PY) -m benchmarks.overhead

lock: $(VENV)/.dev  ## compute the locks anew from pyproject.toml
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" requirements/compile.sh

clean:  ## remove what the targets made
	rm -rf $(VENV) $(VENV)-bench .cache demo-output quality-output bench-output
