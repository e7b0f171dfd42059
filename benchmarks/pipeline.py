"""Milliseconds per stage, and the pipeline against its models' own ONNX Runtime time (`make bench-pipeline`).

In every round each picture goes through both networks alone, in this process, in the very batches that the pipeline
uses for it, and through the pipeline of a real server over gRPC; which of the two comes first alternates. So both see
the same pictures on the same machine in the same minute, whatever else it does. Medians and spread are reported, with
the machine, the date and the versions, in bench-output/pipeline.md and .json.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cutaway
import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps

from benchmarks import schedule
from benchmarks.machine import head, load_before, run, say, sentence, spread
from runtime.compose import DETECTOR, MATTING
from runtime.demo import SAMPLES, find_pictures
from runtime.devices import cores, has_vnni
from runtime.health import statistics as model_statistics
from runtime.server import Server, ServerOptions
from runtime.weights import load_networks

PIXELS = 1_000_000
JPEG_QUALITY = 90
WARM_UP_ROUNDS = 3
PAUSE_S = 0.03  # between two measurements: threads of the one before have gone to sleep by then
COUNTING_S = 0.3  # Triton counts a picture a moment after it has answered
PACKAGES = ("cutaway", "nvidia-pytriton", "onnxruntime", "numpy", "opencv-python-headless")
TARGET_RATIO = 1.25
TARGET_MS = 250.0


@dataclass(frozen=True)
class Picture:
    """One megapixel as JPEG, and the batches in which its parts go through the networks."""

    name: str
    data: bytes
    width_px: int
    height_px: int
    people: int
    batches: dict[str, int]


@dataclass
class Times:
    """Milliseconds of one picture, one entry per round."""

    models: dict[str, list[float]] = field(default_factory=lambda: {DETECTOR: [], MATTING: []})
    stages: dict[str, list[float]] = field(default_factory=dict)
    pipeline: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The pipeline's median against the median of its networks together."""
        return statistics.median(self.pipeline) / statistics.median(_together(self.models))


def measure(options: ServerOptions, paths: Sequence[Path], *, rounds: int, threads: int) -> dict[str, Any]:
    """All figures, as JSON values."""
    load = load_before()
    checked = load_networks(options.weights_dir, int8=has_vnni())
    networks = {name: open_session(checked[name].path, threads) for name in (DETECTOR, MATTING)}
    with Server(options, say=say) as server, cutaway.Client(server.grpc_url) as client:
        pictures = [_prepare(path, client, server) for path in paths]
        times = {picture.name: Times() for picture in pictures}
        say(f"{rounds} rounds of {len(pictures)} pictures")
        for number in range(-WARM_UP_ROUNDS, rounds):
            for picture in pictures:
                _round(picture, networks, client, times[picture.name] if number >= 0 else Times(), number % 2 == 0)
    return {
        **head(PACKAGES, load),
        "profile": options.profile,
        "rounds": rounds,
        "threads": threads,
        "pictures": [
            {key: value for key, value in asdict(picture).items() if key != "data"}
            | {"ratio": times[picture.name].ratio, "ms": asdict(times[picture.name])}
            for picture in pictures
        ],
    }


