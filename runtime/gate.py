"""The gate in front of Triton (`gateway/`), as a process of the server: started, watched, drained."""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from runtime.checks import RuntimeProblem
from runtime.process import Addresses, Kept, Sockets
from runtime.procfs import stat
from runtime.runs import Run

CHECKOUT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 60.0
KILL_MARGIN_S = 5.0
"""Between the end of the gate's own grace period and its process's."""
LOOK_INTERVAL_S = 10.0
LOOK_TIMEOUT_S = 10.0
LOOKS = 2
"""A gate that does not answer so often in a row hangs."""
STOPPED_S = 0.5


class Gate:
    """One server's gate, as often as it is started.

    Args:
        triton: where Triton listens.
        addresses: where the gate is to listen; 0 takes any free port, which it keeps then.
        run: whose log it writes to.
        request_s: how long a request may take in Triton, its queue included.
        drain_s: grace period of requests in flight when it stops.
        hosts, origins: see `gateway/settings.py`.
        service_port: port of the HTTP service; 0 takes any free one, which it keeps then, -1 leaves it out.
        traces_url: where spans go, "" for none.
        access_log_fd: this process's descriptor of the open file that the access log goes to; the run's log where None.
        more: further options of `python -m gateway`.

    Attributes:
        addresses: where it listens.
        launches: how often it was started.
    """

    def __init__(
        self,
        triton: Addresses | Sockets,
        addresses: Addresses,
        run: Run,
        *,
        request_s: float,
        drain_s: float,
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        service_port: int = -1,
        traces_url: str = "",
        access_log_fd: int | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self.addresses = addresses
        self.service_port = service_port
        self.launches = 0
        self._triton, self._run, self._drain_s = triton, run, drain_s
        self._request_s = request_s
        self._names = [*(f"--hosts={name}" for name in hosts), *(f"--origins={name}" for name in origins)]
        self._names += [f"--traces-url={traces_url}"] if traces_url else []
        self._more, self._access_log_fd = more, access_log_fd
        self._process: Kept | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="gate")
        self._reset()

    def _reset(self) -> None:
        self._look: Future[bool] | None = None
        self._next_at = time.monotonic() + LOOK_INTERVAL_S
        self._silent = 0
        self._stopped_at: float | None = None

    @property
    def pid(self) -> int:
        """The gate's process id; 0 where there is none."""
        return 0 if self._process is None else self._process.pid

    def launch(self) -> None:
        """Start it, and wait until it listens.

        Raises:
            RuntimeProblem: it does not start; nothing of it is left.
        """
        http_target, grpc_target, metrics_target = self._triton.targets
        command = [sys.executable, "-m", "gateway", "--address", self.addresses.host]
        ports = {"http": self.addresses.http, "grpc": self.addresses.grpc, "metrics": self.addresses.metrics}
        for name, port in ports.items():
            command += [f"--{name}-port", str(port)]
        command += ["--triton-http", http_target, "--triton-grpc", grpc_target, "--triton-metrics", metrics_target]
        command += ["--further-metrics", str(self._run.metrics)]
        command += ["--request-timeout-s", str(self._request_s), "--service-port", str(self.service_port)]
        command += ["--drain-timeout-s", str(self._drain_s), *self._names]
        # By another number: the gate's own standard output is where its ports are read.
        descriptors = [] if self._access_log_fd is None else [os.dup(self._access_log_fd)]
        command += [*(f"--access-log-fd={each}" for each in descriptors), *self._more]
        grace_s = self._drain_s + KILL_MARGIN_S
        try:
            process = Kept(
                command, _environment(), self._run, grace_s=grace_s, own_stdout=True, descriptors=descriptors
            )
        finally:
            for each in descriptors:
                os.close(each)
        try:
            where = json.loads(_first_line(process))
        except (TimeoutError, ValueError):
            status = process.stop(force=True)
            raise RuntimeProblem(f"the gate does not start (status {status}: {process.last_error()})") from None
        self._process = process
        self.launches += 1
        self.addresses = Addresses(self.addresses.host, *(_port(where[name]) for name in ports))
        self.service_port = where.get("service", -1)
        self._reset()

    def failure(self) -> str | None:
        """Why the gate has to be restarted; None while it works. Never blocks; to be called often."""
        process, now = self._process, time.monotonic()
        if process is None:
            return "the gate is not there"
        if process.exit_status() is not None:
            return f"the gate ended by itself ({process.end_reason()})"
        found = stat(process.pid)
        if found is None or found.state != "T":
            self._stopped_at = None
        else:
            self._stopped_at = self._stopped_at or now
            if now - self._stopped_at >= STOPPED_S:
                return "the gate was stopped (SIGSTOP)"
        if self._look is None:
            if now >= self._next_at:
                self._look = self._executor.submit(self._answers)
        elif self._look.done():
            self._silent = 0 if self._look.result() else self._silent + 1
            self._look, self._next_at = None, now + (LOOK_INTERVAL_S if not self._silent else 0.0)
        return "the gate does not answer" if self._silent >= LOOKS else None

    def _answers(self) -> bool:
        """Whether it does anything with a connection; refusing one because there are many is an answer, too."""
        try:
            address = self.addresses.reachable, self.addresses.http
            with socket.create_connection(address, timeout=LOOK_TIMEOUT_S) as connection:
                connection.settimeout(LOOK_TIMEOUT_S)
                connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                connection.recv(64)
        except (TimeoutError, ConnectionRefusedError):
            return False
        except OSError:
            pass
        return True

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.stop(force=True)
            self._process = None

    def force_stop(self) -> None:
        """Turn a `stop` that runs in another thread into a forced one."""
        if self._process is not None:
            self._process.ask_to_end()

    def stop(self) -> None:
        """Let it complete requests in flight and end."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        self._executor.shutdown(wait=False, cancel_futures=True)


def _first_line(process: Kept) -> bytes:
    ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
    if not ready:
        raise TimeoutError
    line: bytes = process.stdout.readline()
    return line


def _port(where: object) -> int:
    """The port of "HOST:PORT", a URL or a number."""
    return int(str(where).rstrip("/").rpartition(":")[2])


def _environment() -> dict[str, str]:
    """This process's environment; the gate is found wherever this process was started."""
    folders = [str(CHECKOUT), str(CHECKOUT / "client"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONUNBUFFERED": "1"}
