"""What callers lose while one of several replicas behind HAProxy dies, hangs, is replaced, …: `make bench-replicas`.

python -m benchmarks.replicas --replicas 2,3 --cases killed,hung

Callers are the SDK over gRPC and HTTP, a plain client of the HTTP service and Locust's bare KServe clients without
retries, and one who hands in jobs. A right answer is one whose pixels are those of the answer before the fault.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cutaway
import httpx
import numpy as np
from PIL import Image

from benchmarks.fleet import Balancer, Redis, Replica
from benchmarks.machine import head, load_before, run, say, sentence
from loadtest import pictures
from loadtest.figures import figures
from loadtest.running import PACKAGES, Target, drive
from loadtest.scenarios import SCENARIOS
from loadtest.stress.same import MAX_DIFFERENCE

REMOVE, JOBS = "/api/background-removal/remove", "/api/background-removal/remove-async"
LIMIT_S, THINK_S = 90.0, 1.0
WARM_S, REST_S = 5.0, 8.0
"""Load before a fault, and after what it took."""
PICTURES = {0: (0.1, 0), 1: (0.3, 1), 2: (0.1, 2), 3: (4.0, 3)}
"""Megapixels and variant; the last is larger than what the balancer can send again."""
SDK, SERVICE = "SDK", "plain"


@dataclass
class Fleet:
    """Replicas, their Redis, and the folder of their logs and pictures."""

    replicas: list[Replica]
    folder: Path
    balancer: Balancer
    redis: Redis | None = None

    def again(self, replica: Replica | None = None) -> None:
        """Start a replica that has ended, the first by default, and wait until it is in rotation."""
        replica = replica or self.replicas[0]
        replica.start()
        replica.wait_ready()
        self.balancer.wait_up(len(self.replicas))


@dataclass
class Load:
    """Callers of a balancer until `end`: when each got a right answer, after how many requests, and what was lost."""

    balancer: Balancer
    expected: Mapping[tuple[str, int], Any]
    right: list[tuple[float, str, int]] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    refused: int = 0
    """Times that a job was not taken, or that the answer was lost, and it was handed in again."""

    def __enter__(self) -> Load:
        self._ended, self._pool, self.begun = threading.Event(), ThreadPoolExecutor(8), time.monotonic()
        calls = [lambda url=url: self._cut(url) for url in (*self.balancer.urls.values(),) * 2]
        self._calls = [self._pool.submit(call) for call in (*calls, self._remove, self._hand_in)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for call in self._calls:
            call.result(4 * LIMIT_S)
        self.seconds = time.monotonic() - self.begun

    @property
    def without_s(self) -> float:
        """The longest time in which nobody got an answer."""
        ended = self.begun + self.seconds
        moments = sorted((self.begun, *(at for at, _, _ in self.right), ended))
        return max(after - before for before, after in itertools.pairwise(moments))

    def _each(self, who: str, ask: Callable[[bytes], tuple[bytes, int]]) -> None:
        for number in itertools.cycle(PICTURES):
            try:
                image, requests = ask(pictures.portrait(*PICTURES[number]))
                same = np.abs(pixels(image) - self.expected[who, number]).max() <= MAX_DIFFERENCE
                self.right.append((time.monotonic(), who, requests)) if same else self.lost.append((who, "WRONG"))
            except (cutaway.CutawayError, httpx.HTTPError) as error:
                self.lost.append((who, f"{type(error).__name__}: {error}"))
            if self._ended.wait(THINK_S):
                return

    def _cut(self, url: str) -> None:
        def ask(data: bytes) -> tuple[bytes, int]:
            result = client.cut(data)
            return result.cutouts[0].image, result.origin.requests

        with cutaway.Client(url, timeout_s=LIMIT_S) as client:
            self._each(SDK, ask)

    def _remove(self) -> None:
        def ask(data: bytes) -> tuple[bytes, int]:
            answer = httpx.post(self.balancer.service + REMOVE, files={"image": data}, timeout=LIMIT_S)
            return answer.raise_for_status().content, 1

        self._each(SERVICE, ask)

    def _hand_in(self) -> None:
        """Jobs, each again until it is taken."""
        while not self._ended.wait(2 * THINK_S):
            with suppress(httpx.HTTPError):
                data = {"image": pictures.portrait(*PICTURES[0])}
                answer = httpx.post(self.balancer.service + JOBS, files=data, timeout=LIMIT_S)
                if answer.status_code == 202:
                    self.jobs.append(answer.json()["task_id"])
                    continue
            self.refused += 1


def pixels(image: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(image)), np.int16)


# ---------------------------------------------------------------------------------------------------------- faults


def killed(fleet: Fleet) -> None:
    fleet.replicas[0].kill()
    time.sleep(REST_S)
    fleet.again()


def hung(fleet: Fleet) -> None:
    fleet.replicas[0].send(signal.SIGSTOP)
    time.sleep(2 * REST_S)
    fleet.replicas[0].send(signal.SIGCONT)
    time.sleep(REST_S)


def rolled(fleet: Fleet) -> None:
    for each in fleet.replicas:
        each.end()
        fleet.again(each)


def slow(fleet: Fleet) -> None:
    """All its processes stand still for four fifths of the time."""
    until = time.monotonic() + 2 * REST_S
    while time.monotonic() < until:
        for number, seconds in ((signal.SIGSTOP, 0.2), (signal.SIGCONT, 0.05)):
            fleet.replicas[0].send(number)
            time.sleep(seconds)


def redis_gone(fleet: Fleet) -> None:
    assert fleet.redis is not None
    fleet.redis.__exit__()
    time.sleep(REST_S)
    fleet.redis.__enter__()


def gate_killed(fleet: Fleet) -> None:
    os.kill(fleet.replicas[0].gate(), signal.SIGKILL)


FAULTS: dict[str, tuple[Callable[[Fleet], None], str]] = {
    "killed": (killed, "one killed (SIGKILL, all of it), and started"),
    "hung": (hung, "one stopped (SIGSTOP) for 16 s"),
    "rolled": (rolled, "all replaced, one after the other (SIGTERM)"),
    "slow": (slow, "one slowed to a fifth"),
    "redis": (redis_gone, "Redis killed for 8 s"),
    "gate": (gate_killed, "a gateway killed"),
    "kept": (killed, "one killed, the balancer without checks"),
}


# --------------------------------------------------------------------------------------------------------- the table


def measure(counts: Sequence[int], cases: Sequence[str]) -> dict[str, Any]:
    load, rows = load_before(), []
    for count in counts:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, Redis(Path(name)) as redis:
            options = (f"--redis-url={redis.url}", f"--storage={name}/pictures")
            replicas = [Replica(Path(name), number, options) for number in range(1, count + 1)]
            try:
                for each in replicas:
                    each.start()
                for each in replicas:
                    each.wait_ready()
                done = []
                for case in cases:
                    with Balancer(Path(name), replicas, checks=case != "kept") as balancer:
                        balancer.wait_up(count)
                        done.append(row(Fleet(replicas, Path(name), balancer, redis), case))
                    say(str({key: value for key, value in done[-1].items() if key != "job_ids"}))
                with Balancer(Path(name), replicas) as balancer:
                    balancer.wait_up(count)
                    add_jobs(Path(name), balancer, done)
                rows += done
            finally:
                for each in replicas:
                    each.kill()
    return {**head(PACKAGES, load), "rows": rows}


def row(fleet: Fleet, case: str) -> dict[str, Any]:
    """One fault under load."""
    fault, name = FAULTS[case]
    say(f"{len(fleet.replicas)} replicas: {name}")
    expected = answers(fleet.replicas[-1].ports)
    with ThreadPoolExecutor(1) as pool:
        grpc, http = (url.partition("//")[2] for url in fleet.balancer.urls.values())
        seconds = 25.0 * len(fleet.replicas) if case == "rolled" else WARM_S + 3 * REST_S
        phase = replace(SCENARIOS["single"], seconds=seconds, users=2, think_s=2 * THINK_S)
        locust = pool.submit(drive, phase, Target(grpc, http, "", None), fleet.folder, ("--megapixels=0.1,4",))
        with Load(fleet.balancer, expected) as load:
            time.sleep(WARM_S)
            fault(fleet)
            time.sleep(REST_S)
        bare = figures(locust.result())
    for who, reason in (*load.lost, ("Locust", str(bare["codes"]))):
        say(f"lost, {who}: {reason}")
    counts = {who: [requests for _, asked, requests in load.right if asked == who] for who in (SDK, SERVICE)}
    lost = {who: sum(each == who for each, _ in load.lost) for who in (SDK, SERVICE)}
    return {
        "case": case,
        "name": name,
        "replicas": len(fleet.replicas),
        "sent": len(counts[SDK]) + lost[SDK],
        "right": len(counts[SDK]),
        "retried": sum(requests > 1 for requests in counts[SDK]),
        "lost": lost[SDK],
        "plain_sent": len(counts[SERVICE]) + lost[SERVICE] + bare["answers"],
        "plain_lost": lost[SERVICE] + bare["failures"],
        "bare_codes": bare["codes"],
        "job_ids": load.jobs,
        "jobs_refused": load.refused,
        "without_s": round(load.without_s, 1),
    }


def answers(ports: Mapping[str, int]) -> dict[tuple[str, int], Any]:
    """What one replica, which nobody else asks, makes of the pictures, by the SDK and by the HTTP service."""
    found, service = {}, f"http://127.0.0.1:{ports['service']}{REMOVE}"
    with cutaway.Client(f"http://127.0.0.1:{ports['http']}", timeout_s=LIMIT_S) as client:
        for number, given in PICTURES.items():
            data = pictures.portrait(*given)
            found[SDK, number] = pixels(client.cut(data).cutouts[0].image)
            found[SERVICE, number] = pixels(httpx.post(service, files={"image": data}, timeout=LIMIT_S).content)
    return found


def add_jobs(folder: Path, balancer: Balancer, rows: Sequence[dict[str, Any]]) -> None:
    """What became of the jobs, when all replicas are there again; those of a dead one have to be taken over first."""
    for each in rows:
        each["jobs"] = len(each["job_ids"])
        each["jobs_lost"] = sum(not is_done(balancer.service, job) for job in each.pop("job_ids"))
    cutouts = len(list((folder / "pictures" / "cutouts").iterdir()))
    rows[-1]["cutouts_more"] = cutouts - sum(each["jobs"] - each["jobs_lost"] for each in rows)


def is_done(service: str, job: str) -> bool:
    """Whether a job ends with a picture."""
    until, found = time.monotonic() + 2 * LIMIT_S, {}
    while time.monotonic() < until:
        with suppress(httpx.HTTPError, ValueError):
            found = httpx.get(f"{service}/api/background-removal/status/{job}", timeout=LIMIT_S).json()
            if found.get("status") in ("completed", "failed"):
                break
        time.sleep(0.5)
    if found.get("status") != "completed":
        say(f"lost, job: {found}")
    return bool(found.get("status") == "completed")


def page(report: dict[str, Any]) -> str:
    lines = [
        "| fault | replicas | sent | right | retried | lost | bare: sent, lost | jobs, lost | without an answer, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in report["rows"]:
        jobs = f"{each['jobs']}, {each['jobs_lost']}"
        plain = f"{each['plain_sent']}, {each['plain_lost']}"
        first = [each[name] for name in ("name", "replicas", "sent", "right", "retried", "lost")]
        lines.append(f"| {' | '.join(map(str, (*first, plain, jobs, each['without_s'])))} |")
    more, again = (sum(each.get(name, 0) for each in report["rows"]) for name in ("cutouts_more", "jobs_refused"))
    # A job that was taken, but whose answer got lost, is handed in again, too: it has two names and two cut-outs.
    jobs = f"Cut-outs beyond one for each job: {more}; jobs handed in again for want of an answer: {again}."
    return "\n".join((*lines, "", f"{jobs} {report['date'][:10]}, {sentence(report)}", ""))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", default="2,3", help="how many, with commas between (default: 2,3)")
    parser.add_argument("--cases", default=",".join(FAULTS), help="with commas between (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-output"), metavar="DIR")
    chosen = parser.parse_args()
    counts = [int(each) for each in chosen.replicas.split(",")]
    return run(chosen.output, "replicas", lambda: measure(counts, chosen.cases.split(",")), page)


if __name__ == "__main__":
    raise SystemExit(main())