def open_session(path: Path, threads: int, spinning: bool = True) -> ort.InferenceSession:
    """A session as anybody would open it: ONNX Runtime's own defaults, but for the number of threads, and whether those
    that wait spin."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def one_megapixel(path: Path) -> tuple[bytes, int, int]:
    """A picture as JPEG, its width and its height in pixels."""
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
    scale = (PIXELS / (upright.width * upright.height)) ** 0.5
    width, height = round(upright.width * scale), round(upright.height * scale)
    buffer = io.BytesIO()
    upright.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), width, height


def _prepare(path: Path, client: cutaway.Client, server: Server) -> Picture:
    """Scale a picture to one megapixel, and see in which batches the pipeline sends it through the networks."""
    data, width, height = one_megapixel(path)

    def counted() -> dict[str, int]:
        return {name: int(model_statistics(server.probe, name)["inference_count"]) for name in (DETECTOR, MATTING)}

    before = counted()
    people = len(client.cut(data).report.people)
    time.sleep(COUNTING_S)
    batches = {name: count - before[name] for name, count in counted().items()}
    return Picture(path.name, data, width, height, people, batches)


def _round(
    picture: Picture, networks: dict[str, ort.InferenceSession], client: cutaway.Client, times: Times, first: bool
) -> None:
    """Both ways once; `first` are the networks alone."""

    def models() -> None:
        for name, session in networks.items():
            side = session.get_inputs()[0].shape[1]
            batch = np.full((picture.batches[name], side, side, 3), 114, np.uint8)
            begun = time.perf_counter()
            session.run(None, {"images": batch})
            times.models[name].append((time.perf_counter() - begun) * 1000)
            time.sleep(PAUSE_S)

    def pipeline() -> None:
        begun = time.perf_counter()
        result = client.cut(picture.data)
        times.pipeline.append((time.perf_counter() - begun) * 1000)
        for stage, ms in result.timings_ms.items():
            times.stages.setdefault(stage, []).append(ms)

    steps: list[Callable[[], None]] = [models, pipeline]
    for step in steps if first else reversed(steps):
        step()
        time.sleep(PAUSE_S)


def _together(models: dict[str, list[float]]) -> list[float]:
    """Both networks, round by round."""
    return [sum(times) for times in zip(*models.values(), strict=True)]


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: the medians, a verdict, the machine."""
    stages = list(report["pictures"][0]["ms"]["stages"])
    columns = ["picture", "people", DETECTOR, MATTING, "models", "pipeline", "ratio", *stages]
    lines = [
        f"# Pipeline against its models, {report['date'][:10]}",
        "",
        f"Profile {report['profile']}, {report['rounds']} rounds, {report['threads']} threads per network, on "
        f"{sentence(report)}",
        "",
        "Milliseconds: median (10th to 90th percentile). *Models* is the sum of both networks' own ONNX Runtime time "
        "in the same rounds, *pipeline* the round trip over gRPC as the caller sees it.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for picture in report["pictures"]:
        ms = picture["ms"]
        cells = [
            f"{picture['name']}, {picture['width_px']} × {picture['height_px']}",
            str(picture["people"]),
            *(f"{spread(ms['models'][name])} ×{picture['batches'][name]}" for name in (DETECTOR, MATTING)),
            spread(_together(ms["models"])),
            spread(ms["pipeline"]),
            f"**{picture['ratio']:.2f}**",
            *(f"{statistics.median(ms['stages'][stage]):.1f}" for stage in stages),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    worst = max(picture["ratio"] for picture in report["pictures"])
    verdict = "met" if worst <= TARGET_RATIO else "missed"
    lines += ["", f"- Pipeline against models: {worst:.2f} at worst; at most {TARGET_RATIO} is wanted: {verdict}."]
    alone = [statistics.median(each["ms"]["pipeline"]) for each in report["pictures"] if each["people"] == 1]
    if alone:
        verdict = "met" if max(alone) <= TARGET_MS else "missed"
        lines.append(
            f"- One person, one megapixel, JPEG: {max(alone):.0f} ms at worst; at most {TARGET_MS:.0f} on two cores is "
            f"wanted: {verdict}."
        )
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("pictures", nargs="*", type=Path, help="pictures or folders (default: samples/)")
    add("--profile", default="nano", help="the model pair (default: nano)")
    add("--weights", type=Path, metavar="DIR", help="as of python -m runtime serve")
    add("--rounds", type=int, default=30, help="measurements per picture (default: 30)")
    add("--threads", type=int, default=min(cores(), 16), help="of one network's run, in both (default: cores)")
    add("--instances", type=int, help="pipelines of the server (default: by cores)")
    add("--schedules", action="store_true", help="instead: throughput of the schedule 'limited' against 'free'")
    add("--callers", type=int, default=8, help="with --schedules: side by side (default: 8)")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="with --schedules (default: cpu)")
    add("-o", "--output", type=Path, default=Path("bench-output"), metavar="DIR", help="default: bench-output")
    given = parser.parse_args(arguments)
    options = ServerOptions(
        profile=given.profile,
        weights=given.weights,
        instances=given.instances,
        threads=given.threads,
        device=given.device if given.schedules else "cpu",
        canary_interval_s=3600.0,  # the server's own small pictures would come in between
    )

    paths = find_pictures(given.pictures or [SAMPLES])

    def measured() -> dict[str, Any]:
        return measure(options, paths, rounds=given.rounds, threads=given.threads)

    def compared() -> dict[str, Any]:
        pictures = [one_megapixel(path)[0] for path in paths]
        return schedule.measure(options, pictures, rounds=given.rounds, callers=given.callers, packages=PACKAGES)

    if given.schedules:
        return run(given.output, "schedules", compared, schedule.markdown)
    return run(given.output, "pipeline", measured, markdown)


if __name__ == "__main__":
    sys.exit(main())
