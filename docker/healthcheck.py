"""The containers' health check: exit status 0 when a small picture goes through `ensemble_pipeline`, else 1.

Triton's own readiness would say 200 although the pipeline's process is dead.

    python healthcheck.py [PORT]
"""

from __future__ import annotations

import sys

from runtime.health import HealthStatus, Probe

PORT = 8000
TIMEOUT_S = 10.0
"""For detection and for matting each; the compose file gives the whole check more than twice as long."""


def healthy(probe: Probe, timeout_s: float = TIMEOUT_S) -> tuple[bool, str]:
    """Whether the server does its work, and what it said where it does not.

    A full queue is health, and so is a canary that waits behind pictures that are being finished.
    """
    before = probe.finished()
    answer = probe.canary(timeout_s)
    if answer.status is HealthStatus.TIMEOUT and before is not None:
        after = probe.finished()
        return after is not None and after > before, answer.message
    return answer.status in (HealthStatus.HEALTHY, HealthStatus.OVERLOADED), answer.message


def main(arguments: list[str]) -> int:
    well, message = healthy(Probe("127.0.0.1", int(arguments[0]) if arguments else PORT))
    if message:
        print(message)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
