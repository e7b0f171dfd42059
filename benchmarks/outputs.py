"""What each form of the answer costs: bytes, and milliseconds of rendering and encoding, at 1 and 12 megapixels.

    python -m benchmarks.outputs [PICTURE] [--rounds 5]

The pipeline in this process with the bundled networks; all forms in turn in each round, medians.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
from pathlib import Path

from PIL import Image

from benchmarks.machine import head, load_before, sentence
from benchmarks.quality import PIPELINE, ROOT, load_models

SIZES = {"1 megapixel": 1_000_000, "12 megapixels": 12_000_000}
FORMS: dict[str, dict[str, str | int]] = {
    "png": {"output": "png"},
    "webp": {"output": "webp"},
    "layers": {"output": "layers"},
    "mask": {"output": "mask"},
    "jpeg on #FFFFFF": {"output": "jpeg", "background": "#FFFFFF"},
    "png, max_side_px=1024": {"output": "png", "max_side_px": 1024},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "picture", type=Path, nargs="?", default=ROOT / "samples" / "astronaut.jpg", help="a photograph"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of all forms")
    arguments = parser.parse_args()
    for folder in (PIPELINE, ROOT / "client"):
        sys.path.insert(0, str(folder))
    from cutaway.contract.options import parse_options
    from pipeline.run import run

    models = load_models(ROOT / "export" / "weights" / "nano")
    print(sentence(head(("onnxruntime", "pillow"), load_before())))
    print("\n| | form | kB | refine and encode, ms | of png |\n|---|---|--:|--:|--:|")
    for size, pixels in SIZES.items():
        with Image.open(arguments.picture) as image:
            scale = (pixels / (image.width * image.height)) ** 0.5
            large = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
        file = io.BytesIO()
        large.save(file, "JPEG", quality=92)
        spent_ms: dict[str, list[float]] = {form: [] for form in FORMS}
        n_bytes: dict[str, int] = {}
        for _ in range(arguments.rounds):
            for form, options in FORMS.items():
                answer = run(file.getvalue(), parse_options(options), models)
                stages = answer.report["milliseconds"]
                spent_ms[form].append(stages["refine"] + stages["encode"])
                n_bytes[form] = len(answer.images[0])
        medians = {form: statistics.median(values) for form, values in spent_ms.items()}
        for form in FORMS:
            print(
                f"| {size} | {form} | {n_bytes[form] / 1000:,.0f} | {medians[form]:.0f} "
                f"({min(spent_ms[form]):.0f}–{max(spent_ms[form]):.0f}) | {medians[form] / medians['png']:.2f} |"
            )


if __name__ == "__main__":
    main()
