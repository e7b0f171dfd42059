"""What a benchmark says of the machine that it ran on, and where it says what it found."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from runtime.checks import TRITON_VERSION, RuntimeProblem
from runtime.devices import cores
from runtime.weights import WHOLE_MATTING, profile_folder

BUSY_LOAD = 0.5


def machine(load: float) -> dict[str, Any]:
    """JSON values; `load` is that of the minute before the run."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "load_before": round(load, 2),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed: in a container Cutaway itself lies there as files."""
    found = {"python": platform.python_version(), "triton": TRITON_VERSION}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def head(packages: Sequence[str], load: float) -> dict[str, Any]:
    """What every report begins with: date, machine, versions; JSON values."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, "machine": machine(load), "versions": versions(packages)}


@contextmanager
def people_only(profile: str) -> Iterator[Path]:
    """A profile's weights without its network for whole pictures: a server that has one looks for people whatever is
    asked, and no request is left that needs no network."""
    with TemporaryDirectory() as folder:
        for file in profile_folder(profile).iterdir():
            if WHOLE_MATTING not in file.name:
                (Path(folder) / file.name).symlink_to(file)
        yield Path(folder)


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median (10th to 90th percentile)."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def load_before() -> float:
    """The load of the last minute; it is said where it spoils figures."""
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        say(f"warning: the machine is busy already (load {load:.1f}): absolute figures will be too high")
    return load


def sentence(report: dict[str, Any]) -> str:
    """Machine and versions of a report in words."""
    host = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{host['cpu']} ({host['cores']} cores, {host['memory_gib']} GiB; load before the run {host['load_before']}). "
        f"{packages}."
    )


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()  # Triton runs on Linux alone
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def publish(folder: Path, name: str, report: Mapping[str, Any], text: str) -> None:
    """Write a report into a folder, as `name`.json and, for people, `name`.md, and print the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    print(text)


def run(folder: Path, name: str, measure: Callable[[], dict[str, Any]], page: Callable[[dict[str, Any]], str]) -> int:
    """Measure and publish; returns the exit code."""
    try:
        report = measure()
    except RuntimeProblem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    publish(folder, name, report, page(report))
    return 0
