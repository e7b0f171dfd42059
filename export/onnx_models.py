"""`python -m export onnx PROFILE`: a profile's weights as the ONNX files that Triton's models are made of.

What comes out is a profile's folder, `models/<profile>/`: for each model a float32 graph and one in half precision,
their checksums, and a card that says what they were made of and how far they are from PyTorch. `runtime` serves the
float32 graphs; `python -m export plan` builds TensorRT plans of either. Every float32 graph is run in ONNX Runtime and
compared with PyTorch before it is kept.
"""

import argparse
import datetime
import errno
import gc
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from export import ExportError
from export.catalog import BUNDLED, CATALOG, DETECTOR_SIDE_PX, SIDE_MULTIPLE_PX, Profile, Weights, load_catalog
from export.fetch import DEFAULT_OUTPUT, INTERRUPTED
from export.fetching import expected_sha256, hold_to
from export.listing import CHECKOUT, add_catalog_argument, size_text
from export.locking import alone_in
from runtime.checks import RuntimeProblem
from runtime.digest import sha256_of
from runtime.weights import FREE_DETECTOR, WHOLE_MATTING, read_checksums

DEFAULT_MODELS = CHECKOUT / "models"
MATTE, DETECTOR = "birefnet_trt", "yolov8_seg"
CARD, CHECKSUMS = "profile.json", "SHA256SUMS"
HALF_SUFFIX = ".fp16.onnx"
MADE = frozenset(
    {f"{name}{suffix}" for name in (MATTE, DETECTOR) for suffix in (".onnx", HALF_SUFFIX)}
    | {f"{FREE_DETECTOR}.onnx", f"{WHOLE_MATTING}.onnx"}
)
"""The graphs of a profile's folder."""
PACKAGES = ("torch", "onnx", "onnxruntime")

TOLERANCES = {"alphas": 1.0, "boxes": 0.05, "scores": 1e-4, "classes": 0.0, "coefficients": 1e-2, "prototypes": 1e-2}
"""Largest difference between PyTorch and ONNX Runtime that is still rounding: grey levels, pixels, probabilities, …"""


class NotFetched(ExportError):
    """The profile's weights are not in the folder.

    .cache/weights has no birefnet-lite.safetensors; run: python -m export fetch lite
    """


class Departs(ExportError):
    """An exported graph is not its network: a difference from PyTorch is larger than rounding."""


class Made(NamedTuple):
    """One exported network: how far each output is from PyTorch's, and the side of its input."""

    differences: list[Any]
    side_px: int


@dataclass(frozen=True)
class Order:
    """What is to be made.

    Attributes:
        profile: the profile.
        detector: its detector, or the one that was asked for instead.
        weights: the folder of fetched weights.
        folder: the profile's folder.
        side_px: side of the matting network's square input.
        half: whether graphs in half precision are made, too.
        fetching: the command line that fetches what is missing.
    """

    profile: Profile
    detector: Weights
    weights: Path
    folder: Path
    side_px: int
    half: bool = True
    fetching: tuple[str, ...] = ("fetch",)


def square_side_px(profile: Profile) -> int:
    """The side that the pipeline serves a profile at: squares, of the area that its network was made for.

    2560×1440 has the area of 1920×1920.
    """
    width, height = profile.input_wh_px
    return round((width * height) ** 0.5 / SIDE_MULTIPLE_PX) * SIDE_MULTIPLE_PX


def fetched(weights: Weights, order: Order) -> Path:
    """The fetched file, held to its digest.

    Raises:
        NotFetched: it is not there.
        WrongContent: it is another file.
    """
    path = order.weights / weights.saved_as
    if not path.is_file():
        raise NotFetched(f"{order.weights} has no {weights.saved_as}; run: python -m export {' '.join(order.fetching)}")
    if expected := expected_sha256(weights, order.weights):
        hold_to(path, expected, "delete it and fetch it again")
    return path


def export_matte(order: Order, target: Path) -> Made:
    """The profile's BiRefNet as `birefnet_trt`."""
    from export.networks.birefnet import BiRefNet
    from export.networks.birefnet_config import VARIANTS
    from export.networks.birefnet_weights import load_strict
    from export.onnx_export import export_birefnet
    from export.weights_io import load_safetensors

    weights = order.profile.matte
    state = load_safetensors(fetched(weights, order))
    network = BiRefNet(VARIANTS[weights.network])
    load_strict(network, state)
    del state
    return Made(export_birefnet(network.eval(), order.side_px, target), order.side_px)


