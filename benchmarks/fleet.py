"""Replicas and a balancer on this machine: servers of their own, HAProxy with the project's file, a Redis."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from loadtest.watching import free_port
from runtime.checks import SHM, RuntimeProblem
from runtime.procfs import all_stats

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
START_S, END_S = 300.0, 60.0
SERVER = re.compile(r"server replica(\d) replica\d:(\d+)")
BACKENDS = 5
UP = re.compile(r'^haproxy_server_status\{proxy="\w+",server="replica\d",state="UP"\} 1$', re.MULTILINE)
PORTS = {"8000": "http", "8001": "grpc", "55433": "service"}
OPTIONS = (
    *("--drain-notice-s=4", "--max-requests-per-caller=512", "--trusted-proxies=127.0.0.1"),
    *("--free-per-minute=100000", "--free-per-second=10000", "--job-timeout-s=80", "--job-reclaim-s=85"),
)


class Replica:
    """A server of its own, gate and HTTP service included."""

    process: subprocess.Popen[bytes]

    def __init__(self, folder: Path, number: int, options: Sequence[str] = ()) -> None:
        self.ports = {name: free_port() for name in ("http", "grpc", "metrics", "service")}
        self._log, self._cache = (folder / f"replica{number}.{end}" for end in ("log", "cache"))
        self._options = options

    def start(self) -> None:
        ports = [f"--{name}-port={port}" for name, port in self.ports.items()]
        size = ("--instances=1", "--threads=1", "--queue-size=32", "--processing-timeout=60")
        command = [sys.executable, "-m", "runtime", "serve", *ports, f"--cache-dir={self._cache}", *size]
        command += ["--", *OPTIONS, *self._options]
        variables = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"}
        with self._log.open("a") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        """RuntimeProblem where it ends, or is not ready in time."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.ports['http']}/v2/health/ready").status_code == 200:
                    return
            time.sleep(0.2)
        raise RuntimeProblem(f"the replica is not ready: {self._log.read_text()[-2000:]}")

    def tree(self) -> list[int]:
        """It and all processes that it has started."""
        children: dict[int, list[int]] = {}
        for each in all_stats():
            children.setdefault(each.parent, []).append(each.pid)
        found = [self.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def gate(self) -> int:
        """The gate's process; its keeper's command line is another."""
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:3] for pid in self.tree()}
        return next(pid for pid, said in words.items() if said == [b"-m", b"gateway"])

    def send(self, number: int) -> None:
        """A signal to all processes, parents first: nobody restarts what ends."""
        for pid in self.tree():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        self.send(signal.SIGSTOP)  # as one: a supervisor would start what ends before it
        self.send(signal.SIGKILL)
        self.process.wait(END_S)
        for run in self._cache.glob("servers/*"):
            for region in SHM.glob(f"cutaway-{run.name}-*"):
                region.unlink(missing_ok=True)

    def end(self) -> None:
        """SIGTERM, as a roll does it."""
        self.process.terminate()
        self.process.wait(2 * END_S)


class Balancer:
    """HAProxy with the project's file before some replicas; `checks` off keeps a dead one in rotation."""

    def __init__(self, folder: Path, replicas: Sequence[Replica], *, checks: bool = True) -> None:
        self.ports = {port: free_port() for port in ("8000", "8001", "55433", "8404")}
        self.file = folder / f"haproxy-{self.ports['8000']}.cfg"
        lines = []
        for line in CONFIGURATION.read_text().splitlines():
            line = re.sub(r"bind :(\d+)", lambda found: f"bind 127.0.0.1:{self.ports[found[1]]}", line)
            line = line if checks else re.sub(r"^ +default-server .*| check port .*", "", line)
            if found := SERVER.search(line):
                if int(found[1]) > len(replicas):
                    continue
                ports = replicas[int(found[1]) - 1].ports
                line = line.replace(found[0], f"server replica{found[1]} 127.0.0.1:{ports[PORTS[found[2]]]}")
                line = line.replace("port 8000", f"port {ports['http']}")
            lines.append(line)
        self.file.write_text("\n".join(lines) + "\n")

    @property
    def urls(self) -> dict[str, str]:
        ports = self.ports
        return {"grpc": f"grpc://127.0.0.1:{ports['8001']}", "http": f"http://127.0.0.1:{ports['8000']}"}

    def up(self) -> int:
        """So many replicas are in rotation, with all their ports."""
        return len(UP.findall(httpx.get(f"http://127.0.0.1:{self.ports['8404']}/metrics").text)) // BACKENDS

    def wait_up(self, count: int) -> None:
        """Until so many replicas are in rotation."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self.up() >= count:
                return
            time.sleep(0.2)
        raise RuntimeProblem(f"HAProxy has fewer than {count} servers: {self.file.with_suffix('.log').read_text()}")

    @property
    def service(self) -> str:
        return f"http://127.0.0.1:{self.ports['55433']}"

    def __enter__(self) -> Balancer:
        with self.file.with_suffix(".log").open("w") as log:
            self._process = subprocess.Popen([haproxy(), "-db", "-f", self.file], stdout=log, stderr=log)
        time.sleep(1.0)
        if self._process.poll() is not None:
            raise RuntimeProblem(f"HAProxy does not start: {self.file.with_suffix('.log').read_text()}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class Redis:
    """A Redis that keeps what it was told, as jobs need it."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}"
        kept = ("--save", "", "--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder))
        self._command = [program("redis-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1", *kept]

    def __enter__(self) -> Redis:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        time.sleep(1.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def haproxy() -> str:
    return program("haproxy", "haproxy")


def program(name: str, package: str) -> str:
    """RuntimeProblem where it is not installed."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise RuntimeProblem(f"{name} is missing (Debian, Ubuntu: apt install {package})")
    return found
