"""Write the bundled `nano` files from finished (or stopped) trainings.

    python -m export.nano.export_weights --run runs/nano --out export/weights/nano

Writes the ONNX file of each network of which the run has a checkpoint (`matte.pt`, `seg.pt`), `SHA256SUMS`, and into
`training/` the record of the training and figures. Each file is run in ONNX Runtime and compared with PyTorch. Files
made from an earlier network (8-bit, free sizes) are deleted: a server would go on to serve those.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from export.graphs import DETECTOR_SIDE_PX
from export.nano.evaluate import held_out_figures, sharpness_figures
from export.nano.pictures import load_bank
from export.nano.train_seg import fold_blocks, mask_branches
from export.nano.training import load_checkpoint
from export.networks.modnet import MODNet, load_published
from export.networks.yolov8 import YoloV8
from export.onnx_export import Difference, example_pictures, export_detector, export_modnet
from export.weights_io import YOLOV8N_SHA256, load_ultralytics
from runtime.digest import sha256_of
from runtime.weights import INT8_SUFFIX

#: Largest difference from PyTorch that is still rounding: grey levels, pixels, probabilities, …
TOLERANCES = {"alphas": 1.0, "boxes": 0.05, "scores": 1e-4, "classes": 0.0, "coefficients": 1e-2, "prototypes": 1e-3}
TIMED_RUNS = 20
SERVING_THREADS = 2


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Export the trained nano networks.")
    parser.add_argument("--run", type=Path, required=True, help="folder with matte.pt, seg.pt or both")
    parser.add_argument("--data", type=Path, default=Path("../shared/people"), help="photographs with masks")
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights/yolov8n.pt"))
    parser.add_argument("--modnet", type=Path, default=Path("../shared/weights/modnet.onnx"), help="as published")
    parser.add_argument("--out", type=Path, default=Path("export/weights/nano"))
    parser.add_argument("--size", type=int, default=320, help="side of the matting network's input, px")
    parser.add_argument("--compare-sizes", type=int, nargs="*", default=[320], help="held-out figures for")
    parser.add_argument(
        "--sharpness",
        type=float,
        default=1.0,
        help="factor of the logits; a network that saw only binary masks needs 2",
    )
    parser.add_argument(
        "--start-share",
        type=float,
        default=0.0,
        help="share of the published network, from which the run started, in the mean of both",
    )
    return parser.parse_args(arguments)


def load_matte(run: Path) -> tuple[MODNet, dict[str, Any]]:
    """The averaged matting network of a run and the record of its training."""
    checkpoint = load_checkpoint(run / "matte.pt")
    if checkpoint is None:
        raise FileNotFoundError(run / "matte.pt")
    average = checkpoint["average"]
    model = MODNet()
    model.load_state_dict(average)
    return model.eval(), {"steps_done": checkpoint["step"], **checkpoint["figures"]}


def average_with(matte: MODNet, start: MODNet, share: float) -> None:
    """Make each weight the mean of a network's and of the one that its training started from, in place: what training
    forgot comes back, and most of what it learned stays (Wortsman et al., 2022)."""
    before = start.state_dict()
    mean = {name: value.lerp(before[name], share) for name, value in matte.state_dict().items()}
    matte.load_state_dict(mean)


def load_seg(run: Path, weights: Path) -> tuple[YoloV8, dict[str, Any]]:
    """The detector with the averaged mask branches of a run and the record of their training."""
    checkpoint = load_checkpoint(run / "seg.pt")
    if checkpoint is None:
        raise FileNotFoundError(run / "seg.pt")
    model = YoloV8("n")
    model.load_state_dict(load_ultralytics(weights, YOLOV8N_SHA256), strict=False)
    average, branches = checkpoint["average"], mask_branches(model)
    # A run that started from a served network has its normalisation folded.
    (branches if any(".bn." in name for name in average) else fold_blocks(branches)).load_state_dict(average)
    return model.eval(), {"steps_done": checkpoint["step"], **checkpoint["figures"]}


def median_ms(path: Path, side_px: int, batch: int) -> float:
    """Median time of one run in ONNX Runtime on two threads, milliseconds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = SERVING_THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    pictures = example_pictures(batch, side_px)
    times_ms = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        session.run(None, {"images": pictures})
        times_ms.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times_ms)


def report(differences: list[Difference]) -> bool:
    """Print how far each output is from PyTorch's; whether all are rounding."""
    good = True
    for each in differences:
        fine = each.largest <= TOLERANCES[each.output]
        good &= fine
        verdict = "" if fine else "  TOO LARGE"
        print(f"  {each.output:12} batch {each.batch}: largest {each.largest:.2g}, mean {each.mean:.2g}{verdict}")
    return good


def main(arguments: list[str] | None = None) -> int:
    """Export what the run holds; exit status 1 where a file differs from PyTorch by more than rounding."""
    options = parse_options(arguments)
    torch.set_num_threads(SERVING_THREADS)
    good, written = True, []
    if (options.run / "matte.pt").exists():
        matte, record = load_matte(options.run)
        if options.start_share:
            average_with(matte, load_published(options.modnet), options.start_share)
        if options.compare_sizes:
            record |= matte_figures(matte, options)
        matte.sharpen(options.sharpness)
        path = options.out / "birefnet_trt.onnx"
        good &= report(export_modnet(matte, options.size, path))
        made = {name: getattr(options, name) for name in ("size", "start_share", "sharpness")}
        written.append((path, options.size, "matte", {**record, "export": made}))
    if (options.run / "seg.pt").exists():
        seg, record = load_seg(options.run, options.weights)
        path = options.out / "yolov8_seg.onnx"
        good &= report(export_detector(seg, path))
        written.append((path, DETECTOR_SIDE_PX, "seg", record))
    records = options.out / "training"
    records.mkdir(exist_ok=True)
    for path, side_px, name, record in written:
        print({f"{path.stem}_b{batch}_ms": round(median_ms(path, side_px, batch), 1) for batch in (1, 4)})
        kept = {key: value for key, value in record["options"].items() if key not in ("data", "weights", "out")}
        (records / f"{name}.json").write_text(json.dumps({**record, "options": kept}, indent=1) + "\n")
        for older in (path.with_suffix(INT8_SUFFIX), path.with_stem(f"{path.stem}_free")):
            if older.exists():
                older.unlink()
                print(f"deleted {older.name}, of the earlier network: python -m export.nano.quantize, .free_sizes")
    sums = [f"{sha256_of(path)}  {path.name}" for path in sorted(options.out.glob("*.onnx"))]
    (options.out / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return 0 if good else 1


def matte_figures(matte: MODNet, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of held-out pictures by the side of the input, and by factors of the logits; printed, too."""
    bank = load_bank(options.data, 0)
    sizes = {str(side): held_out_figures(copy.deepcopy(matte), bank, side) for side in options.compare_sizes}
    for side, figures in sizes.items():
        print(side, {name: round(value, 4) for name, value in figures.items()}, flush=True)
    sharpness = sharpness_figures(copy.deepcopy(matte), bank, options.size)
    for factor, figures in sharpness.items():
        print(f"sharpness {factor}", {name: round(value, 4) for name, value in figures.items()}, flush=True)
    return {"final_held_out_by_size": sizes, "final_held_out_by_sharpness": sharpness}


if __name__ == "__main__":
    sys.exit(main())
