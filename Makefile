# Everything runs in .venv, which the targets create and keep in step with the locks in requirements/.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check
PROFILE ?= nano
FUZZ_S ?= 30
LOAD ?= mixed --ways grpc,http
TORCH  := torch==2.13.0
# Tests run side by side, a file at a time; every worker starts servers of its own, which want a core each.
WORKERS ?= 2
# Those of faults, operation and bulk jobs wait much: for time-outs, restarts, scrapes, drains, Ray.
WAITING ?= 4
REPLICAS ?= 2,3
SLOW := $(wildcard tests/gateway/test_connections.py tests/gateway/test_lifecycle.py tests/integration/test_sdk_*.py tests/integration/test_stream.py tests/client/hosted/test_faults.py \
  tests/client/test_readme_sdk.py tests/docker/test_scripts.py tests/loadtest/test_runs.py tests/loadtest/test_stress.py \
  tests/pipeline/test_foreground.py tests/runtime/test_bench_*.py tests/runtime/test_bootstrap.py tests/runtime/test_server.py \
  tests/runtime/test_supervision.py tests/runtime/test_small_shm.py)

.DEFAULT_GOAL := help
.PHONY: help demo serve models models-here test test-faults test-service test-operations test-bulk test-export test-wheel fuzz lint format quality bench bench-pipeline \
  bench-gateway bench-replicas bench-overhead bench-stream bench-onnx bench-gpu bench-bulk sbom audit size lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# runtime/bootstrap.py takes a Python that suits, or downloads one; any Python can run it.
$(PY):
	@for python in "$(PYTHON)" python3 python3.12 python3.11; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then \
	    exec "$$python" runtime/bootstrap.py $(VENV) "$(PYTHON)" python3.12 python3.11; \
	  fi; \
	done; \
	echo "error: there is no python3 on the PATH; install one (Debian, Ubuntu: apt install python3), or make PYTHON=..." >&2; exit 1

# In the C locale, in which model processes run, Python cannot read a .pth file that holds a path with letters such as é;
# a relative path is that of the file's folder.
$(VENV)/.serve: requirements/serve.txt pyproject.toml | $(PY)
	$(PIP) install --quiet --require-hashes -r requirements/serve.txt
	$(PIP) install --quiet --no-deps --editable .
	@for file in $(VENV)/lib/python3*/site-packages/_editable_impl_cutaway.pth; do echo ../../../../client >"$$file"; done
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.serve
	$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

# torch stands outside the hashed lock: which build is right (CPU, which CUDA) depends on the machine.
# The oracle of the detector's tests is installed without its dependencies: requirements/oracle.in says why.
$(VENV)/.export: requirements/export.txt requirements/oracle.txt requirements/rtx.txt $(VENV)/.dev
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --require-hashes -r requirements/export.txt
	$(PIP) install --quiet --require-hashes --no-deps -r requirements/oracle.txt
	$(PIP) install --quiet --require-hashes -r requirements/rtx.txt
	@touch $@

# rembg and the bundled Triton want different numpys, so what the project is compared with has an environment of its own.
$(VENV)-bench/.installed: requirements/bench.txt | $(PY)
	$(PY) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/bench.txt
	@touch $@

# An environment of its own: nothing that the tools want is to decide what the project is locked to.
$(VENV)-sbom/.installed: requirements/sbom.txt | $(PY)
	$(PY) -m venv $(VENV)-sbom
	$(VENV)-sbom/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/sbom.txt
	@touch $@

# What renders and judges deploy/kubernetes, in an environment of its own, since its pins are many; installed by uv, which
# takes seconds where pip takes a minute. npm has the schemas of custom resources.
KUBERNETES := requirements/kubernetes.txt requirements/kserve.txt tests/operations/crds/package-lock.json
$(VENV)-kubernetes/.installed: $(KUBERNETES) $(VENV)/.dev
	$(VENV)/bin/uv venv --quiet --allow-existing --python $(PY) $(VENV)-kubernetes
	$(VENV)/bin/uv pip install --quiet --python $(VENV)-kubernetes --require-hashes -r requirements/kubernetes.txt
	$(VENV)/bin/uv pip install --quiet --python $(VENV)-kubernetes --require-hashes --no-deps -r requirements/kserve.txt
	@if command -v npm >/dev/null; then cp tests/operations/crds/package*.json tests/operations/crds/.npmrc $(VENV)-kubernetes/ \
	  && npm ci --silent --no-audit --no-fund --prefix $(VENV)-kubernetes; fi
	@touch $@

