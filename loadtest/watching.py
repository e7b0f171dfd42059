"""What the server does meanwhile: its metrics, and its processes where they run on this machine."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import socket
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.checks import SHM
from runtime.procfs import stubs_of, triton_behind

METRICS_TIMEOUT_S = 2.0
_LINE = re.compile(r'^nv_inference_(\w+)\{model="([^"]+)",version="[^"]*"\} ([0-9.e+]+)$', re.MULTILINE)
COUNTERS = (
    "request_success",
    "count",
    "exec_count",
    "queue_duration_us",
    "compute_infer_duration_us",
    "pending_request_count",
)
"""Those of Triton's `nv_inference_…` that are kept."""
_RSS = re.compile(r"^Rss(Anon|File|Shmem):\s+(\d+) kB$", re.MULTILINE)
_SHM_PREFIX = re.compile(r"shm-region-prefix-name=([^\0]+)")
TRITON_SHM_PREFIX = "triton_python_backend_shm_region_"
TRITON = "triton"
"""How Triton's own process is called among the server's."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Processes:
    """The server's processes together: CPU seconds since they were started, threads, open files, memory (2^20 bytes).

    Attributes:
        rss_mb: what they share counts in each of them.
        shm_mb: what the model processes and Triton share in /dev/shm.
        parts_mb: the memory of each that is its own, by name and process id: without what lies in /dev/shm, which
            counts for a process from when it first looks at a page that has long been there.
    """

    cpu_s: float
    rss_mb: float
    threads: int
    fds: int
    shm_mb: float
    parts_mb: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One look (Unix time): Triton's counters by model (`COUNTERS`), and the processes of a server on this machine."""

    at_s: float
    models: dict[str, dict[str, float]] = field(default_factory=dict)
    processes: Processes | None = None


def look(metrics_url: str, pid: int | None) -> Sample:
    """What there is to see now: "" for no metrics, None for a server elsewhere."""
    models: dict[str, dict[str, float]] = {}
    if metrics_url:
        # A server under load may be slow to answer; the next look will do.
        with contextlib.suppress(OSError), urllib.request.urlopen(metrics_url, timeout=METRICS_TIMEOUT_S) as answer:
            models = parse_metrics(answer.read().decode())
    return Sample(time.time(), models, None if pid is None else processes_of(pid))


def parse_metrics(text: str) -> dict[str, dict[str, float]]:
    """Triton's counters by model."""
    models: dict[str, dict[str, float]] = {}
    for name, model, value in _LINE.findall(text):
        if name in COUNTERS:
            models.setdefault(model, {})[name] = float(value)
    return models


def processes_of(triton: int) -> Processes | None:
    """The tritonserver with this id and its model processes; None when it is gone."""
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    ticks = threads = fds = rss_kb = 0
    parts_mb: dict[str, float] = {}
    try:
        for pid, name in ((triton, TRITON), *((stub.pid, stub.model) for stub in stubs_of(triton))):
            folder = Path("/proc", str(pid))
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            threads += int(fields[17])
            taken_kb = {kind: int(kb) for kind, kb in _RSS.findall((folder / "status").read_text())}
            rss_kb += sum(taken_kb.values())
            parts_mb[f"{name} {pid}"] = (taken_kb["Anon"] + taken_kb["File"]) / 1024
            fds += len(list((folder / "fd").iterdir()))
        shm_mb = shm_bytes(triton) / 2**20
    except (OSError, KeyError):  # one that is just ending has no memory any more
        return None
    return Processes(ticks / ticks_per_s, rss_kb / 1024, threads, fds, shm_mb, parts_mb)


def shm_bytes(triton: int) -> int:
    """What the regions of the Python backend take in /dev/shm, of the tritonserver with this id."""
    command = Path("/proc", str(triton), "cmdline").read_bytes().decode(errors="replace")
    named = _SHM_PREFIX.search(command)
    total = 0
    for region in SHM.glob(f"{named[1] if named else TRITON_SHM_PREFIX}*"):
        with contextlib.suppress(OSError):
            total += region.stat().st_blocks * 512
    return total


def pid_at(address: str) -> int | None:
    """The process on this machine that listens at host:port, where it can be seen; None for one elsewhere."""
    psutil: Any = importlib.import_module("psutil")  # comes with Locust
    host, _, port = address.rpartition(":")
    if host not in LOOPBACK:
        return None
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port):
                    return triton_behind(int(process.pid))
    return None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
