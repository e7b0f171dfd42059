#!/bin/sh
# Compute the locks anew from pyproject.toml: hashes for every file, for Python 3.11 to 3.12, no host names.
# torch is in none of them: its build (CPU, which CUDA) is the machine's choice, see the Makefile.
set -eu
cd "$(dirname "$0")/.."
compile() {
    out=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
        --no-emit-index-url --no-emit-find-links "$@" --output-file "requirements/$out.txt" pyproject.toml
}
sdk="--extra otel --extra prometheus"
compile serve --extra serve
# shellcheck disable=SC2086 # several words
compile dev --extra serve --extra dev $sdk --constraint requirements/serve.txt
# shellcheck disable=SC2086
compile export --extra serve --extra dev $sdk --extra export --constraint requirements/dev.txt
# What sends requests in load tests and draws their reports.
# shellcheck disable=SC2086
compile loadtest --extra serve --extra dev $sdk --extra loadtest --constraint requirements/dev.txt
# What a node of a cluster needs for bulk jobs.
compile bulk --extra bulk --constraint requirements/dev.txt
# What breaks files for the decoding path.
# shellcheck disable=SC2086
compile fuzz --extra serve --extra dev $sdk --extra fuzz --constraint requirements/dev.txt
# The GPU image: what its Triton serves with, and what builds plans in it (docker/Dockerfile.gpu).
compile gpu --extra service --extra pipeline --constraint requirements/serve.txt
compile plan --extra plan --constraint requirements/gpu.txt
# TensorRT for RTX, which builds engines without a GPU, beside what the tests of exporters have.
compile rtx --extra rtx --constraint requirements/export.txt
# What YOLOv8-seg is compared with: two packages without what they ask for (requirements/oracle.in says why).
uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links --no-deps requirements/oracle.in --output-file requirements/oracle.txt
# What writes the SBOM and asks for advisories, in an environment of its own without the project.
uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links requirements/sbom.in --output-file requirements/sbom.txt
# The others of `make bench`, in an environment of their own: rembg wants Python 3.11 and numpy 2.
uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --no-emit-index-url --no-emit-find-links --extra bench --output-file requirements/bench.txt pyproject.toml
# What judges Kubernetes manifests, in an environment of its own.
plain() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
        --no-emit-index-url --no-emit-find-links "$@"
}
plain requirements/kubernetes.in --output-file requirements/kubernetes.txt
plain --no-deps requirements/kserve.in --output-file requirements/kserve.txt
