"""Deaths of model processes under load, or a soak with hostile requests, on a server of its own.

python -m benchmarks.deaths                     # twenty deaths in ten minutes
python -m benchmarks.deaths --soak 5000         # so many requests, one hostile in ten
"""

import argparse
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import cutaway
import httpx
from cutaway.resilience import RetryPolicy

from loadtest.watching import processes_of
from runtime.demo import SAMPLES, find_pictures
from runtime.procfs import own_bytes
from runtime.server import Server, ServerOptions

FRAME = {"name": "frame", "datatype": "UINT8", "shape": [2**62, 4, 3], "data": [1]}
HOSTILE: tuple[tuple[str, bytes, dict[str, str]], ...] = (
    ("stream_pipeline", json.dumps({"inputs": [FRAME]}).encode(), {}),
    ("ensemble_pipeline", b'{"inputs":' + b"[" * 100_000, {}),
    ("ensemble_pipeline", b"x" * 100_000, {"Content-Encoding": "gzip"}),
)


class Load:
    """Callers over gRPC and HTTP and a stream: when each answer came, and what it was ("right", "wrong", a code)."""

    def __init__(self, server: Server) -> None:
        self.server, self.ended = server, threading.Event()
        self.logs: dict[str, list[tuple[float, str]]] = {"pictures": [], "streams": []}
        self._pool = ThreadPoolExecutor(3)
        self._pool.map(self._cut, (server.grpc_url, server.http_url))
        self._pool.submit(self._stream)

    def end(self) -> None:
        self.ended.set()
        self._pool.shutdown()
        print({part: dict(Counter(outcome for _, outcome in log)) for part, log in self.logs.items()})

    def _cut(self, url: str) -> None:
        first: dict[str, object] = {}
        with cutaway.Client(url, retry=RetryPolicy(retries=0), timeout_s=30) as client:
            for picture in itertools.cycle(find_pictures([SAMPLES])):
                try:
                    found = [(each.box, len(each.people)) for each in client.cut(picture).report.cutouts]
                    outcome = "right" if first.setdefault(picture.name, found) == found else "wrong"
                except cutaway.CutawayError as error:
                    outcome = str(error.code)
                self.logs["pictures"].append((time.monotonic(), outcome))
                if self.ended.wait(0.0 if outcome == "right" else 0.1):
                    return

    def _stream(self) -> None:
        while not self.ended.wait(0.1):
            status = self.server.probe.stream(10.0).status.name
            self.logs["streams"].append((time.monotonic(), "right" if status == "HEALTHY" else status))

    def without_s(self, part: str, begin: float, end: float) -> float:
        """From a death to the first right answer after the last failure; 0 without a failure."""
        failed = [at for at, outcome in self.logs[part] if begin <= at < end and outcome != "right"]
        return next((at for at, _ in self.logs[part] if at > failed[-1]), end) - begin if failed else 0.0


def deaths(load: Load, count: int, minutes: float) -> bool:
    time.sleep(10.0)
    good, slot_s = True, minutes * 60 / count
    for number in range(count):
        stubs = sorted(load.server.process.stubs(), key=lambda stub: stub.model)
        victim, begin = stubs[number % len(stubs)], time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        time.sleep(slot_s)
        took_s = {part: round(load.without_s(part, begin, time.monotonic()), 1) for part in load.logs}
        print(f"{victim.model}: without service, s: {took_s}", flush=True)
        good &= max(took_s.values()) < slot_s
    return good


def soak(load: Load, requests: int) -> bool:
    server, sent, pid = load.server, 0, load.server.process.pid
    while (done := sum(map(len, load.logs.values())) + sent) < requests:
        if done < 10 * sent:
            time.sleep(0.01)
            continue
        model, body, headers = HOSTILE[sent % len(HOSTILE)]
        answer = httpx.post(f"{server.http_url}/v2/models/{model}/infer", content=body, headers=headers, timeout=30)
        assert answer.is_client_error, f"a hostile request was answered with {answer}"
        sent += 1
        if sent % max(1, requests // 100) == 0 and (seen := processes_of(pid)) is not None:
            rss_mb = seen.rss_mb + own_bytes(server.gate.pid if server.gate else 0) / 2**20
            print(f"{done} requests, {sent} hostile: {rss_mb:.0f} MB, /dev/shm {seen.shm_mb:.0f} MB", flush=True)
    return server.process.pid == pid and server.restarts + server.reloads == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deaths", description=(__doc__ or "").splitlines()[0])
    for name, default in (("deaths", 20), ("minutes", 10), ("soak", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default: {default}")
    chosen = parser.parse_args()
    with Server(ServerOptions(), say=print) as server:
        load = Load(server)
        try:
            good = soak(load, chosen.soak) if chosen.soak else deaths(load, chosen.deaths, chosen.minutes)
        finally:
            load.end()
        good &= all(outcome != "wrong" for _, outcome in load.logs["pictures"])
        print(f"{server.reloads} models loaded anew, {server.restarts} restarts: {'good' if good else 'NOT GOOD'}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