def export_yolo(order: Order, target: Path) -> Made:
    """The profile's YOLOv8-seg as `yolov8_seg`."""
    from export.networks.birefnet_weights import load_strict
    from export.networks.yolov8 import YoloV8
    from export.onnx_export import export_detector
    from export.weights_io import load_safetensors, load_ultralytics

    path = fetched(order.detector, order)
    state = load_safetensors(path) if path.suffix == ".safetensors" else load_ultralytics(path)
    network = YoloV8(order.detector.network[6])
    load_strict(network, state)
    return Made(export_detector(network.eval(), target), DETECTOR_SIDE_PX)


def bundled(weights: Weights, side_px: int, target: Path) -> Made:
    """A copy of a file that is in this repository; it was compared with PyTorch when it was made."""
    source = CHECKOUT / weights.file
    hold_to(source, str(weights.sha256), "restore it: git checkout")
    shutil.copyfile(source, target)
    return Made([], side_px)


def copy_further(order: Order, draft: Path) -> None:
    """What bundled networks bring along: the detector for pictures of any size, and the network for whole pictures."""
    _copy_beside(order.detector, FREE_DETECTOR, draft)
    _copy_beside(order.profile.matte, WHOLE_MATTING, draft)


def _copy_beside(weights: Weights, name: str, draft: Path) -> None:
    """Copy another file of the folder in which bundled weights are.

    Raises:
        WrongContent: it is not the file that was bundled.
        ExportError: nobody knows what was bundled.
    """
    source = (CHECKOUT / weights.file).with_name(f"{name}.onnx")
    if weights.source != BUNDLED or not source.is_file():
        return
    try:
        known = read_checksums(source.parent).get(source.name)
    except RuntimeProblem as problem:
        raise ExportError(str(problem)) from None
    hold_to(source, known or "", "restore it: git checkout")
    shutil.copyfile(source, draft / source.name)


def judge(made: Made) -> list[str]:
    """Lines that say how far each output is from PyTorch's.

    Raises:
        Departs: one is further away than rounding.
    """
    lines, bad = [], []
    for each in made.differences:
        line = f"{each.output}, batch of {each.batch}: largest difference {each.largest:.2g}, mean {each.mean:.2g}"
        lines.append(line)
        if not each.largest <= TOLERANCES[each.output]:
            bad.append(line)
    if bad:
        raise Departs("the graph is not the network that it was made of: " + "; ".join(bad))
    return lines


