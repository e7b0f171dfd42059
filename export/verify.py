"""Hold the project's BiRefNet to figures of the public implementation, without its code and without trained weights.

A reference folder holds, for each variant, the names and shapes of the public implementation's state dict
(`keys_<variant>.json`) and its logits (`expected_<variant>.npz`) for weights and images that follow from a rule: the
weights from each entry's name, the image from its size. The rule is written down here (`weight_for`, `image_for`), so
nothing from the folder is executed. The network takes the weights through the same strict loading as released ones.

The rule leaves no offset at zero. An untrained BiRefNet would not do: its offsets are zero, and then a deformable
convolution is a plain one.
"""

import argparse
import json
import re
import time
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from export import ExportError, positive
from export.networks.birefnet import SIDE_MULTIPLE_PX, BiRefNet
from export.networks.birefnet_config import VARIANTS
from export.networks.birefnet_export import export_form
from export.networks.birefnet_weights import Shape, StateDictMismatch, load_strict
from export.networks.deform_direct import use_definition

TOLERANCE = 1e-3
"""Largest difference of a logit that still counts as the same network. The logits span about -18 to +4, and float32
in another order of summation gives differences of about 1e-4."""

SIDE_PX = 1024
"""Side that the released networks are served at."""

LOGITS = re.compile(r"logits_(\d+)x(\d+)")


class ReferenceFolderError(ExportError, ValueError):
    """The reference folder, or a file in it, is absent or unreadable.

    no keys_lite.json in ../shared/birefnet_reference
    """


class BadSide(ExportError, ValueError):
    """The networks do not take images of this side.

    --side must be a multiple of 32 px, not 1000
    """


def weight_for(key: str, shape: Shape) -> np.ndarray:
    """The array of a state-dict entry, float32, by its name alone: the key's CRC-32 seeds the generator.

    Everything is normal noise of a scale that keeps activations in range, except a running variance, which is uniform
    in [0.75, 1.25). Layers that steer where a deformable convolution samples get larger weights and biases than the
    rest, so that the offsets reach over whole pixels.
    """
    generator = np.random.RandomState(zlib.crc32(key.encode()))
    kind = key.rpartition(".")[2]
    if kind == "running_var":
        return (generator.random_sample(shape) * 0.5 + 0.75).astype(np.float32)
    noise = generator.standard_normal(shape).astype(np.float32)
    steering = "offset_conv" in key or "modulator_conv" in key
    if kind == "running_mean":
        return noise * np.float32(0.1)
    if kind == "relative_position_bias_table":
        return noise * np.float32(0.5)
    if kind == "bias":
        return noise * np.float32(0.5 if steering else 0.05)
    if kind == "weight" and len(shape) == 1:
        return np.float32(1) + noise * np.float32(0.1)
    in_backbone = "bb" in key.split(".")[:-1]
    gain = 2.0 if steering else 1.0 if in_backbone else 1.4
    # In float64 until the end: numpy 1 and 2 promote a float64 scalar differently.
    return (noise.astype(np.float64) * (gain / np.sqrt(np.prod(shape[1:], dtype=np.int64)))).astype(np.float32)


def image_for(height: int, width: int) -> np.ndarray:
    """Waves, and finer and finer ones: shape (1, 3, height, width), float32, in about [-1.5, 1.5]."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [
        np.sin(x / 9 + plane) * np.cos(y / 13 - plane) + np.sin(x * y / (700 + 50 * plane)) / 2 for plane in range(3)
    ]
    return np.stack(waves)[np.newaxis].astype(np.float32)


class Entry(NamedTuple):
    """An entry of a public state dict."""

    shape: Shape
    is_integer: bool


class Reference(NamedTuple):
    """What the folder says of one variant."""

    entries: dict[str, Entry]
    """In the public state dict's order."""
    expected: dict[str, np.ndarray]
    """`logits_<h>x<w>`, shape (1, 1, h, w), and `<module>_mean_std_<h>x<w>`, shape (2,)."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Every (height, width) that there are logits for."""
        found = [LOGITS.fullmatch(name) for name in self.expected]
        return [(int(match[1]), int(match[2])) for match in found if match]


