"""The training photographs, held in memory with all that composing new scenes from them needs.

Per picture: soft alpha (the given masks are binary), the foreground's own colours near its edge (so that a
pasted person brings no halo along) and the picture with its people removed (a background).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

#: How many pictures of each folder are held out of training, for choosing and for the figures in the model card: the
#: first of a shuffle by `HELD_OUT_SEED`. Of backgrounds, places.
HELD_OUT = {
    "train/ccp": 30,
    "train/coco128p": 6,
    "train2/ccp": 30,
    "train2/ccp_pseudo": 10,
    "train2/cc0_faces_pseudo": 20,
    "train2/pd_officials_pseudo": 15,
    "train2/backgrounds": 10,
}
#: Also held out: the one group among the heads, for a sample picture.
HELD_OUT_NAMES = {"pilots"}
HELD_OUT_SEED = 2024
#: Alpha may be soft this far from the edge of a binary mask, at 800 px.
BAND_PX = 4
#: Holes of a mask up to this share of its area are faults of the mask.
HOLE_SHARE = 0.002
#: People smaller than this in a picture are no use as pasted people or as the aim of a crop.
MIN_PERSON_PX = 40


@dataclass(frozen=True)
class Picture:
    """One photograph of a bank.

    Attributes:
        name: file name without suffix.
        source: name of the folder.
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

    @property
    def cut(self) -> tuple[bool, bool, bool, bool]:
        """Whether the first person goes on beyond the picture: left, top, right, bottom."""
        height, width = self.alpha.shape
        x1, y1, x2, y2 = (int(value) for value in self.boxes[0])
        return x1 <= 2, y1 <= 2, x2 >= width - 2, y2 >= height - 2

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


def without_small_holes(mask: Image) -> Image:
    """A mask, uint8 [H, W], 0 or 255, with its holes of up to `HOLE_SHARE` filled."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(255 - mask, connectivity=4)
    limit = HOLE_SHARE * np.count_nonzero(mask)
    height, width = mask.shape
    filled = mask.copy()
    for label in range(1, count):
        x, y, box_w, box_h, area = stats[label]
        if area <= limit and x > 0 and y > 0 and x + box_w < width and y + box_h < height:
            filled[labels == label] = 255
    return filled


def read_rgb(path: Path) -> Image:
    """A picture file, uint8 RGB [H, W, 3]."""
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def load_picture(folder: Path, name: str, with_background: bool = True) -> Picture:
    """Read one picture of `folder` (with `images/`, `masks/` and perhaps `instances/`) and prepare it.

    A teacher's masks (`…_pseudo`) are soft and stay as they are; binary ones are softened.
    """
    image = read_rgb(folder / "images" / f"{name}.jpg")
    given = cv2.imread(str(folder / "masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    mask = without_small_holes(np.where(given >= 128, 255, 0).astype(np.uint8))
    instances_path = folder / "instances" / f"{name}.png"
    if instances_path.exists():
        instances = cv2.imread(str(instances_path), cv2.IMREAD_GRAYSCALE)
    else:
        instances = (mask > 0).astype(np.uint8)
    boxes = []
    for person in range(1, int(instances.max()) + 1):
        x, y, width, height = cv2.boundingRect((instances == person).astype(np.uint8))
        boxes.append((x, y, x + width, y + height))
    if folder.name.endswith("_pseudo"):
        alpha = np.where((mask == 255) & (given < 128), 255, given).astype(np.uint8)
    else:
        alpha = soften(image, mask)
    return Picture(
        name=name,
        source=folder.name,
        image=image,
        alpha=alpha,
        instances=instances,
        colours=grow_colours(image, mask),
        background=without_people(image, mask) if with_background else None,
        boxes=np.array(boxes, np.int32).reshape(-1, 4),
    )


@dataclass(frozen=True)
class PictureBank:
    """Pictures to train on and pictures held out.

    Attributes:
        ccp: one person each, from head to foot, with very good masks; some with a teacher's.
        coco: hard scenes with coarse masks.
        heads: heads and shoulders with a teacher's soft alpha.
        backgrounds: without people, uint8 RGB [H, W, 3].
    """

    ccp: list[Picture]
    coco: list[Picture]
    held_out_ccp: list[Picture]
    held_out_coco: list[Picture]
    heads: list[Picture]
    backgrounds: list[Image]
    held_out_heads: list[Picture]
    held_out_backgrounds: list[Image]


FULL_LENGTH = ("train/ccp", "train2/ccp", "train2/ccp_pseudo")
HEADS = ("train2/cc0_faces_pseudo", "train2/pd_officials_pseudo")


def split_names(data: Path, folder: str) -> tuple[list[str], list[str]]:
    """Names of the pictures in `data/folder` to train on, and of those held out.

    Raises:
        FileNotFoundError: there are no pictures.
    """
    names = sorted(path.stem for path in (data / folder / "images").glob("*.jpg"))
    if not names:
        raise FileNotFoundError(f"no pictures in {data / folder / 'images'}")
    # Several backgrounds show one place; other pictures stand alone.
    keys = {name: name.rpartition("_")[0] if folder == "train2/backgrounds" else name for name in names}
    shuffled = list(dict.fromkeys(keys.values()))
    np.random.default_rng(HELD_OUT_SEED).shuffle(shuffled)
    first = set(shuffled[: HELD_OUT[folder]]) | HELD_OUT_NAMES
    return [name for name in names if keys[name] not in first], [name for name in names if keys[name] in first]


def load_bank(data: Path, limit: int | None = None) -> PictureBank:
    """Read the pictures of the folders `HELD_OUT` in `data`, nothing else, and split off the held-out ones.

    Args:
        data: folder of photographs with masks.
        limit: train on only so many of each folder: for a smoke run, or 0 where only the held-out ones are of interest.

    Raises:
        FileNotFoundError: there are no pictures.
    """
    parts: list[tuple[list[Picture], list[Picture], list[Picture], list[Image]]] = []
    with ThreadPoolExecutor(2) as pool:
        for part in (0, 1):

            def names(folder: str, part: int = part) -> list[str]:
                return split_names(data, folder)[part][: None if part else limit]

            def read(*folders: str, names: Callable[[str], list[str]] = names) -> list[Picture]:
                jobs = [(folder, name) for folder in folders for name in names(folder)]
                return list(
                    pool.map(lambda job: load_picture(data / job[0], job[1], job[0].startswith("train/")), jobs)
                )

            images = data / "train2/backgrounds/images"
            empty = [read_rgb(images / f"{name}.jpg") for name in names("train2/backgrounds")]
            parts.append((read(*FULL_LENGTH), read("train/coco128p"), read(*HEADS), empty))
    (ccp, coco, heads, backgrounds), held_out = parts
    return PictureBank(ccp, coco, held_out[0], held_out[1], heads, backgrounds, held_out[2], held_out[3])
