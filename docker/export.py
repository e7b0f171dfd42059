"""What `docker compose run --rm export …` runs: `python -m export` with the packages that build plans.

The name of a profile alone stands for all of it: `export general` fetches the weights, makes the ONNX files, builds the
plans and proves them (`python -m export models general`). Weights, which are not served, go to the cache. Anything else
goes to `python -m export` as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cutaway.limits import PROFILES

PACKAGES = "/opt/plan-packages"
"""Where docker/Dockerfile.gpu puts them. They are not on the path of the server."""
CACHE = "/var/cache/cutaway"
"""A volume of docker-compose.yml."""
KEPT = ("--weights", f"{CACHE}/weights", "--lock", f"{CACHE}/weights.lock.json")


def arguments(given: Sequence[str]) -> list[str]:
    """What `python -m export` is given; its help where nothing was asked for."""
    if not given:
        return ["--help"]
    return ["models", given[0], *KEPT, *given[1:]] if given[0] in PROFILES else list(given)


def main() -> None:
    path = os.pathsep.join(part for part in (PACKAGES, os.environ.get("PYTHONPATH")) if part)
    command = [sys.executable, "-m", "export", *arguments(sys.argv[1:])]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