class Agreement(NamedTuple):
    """One comparison of logits."""

    variant: str
    height: int
    width: int
    largest_difference: float
    seconds: float
    modules: dict[str, float]
    """Largest difference of mean and standard deviation, by module, in the order of the computation: where a
    departure begins."""


def read_reference(folder: Path, variant: str) -> Reference:
    """Read the two files of a variant.

    Raises:
        ReferenceFolderError: when the folder or a file is absent, is not of its format, or holds no logits.
    """
    if not folder.is_dir():
        raise ReferenceFolderError(f"no reference folder at {folder}")
    keys, expected = folder / f"keys_{variant}.json", folder / f"expected_{variant}.npz"
    for path in (keys, expected):
        if not path.is_file():
            raise ReferenceFolderError(f"no {path.name} in {folder}")
    try:
        listed = json.loads(keys.read_text(encoding="utf-8"))
        entries = {key: Entry(tuple(shape), dtype.startswith("int")) for key, (shape, dtype) in listed.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ReferenceFolderError(f"{keys} is not a list of state-dict entries: {error}") from error
    try:
        with expected.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            reference = Reference(entries, dict(arrays))
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise ReferenceFolderError(f"{expected} is not an archive of arrays: {error}") from error
    if not reference.sizes:
        raise ReferenceFolderError(f"{expected} holds no logits_<h>x<w>")
    return reference


def fill_by_rule(network: nn.Module, entries: Mapping[str, Entry]) -> None:
    """Give every entry the weights of the rule; integer buffers keep what the network itself computed.

    Raises:
        StateDictMismatch: when names or shapes are not the network's.
    """
    own = network.state_dict()
    state: dict[str, Tensor] = {}
    for key, entry in entries.items():
        keeps = entry.is_integer and key in own and tuple(own[key].shape) == entry.shape
        state[key] = own[key] if keeps else torch.from_numpy(np.asarray(weight_for(key, entry.shape)))
    load_strict(network, state)


def in_order(network: nn.Module, entries: Mapping[str, Entry]) -> bool:
    return list(network.state_dict()) == list(entries)


def build(variant: str, reference: Reference) -> BiRefNet:
    """The variant's network with the weights of the rule, for inference."""
    network = BiRefNet(VARIANTS[variant]).eval()
    fill_by_rule(network, reference.entries)
    return network


def filled(variant: str) -> BiRefNet:
    """The variant's network with the weights of the rule for its own names, for inference. Needs no folder."""
    network = BiRefNet(VARIANTS[variant]).eval()
    own = network.state_dict()
    fill_by_rule(network, {k: Entry(tuple(v.shape), not v.is_floating_point()) for k, v in own.items()})
    return network


def compare_logits(network: nn.Module, variant: str, reference: Reference, height: int, width: int) -> Agreement:
    """Run the network on the image of this size and compare."""
    suffix = f"_mean_std_{height}x{width}"
    modules = dict(network.named_modules())
    named = [name.removesuffix(suffix) for name in reference.expected if name.endswith(suffix)]
    watched = [name for name in named if name in modules]
    seen: dict[str, np.ndarray] = {}

    def note(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        # The backbone runs twice; the figures are of its first run.
        seen.setdefault(name, np.array([output.mean().item(), output.std().item()]))

    with ExitStack() as hooks, torch.inference_mode():
        for name in watched:
            hooks.enter_context(modules[name].register_forward_hook(partial(note, name)))
        started = time.perf_counter()
        logits = network(torch.from_numpy(image_for(height, width))).numpy()
        seconds = time.perf_counter() - started
    expected = reference.expected[f"logits_{height}x{width}"]
    if logits.shape != expected.shape:
        raise ReferenceFolderError(
            f"logits_{height}x{width} of {variant} has shape {expected.shape}, not {logits.shape}"
        )
    # A NaN on either side must fail, so it stays one through max().
    difference = float(np.abs(logits.astype(np.float64) - expected).max())
    departures = {name: float(np.abs(seen[name] - reference.expected[name + suffix]).max()) for name in watched}
    return Agreement(variant, height, width, difference, seconds, departures)


def agrees(result: Agreement, tolerance: float) -> bool:
    return result.largest_difference <= tolerance


def report(result: Agreement, tolerance: float) -> str:
    """One line; a departure adds one for each module that the folder has figures of."""
    within = agrees(result, tolerance)
    lines = [
        f"{result.variant:8} {result.height}x{result.width}  largest difference {result.largest_difference:.2e}  "
        f"{'ok' if within else f'FAILED (over {tolerance:g})'}  {result.seconds:.1f} s"
    ]
    if not within:
        lines.extend(f"  {name}: mean and deviation off by {off:.2e}" for name, off in result.modules.items())
    return "\n".join(lines)


def verify_variant(variant: str, folder: Path, tolerance: float) -> bool:
    """Compare names, shapes and every size's logits; print what comes out; say whether all agree."""
    reference = read_reference(folder, variant)
    try:
        network = build(variant, reference)
    except StateDictMismatch as error:
        print(f"{variant:8} FAILED: {error}", flush=True)
        return False
    values = sum(tensor.numel() for tensor in network.state_dict().values())
    order = "in order" if in_order(network, reference.entries) else "in another order"
    print(f"{variant:8} {len(reference.entries)} entries, {values:,} values: names and shapes agree, {order}")
    all_agree = True
    for height, width in reference.sizes:
        result = compare_logits(network, variant, reference, height, width)
        print(report(result, tolerance), flush=True)
        all_agree = all_agree and agrees(result, tolerance)
    return all_agree


def verify_export_form(variant: str, side_px: int, tolerance: float) -> bool:
    """Compare the export form with the plain network on one image; print what comes out; say whether they agree.

    Raises:
        BadSide: when the side is no multiple of 32.
    """
    if side_px % SIDE_MULTIPLE_PX:
        raise BadSide(f"--side must be a multiple of {SIDE_MULTIPLE_PX} px, not {side_px}")
    network = filled(variant)
    image = torch.from_numpy(image_for(side_px, side_px))
    started = time.perf_counter()
    with torch.inference_mode():
        use_definition(network)
        plain = network(image)
        use_definition(network, False)
        logits = export_form(network, side_px)(image)
    seconds = time.perf_counter() - started
    difference = float((logits.double() - plain.double()).abs().max())
    of_alpha = float((logits.double().sigmoid() - plain.double().sigmoid()).abs().max())
    within = difference <= tolerance
    print(
        f"{variant:8} {side_px}x{side_px}  export form: largest difference {difference:.2e} of logits from "
        f"{float(plain.min()):.1f} to {float(plain.max()):.1f}, {of_alpha:.2e} of alpha  "
        f"{'ok' if within else f'FAILED (over {tolerance:g})'}  {seconds:.1f} s",
        flush=True,
    )
    return within


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare this implementation of BiRefNet with figures of the public one: names and shapes of all weights, "
        "and the logits for deterministic weights and images. Or compare the form that is exported with the plain "
        "network. Exit status 1 when a logit differs by more than the tolerance, or a name or shape by anything."
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "--reference",
        metavar="DIR",
        type=Path,
        help="folder with keys_<variant>.json and expected_<variant>.npz",
    )
    subject.add_argument(
        "--export-form",
        action="store_true",
        help="compare the form that is exported with the plain network, whose deformable convolutions are then "
        "computed from their definition in float64; needs no folder",
    )
    parser.add_argument(
        "--side",
        metavar="PX",
        type=positive,
        default=SIDE_PX,
        help="with --export-form: side of the image, a multiple of 32 (default: %(default)d)",
    )
    parser.add_argument(
        "--variant",
        choices=sorted(VARIANTS),
        action="append",
        help="compare only this one; may be repeated (default: all of them)",
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=float,
        default=TOLERANCE,
        help="largest difference of a logit that passes (default: %(default)g)",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=positive,
        help="threads for PyTorch (default: as many as there are cores)",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    variants = arguments.variant or VARIANTS
    if arguments.export_form:
        results = [verify_export_form(variant, arguments.side, arguments.tolerance) for variant in variants]
    else:
        results = [verify_variant(variant, arguments.reference, arguments.tolerance) for variant in variants]
    return 0 if all(results) else 1
