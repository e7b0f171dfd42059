"""Whole scenes with several separate people, letterboxed as the detector sees them, for the mask branches."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from export.nano.compose import DISTRACTED, Window, warp
from export.nano.distractors import add_distractors
from export.nano.photometric import degrade, match_tone, random_tone
from export.nano.pictures import Image, Picture

Generator = np.random.Generator

SIDE_PX = 640
#: Grey of the letterbox' bars, Ultralytics' own.
BAR_GREY = 114
#: People of whom less is visible teach nothing.
MIN_VISIBLE_PX = 300
#: Share of the pasted scenes that are portraits: one or two people, cut off by the lower edge.
PORTRAITS = 0.3
#: Most people pasted into one scene.
MAX_PASTED = 5


@dataclass(frozen=True)
class Scene:
    """A letterboxed picture and its people.

    Attributes:
        image: uint8 RGB [640, 640, 3].
        masks: bool [n, 640, 640], what is visible of each person.
        boxes: float32 [n, 4], x1, y1, x2, y2 of the visible parts, pixels.
        trust: float32 [n], weight of each mask: coarse polygons count for less.
    """

    image: Image
    masks: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    trust: NDArray[np.float32]


class SceneMaker:
    """Makes random scenes of the pictures of one bank.

    Args:
        ccp: pictures of one person with very good masks; these people are pasted.
        coco: scenes with coarse instance masks.
        backgrounds: without people, uint8 RGB [H, W, 3].
    """

    def __init__(self, ccp: list[Picture], coco: list[Picture], backgrounds: list[Image]) -> None:
        self.ccp, self.coco = ccp, [picture for picture in coco if picture.people()]
        own = [picture.background for picture in ccp + coco * 2 if picture.background is not None]
        self.backgrounds = own + backgrounds

    def scene(self, rng: Generator) -> Scene:
        """A random scene: a photograph as it is, or one with people pasted in."""
        kind = rng.random()
        if kind < 0.12:
            image, people, trust = self._photograph(rng, self.ccp)
        elif kind < 0.42:
            image, people, trust = self._photograph(rng, self.coco)
        elif kind < 0.6:
            image, people, trust = self._photograph(rng, self.coco)
            self._paste(rng, image, people, trust, int(rng.integers(1, 3)))
        else:
            image = self._background(rng)
            people, trust = np.zeros(image.shape[:2], np.uint8), []
            portrait = rng.random() < PORTRAITS
            count = int(rng.integers(1, 3 if portrait else MAX_PASTED + 1))
            self._paste(rng, image, people, trust, count, portrait=portrait)
        image = degrade_scene(rng, image)
        return letterboxed(image, people, trust)

    def _photograph(self, rng: Generator, pictures: list[Picture]) -> tuple[Image, Image, list[float]]:
        picture = pictures[rng.integers(len(pictures))]
        height, width = picture.image.shape[:2]
        cut = rng.uniform(0.0, 0.25, size=4) * (rng.random() < 0.6)
        x0, y0 = int(cut[0] * width), int(cut[1] * height)
        x1, y1 = int((1 - cut[2]) * width), int((1 - cut[3]) * height)
        image, people = picture.image[y0:y1, x0:x1], picture.instances[y0:y1, x0:x1]
        scale = SIDE_PX / max(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else 1)
        people = cv2.resize(people, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            image, people = image[:, ::-1], people[:, ::-1]
        trust = [0.4 if picture.source == "coco128p" else 1.0] * int(picture.instances.max())
        return np.ascontiguousarray(image), np.ascontiguousarray(people), trust

    def _background(self, rng: Generator) -> Image:
        source = self.backgrounds[rng.integers(len(self.backgrounds))]
        aspect = float(np.exp(rng.uniform(-0.5, 0.6)))
        width = SIDE_PX if aspect >= 1 else round(SIDE_PX * aspect)
        height = SIDE_PX if aspect <= 1 else round(SIDE_PX / aspect)
        share = rng.uniform(0.5, 1.0)
        source_h, source_w = source.shape[:2]
        part_w = min(source_w * share, source_h * share * aspect)
        part_h = part_w / aspect
        x0, y0 = rng.uniform(0, source_w - part_w), rng.uniform(0, source_h - part_h)
        affine = Window(x0, y0, x0 + part_w, y0 + part_h).to_square(SIDE_PX, 0.0, rng.random() < 0.5)
        square = warp(source, affine, SIDE_PX, cv2.BORDER_REFLECT_101)
        result = cv2.resize(square, (width, height), interpolation=cv2.INTER_AREA)
        if rng.random() < DISTRACTED:
            result = add_distractors(rng, result, self.ccp)
        return random_tone(rng, result, 0.5)

    def _paste(
        self, rng: Generator, image: Image, people: Image, trust: list[float], count: int, *, portrait: bool = False
    ) -> None:
        """Paste people in place, the farther (smaller) ones first, as they would hide one another."""
        height, width = image.shape[:2]
        near = rng.uniform(1.3, 3.5) if portrait else rng.uniform(0.45, 1.15)
        sizes = np.sort(near * np.exp(-np.abs(rng.normal(0, 0.3, size=count))))
        centre = rng.uniform(0.2, 0.8) * width
        for size in sizes:
            picture = self.ccp[rng.integers(len(self.ccp))]
            x0, y0, x1, y1 = (float(value) for value in picture.boxes[0])
            scale = size * height / (y1 - y0)
            foot = min(height * (0.72 + 0.25 * size), height * 1.15) + rng.normal(0, 0.03) * height
            if portrait:
                foot = height * (rng.uniform(0.02, 0.2) + size)
            place_x = centre + rng.normal(0, 0.5) * (x1 - x0) * scale * 1.6
            if rng.random() < 0.3:
                place_x = rng.uniform(0, width)
            flip = rng.random() < 0.5
            linear = -scale if flip else scale
            affine = np.array(
                [[linear, 0.0, place_x - linear * (x0 + x1) / 2], [0.0, scale, foot - scale * y1]], np.float64
            )
            cover = warp(picture.alpha, affine, SIDE_PX, cv2.BORDER_CONSTANT)[:height, :width]
            colours = warp(picture.colours, affine, SIDE_PX, cv2.BORDER_REPLICATE)[:height, :width]
            if rng.random() < 0.3:
                colours = match_tone(rng, colours, cover, image)
            colours = random_tone(rng, colours, 0.6, darken=0.12)
            share = cover[..., None].astype(np.float32) / 255.0
            image[:] = np.rint(image + (colours.astype(np.float32) - image) * share).astype(np.uint8)
            trust.append(1.0)
            people[cover >= 128] = len(trust)


def degrade_scene(rng: Generator, image: Image) -> Image:
    """Light and damage on a picture of any shape."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = cv2.copyMakeBorder(image, 0, side - height, 0, side - width, cv2.BORDER_REFLECT_101)
    return degrade(rng, random_tone(rng, square, 0.5))[:height, :width]


def letterboxed(image: Image, people: Image, trust: list[float]) -> Scene:
    """Centre a picture whose longer side is 640 px on grey and take its people apart."""
    height, width = people.shape
    top, left = (SIDE_PX - height) // 2, (SIDE_PX - width) // 2
    canvas = np.full((SIDE_PX, SIDE_PX, 3), BAR_GREY, np.uint8)
    canvas[top : top + height, left : left + width] = image
    numbers = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    numbers[top : top + height, left : left + width] = people
    masks, boxes, weights = [], [], []
    for number, weight in enumerate(trust, 1):
        mask = numbers == number
        if np.count_nonzero(mask) < MIN_VISIBLE_PX:
            continue
        x, y, box_w, box_h = cv2.boundingRect(mask.astype(np.uint8))
        masks.append(mask)
        boxes.append((x, y, x + box_w, y + box_h))
        weights.append(weight)
    return Scene(
        canvas,
        np.array(masks, bool).reshape(-1, SIDE_PX, SIDE_PX),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(weights, np.float32),
    )
