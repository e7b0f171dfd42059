"""What the SDK adds to a request: its clients against bare tritonclient, with the same bytes (`make bench-overhead`).

In every round each piece of work goes to the same server twice, through the SDK and through tritonclient alone, over
gRPC and HTTP, from a thread and from asyncio; which of the two comes first alternates. The figure is the median of the
differences within the rounds, with the interval that holds it in 95 of 100 such runs. "cut" is the whole work on a
sample picture. "no networks" is a detection that is told to detect nothing: the server decodes a tiny picture and
answers within a millisecond or two, so that what the SDK adds shows.

The report goes into bench-output/overhead.md and .json.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import math
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cutaway
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from cutaway.call import PIPELINE
from cutaway.contract.limits import PROCESSING_TIMEOUT_S
from cutaway.contract.options import to_parameters
from cutaway.health import canary
from cutaway.result import CUT_OUTPUTS, DETECTION_OUTPUTS

from benchmarks.machine import load_before, machine, publish, sentence, versions
from runtime.checks import RuntimeProblem
from runtime.demo import SAMPLES, find_pictures
from runtime.server import Server, ServerOptions

WARM_UP_ROUNDS = 3
PAUSE_S = 0.01
"""Between two measurements: what the one before left to do is done by then."""
TARGET_MS = 2.0
TARGET_SHARE = 0.03
"""Either suffices: two milliseconds, or so much of the bare call."""

Answer = list[bytes]
"""The encoded pictures of an answer; none for a detection."""


@dataclass(frozen=True)
class Work:
    """What is asked of the server.

    Attributes:
        name: for the report.
        data: the encoded picture.
        cuts: whether pictures are wanted, or detections alone.
        options: as the SDK takes them.
        repeats: measurements per round: quick work can afford more.
    """

    name: str
    data: bytes
    cuts: bool
    options: dict[str, Any]
    repeats: int = 1

    @property
    def outputs(self) -> tuple[str, ...]:
        return CUT_OUTPUTS if self.cuts else DETECTION_OUTPUTS


@dataclass(frozen=True)
class Way:
    """A way to the server: seconds that it takes bare and through the SDK, each with the answer."""

    name: str
    bare: Callable[[Work], tuple[float, Answer]]
    sdk: Callable[[Work], tuple[float, Answer]]


@dataclass
class Times:
    """Milliseconds of one piece of work over one way; entries at the same place are of the same round."""

    bare: list[float] = field(default_factory=list)
    sdk: list[float] = field(default_factory=list)

    @property
    def differences(self) -> list[float]:
        return [sdk - bare for sdk, bare in zip(self.sdk, self.bare, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    load, warning = load_before()
    if warning:
        _say(warning)
    # The server's own small pictures would come in between.
    server_options = ServerOptions(profile=options.profile, canary_interval_s=3600.0)
    try:
        pictures = find_pictures(options.pictures or [SAMPLES])
        with Server(server_options, say=_say) as server:
            report = measure(server, pictures, rounds=options.rounds, say=_say, load=load)
    except RuntimeProblem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    publish(options.output, "overhead", report, markdown(report))
    return 0


def measure(
    server: Server,
    pictures: Sequence[Path],
    *,
    rounds: int,
    say: Callable[[str], None],
    warm_up: int = WARM_UP_ROUNDS,
    load: float = 0.0,
) -> dict[str, Any]:
    """All figures, as JSON values; `load` is the machine's before the server was started."""
    works = [
        Work("no networks", canary(), False, {"subject": "all"}, repeats=5),
        *(Work(f"cut {path.name}", path.read_bytes(), True, {"subject": "people"}) for path in pictures),
    ]
    with ways(server) as all_ways:
        times = {(work.name, way.name): Times() for work in works for way in all_ways}
        say(f"{rounds} rounds of {len(works)} pictures over {len(all_ways)} ways")
        for number in range(-warm_up, rounds):
            for work in works:
                for way in all_ways:
                    kept = times[work.name, way.name] if number >= 0 else Times()
                    for repeat in range(work.repeats):
                        _once(work, way, kept, bare_first=(number + repeat) % 2 == 0)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(load),
        "versions": versions(("cutaway", "tritonclient", "grpcio", "httpx", "numpy", "nvidia-pytriton")),
        "profile": server.options.profile,
        "rounds": rounds,
        "targets": {"ms": TARGET_MS, "share": TARGET_SHARE},
        "rows": [
            {"work": work, "way": way, **_figures(kept), "ms": {"bare": kept.bare, "sdk": kept.sdk}}
            for (work, way), kept in times.items()
        ],
    }


