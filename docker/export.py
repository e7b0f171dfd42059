"""What `docker compose run --rm export …` runs: `python -m export` with the packages that build plans.

The name of a profile alone stands for all of it: `export general` fetches the weights, makes the ONNX files, builds the
plans and proves them (`python -m export models general`). Anything else goes to `python -m export` as it is, but that
weights, which are not served, are kept in the cache: the checkout in the image is read-only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cutaway.contract.limits import PROFILES

PACKAGES = "/opt/plan-packages"
"""Where docker/Dockerfile.gpu puts them. They are not on the path of the server."""
CACHE = "/var/cache/cutaway"
"""A volume of docker-compose.yml."""
KEPT = {
    "models": ("--weights", f"{CACHE}/weights"),
    "onnx": ("--weights", f"{CACHE}/weights"),
    "fetch": ("--output", f"{CACHE}/weights"),
}
"""Default options of each command: where it reads and writes weights."""
CERTIFICATES = "SSL_CERT_FILE"
NETWORK = ("HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", CERTIFICATES)
"""What docker-compose.yml hands on from its own environment, empty where that has none."""


def arguments(given: Sequence[str]) -> list[str]:
    """What `python -m export` is given; its help where nothing was asked for."""
    if not given:
        return ["--help"]
    command, *rest = ["models", *given] if given[0] in PROFILES else given
    # In front, since the last of two counts.
    return [command, *KEPT.get(command, ()), *rest]


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of `python -m export`: with its packages, and without settings that are none.

    An empty `SSL_CERT_FILE`, or one that names a file of the host alone, would leave Python without any certificate,
    and an empty `https_proxy` hides `HTTPS_PROXY`.
    """
    found = {name: value for name, value in given.items() if value or name not in NETWORK}
    file = found.get(CERTIFICATES)
    if file is not None and not Path(file).is_file():
        print(f"warning: {CERTIFICATES}={file} is not in this container; mount it: -v FILE:{file}:ro", file=sys.stderr)
        del found[CERTIFICATES]
    found["PYTHONPATH"] = os.pathsep.join(part for part in (PACKAGES, given.get("PYTHONPATH")) if part)
    return found


def main() -> None:
    command = [sys.executable, "-m", "export", *arguments(sys.argv[1:])]
    os.execve(sys.executable, command, environment(os.environ))  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
