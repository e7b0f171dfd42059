"""Supervision of a running server: judges outcomes and processes, and restarts the least that can be.

| found | what is started anew |
|---|---|
| a model process that ended, was stopped (SIGSTOP) or hangs in the kernel; one beyond its budget | its model |
| a canary of the streams failed | the streams' models |
| a canary of the pictures failed, Triton or all pipelines ended, a model cannot be loaded | Triton |
| the gate ended or does not answer | the gate |

It is never given up: after each failure within `WINDOW_S` the next attempt waits longer, up to the last of `BACKOFF_S`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from runtime.budgets import Budgets
from runtime.checks import RuntimeProblem
from runtime.compose import STREAM
from runtime.gate import Gate
from runtime.health import STREAMS, Failure, HealthMonitor
from runtime.launcher import POLL_INTERVAL_S, Launcher, StartCancelled
from runtime.metrics import GATE, TRITON, Metrics
from runtime.procfs import Stub, end_of, stat, state_of
from runtime.weights import FREE_DETECTOR

BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Backoff before the first, second, … restart of the same part within the window; the last one is kept."""
WINDOW_S = 60.0
STOPPED_S = 0.5
"""A process in state T for this long was stopped, and does not go on by itself."""
BLOCKED_S = 20.0
"""A process in state D for this long hangs in the kernel: a disk or a driver does not answer."""
KEEPER_S = 15.0
"""How long a keeper may take to end what its program has left."""
STREAM_MODELS = (STREAM, FREE_DETECTOR)
"""What only streams need. A network is met by the pictures' canaries, too."""


