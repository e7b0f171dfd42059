"""How quick a stream is (`make bench-stream`).

In every round one frame of 640 × 480 goes through the detector alone, in this process and at the size that the stream
gives it, and through a real server with `cutaway.Stream`, raw and as JPEG. Which comes first changes from round to
round. Then frames are handed over faster than they can be served, and those that come back are counted.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cutaway
import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.machine import head, load_before, run, say, sentence
from benchmarks.pipeline import PACKAGES, open_session
from runtime.checks import RuntimeProblem
from runtime.demo import SAMPLES
from runtime.devices import cores, has_vnni
from runtime.server import Server, ServerOptions
from runtime.weights import FREE_DETECTOR, load_networks

WIDTH, HEIGHT = 640, 480
DETECTOR_WH = 512, 384  # what the stream makes of that; a test compares it with `stream.fit`
NOISE = 4.0  # standard deviation of a webcam's noise indoors, grey levels
FRAMES = 8
OFFERED_FPS = 60.0
PAUSE_S = 0.02
TIMEOUT_S = 30.0
WARM_UP_ROUNDS = 3
TARGET_FPS = 15.0

Frame = NDArray[np.uint8]


def measure(*, rounds: int, seconds: float, threads: int) -> dict[str, Any]:
    """All figures, as JSON values."""
    load = load_before()
    options = ServerOptions(threads=threads, device="cpu", canary_interval_s=3600.0)
    session = open_session(load_networks(options.weights_dir, int8=has_vnni())[FREE_DETECTOR].path, threads)
    scene = _scene()
    frames = [_noisy(scene, seed) for seed in range(FRAMES)]
    with Server(options, say=say) as server:
        say(f"{rounds} rounds")
        ms, stages = _latencies(server, session, frames, rounds)
        forms: dict[str, list[Any]] = {"raw": list(frames), "jpeg": [_jpeg(frame) for frame in frames]}
        say(f"{seconds:g} s of frames at {OFFERED_FPS:g} per second, raw and as JPEG")
        rates = {form: _rate(server, images, seconds) for form, images in forms.items()}
    return {
        **head(PACKAGES, load),
        "rounds": rounds,
        "threads": threads,
        "ms": ms,
        "stages": stages,
        "rates": rates,
    }


# ---------------------------------------------------------------------------------------------------------- one frame
def _latencies(
    server: Server, session: ort.InferenceSession, frames: list[Frame], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of one frame by way, and of the server's stages of a raw one, an entry per round."""
    files = [_jpeg(frame) for frame in frames]
    canvas = [cv2.resize(frame, DETECTOR_WH, interpolation=cv2.INTER_LINEAR)[None] for frame in frames]
    stages: dict[str, list[float]] = {}
    with (
        cutaway.Stream(server.grpc_url, timeout_s=TIMEOUT_S) as raw,
        cutaway.Stream(server.grpc_url, timeout_s=TIMEOUT_S) as jpeg,
    ):

        def through(stream: cutaway.Stream, image: Any, stages: dict[str, list[float]]) -> None:
            stream.submit(image)
            done = stream.latest(TIMEOUT_S)
            if done is None or done.untouched or done.report is None:
                raise RuntimeProblem(f"a frame came back untouched: {done and done.error}")
            for stage, taken_ms in done.report.timings_ms.items():
                stages.setdefault(stage, []).append(taken_ms)

        ways: dict[str, Callable[[int], object]] = {
            "detector alone": lambda index: session.run(None, {"images": canvas[index]}),
            "raw": lambda index: through(raw, frames[index], stages),
            "jpeg": lambda index: through(jpeg, files[index], {}),
        }
        ms: dict[str, list[float]] = {way: [] for way in ways}
        names = list(ways)
        for number in range(-WARM_UP_ROUNDS, rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                begun = time.perf_counter()
                ways[name](number % len(frames))
                if number >= 0:
                    ms[name].append((time.perf_counter() - begun) * 1000)
                time.sleep(PAUSE_S)
    return ms, {stage: values[WARM_UP_ROUNDS:] for stage, values in stages.items()}


# -------------------------------------------------------------------------------------------------- many, and the mask
def _rate(server: Server, images: list[Any], seconds: float) -> dict[str, float]:
    """What becomes of more frames than can be served."""
    with cutaway.Stream(server.grpc_url, timeout_s=TIMEOUT_S) as stream:
        stream.submit(images[0])
        stream.latest(TIMEOUT_S)
        before, begun, latencies_ms = stream.statistics, time.perf_counter(), list[float]()
        for number in itertools.count():
            if time.perf_counter() - begun >= seconds:
                break
            stream.submit(images[number % len(images)])
            latencies_ms += [frame.latency_ms for frame in [stream.latest()] if frame is not None]
            time.sleep(max(0.0, (number + 1) / OFFERED_FPS - (time.perf_counter() - begun)))
        told = stream.statistics
    return {
        "fps": (told.done - before.done) / (time.perf_counter() - begun),
        "submitted": told.submitted - before.submitted,
        "dropped": told.dropped - before.dropped,
        "untouched": told.untouched,
        "latency_p50_ms": float(np.percentile(latencies_ms, 50)),
        "latency_p95_ms": float(np.percentile(latencies_ms, 95)),
    }


def _scene() -> Frame:
    """Somebody before a wall: a sample, as large as a frame."""
    picture = cv2.imread(str(SAMPLES / "astronaut.jpg"))
    scaled = cv2.resize(picture, (HEIGHT, HEIGHT), interpolation=cv2.INTER_AREA)
    side = (WIDTH - HEIGHT) // 2
    wide = cv2.copyMakeBorder(scaled, 0, 0, side, side, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(wide[..., ::-1])


def _noisy(frame: Frame, seed: int) -> Frame:
    noise = np.random.default_rng(seed).normal(0, NOISE, frame.shape)
    return np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)


def _jpeg(frame: Frame) -> bytes:
    return bytes(cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())


# ------------------------------------------------------------------------------------------------------------ the page
def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# Streams, {report['date'][:10]}",
        "",
        f"{WIDTH} × {HEIGHT}, {report['rounds']} rounds, {report['threads']} threads, nano, on {sentence(report)}",
        "",
        "| one frame, milliseconds | median | 10th to 90th percentile | 95th |",
        "|---|--:|--:|--:|",
    ]
    for way, values in report["ms"].items():
        low, high, late = np.percentile(values, [10, 90, 95])
        lines.append(f"| {way} | {statistics.median(values):.1f} | {low:.1f}–{high:.1f} | {late:.1f} |")
    stages = ", ".join(f"{stage} {statistics.median(values):.1f}" for stage, values in report["stages"].items())
    lines += [
        "",
        f"*Detector alone* is its own ONNX Runtime time at {DETECTOR_WH[0]} × {DETECTOR_WH[1]}. Of a raw frame, in the "
        f"server: {stages} ms.",
        "",
        f"| frames at {OFFERED_FPS:g} per second | served per second | dropped | latency, median | 95th |",
        "|---|--:|--:|--:|--:|",
    ]
    for form, rate in report["rates"].items():
        lines.append(
            f"| {form} | {rate['fps']:.1f} | {rate['dropped']} of {rate['submitted']} "
            f"| {rate['latency_p50_ms']:.0f} ms | {rate['latency_p95_ms']:.0f} ms |"
        )
    worst = min(rate["fps"] for rate in report["rates"].values())
    verdict = "met" if worst >= TARGET_FPS else "missed"
    lines += ["", f"- At least {TARGET_FPS:g} frames per second are wanted: {worst:.1f}: {verdict}.", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--rounds", type=int, default=60, help="measurements of each way (default: 60)")
    add("--seconds", type=float, default=10.0, help="of counting frames, for each form (default: 10)")
    add("--threads", type=int, default=min(cores(), 16), help="of the detector (default: cores)")
    add("-o", "--output", type=Path, default=Path("bench-output"), metavar="DIR", help="default: bench-output")
    given = parser.parse_args(arguments)
    measured = partial(measure, rounds=given.rounds, seconds=given.seconds, threads=given.threads)
    return run(given.output, "stream", measured, markdown)


if __name__ == "__main__":
    sys.exit(main())