def _once(work: Work, way: Way, kept: Times, *, bare_first: bool) -> None:
    steps = [(way.bare, kept.bare), (way.sdk, kept.sdk)]
    answers = []
    for call, times in steps if bare_first else reversed(steps):
        seconds, answer = call(work)
        times.append(seconds * 1000)
        answers.append(answer)
        time.sleep(PAUSE_S)
    assert answers[0] == answers[1], f"{way.name}: the two ways do not answer the same"


# ---------------------------------------------------------------------------------------------------- the ways


@contextmanager
def ways(server: Server) -> Iterator[list[Way]]:
    """All ways to a server, connected."""
    loop = asyncio.new_event_loop()
    with ExitStack() as stack:
        stack.callback(loop.close)
        opened = loop.run_until_complete(_open_async(server))
        stack.callback(lambda: loop.run_until_complete(opened.aclose()))
        found = [
            Way(name, _timed(_bare(module, client)), _timed(_sdk(stack.enter_context(cutaway.Client(url)))))
            for name, module, client, url in (
                ("gRPC", tritonclient.grpc, stack.enter_context(_grpc(server)), server.grpc_url),
                ("HTTP", tritonclient.http, stack.enter_context(_http(server)), server.http_url),
            )
        ]
        yield found + [
            Way(f"{name}, asyncio", _timed_in(loop, _bare_async(module, bare)), _timed_in(loop, _sdk_async(sdk)))
            for name, module, bare, sdk in opened.ways
        ]


class _Opened(AsyncExitStack):
    """Asynchronous clients: the way's name, tritonclient's module and client, and the SDK's client."""

    ways: tuple[tuple[str, Any, Any, cutaway.AsyncClient], ...] = ()


async def _open_async(server: Server) -> _Opened:
    opened = _Opened()
    grpc, http = tritonclient.grpc.aio, tritonclient.http.aio
    opened.ways = (
        (
            "gRPC",
            tritonclient.grpc,
            await opened.enter_async_context(grpc.InferenceServerClient(_host(server.grpc_url))),
            await opened.enter_async_context(cutaway.AsyncClient(server.grpc_url)),
        ),
        (
            "HTTP",
            tritonclient.http,
            await opened.enter_async_context(http.InferenceServerClient(_host(server.http_url))),
            await opened.enter_async_context(cutaway.AsyncClient(server.http_url)),
        ),
    )
    return opened


def _grpc(server: Server) -> Any:
    return tritonclient.grpc.InferenceServerClient(_host(server.grpc_url))


def _http(server: Server) -> Any:
    return tritonclient.http.InferenceServerClient(_host(server.http_url))


def _host(url: str) -> str:
    return url.partition("://")[2]


def _bare(module: Any, client: Any) -> Callable[[Work], Answer]:
    def call(work: Work) -> Answer:
        return _read(client.infer(PIPELINE, **_request(module, work)), work)

    return call


def _bare_async(module: Any, client: Any) -> Callable[[Work], Awaitable[Answer]]:
    async def call(work: Work) -> Answer:
        return _read(await client.infer(PIPELINE, **_request(module, work)), work)

    return call


def _request(module: Any, work: Work) -> dict[str, Any]:
    """What somebody writes who uses tritonclient as it is."""
    image = module.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([work.data], dtype=np.object_))
    request = {
        "inputs": [image],
        "outputs": [module.InferRequestedOutput(name) for name in work.outputs],
        "parameters": dict(to_parameters(work.options)),
    }
    return request | ({"client_timeout": PROCESSING_TIMEOUT_S} if module is tritonclient.grpc else {})


def _read(result: Any, work: Work) -> Answer:
    arrays = {name: result.as_numpy(name) for name in work.outputs}
    json.loads(arrays["report"][0])
    return list(arrays["images"]) if work.cuts else []


