"""Things that look like clothes and are nobody's: hanging cloth, flags, patterns.

The training photographs hold hardly any of them, and a network that saw only these takes coloured cloth for a person.
"""

import cv2
import numpy as np

from export.nano.pictures import Image, Picture

Generator = np.random.Generator

MOST = 3
TRIES = 6


def add_distractors(
    rng: Generator, image: Image, wardrobe: list[Picture], near: tuple[float, float] | None = None
) -> Image:
    """One to three pieces of cloth or pattern on a background.

    Args:
        image: uint8 RGB [H, W, 3].
        wardrobe: pictures of people whose clothes serve as cloth.
        near: where the first piece is, as shares of width and height; anywhere by default.
    """
    result = image.copy()
    for number in range(int(rng.integers(1, MOST + 1))):
        height, width = image.shape[:2]
        texture = _cloth(rng, wardrobe[rng.integers(len(wardrobe))]) if rng.random() < 0.6 else _pattern(rng)
        sheet = _fill(rng, texture, (height, width))
        cover = _shape(rng, (height, width), near if number == 0 else None)[..., None]
        result = np.rint(result + (_folded(rng, sheet) - result) * cover).astype(np.uint8)
    return result


def _cloth(rng: Generator, picture: Picture) -> Image:
    """A rectangle that lies within a person's clothes; a pattern where none is found."""
    x0, y0, x1, y1 = (int(value) for value in picture.boxes[0])
    width, height = x1 - x0, y1 - y0
    for _ in range(TRIES):
        part_w, part_h = int(width * rng.uniform(0.2, 0.4)), int(height * rng.uniform(0.1, 0.3))
        left = int(rng.integers(x0, max(x0 + 1, x1 - part_w)))
        top = int(rng.integers(y0 + height // 5, max(y0 + height // 5 + 1, y1 - height // 8 - part_h)))
        mask = picture.alpha[top : top + part_h, left : left + part_w]
        if mask.size >= 400 and mask.min() == 255:
            return picture.image[top : top + part_h, left : left + part_w]
    return _pattern(rng)


def _pattern(rng: Generator) -> Image:
    """Stripes, checks or spots in two to four colours."""
    side = 128
    colours = rng.integers(0, 256, size=(int(rng.integers(2, 5)), 3)).astype(np.uint8)
    y, x = np.mgrid[0:side, 0:side]
    period = int(rng.integers(8, 48))
    kind = rng.integers(3)
    if kind == 0:
        number = x // period
    elif kind == 1:
        number = x // period + y // period
    else:
        centre = period // 2
        number = (((x % period) - centre) ** 2 + ((y % period) - centre) ** 2 < (period / 3) ** 2).astype(int)
    return colours[number % len(colours)]


def _fill(rng: Generator, texture: Image, shape_hw: tuple[int, int]) -> Image:
    """The texture, turned and repeated by mirroring, over a whole picture."""
    height, width = shape_hw
    scale = rng.uniform(0.6, 2.5) * max(shape_hw) / 384 * 100 / max(texture.shape[:2])
    turn = np.deg2rad(rng.choice((0.0, 90.0)) + rng.normal(0, 15))
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    affine = np.column_stack((linear, rng.uniform(0, 1, size=2) * (width, height)))
    return cv2.warpAffine(texture, affine, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _folded(rng: Generator, sheet: Image) -> np.ndarray:
    """Light and shadow of hanging cloth, float32 [0, 255]."""
    height, width = sheet.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    turn = rng.uniform(-0.5, 0.5)
    across = x * np.cos(turn) + y * np.sin(turn) + 0.05 * np.sin(y * rng.uniform(2, 12))
    folds = np.sin(across * rng.uniform(10, 60) + rng.uniform(0, 6)) * rng.uniform(0.0, 0.35)
    return np.clip(sheet.astype(np.float32) * (1 + folds[..., None]) * rng.uniform(0.6, 1.15), 0, 255)


def _shape(rng: Generator, shape_hw: tuple[int, int], near: tuple[float, float] | None) -> np.ndarray:
    """Where the piece is: float32 [H, W] in [0, 1]; a strip along a border, or a rectangle or blob, perhaps placed."""
    height, width = shape_hw
    mask = np.zeros(shape_hw, np.uint8)
    if near is None and rng.random() < 0.4:
        share = rng.uniform(0.08, 0.35)
        side = rng.integers(3)
        wobble = int(rng.uniform(0, 0.08) * width)
        corners = {
            0: [(0, 0), (share * width + wobble, 0), (share * width - wobble, height), (0, height)],
            1: [
                (width, 0),
                (width - share * width - wobble, 0),
                (width - share * width + wobble, height),
                (width, height),
            ],
            2: [(0, 0), (width, 0), (width, share * height + wobble), (0, share * height - wobble)],
        }[int(side)]
        points = np.array(corners)
    else:
        place = rng.uniform(0, 1, size=2) if near is None else near + rng.normal(0, 0.12, size=2)
        centre = place * np.array((width, height))
        size = rng.uniform(0.06, 0.3, size=2) * (width, height)
        count = int(rng.integers(4, 9))
        angles = (
            np.sort(rng.uniform(0, 2 * np.pi, size=count)) if rng.random() < 0.5 else np.arange(4) * np.pi / 2 + 0.78
        )
        points = centre + np.stack((np.cos(angles), np.sin(angles)), axis=1) * size * rng.uniform(
            0.7, 1.3, size=(len(angles), 1)
        )
    cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 255)
    return cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.5, 1.5)).astype(np.float32) / 255.0
