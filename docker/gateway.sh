#!/bin/sh
# What a gateway of its own runs (docker-compose.yml, profile gateways; deploy/kubernetes): in front of others' servers.
set -euf
server=${CUTAWAY_SERVER:-server}
# By the environment, since it may hold a password, and arguments are seen by all. A job has 60 s, so draining has more.
export CUTAWAY_REDIS_URL="${CUTAWAY_REDIS_URL:-redis://redis:6379}"
set -- --address 0.0.0.0 --http-port 8000 --grpc-port 8001 --metrics-port 8002 \
    --triton-http "$server:8000" --triton-grpc "$server:8001" --triton-metrics "${CUTAWAY_TRITON_METRICS-$server:8002}" \
    --storage "${CUTAWAY_STORAGE:-/var/cache/cutaway/pictures}" --access-log-fd 1 --drain-timeout-s 75
[ -z "${CUTAWAY_TRACES_URL:-}" ] || set -- "$@" --traces-url "$CUTAWAY_TRACES_URL"
for name in ${CUTAWAY_HOSTS:-}; do set -- "$@" --hosts "$name"; done
for name in ${CUTAWAY_ORIGINS:-}; do set -- "$@" --origins "$name"; done
# shellcheck disable=SC2086 # several words
exec python -m gateway "$@" ${CUTAWAY_GATEWAY_OPTIONS:-}
