"""Releases of Triton, and those that NVIDIA's security bulletins find too old."""

from __future__ import annotations

import os

BUNDLED = "24.10"
"""What `nvidia-pytriton` 0.7.0, the newest on the package index, holds."""

SAFE_FROM = "26.07"
"""NVIDIA's bulletins of 2026: authentication can be bypassed before 26.03 (CVE-2026-24206 and -24207, 9.8 of 10), and
critical and high findings are fixed in 26.06 and 26.07."""

RELEASE_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"
"""Set in NVIDIA's images."""


def release_here() -> str:
    """The release of Triton that serves here: of NVIDIA's image, else the bundled one."""
    return os.environ.get(RELEASE_VARIABLE) or BUNDLED


def release_warning(release: str) -> str | None:
    """Why a release should not be reached by strangers; None where it may.

    >>> release_warning("26.08")
    """
    numbers = tuple(int(part) for part in release.split(".")[:2] if part.isdecimal())
    if len(numbers) == 2 and numbers >= tuple(map(int, SAFE_FROM.split("."))):
        return None
    return (
        f"Triton {release} is older than NVIDIA's security bulletins ask for ({SAFE_FROM}: CVE-2026-24206, "
        "CVE-2026-24207 and later ones): serve it on loopback and behind the gate alone (docs/reliability.md)"
    )