class Backoff:
    """How long to wait before something is started anew, by its name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._starts: dict[str, list[float]] = {}

    def next_s(self, name: str) -> float:
        """Count one more start, and say how long it has to wait."""
        now = self._clock()
        recent = [at for at in self._starts.get(name, []) if now - at < WINDOW_S]
        wait_s = BACKOFF_S[min(len(recent), len(BACKOFF_S) - 1)]
        self._starts[name] = [*recent, now + wait_s]
        return wait_s


class Supervisor:
    """The supervision of one server, in a thread of its own.

    Args:
        launcher: starts Triton and its models.
        gate: the process in front; None where there is none.
        metrics: counts canaries and restarts.
        canary_interval_s: between health checks.
        canary_timeout_s: of one.
        stopping: set when the server is to stop.
        say: callback for each line for the user.

    Attributes:
        restarts: how often Triton was started anew.
        reloads: how often a single model was.
        failure: why the supervision itself ended; None while it goes on.
    """

    def __init__(
        self,
        launcher: Launcher,
        gate: Gate | None,
        metrics: Metrics,
        *,
        canary_interval_s: float,
        canary_timeout_s: float,
        stopping: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        self.restarts = 0
        self.reloads = 0
        self.failure: RuntimeProblem | None = None
        self.ended = threading.Event()
        self._launcher, self._gate, self._metrics = launcher, gate, metrics
        self._interval_s, self._timeout_s = canary_interval_s, canary_timeout_s
        self._stopping, self._say = stopping, say
        self._backoff = Backoff()
        self._due_at: dict[str, float] = {}
        self._retired_since: dict[Stub, float] = {}
        self._stuck_since: dict[tuple[int, str], float] = {}
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait for its end, once `stopping` is set."""
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._stopping.is_set():
                reason = self._until_failure()
                while reason is not None:
                    reason = self._restart(reason)
        except StartCancelled:
            pass
        except Exception as error:  # a supervisor that died silently would leave the server unsupervised
            self.failure = RuntimeProblem(f"the supervision failed: {error!r}; see {self._launcher.log}")
        finally:
            self.ended.set()

    def _until_failure(self) -> str | None:
        """Repair what can be while Triton runs; why Triton has to be restarted, None when a stop was requested."""
        launcher = self._launcher
        budgets = Budgets(launcher.stubs, launcher.run.shm_prefix, launcher.composed.matte_side_px)
        monitor = self._monitor()
        try:
            while not self._stopping.wait(POLL_INTERVAL_S):
                self._look_at_gate()
                if (reason := self._triton_failure()) is not None:
                    return reason
                self._end_retired()
                broken = self._broken_models()
                if broken and self._stopping.wait(POLL_INTERVAL_S):  # it may be Triton's end that ended it
                    return None
                if broken and (reason := self._triton_failure()) is not None:
                    return reason
                if not broken and (over := budgets.over(launcher.stubs)) is not None:
                    broken = {over[0].model: f"the process of {over[0].model} ({over[0].pid}) holds {over[1]}"}
                for model, what in broken.items():
                    if not launcher.can_reload(model):
                        return what
                    self._reload(model, what)
                if broken:  # what was asked before says nothing about what runs now
                    monitor.close()
                    monitor = self._monitor()
                failure = monitor.check()
                if failure is not None and (failure.part != STREAMS or not launcher.listen.private):
                    return f"the server is unhealthy ({failure.part}: {failure.reason})"
                if failure is not None:
                    self._reload_streams(failure)
                    monitor.close()
                    monitor = self._monitor()
        except RuntimeProblem as problem:
            return str(problem)
        finally:
            monitor.close()
        return None

    def _monitor(self) -> HealthMonitor:
        count = self._metrics.count_round
        return HealthMonitor(self._launcher.probe, interval_s=self._interval_s, timeout_s=self._timeout_s, seen=count)

    def _triton_failure(self) -> str | None:
        process = self._launcher.process
        found = stat(process.pid)
        gone = found is None or found.state in "ZX"
        if process.exit_status() is None and gone:  # the keeper ends what Triton has left, and tells then
            process.wait_ended(KEEPER_S)
        if gone or process.exit_status() is not None:
            return f"Triton ended by itself ({process.end_reason()})"
        if found is not None and (stuck := self._stuck(found.pid, found.state)):
            return f"Triton {stuck}"
        return None

    def _broken_models(self) -> dict[str, str]:
        """Models with a process that does not work any more, and what is wrong with it. Stopped ones are killed."""
        found: dict[str, str] = {}
        for stub in self._launcher.stubs:
            state = state_of(stub)
            what = end_of(stub) if state in "ZX" else self._stuck(stub.pid, state)
            if what is not None:
                found[stub.model] = f"the process of {stub.model} ({stub.pid}) {what}"
                self._launcher.kill(stub)
        return found

    def _end_retired(self) -> None:
        """Kill former model processes that do not end: Triton would wait for them, and end itself after two minutes."""
        launcher, now = self._launcher, time.monotonic()
        for stub in list(launcher.retired):
            state = state_of(stub)
            since = self._retired_since.setdefault(stub, now)
            if state in "ZX":
                launcher.retired.remove(stub)
                del self._retired_since[stub]
            elif self._stuck(stub.pid, state) or now - since > self._timeout_s:
                launcher.kill(stub)

    def _stuck(self, pid: int, state: str) -> str | None:
        """What keeps a process from working, where it has been so for long enough."""
        now = time.monotonic()
        for other in "TD":
            if state != other:
                self._stuck_since.pop((pid, other), None)
        since = self._stuck_since.setdefault((pid, state), now) if state in "TD" else now
        if state == "T" and now - since >= STOPPED_S:
            return "was stopped (SIGSTOP)"
        if state == "D" and now - since >= BLOCKED_S:
            return f"has hung in the kernel for {now - since:.0f} s"
        return None

    def _reload(self, model: str, reason: str) -> None:
        """Load a model anew when it is due.

        Raises:
            RuntimeProblem: it could not be loaded, and pictures need it.
        """
        if not self._is_due(model, f"{reason}; loading {model} anew"):
            return
        begun = time.monotonic()
        try:
            self._launcher.reload(model)
        except RuntimeProblem as problem:
            if model not in STREAM_MODELS:
                raise
            self._say(f"{problem}; cutting goes on without streams")
            return
        self.reloads += 1
        self._say(f"{model} is back after {time.monotonic() - begun:.1f} s")

    def _reload_streams(self, failure: Failure) -> None:
        """Load what only streams need; cutting goes on meanwhile, and whatever comes of it."""
        launcher = self._launcher
        for model in STREAM_MODELS:
            if model in launcher.composed.instances:
                for stub in launcher.stubs:
                    if stub.model == model:
                        launcher.kill(stub)
                self._reload(model, f"streams are unhealthy ({failure.reason})")

    def _restart(self, reason: str) -> str | None:
        """Restart Triton. Why that failed; None where the server is ready again."""
        # Requests in flight are lost with the dead process or will be retried; a quick restart helps callers more.
        self._launcher.process.stop(force=True)
        while not self._is_due(TRITON, f"{reason}; restarting the server"):
            if self._stopping.wait(POLL_INTERVAL_S):
                raise StartCancelled
        begun = time.monotonic()
        try:
            self._launcher.launch()
        except RuntimeProblem as problem:
            return f"the restart failed: {problem}"
        self.restarts += 1
        self._say(f"ready again after {time.monotonic() - begun:.1f} s")
        return None

    def _look_at_gate(self) -> None:
        if self._gate is None or (reason := self._gate.failure()) is None:
            return
        self._gate.kill()
        if not self._is_due(GATE, f"{reason}; restarting it"):
            return
        begun = time.monotonic()
        try:
            self._gate.launch()
        except RuntimeProblem as problem:
            self._say(f"the gate's restart failed: {problem}")
        else:
            self._say(f"the gate is back after {time.monotonic() - begun:.1f} s")

    def _is_due(self, name: str, line: str) -> bool:
        """Whether something may be started anew now, which is counted; `line` is said when that is first asked for."""
        now = time.monotonic()
        if name not in self._due_at:
            wait_s = self._backoff.next_s(name)
            self._due_at[name] = now + wait_s
            self._say(line + (f" in {wait_s:g} s" if wait_s else ""))
        if now < self._due_at[name]:
            return False
        del self._due_at[name]
        self._metrics.count_restart(name)
        return True
