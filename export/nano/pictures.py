"""The training photographs, held in memory with all that composing new scenes from them needs.

Per picture: soft alpha (the given masks are binary), the foreground's own colours near its edge (so that a
pasted person brings no halo along) and the picture with its people removed (a background).
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

#: Held out of training, the first of a shuffle by `HELD_OUT_SEED`, for the figures in the model card.
HELD_OUT_CCP = 30
HELD_OUT_COCO = 6
HELD_OUT_SEED = 2024
#: Alpha may be soft this far from the edge of a binary mask, at 800 px.
BAND_PX = 4
#: People smaller than this in a picture are no use as pasted people or as the aim of a crop.
MIN_PERSON_PX = 40


@dataclass(frozen=True)
class Picture:
    """One photograph of a bank.

    Attributes:
        name: file name without suffix.
        source: "ccp" or "coco128p".
        image: uint8 RGB [H, W, 3].
        alpha: uint8 [H, W], soft at edges, ≥128 exactly where the mask is.
        instances: uint8 [H, W], 0 background, 1…n the people.
        colours: uint8 RGB [H, W, 3], the image with the foreground's colours grown across its edge.
        background: uint8 RGB [H, W, 3], the image without people, or none where too little is left.
        boxes: int32 [n, 4], x1, y1, x2, y2 (exclusive) of each person, pixels.
    """

    name: str
    source: str
    image: Image
    alpha: Image
    instances: Image
    colours: Image
    background: Image | None
    boxes: NDArray[np.int32]

    def people(self) -> list[int]:
        """Numbers (1…n) of the people large enough to aim a crop at."""
        sides = np.minimum(self.boxes[:, 2] - self.boxes[:, 0], self.boxes[:, 3] - self.boxes[:, 1])
        return [index + 1 for index in range(len(self.boxes)) if sides[index] >= MIN_PERSON_PX]


def soften(image: Image, mask: Image) -> Image:
    """Soft alpha from a binary mask by a guided filter, within a narrow band.

    Args:
        image: uint8 RGB [H, W, 3], the guide.
        mask: uint8 [H, W], 0 or 255.

    Returns:
        uint8 [H, W]; thresholding it at 128 gives `mask` back.
    """
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    target = mask.astype(np.float32) / 255.0
    side = (2 * BAND_PX + 1, 2 * BAND_PX + 1)

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return cv2.boxFilter(values, -1, side, borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_target = mean(guide), mean(target)
    slope = (mean(guide * target) - mean_guide * mean_target) / (mean(guide * guide) - mean_guide**2 + 2e-3)
    filtered = mean(slope) * guide + mean(mean_target - slope * mean_guide)
    blurred = cv2.GaussianBlur(target, (0, 0), 1.0)
    alpha = np.clip(0.5 * filtered + 0.5 * blurred, 0.0, 1.0)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, side)
    alpha[cv2.erode(mask, kernel) == 255] = 1.0
    alpha[cv2.dilate(mask, kernel) == 0] = 0.0
    levels = np.rint(alpha * 255.0)
    return np.where(mask > 0, np.maximum(levels, 128), np.minimum(levels, 127)).astype(np.uint8)


def grow_colours(image: Image, mask: Image) -> Image:
    """Replace colours at and beyond the edge of a mask by the mean of the sure foreground nearby.

    Args:
        image: uint8 RGB [H, W, 3].
        mask: uint8 [H, W], 0 or 255.
    """
    sure = cv2.erode(mask, np.ones((5, 5), np.uint8))
    result = image.copy()
    weights = (sure > 0).astype(np.float32)
    values = image.astype(np.float32) * weights[..., None]
    todo = (sure == 0) & (cv2.dilate(mask, np.ones((17, 17), np.uint8)) > 0)
    for side in (5, 11, 25):
        total = cv2.boxFilter(weights, -1, (side, side), normalize=False)
        summed = cv2.boxFilter(values, -1, (side, side), normalize=False)
        here = todo & (total > 0.5)
        result[here] = np.rint(summed[here] / total[here][:, None]).astype(np.uint8)
        todo &= ~here
    return result


def without_people(image: Image, mask: Image) -> Image | None:
    """The background: the columns people cover are filled with mirrored columns from beside them.

    Where too little is beside them the mask is painted over at low resolution; where the people cover most
    of the picture there is no background.
    """
    height, width = mask.shape
    covered = cv2.dilate(mask, np.ones((15, 15), np.uint8)) > 0
    if covered.mean() > 0.6:
        return None
    columns = np.flatnonzero(covered.any(axis=0))
    if columns.size == 0:
        return image
    left, right = int(columns[0]), int(columns[-1]) + 1
    beside_left, beside_right = left, width - right
    if max(beside_left, beside_right) >= width // 6:
        offset = np.arange(right - left)

        def mirrored(room: int, steps: NDArray[np.int64]) -> NDArray[np.int64]:
            period = np.abs((steps % (2 * room)) - room + 0.5) - 0.5
            return (room - 1 - period).astype(np.int64)

        from_left = left - 1 - mirrored(beside_left, offset) if beside_left else None
        from_right = right + mirrored(beside_right, offset[::-1]) if beside_right else None
        if beside_left < width // 12 or from_left is None:
            filled = image[:, from_right]
        elif beside_right < width // 12 or from_right is None:
            filled = image[:, from_left]
        else:
            ramp = np.clip((np.linspace(0, 1, right - left) - 0.4) / 0.2, 0, 1)[None, :, None]
            filled = image[:, from_left] * (1 - ramp) + image[:, from_right] * ramp
        patch = image.copy()
        patch[:, left:right] = filled
        soft = cv2.GaussianBlur(covered.astype(np.float32), (0, 0), 4.0)[..., None]
        return np.rint(image * (1 - soft) + patch * soft).astype(np.uint8)
    small = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    hole = cv2.resize(covered.astype(np.uint8), (small.shape[1], small.shape[0]), interpolation=cv2.INTER_NEAREST)
    painted = cv2.resize(cv2.inpaint(small, hole, 3, cv2.INPAINT_TELEA), (width, height))
    return np.where(covered[..., None], painted, image)


def load_picture(folder: Path, name: str) -> Picture:
    """Read one picture of `folder` (with `images/`, `masks/` and perhaps `instances/`) and prepare it."""
    image = cv2.cvtColor(cv2.imread(str(folder / "images" / f"{name}.jpg")), cv2.COLOR_BGR2RGB)
    mask = cv2.imread(str(folder / "masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    mask = np.where(mask >= 128, 255, 0).astype(np.uint8)
    instances_path = folder / "instances" / f"{name}.png"
    if instances_path.exists():
        instances = cv2.imread(str(instances_path), cv2.IMREAD_GRAYSCALE)
    else:
        instances = (mask > 0).astype(np.uint8)
    boxes = []
    for person in range(1, int(instances.max()) + 1):
        x, y, width, height = cv2.boundingRect((instances == person).astype(np.uint8))
        boxes.append((x, y, x + width, y + height))
    return Picture(
        name=name,
        source=folder.name,
        image=image,
        alpha=soften(image, mask),
        instances=instances,
        colours=grow_colours(image, mask),
        background=without_people(image, mask),
        boxes=np.array(boxes, np.int32).reshape(-1, 4),
    )


@dataclass(frozen=True)
class PictureBank:
    """Pictures to train on and pictures held out, by source."""

    ccp: list[Picture]
    coco: list[Picture]
    held_out_ccp: list[Picture]
    held_out_coco: list[Picture]


def load_bank(data: Path, limit: int | None = None) -> PictureBank:
    """Read `data/train/ccp` and `data/train/coco128p` (nothing else) and split off the held-out pictures.

    Args:
        data: folder of photographs with masks.
        limit: read only this many of each source, for a smoke run.

    Raises:
        FileNotFoundError: there are no pictures.
    """
    sources: dict[str, list[Picture]] = {}
    for source in ("ccp", "coco128p"):
        folder = data / "train" / source
        names = sorted(path.stem for path in (folder / "images").glob("*.jpg"))
        if not names:
            raise FileNotFoundError(f"no pictures in {folder / 'images'}")
        np.random.default_rng(HELD_OUT_SEED).shuffle(names)
        with ThreadPoolExecutor(2) as pool:
            sources[source] = list(pool.map(lambda name, at=folder: load_picture(at, name), names[:limit]))
    ccp, coco = sources["ccp"], sources["coco128p"]
    return PictureBank(ccp[HELD_OUT_CCP:], coco[HELD_OUT_COCO:], ccp[:HELD_OUT_CCP], coco[:HELD_OUT_COCO])
