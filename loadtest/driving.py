"""Runs Locust's processes for one phase, watches the server meanwhile, and says how it goes."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loadtest import records
from loadtest.records import Record
from loadtest.scenarios import Loop
from loadtest.watching import Sample, Watcher, free_port
from runtime.checks import RuntimeProblem

ROOT = Path(__file__).resolve().parents[1]
LOCUSTFILE = Path(__file__).resolve().parent / "locustfile.py"
LOOK_S = 1.0
PROGRESS_S = 5.0
DRAIN_S = 90
"""How long requests under way may take to end when the time is up."""


@dataclass(frozen=True)
class Target:
    """A server.

    Attributes:
        grpc, http: host:port; one of them may be "".
        metrics_url: "" where there are none.
        pid: of its tritonserver, where that runs on this machine.
    """

    grpc: str
    http: str
    metrics_url: str
    pid: int | None

    @property
    def users(self) -> list[str]:
        """The names of the classes of users in the locustfile."""
        return [name for name, address in (("GrpcUser", self.grpc), ("HttpUser", self.http)) if address]


@dataclass(frozen=True)
class Phase:
    """One stretch of a run.

    Attributes:
        name: for the report.
        scenario: of the table.
        loop: see `scenarios.Scenario`.
        users: of a closed loop.
        rate: requests per second of an open loop, on average.
        seconds: how long requests are sent; 0 where somebody else decided.
        ramp: users, or the rate, grow over that time.
        requests: it ends after so many; 0 does not count.
    """

    name: str
    scenario: str
    loop: Loop
    users: int
    rate: float
    seconds: float
    ramp: bool = False
    requests: int = 0


@dataclass(frozen=True)
class Sending:
    """How requests are sent, in all phases alike.

    Attributes:
        megapixels, people: see `scenarios.Sizes`; "" and 0 leave them to the scenario.
        timeout_s: for each request.
        max_in_flight: of an open loop.
        workers: processes on this machine that send; 0 for one that does it all.
        remote_workers: processes on other machines that are waited for.
        bind: where this machine listens for workers, as host or host:port.
        seed: of order and times.
        web_port: of Locust's page; None for none.
    """

    megapixels: str = ""
    people: int = 0
    timeout_s: float = 60.0
    max_in_flight: int = 500
    workers: int = 0
    remote_workers: int = 0
    bind: str = "127.0.0.1"
    seed: int = 1
    web_port: int | None = None


@dataclass(frozen=True)
class Seen:
    """What came of a phase."""

    phase: Phase
    records: list[Record]
    samples: list[Sample]


def drive(phase: Phase, sending: Sending, target: Target, folder: Path, say: Callable[[str], None]) -> Seen:
    """Run a phase to its end. The log and the samples are in the folder, with what Locust said.

    Raises:
        RuntimeProblem: when Locust's processes end without having sent anything.
    """
    log = folder / f"{phase.name}.requests.jsonl"
    # Its writers add to it, and an earlier run may have had this folder.
    log.unlink(missing_ok=True)
    watcher = Watcher(target.metrics_url, target.pid)
    samples = [watcher.look()]
    begun_s = time.time()
    said = folder / f"{phase.name}.locust.log"
    with said.open("w") as output, contextlib.ExitStack() as stack:
        main, *workers = _start(phase, sending, target, log, output)
        for process in (main, *workers):
            stack.callback(_end, process)
        looks, whole = _follow(phase, main, log, watcher, folder, say)
        samples += looks
    found = records.read(log)
    if not found:
        lines = said.read_text().strip().splitlines()
        raise RuntimeProblem(f"Locust sent nothing: {lines[-1] if lines else 'it said nothing'}; see {said}")
    if sending.web_port is not None:
        phase = replace(phase, seconds=0.0)  # as long as whoever was at the page wanted
    elif not whole:
        phase = replace(phase, seconds=min(phase.seconds, time.time() - begun_s))
    return Seen(phase, found, samples)


def _start(phase: Phase, sending: Sending, target: Target, log: Path, output: object) -> list[subprocess.Popen[bytes]]:
    """The process that counts, and the workers on this machine."""
    host, _, port = sending.bind.partition(":")
    port = port or str(free_port() if not sending.remote_workers else 5557)
    all_workers = sending.workers + sending.remote_workers
    commands = [_command(phase, sending, target, log, all_workers, host, port)]
    worker = [*_locust(), *target.users, "--worker", "--master-host=127.0.0.1", f"--master-port={port}"]
    commands += [worker] * sending.workers
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    # A group of its own, so that Ctrl-C reaches this process alone, which then ends them in order.
    return [
        subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)  # type: ignore[call-overload]
        for command in commands
    ]


def _locust() -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--loglevel=WARNING", f"--stop-timeout={DRAIN_S}"]


def _command(
    phase: Phase, sending: Sending, target: Target, log: Path, workers: int, host: str, port: str
) -> list[str]:
    # Each user of an open loop is a stream of arrivals; streams of Poisson arrivals add up to one.
    users = phase.users if phase.loop == "closed" else max(1, workers) * len(target.users)
    spawn_rate = users / (0.9 * phase.seconds) if phase.ramp and phase.loop == "closed" else users
    options = [
        *target.users,
        f"--grpc={target.grpc}",
        f"--http={target.http}",
        f"--scenario={phase.scenario}",
        f"--loop={phase.loop}",
        f"--rate={phase.rate / users}",
        f"--grow-s={phase.seconds if phase.ramp else 0}",
        f"--max-in-flight={sending.max_in_flight}",
        f"--megapixels={sending.megapixels}",
        f"--people={sending.people}",
        f"--timeout-s={sending.timeout_s}",
        f"--requests={phase.requests}",
        f"--seed={sending.seed}",
        f"--log={log}",
        f"--users={users}",
        f"--spawn-rate={spawn_rate}",
        "--exit-code-on-error=0",
    ]
    if sending.web_port is not None:
        options += [f"--web-port={sending.web_port}", "--web-host=127.0.0.1", "--autostart"]
        options += [f"--run-time={round(phase.seconds)}s"]
    elif phase.ramp and phase.loop == "closed":
        options += ["--headless", "--only-summary", f"--run-time={round(phase.seconds)}s"]
    else:
        options += ["--headless", "--only-summary", f"--seconds={0 if phase.requests else phase.seconds}"]
    if workers:
        options += ["--master", f"--expect-workers={workers}", f"--master-bind-port={port}"]
        options += [f"--master-bind-host={host}", "--expect-workers-max-wait=120"]
    return [*_locust(), *options]


def _follow(
    phase: Phase,
    main: subprocess.Popen[bytes],
    log: Path,
    watcher: Watcher,
    folder: Path,
    say: Callable[[str], None],
) -> tuple[list[Sample], bool]:
    """Watch until Locust ends, or Ctrl-C asks for it. Whether it ended by itself comes second."""
    tail = records.Tail(log)
    progress = Progress(phase)
    samples: list[Sample] = []
    news_at = time.monotonic() + PROGRESS_S
    with (folder / f"{phase.name}.samples.jsonl").open("w") as kept:
        try:
            while main.poll() is None:
                time.sleep(LOOK_S)
                sample = watcher.look()
                samples.append(sample)
                kept.write(sample.to_json() + "\n")
                progress.add(tail.more(), sample)
                if time.monotonic() >= news_at:
                    say(progress.line())
                    news_at += PROGRESS_S
        except KeyboardInterrupt:
            say("ending: requests under way are waited for (once more to stop at once)")
            main.send_signal(signal.SIGTERM)
            main.wait()
            return samples, False
    return samples, True


def _end(process: subprocess.Popen[bytes]) -> None:
    """See to it that a process is gone."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
        return
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Progress:
    """One line about how it goes, of the last few seconds."""

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self._begun_s = time.time()
        self._codes: collections.Counter[str] = collections.Counter()
        self._wrong = 0
        self._new: list[Record] = []
        self._new_since_s = self._begun_s
        self._samples: list[Sample] = []

    def add(self, found: Sequence[Record], sample: Sample) -> None:
        self._codes.update(record.code for record in found)
        self._wrong += sum(not record.expected for record in found)
        self._new += found
        self._samples.append(sample)

    def line(self) -> str:
        now = time.time()
        served = [record.latency_ms for record in self._new if record.served]
        total = sum(self._codes.values())
        goal = f" of {self._phase.requests}" if self._phase.requests else ""
        parts = [
            f"{self._phase.name}: {now - self._begun_s:.0f} s",
            f"{total}{goal} answers",
            f"{len(served) / (now - self._new_since_s):.1f} pictures/s",
        ]
        if served:
            parts.append(f"median {statistics.median(served):.0f} ms, slowest {max(served):.0f} ms")
        refused = [f"{code} {count}" for code, count in sorted(self._codes.items()) if code]
        if refused:
            parts.append(", ".join(refused))
        if self._wrong:
            parts.append(f"{self._wrong} WRONG ANSWERS")
        parts += self._server()
        self._new, self._new_since_s, self._samples = [], now, self._samples[-1:]
        return " | ".join(parts)

    def _server(self) -> list[str]:
        looks = [(sample.at_s, sample.processes) for sample in self._samples if sample.processes is not None]
        if len(looks) < 2:
            return []
        (first_s, first), (last_s, last) = looks[0], looks[-1]
        return [f"server {(last.cpu_s - first.cpu_s) / (last_s - first_s):.0%} CPU, {last.rss_mb:.0f} MB"]
