"""Starts the Triton of one server and waits until a picture went through; loads a single model anew."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from runtime.checks import RuntimeProblem, free_shm_bytes
from runtime.compose import PIPELINE, Composed
from runtime.health import HealthStatus, Probe
from runtime.process import (
    EXIT_TIMEOUT_S,
    KILL_MARGIN_S,
    SHM_START_BYTES,
    Addresses,
    Sockets,
    TritonProcess,
    triton_arguments,
)
from runtime.procfs import Stub, children, is_gone
from runtime.runs import Run

POLL_INTERVAL_S = 0.25
"""Poll interval of the process checks: a dead process is noticed within this time."""
START_POLL_S = 0.05
START_PROGRESS_INTERVAL_S = 10.0
"""Interval of the progress lines of a slow start."""
STOP_AFTER_S = 10.0
"""When a stop is requested, a model that is being loaded has this long: others are still served."""
FIRST_PICTURE_TIMEOUT_S = 120.0
"""For detection and for matting each; at least four times the processing timeout."""


class StartCancelled(Exception):
    """A stop was requested during the start."""


@dataclass(frozen=True)
class Program:
    """A tritonserver, and how it is started.

    Attributes:
        path: the program.
        arguments: beside those of :func:`runtime.process.triton_arguments`.
        environment: all of its variables.
        exit_timeout_s: grace period of requests in flight when it stops.
        verbose: its own log level, 0 to 4.
        traces_url: where spans go, "" for none.
    """

    path: Path
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    exit_timeout_s: int = EXIT_TIMEOUT_S
    verbose: int = 0
    traces_url: str = ""


class Launcher:
    """One server's Triton, as often as it is started.

    Args:
        program: what to start.
        run: its folder.
        composed: the repository in it.
        listen: where it listens.
        processing_timeout_s: of one picture.
        start_timeout_s: how long loading may take.
        stopping: set when the server is to stop.
        say: callback for each line for the user.

    Attributes:
        stubs: its model processes, as they ought to be.
        retired: former ones, which end when they have completed what they work on.
    """

    def __init__(
        self,
        program: Program,
        run: Run,
        composed: Composed,
        listen: Addresses | Sockets,
        *,
        processing_timeout_s: float,
        start_timeout_s: float,
        stopping: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        self.run, self.composed, self.listen = run, composed, listen
        self.stubs: list[Stub] = []
        self.retired: list[Stub] = []
        self._process: TritonProcess | None = None
        self._program, self._timeout_s, self._start_timeout_s = program, processing_timeout_s, start_timeout_s
        self._stopping, self._say = stopping, say

    @property
    def process(self) -> TritonProcess:
        assert self._process is not None, "Triton was not started"
        return self._process

    @property
    def probe(self) -> Probe:
        """Sends health checks straight to Triton."""
        return Probe(self.listen.targets[0], self.composed.instances)

    @property
    def log(self) -> str:
        return short(self.run.log)

    def launch(self) -> None:
        """Start Triton and wait for its first canary.

        Raises:
            RuntimeProblem: it does not start; nothing of it is left.
            StartCancelled: a stop was requested meanwhile.
        """
        program = self._program
        self.listen.clear()
        arguments = triton_arguments(
            self.run,
            self.listen,
            verbose=program.verbose,
            exit_timeout_s=program.exit_timeout_s,
            traces_url=program.traces_url,
        )
        process = self._process = TritonProcess(
            [str(program.path), *arguments, *program.arguments],
            # Whether the parameter `caller` is the gate's (model_repository/ensemble_pipeline/1/serving.py).
            {**program.environment, "CUTAWAY_GATE": "1" if self.listen.private else "0"},
            self.run,
            grace_s=program.exit_timeout_s + KILL_MARGIN_S,
            local=self.listen.targets[0].startswith(("unix:", "127.")),
        )
        try:
            self._wait_ready(process)
        except BaseException:
            process.stop(force=True)
            raise

    def stop(self) -> None:
        """Let Triton complete requests in flight and end."""
        if self._process is not None:
            self._process.stop()

    def force_stop(self) -> None:
        """Turn a `stop` that runs in another thread into a forced one."""
        if self._process is not None:
            self._process.ask_to_end()

    def _wait_ready(self, process: TritonProcess) -> None:
        begun = time.monotonic()
        progress_at = begun + START_PROGRESS_INTERVAL_S
        probe = self.probe
        while not probe.ready():
            now = time.monotonic()
            if self._stopping.is_set():
                raise StartCancelled
            if process.exit_status() is not None:
                # This Triton may also end with a signal when a model cannot be loaded.
                said = process.last_error()
                reason = said if said.startswith("failed to load") else process.end_reason()
                raise RuntimeProblem(f"Triton ended while starting ({reason}); see {self.log}")
            if now - begun > self._start_timeout_s:
                raise RuntimeProblem(
                    f"Triton did not load the models within {self._start_timeout_s:g} s; see {self.log}"
                )
            if now > progress_at:
                if process.has_dead_stub():
                    raise RuntimeProblem(
                        f"a model's process ended while starting: {process.last_error()}; see {self.log}"
                    )
                self._say(f"still loading the models ({now - begun:.0f} s)")
                progress_at = now + START_PROGRESS_INTERVAL_S
            self._stopping.wait(START_POLL_S)
        self.stubs, self.retired = process.stubs(), []
        if len(self.stubs) < self.composed.processes:
            raise RuntimeProblem(f"a model's process ended while starting; see {self.log}")
        loaded = time.monotonic()
        answer = probe.canary(max(FIRST_PICTURE_TIMEOUT_S, 4 * self._timeout_s))
        if answer.status not in (HealthStatus.HEALTHY, HealthStatus.OVERLOADED):
            raise RuntimeProblem(f"the first picture failed: {answer.message}; see {self.log}")
        if (took_s := time.monotonic() - loaded) > self._timeout_s / 2:
            self._say(
                f"warning: a small picture took {took_s:.0f} s, the timeout is {self._timeout_s:g} s; raise it with "
                "--processing-timeout SECONDS, and clients' timeouts with it"
            )

    def can_reload(self, model: str) -> bool:
        """Whether a single model can be loaded anew.

        Only on sockets of its own, since strangers must not do it. When no process of the pipeline is left, pictures
        that wait for one would be told of it one by one, a second each: a restart tells all at once. And the new
        processes need space in /dev/shm beside the old ones: Triton ends where there is none.
        """
        living = [stub for stub in self.stubs if stub.model == model and not is_gone(stub)]
        has_room = free_shm_bytes() > 2 * SHM_START_BYTES * self.composed.instances[model]
        return self.listen.private and has_room and (model != PIPELINE or bool(living))

    def reload(self, model: str) -> None:
        """Load one model anew; its old processes, where they live, complete what they work on, and end.

        Raises:
            RuntimeProblem: it could not be loaded.
        """
        before, begun = children(self.process.pid), time.monotonic()
        # Triton loads what has changed. Anything in the model's folder counts.
        with contextlib.suppress(OSError):
            os.utime(self.run.repository / model / "1" / "model.py")
        with ThreadPoolExecutor(1, thread_name_prefix="reload") as pool:
            path = f"/v2/repository/models/{model}/load"
            asked = pool.submit(self.probe.ask, "POST", path, self._start_timeout_s, b"{}")
            while not wait((asked,), POLL_INTERVAL_S).done:
                ended = {pid for pid, state in children(self.process.pid).items() if state == "Z"} - before.keys()
                # Triton waits for ever for one that ends before its model is loaded.
                late = self._stopping.is_set() and time.monotonic() - begun > STOP_AFTER_S
                if (ended or late) and self.process.exit_status() is None:
                    self.process.stop(force=True)
            try:
                status, body = asked.result()
            except (OSError, http.client.HTTPException) as error:
                raise RuntimeProblem(f"{model} could not be loaded anew: {self._why(error)}") from None
        if status != 200:
            raise RuntimeProblem(f"{model} could not be loaded anew: {body.decode(errors='replace')}")
        fresh = [stub for stub in self.process.stubs() if stub.model == model and stub.pid not in before]
        if len(fresh) < self.composed.instances[model]:
            raise RuntimeProblem(f"{model} could not be loaded anew: a process of it ended; see {self.log}")
        self.retired += [stub for stub in self.stubs if stub.model == model]
        self.stubs = [stub for stub in self.stubs if stub.model != model] + fresh

    def _why(self, error: Exception) -> str:
        if self._stopping.wait(POLL_INTERVAL_S) or self.process.exit_status() is None:
            return repr(error)
        return f"Triton ended ({self.process.end_reason()})"

    @staticmethod
    def kill(stub: Stub) -> None:
        """End a model process that does not work any more."""
        if not is_gone(stub):
            with contextlib.suppress(ProcessLookupError):
                os.kill(stub.pid, signal.SIGKILL)


def short(path: Path) -> str:
    """The path as seen from the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