def make(order: Order, say: Callable[[str], None] = print) -> Path:
    """Make the profile's folder; its path. What was there under the same names is replaced when all is well.

    Raises:
        ExportError: the kinds named above.
    """
    for weights in (order.profile.matte, order.detector):
        if weights.source != BUNDLED:
            fetched(weights, order)
    draft = order.folder / ".making"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        models = {name: _one(order, name, draft, say) for name in (DETECTOR, MATTE)}
        copy_further(order, draft)
        files = sorted(draft.glob("*.onnx"))
        (draft / CARD).write_text(json.dumps(card(order, models), indent=2, ensure_ascii=False) + "\n")
        (draft / CHECKSUMS).write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in files))
        _swap(draft, order.folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return order.folder


def _swap(draft: Path, folder: Path) -> None:
    """Put the draft's files in the place of the folder's. Without its checksums nobody takes a folder for whole, so
    they go first and come last."""
    (folder / CHECKSUMS).unlink(missing_ok=True)
    names = {path.name for path in draft.iterdir()} - {CHECKSUMS}
    for name in sorted(names):
        (draft / name).replace(folder / name)
    for name in sorted(MADE - names):
        (folder / name).unlink(missing_ok=True)
    (draft / CHECKSUMS).replace(folder / CHECKSUMS)


def _one(order: Order, name: str, draft: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """One model's files in the draft, and what the card says of it."""
    weights = order.profile.matte if name == MATTE else order.detector
    target = draft / f"{name}.onnx"
    say(f"{name}: {weights.name}, {weights.parameters / 1e6:.1f} M parameters …")
    began = time.perf_counter()
    if weights.source == BUNDLED:
        made = bundled(weights, order.side_px if name == MATTE else DETECTOR_SIDE_PX, target)
    else:
        made = export_matte(order, target) if name == MATTE else export_yolo(order, target)
    gc.collect()
    for line in judge(made):
        say(f"  against PyTorch: {line}")
    say(f"  {target.name}: {size_text(target.stat().st_size)}, {time.perf_counter() - began:.0f} s")
    entry: dict[str, Any] = {
        "weights": weights.name,
        "network": weights.network,
        "source": weights.source,
        "repository": weights.repository,
        "revision": weights.revision,
        "weights_sha256": sha256_of(CHECKOUT / weights.file if weights.source == BUNDLED else fetched(weights, order)),
        "licence": weights.licence,
        "licence_url": weights.licence_url,
        "parameters": weights.parameters,
        "side_px": made.side_px,
        "against_pytorch": [each._asdict() for each in made.differences],
    }
    if order.half:
        from export.precision import to_half

        half = draft / f"{name}{HALF_SUFFIX}"
        report = to_half(target, half)
        say(f"  {half.name}: {report}")
        entry["half"] = asdict(report)
    return entry


def card(order: Order, models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the folder's card says."""
    from export.onnx_export import OPSET

    return {
        "profile": order.profile.name,
        "purpose": order.profile.purpose,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "opset": OPSET,
        "packages": {name: version(name) for name in PACKAGES},
        "models": models,
    }


def busy(folder: Path) -> ExportError:
    return ExportError(f"another export is writing to {folder}; wait for it, or choose another: --models DIR")


def add_profile_arguments(parser: argparse.ArgumentParser) -> None:
    """What `onnx` and `models` have in common."""
    parser.add_argument("profile", metavar="PROFILE", help=f"one of {', '.join(load_catalog(CATALOG).profiles)}")
    add_catalog_argument(parser)
    parser.add_argument("--detector", choices="nsmlx", metavar="SIZE", help="another YOLOv8 size: n, s, m, l or x")
    parser.add_argument(
        "--models",
        metavar="DIR",
        type=Path,
        default=DEFAULT_MODELS,
        help="where the profiles' folders are (default: models)",
    )
    parser.add_argument(
        "--side", metavar="PX", type=side, help="another side of the matting network's input; a multiple of 32"
    )
    parser.add_argument(
        "--weights", metavar="DIR", type=Path, default=DEFAULT_OUTPUT, help="fetched weights (default: .cache/weights)"
    )


def side(text: str) -> int:
    """A side from the command line."""
    value = int(text)
    if value < SIDE_MULTIPLE_PX or value % SIDE_MULTIPLE_PX:
        raise argparse.ArgumentTypeError(f"a multiple of {SIDE_MULTIPLE_PX}, not {text}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make ONNX files of a profile's fetched weights: float32, and half precision as TensorRT wants it. Each is run "
        "in ONNX Runtime, at batches of 1 and 3, and compared with PyTorch."
    )
    parser.epilog = "Swin-L at 1024 px takes minutes and about 10 GB of memory. `runtime` serves what comes out."
    add_profile_arguments(parser)
    parser.add_argument("--no-half", action="store_true", help="leave the graphs in half precision out")


def order_of(arguments: argparse.Namespace) -> Order:
    """From the command line.

    Raises:
        CatalogError: no such profile or detector.
        ExportError: a side that bundled weights do not have.
    """
    catalog = load_catalog(arguments.catalog)
    profile = catalog.profile(arguments.profile)
    native_px = square_side_px(profile)
    if arguments.side not in (None, native_px) and profile.matte.source == BUNDLED:
        raise ExportError(f"{profile.name} is bundled as a file of {native_px} px; it has no other side")
    fetching = ["fetch", profile.name]
    fetching += ["--detector", arguments.detector] if arguments.detector else []
    for option, given, default in (
        ("--catalog", arguments.catalog, CATALOG),
        ("--output", arguments.weights, DEFAULT_OUTPUT),
    ):
        fetching += [option, str(given)] if given != default else []
    return Order(
        profile=profile,
        detector=catalog.detector(arguments.detector) if arguments.detector else profile.detector,
        weights=arguments.weights,
        folder=arguments.models / profile.name,
        side_px=arguments.side or native_px,
        half=not arguments.no_half,
        fetching=tuple(fetching),
    )


def run(arguments: argparse.Namespace) -> int:
    order = order_of(arguments)
    try:
        with alone_in(order.folder, busy(order.folder)):
            made = make(order, say=lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("export: stopped; run it again to have the whole folder", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise ExportError(f"{order.folder} cannot be written: {reason}; choose another: --models DIR") from error
    licences = ", ".join(sorted({each.licence for each in (order.profile.matte, order.detector)}))
    print(f"{made}: side {order.side_px} px, licences {licences}")
    print(f"serve it here: make serve PROFILE={order.profile.name}")
    return 0