test-operations: $(VENV)-kubernetes/.installed $(VENV)-sbom/.installed

demo: $(VENV)/.serve  ## cut people out of the sample pictures with a real Triton; about two minutes the first time
	@$(PY) -m runtime demo

serve: $(VENV)/.serve  ## run the server: make serve [PROFILE=nano]
	@$(PY) -m runtime serve --profile $(PROFILE)

# On a GPU host plans are built by the image that serves them; elsewhere the ONNX files are the result.
models:  ## a profile's files for Triton, plans where there is a GPU: make models PROFILE=general [EXPORT_ARGS="--detector x"]
	@mkdir -p models
	@if command -v docker >/dev/null && nvidia-smi >/dev/null 2>&1; then \
	  CUTAWAY_UID=$$(id -u) CUTAWAY_GID=$$(id -g) docker compose run --rm --build export $(PROFILE) $(EXPORT_ARGS) \
	  && echo "serve it: CUTAWAY_UID=$$(id -u) CUTAWAY_GID=$$(id -g) CUTAWAY_PROFILE=$(PROFILE) docker compose up server"; \
	else \
	  $(MAKE) --no-print-directory models-here; \
	fi

models-here: $(VENV)/.export
	@$(PY) -m export models $(PROFILE) $(EXPORT_ARGS)

test: $(VENV)/.dev lint  ## format, lint, types, unit and integration tests against a real Triton (no torch)
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile --ignore tests/export --ignore tests/packaging/test_wheel.py \
	  --ignore tests/service --ignore tests/operations --ignore tests/bulk \
	  $(addprefix --ignore ,$(SLOW))

test-faults: $(VENV)/.dev  ## what takes longer: servers that are killed, full or slow, streams, load, benchmarks, containers, the pages' code
	$(PY) -m pytest -q -n $(WAITING) --dist loadfile $(SLOW)

test-service: $(VENV)/.dev  ## the HTTP service and its page, with Chromium, Redis and npm where they are
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile tests/service

test-operations: $(VENV)/.dev  ## dashboards, alerts, traces, logs, replicas, pods, with Prometheus, HAProxy, bubblewrap where they are
	$(PY) -m pytest -q -n $(WAITING) --dist loadfile tests/operations

test-export: $(VENV)/.export  ## the tests that need torch
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile tests/export

test-wheel: $(VENV)/.dev  ## install the SDK's wheel for every Python from 3.11 to 3.14 that is found, and try it
	CUTAWAY_TEST_EVERY_PYTHON=1 $(PY) -m pytest -q tests/packaging

# Ray, for bulk jobs: python -m bulk.
$(VENV)/.bulk: requirements/bulk.txt $(VENV)/.serve
	$(PIP) install --quiet --require-hashes -r requirements/bulk.txt
	@touch $@

test-bulk: $(VENV)/.dev $(VENV)/.bulk  ## bulk jobs on a real Ray
	$(PY) -m pytest -q -n $(WAITING) tests/bulk

bench-bulk: $(VENV)/.dev $(VENV)/.bulk  ## bulk jobs beside the networks alone and Triton, killed in the middle, by workers: make bench-bulk [BULK_ARGS=…]
	$(PY) -m benchmarks.bulk $(BULK_ARGS)

$(VENV)/.fuzz: requirements/fuzz.txt $(VENV)/.dev
	$(PIP) install --quiet --require-hashes -r requirements/fuzz.txt
	@touch $@

fuzz: $(VENV)/.fuzz  ## feed the decoding path and the gate's codec with broken input, each for half a minute: make fuzz [FUZZ_S=3600]
	$(PY) -m tests.fuzz.decoding .cache/fuzz -max_total_time=$(FUZZ_S) -artifact_prefix=.cache/
	$(PY) -m tests.fuzz.gateway .cache/fuzz-gateway -max_total_time=$(FUZZ_S) -artifact_prefix=.cache/

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev  ## put the code into shape
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# What quality compares with: the networks of November 2026.
.cache/quality-before:
	@mkdir -p $@.part
	@for file in birefnet_trt.onnx yolov8_seg.onnx yolov8_seg_free.onnx SHA256SUMS; do \
	  git show ba61d36:export/weights/nano/$$file >$@.part/$$file || exit 1; done
	@mv $@.part $@

