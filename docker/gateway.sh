#!/bin/sh
# What a gateway of its own runs (docker-compose.yml, profile gateways): in front of another container's server.
set -euf
set -- --address 0.0.0.0 --http-port 8000 --grpc-port 8001 --metrics-port 8002 \
    --triton-http server:8000 --triton-grpc server:8001 --triton-metrics server:8002 \
    --redis-url redis://redis:6379 --storage /var/cache/cutaway/pictures
for name in ${CUTAWAY_HOSTS:-}; do set -- "$@" --hosts "$name"; done
for name in ${CUTAWAY_ORIGINS:-}; do set -- "$@" --origins "$name"; done
# shellcheck disable=SC2086 # several words
exec python -m gateway "$@" ${CUTAWAY_GATEWAY_OPTIONS:-}