def _sdk(client: cutaway.Client) -> Callable[[Work], Answer]:
    def call(work: Work) -> Answer:
        if work.cuts:
            return client.cut(work.data, **work.options).images
        client.detect(work.data, **work.options)
        return []

    return call


def _sdk_async(client: cutaway.AsyncClient) -> Callable[[Work], Awaitable[Answer]]:
    async def call(work: Work) -> Answer:
        if work.cuts:
            return (await client.cut(work.data, **work.options)).images
        await client.detect(work.data, **work.options)
        return []

    return call


def _timed(call: Callable[[Work], Answer]) -> Callable[[Work], tuple[float, Answer]]:
    def timed(work: Work) -> tuple[float, Answer]:
        begun = time.perf_counter()
        answer = call(work)
        return time.perf_counter() - begun, answer

    return timed


def _timed_in(
    loop: asyncio.AbstractEventLoop, call: Callable[[Work], Awaitable[Answer]]
) -> Callable[[Work], tuple[float, Answer]]:
    async def timed(work: Work) -> tuple[float, Answer]:
        begun = time.perf_counter()
        answer = await call(work)
        return time.perf_counter() - begun, answer

    return lambda work: loop.run_until_complete(timed(work))


# -------------------------------------------------------------------------------------------------- the report


def _figures(times: Times) -> dict[str, Any]:
    """Medians, in milliseconds, and the verdict: unclear where the interval does not settle it."""
    bare = statistics.median(times.bare)
    added = statistics.median(times.differences)
    low, high = _interval(times.differences)
    allowed = max(TARGET_MS, TARGET_SHARE * bare)
    return {
        "bare_ms": bare,
        "sdk_ms": statistics.median(times.sdk),
        "added_ms": added,
        "added_interval_ms": (low, high),
        "added_share": added / bare,
        "verdict": "met" if high <= allowed else "missed" if low > allowed else "unclear",
    }


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the true median lies in 95 of 100 cases, whatever the values' distribution."""
    ordered = sorted(values)
    outside = max(0, math.floor(len(ordered) / 2 - 0.98 * math.sqrt(len(ordered))) - 1)
    return ordered[outside], ordered[len(ordered) - 1 - outside]


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: a verdict, the medians, the machine."""
    lines = [
        f"# The SDK against bare tritonclient, {report['date'][:10]}",
        "",
        f"Profile {report['profile']}, {report['rounds']} rounds, on {sentence(report)}",
        "",
        "Milliseconds: median (10th to 90th percentile); *added*: median of the differences within the rounds [95 % "
        "interval of that median].",
        "",
        "| work | way | tritonclient | SDK | added | of the call | wanted |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for row in report["rows"]:
        low, high = row["added_interval_ms"]
        lines.append(
            f"| {row['work']} | {row['way']} | {_spread(row['ms']['bare'])} | {_spread(row['ms']['sdk'])} | "
            f"{row['added_ms']:+.2f} [{low:+.2f}, {high:+.2f}] | {row['added_share']:+.1%} | "
            f"{row['verdict']} |"
        )
    targets = report["targets"]
    verdicts = [row["verdict"] for row in report["rows"]]
    counts = ", ".join(f"{word} in {verdicts.count(word)}" for word in ("met", "missed", "unclear") if word in verdicts)
    lines += [
        "",
        f"- At most {targets['ms']:g} ms or {targets['share']:.0%} of the call are wanted: {counts} of {len(verdicts)} "
        "rows. Unclear means that the interval reaches from below to above: more rounds, or a quieter machine.",
        "",
    ]
    return "\n".join(lines)


def _say(line: str) -> None:
    print(f"bench: {line}", flush=True)


def _spread(values: Sequence[float]) -> str:
    low, high = np.percentile(values, [10, 90])
    return f"{statistics.median(values):.2f} ({low:.2f}–{high:.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pictures", nargs="*", type=Path, help="pictures or folders (default: samples/)")
    parser.add_argument("--profile", default="nano", help="the model pair (default: nano)")
    parser.add_argument("--rounds", type=int, default=40, help="measurements per picture and way (default: 40)")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("bench-output"), metavar="DIR", help="default: bench-output"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