quality: $(VENV)/.dev .cache/quality-before  ## masks on ../shared against what is wanted, time of the networks, before and after side by side
	$(PY) -m benchmarks.quality --before .cache/quality-before

bench: $(VENV)/.dev $(VENV)-bench/.installed  ## beside rembg and a hand-made service, figures into bench-output/side-by-side.md
	$(PY) -m benchmarks.side_by_side --profile $(PROFILE)

bench-pipeline: $(VENV)/.dev  ## milliseconds per stage, and the pipeline against its models' own time
	$(PY) -m benchmarks.pipeline

bench-stream: $(VENV)/.dev  ## frames per second and milliseconds of a frame
	$(PY) -m benchmarks.stream

bench-gateway: $(VENV)/.dev  ## what the gate and the HTTP service add to a request
	$(PY) -m benchmarks.gateway

bench-replicas: $(VENV)/.loadtest  ## what is lost while one of 2 or 3 replicas dies, hangs, is replaced: make bench-replicas [REPLICAS=2,3]
	$(PY) -m benchmarks.replicas --replicas $(REPLICAS)

bench-overhead: $(VENV)/.dev  ## what the SDK adds to a request, against bare tritonclient
	$(PY) -m benchmarks.overhead

bench-onnx: $(VENV)/.export  ## BiRefNet's ONNX file against DeformConv's: time, memory, batches
	$(PY) -m benchmarks.birefnet_onnx

# What .export installs is torch's build for CUDA where PyPI has it for this machine; onnxruntime-gpu is your choice.
bench-gpu: $(VENV)/.export  ## the matting networks on a GPU, in PyTorch and ONNX Runtime: make bench-gpu [GPU_ARGS="--network swin-t"]
	$(PY) -m benchmarks.gpu_models $(GPU_ARGS)

sbom: $(VENV)-sbom/.installed  ## CycloneDX files of what is shipped, into build/sbom
	@$(VENV)-sbom/bin/python requirements/sbom.py build/sbom

audit: $(VENV)-sbom/.installed  ## known advisories about the locks; "NOT CHECKED" (status 75 of the command) without an index of them
	@$(VENV)-sbom/bin/python requirements/audit.py

size: $(VENV)/.dev  ## lines and words before and after, from git: make size [AGAINST=8634530]
	@$(PY) -m benchmarks.size $(if $(AGAINST),--against $(AGAINST))

lock: $(VENV)/.dev  ## compute the locks anew from pyproject.toml
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" requirements/compile.sh

clean:  ## remove what the targets made
	rm -rf $(VENV) $(VENV)-bench $(VENV)-kubernetes $(VENV)-sbom build/sbom .cache demo-output quality-output bench-output load-output

# ---- load

# Apart from the rest, so that it is not installed where nobody sends load.
$(VENV)/.loadtest: requirements/loadtest.txt $(VENV)/.dev
	$(PIP) install --quiet --require-hashes -r requirements/loadtest.txt
	@touch $@

# Load tests run in short among the tests.
test test-faults: $(VENV)/.loadtest

.PHONY: load stress-overload stress-soak stress-same
load: $(VENV)/.loadtest  ## half a minute of mixed load on a server that it starts, and a report: make load [LOAD="crowd --users 8"]
	@$(PY) -m loadtest $(LOAD)

stress-overload: $(VENV)/.loadtest  ## three times as many requests as the server can do
	$(PY) -m loadtest overload --seconds 180 --min-peak-share 0.8 --max-error-rate 0 --max-refusal-p99-ms 250 \
	  --max-p99-ms 5000 --max-rss-mb-per-minute 20

stress-soak: $(VENV)/.loadtest  ## 5,000 mixed and bad requests, and whether anything grows
	$(PY) -m loadtest.stress.soak

stress-same: $(VENV)/.loadtest  ## answers under load against answers alone
	$(PY) -m loadtest.stress.same
