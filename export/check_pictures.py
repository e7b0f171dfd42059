"""The photographs that an exported file is compared with its network on.

Patterns made by a formula will not do: a trained matting network sees nothing in them, and a file that says nothing
everywhere agrees with it whatever it computes.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from export import ExportError

SAMPLES = Path(__file__).resolve().parents[1] / "samples"


class SamplesMissing(ExportError):
    """The sample photographs are not there.

    samples has no .jpg; restore the folder (git checkout)
    """


def check_pictures(count: int, side_px: int, folder: Path = SAMPLES) -> NDArray[np.uint8]:
    """Squares of the sample photographs, RGB, uint8 [count, side, side, 3]; no two of up to eight are alike.

    First the middle square of each, then their mirror images, then the same of ever tighter cuts.

    Raises:
        SamplesMissing: there are no photographs.
    """
    files = sorted(folder.glob("*.jpg"), reverse=True)
    if not files:
        raise SamplesMissing(f"{folder} has no .jpg; restore the folder (git checkout)")
    pictures: list[NDArray[np.uint8]] = []
    while len(pictures) < count:
        turn, place = divmod(len(pictures), len(files))
        with Image.open(files[place]) as image:
            whole = ImageOps.mirror(image.convert("RGB")) if turn % 2 else image.convert("RGB")
        pictures.append(middle_square(whole, side_px, share=1 - min(0.1 * (turn // 2), 0.5)))
    return np.stack(pictures)


def middle_square(image: Image.Image, side_px: int, share: float = 1.0) -> NDArray[np.uint8]:
    """The middle square of an RGB image at another side, uint8 [side, side, 3].

    Args:
        share: the square's side as a share of the image's shorter one, above 0 to 1.
    """
    side = round(min(image.size) * share)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((side_px, side_px), Image.Resampling.BILINEAR))
