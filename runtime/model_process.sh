#!/bin/sh
# Stands where Triton looks for the program of its model processes, and becomes that program, which lies in stub/ beside
# it (runtime/runs.py). A model process inherits Triton's environment, and with it what glibc's allocator was told for
# Triton. It wants the contrary, which stands in CUTAWAY_MODEL_… (runtime/process.py): glibc reads it when a program
# starts, and Python in the stub reads no environment at all.
for name in MALLOC_ARENA_MAX MALLOC_MMAP_THRESHOLD_ MALLOC_TRIM_THRESHOLD_; do
  eval "value=\${CUTAWAY_MODEL_$name:-}"
  [ -z "$value" ] || export "$name=$value"
done
exec "${0%/*}/stub/${0##*/}" "$@"
