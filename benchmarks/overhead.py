"""What the SDK adds to a request: its clients against bare tritonclient, with the same bytes (`make bench-overhead`).

In every round each piece of work goes to the same server twice, through the SDK and through tritonclient alone, over
gRPC and HTTP, from a thread and from asyncio; which of the two comes first alternates. The figure is the median of the
differences within the rounds, with the interval that holds it in 95 of 100 such runs. "cut" is the whole work on a
sample picture. "no networks" is a detection that is told to detect nothing: the server decodes a tiny picture and
answers within a millisecond or two, so that what the SDK adds shows; the bounds are judged on it. The profile is
served without its network for whole pictures, since a server that has one looks for people whatever is asked.

The report goes into bench-output/overhead.md and .json.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cutaway
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from PIL import Image

from benchmarks.machine import head, load_before, people_only, run, say, sentence, spread
from runtime.compose import PIPELINE
from runtime.demo import SAMPLES, find_pictures
from runtime.server import Server, ServerOptions

WARM_UP_ROUNDS = 3
PAUSE_S = 0.01  # between two measurements: what the one before left to do is done by then
TIMEOUT_S = 30.0
# At most, by way. Synchronous HTTP hops to the client's loop and sends from there.
BOUNDS_MS = {"gRPC": 1.0, "HTTP": 2.0, "gRPC, asyncio": 1.0, "HTTP, asyncio": 1.0}
NO_NETWORKS = "no networks"
PACKAGES = ("cutaway", "tritonclient", "grpcio", "httpx", "numpy", "nvidia-pytriton")

Answer = list[bytes]  # the encoded pictures of an answer; none for a detection


class Work(NamedTuple):
    """An encoded picture, cut out of or only detected in; quick work can afford more repeats per round."""

    name: str
    data: bytes
    cuts: bool
    subject: str
    repeats: int = 1


Call = Callable[[Work], tuple[float, Answer]]  # seconds, and the answer
Sent = tuple[Any, Callable[[Any], Answer]]  # what a client returned, or an awaitable, and what reads the answer from it


class Way(NamedTuple):
    """A way to the server, bare and through the SDK."""

    name: str
    bare: Call
    sdk: Call


@dataclass
class Times:
    """Milliseconds of one piece of work over one way; entries at the same place are of the same round."""

    bare: list[float] = field(default_factory=list)
    sdk: list[float] = field(default_factory=list)


def measure(
    server: Server, pictures: Sequence[Path], *, rounds: int, warm_up: int = WARM_UP_ROUNDS, load: float = 0.0
) -> dict[str, Any]:
    """All figures, as JSON values; `load` is the machine's before the server was started."""
    works = [
        Work(NO_NETWORKS, _tiny(), False, "all", repeats=5),
        *(Work(f"cut {path.name}", path.read_bytes(), True, "people") for path in pictures),
    ]
    with ways(server) as all_ways:
        times = {(work.name, way.name): Times() for work in works for way in all_ways}
        say(f"{rounds} rounds of {len(works)} pictures over {len(all_ways)} ways")
        for number in range(-warm_up, rounds):
            for work in works:
                for way in all_ways:
                    kept = times[work.name, way.name] if number >= 0 else Times()
                    for repeat in range(work.repeats):
                        once(work, way, kept, bare_first=(number + repeat) % 2 == 0)
    rows = [
        {"work": work, "way": way, **figures(way, kept), "ms": {"bare": kept.bare, "sdk": kept.sdk}}
        for (work, way), kept in times.items()
    ]
    return {**head(PACKAGES, load), "profile": server.options.profile, "rounds": rounds, "rows": rows}


def once(work: Work, way: Way, kept: Times, *, bare_first: bool) -> None:
    steps = [(way.bare, kept.bare), (way.sdk, kept.sdk)]
    answers = []
    for call, times in steps if bare_first else reversed(steps):
        seconds, answer = call(work)
        times.append(seconds * 1000)
        answers.append(answer)
        time.sleep(PAUSE_S)
    assert answers[0] == answers[1], f"{way.name}: the two ways do not answer the same"


def _tiny() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 110, 100)).save(file, "PNG")
    return file.getvalue()


# ---------------------------------------------------------------------------------------------------- the ways
@contextmanager
def ways(server: Server) -> Iterator[list[Way]]:
    """All ways to a server, connected; asynchronous clients belong to the loop that opens them."""
    grpc, http = tritonclient.grpc, tritonclient.http
    with asyncio.Runner() as runner, ExitStack() as stack:

        async def opened(client: Any) -> Any:
            await client.__aenter__()
            stack.callback(lambda: runner.run(client.__aexit__(None, None, None)))
            return client

        async def open_all() -> list[tuple[Any, Any]]:
            return [
                (await opened(module.aio.InferenceServerClient(address)), await opened(cutaway.AsyncClient(url)))
                for module, address, url in sides
            ]

        sides = (grpc, server.grpc_address, server.grpc_url), (http, server.http_address, server.http_url)
        found = []
        for (module, address, url), name in zip(sides, ("gRPC", "HTTP"), strict=True):
            bare = stack.enter_context(module.InferenceServerClient(address))
            sdk = stack.enter_context(cutaway.Client(url))
            found.append(Way(name, _timed(_bare(module, bare)), _timed(_sdk(sdk))))
        for (module, _, _), name, (bare, client) in zip(sides, ("gRPC", "HTTP"), runner.run(open_all()), strict=True):
            calls = (_timed_in(runner, call) for call in (_bare(module, bare), _sdk(client)))
            found.append(Way(f"{name}, asyncio", *calls))
        yield found


