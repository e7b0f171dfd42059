"""The containers' health check: exit status 0 when a small picture goes through `ensemble_pipeline`, else 1.

Triton's own readiness would say 200 although the pipeline's process is dead. The picture takes the way that callers'
take, gate and queue included; what hangs inside is noticed and restarted by the server itself.

    python healthcheck.py [PORT]
"""

from __future__ import annotations

import sys

from runtime.health import HealthStatus, Probe

PORT = 8000
TIMEOUT_S = 20.0
"""For detection and for matting each, the queue included; the compose file gives more than twice as long."""


def main(arguments: list[str]) -> int:
    answer = Probe(f"127.0.0.1:{arguments[0] if arguments else PORT}").canary(TIMEOUT_S)
    if answer.message:
        print(answer.message)
    return 0 if answer.status in (HealthStatus.HEALTHY, HealthStatus.OVERLOADED) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
