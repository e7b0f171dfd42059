#!/bin/sh
# What the CPU image runs: the bundled Triton, watched and restarted by runtime/. An empty setting leaves the choice to it.
set -euf
set -- --address 0.0.0.0 --access-log-stdout --device cpu --cache-dir /var/cache/cutaway --profile "${CUTAWAY_PROFILE:-nano}"
[ -z "${CUTAWAY_INSTANCES:-}" ] || set -- "$@" --instances "$CUTAWAY_INSTANCES"
[ -z "${CUTAWAY_THREADS:-}" ] || set -- "$@" --threads "$CUTAWAY_THREADS"
[ -z "${CUTAWAY_QUEUE_SIZE:-}" ] || set -- "$@" --queue-size "$CUTAWAY_QUEUE_SIZE"
[ -z "${CUTAWAY_SCHEDULE:-}" ] || set -- "$@" --schedule "$CUTAWAY_SCHEDULE"
[ -z "${CUTAWAY_LOG_VERBOSE:-}" ] || set -- "$@" --verbose "$CUTAWAY_LOG_VERBOSE"
[ -z "${CUTAWAY_TRACES_URL:-}" ] || set -- "$@" --traces-url "$CUTAWAY_TRACES_URL"
[ -z "${CUTAWAY_DIRECT:-}" ] || set -- "$@" --direct
for name in ${CUTAWAY_HOSTS:-}; do set -- "$@" --hosts "$name"; done
for name in ${CUTAWAY_ORIGINS:-}; do set -- "$@" --origins "$name"; done
# shellcheck disable=SC2086 # several words
set -- "$@" -- ${CUTAWAY_GATEWAY_OPTIONS:-}
exec python -m runtime serve "$@"