def _bare(module: Any, client: Any) -> Callable[[Work], Sent]:
    """What somebody writes who uses tritonclient as it is."""

    def call(work: Work) -> Sent:
        image = module.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([work.data], dtype=np.object_))
        outputs = [*(["images"] if work.cuts else []), "boxes", "scores", "report"]
        wanted = [module.InferRequestedOutput(name) for name in outputs]
        limit = {"client_timeout": TIMEOUT_S} if module is tritonclient.grpc else {}

        def read(result: Any) -> Answer:
            arrays = {name: result.as_numpy(name) for name in outputs}
            json.loads(arrays["report"][0])
            return list(arrays["images"]) if work.cuts else []

        return client.infer(PIPELINE, [image], outputs=wanted, parameters={"subject": work.subject}, **limit), read

    return call


def _sdk(client: Any) -> Callable[[Work], Sent]:
    def call(work: Work) -> Sent:
        if work.cuts:
            return client.cut(work.data, subject=work.subject), lambda result: result.images
        return client.detect(work.data, subject=work.subject), lambda _: []

    return call


def _timed(call: Callable[[Work], Sent]) -> Call:
    def timed(work: Work) -> tuple[float, Answer]:
        begun = time.perf_counter()
        result, read = call(work)
        answer = read(result)
        return time.perf_counter() - begun, answer

    return timed


def _timed_in(runner: asyncio.Runner, call: Callable[[Work], Sent]) -> Call:
    async def timed(work: Work) -> tuple[float, Answer]:
        begun = time.perf_counter()
        sent, read = call(work)
        answer = read(await sent)
        return time.perf_counter() - begun, answer

    return lambda work: runner.run(timed(work))


# -------------------------------------------------------------------------------------------------- the report
def figures(way: str, times: Times) -> dict[str, Any]:
    """Medians, in milliseconds, and the verdict: unclear where the interval does not settle it."""
    differences = sorted(sdk - bare for sdk, bare in zip(times.sdk, times.bare, strict=True))
    # Where the true median lies in 95 of 100 cases, whatever the values' distribution.
    outside = max(0, math.floor(len(differences) / 2 - 0.98 * math.sqrt(len(differences))) - 1)
    low, high, bound = differences[outside], differences[-1 - outside], BOUNDS_MS[way]
    return {
        "added_ms": statistics.median(differences),
        "added_interval_ms": (low, high),
        "bound_ms": bound,
        "verdict": "met" if high <= bound else "missed" if low > bound else "unclear",
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: the medians, the verdict, the machine."""
    lines = [
        f"# The SDK against bare tritonclient, {report['date'][:10]}",
        "",
        f"Profile {report['profile']}, {report['rounds']} rounds, on {sentence(report)}",
        "",
        "Milliseconds: median (10th to 90th percentile); *added*: median of the differences within the rounds [95 % "
        "interval of that median]; a whole cut varies too much to be judged.",
        "",
        "| work | way | tritonclient | SDK | added | at most |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in report["rows"]:
        low, high = row["added_interval_ms"]
        bound = f"{row['bound_ms']:g}: {row['verdict']}" if row["work"] == NO_NETWORKS else ""
        lines.append(
            f"| {row['work']} | {row['way']} | {spread(row['ms']['bare'], 2)} | {spread(row['ms']['sdk'], 2)} | "
            f"{row['added_ms']:+.2f} [{low:+.2f}, {high:+.2f}] | {bound} |"
        )
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pictures", nargs="*", type=Path, help="pictures or folders (default: samples/)")
    parser.add_argument("--profile", default="nano", help="the model pair (default: nano)")
    parser.add_argument("--rounds", type=int, default=40, help="measurements per picture and way (default: 40)")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-output"), metavar="DIR", help="the report's")
    options = parser.parse_args(arguments)
    load = load_before()

    def measured() -> dict[str, Any]:
        pictures = find_pictures(options.pictures or [SAMPLES])
        with people_only(options.profile) as weights:
            # The server's own small pictures would come in between.
            served = ServerOptions(profile=options.profile, weights=weights, canary_interval_s=3600.0)
            with Server(served, say=say) as server:
                return measure(server, pictures, rounds=options.rounds, load=load)

    return run(options.output, "overhead", measured, markdown)


if __name__ == "__main__":
    sys.exit(main())
