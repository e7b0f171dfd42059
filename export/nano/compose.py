"""Random training samples for matting: a crop as the pipeline cuts it, and the alpha of all people in it.

A sample is either a crop of a photograph as it is, or people pasted onto another background. Crops aim at one
person (from the whole body to the face) and keep some context; they are stretched to a square.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from export.nano.distractors import add_distractors
from export.nano.photometric import degrade, match_tone, random_tone
from export.nano.pictures import Image, Picture, PictureBank
from export.nano.soft_truth import over, soft_edges

Generator = np.random.Generator
Affine = NDArray[np.float64]

#: What a crop shows of a person: share of samples, top and bottom as fractions of the person's height.
PARTS: dict[str, tuple[float, tuple[float, float], tuple[float, float]]] = {
    "full": (0.38, (0.0, 0.0), (1.0, 1.0)),
    "upper": (0.24, (0.0, 0.0), (0.45, 0.7)),
    "bust": (0.26, (0.0, 0.0), (0.25, 0.42)),
    "head": (0.06, (0.0, 0.0), (0.15, 0.22)),
    "legs": (0.06, (0.35, 0.55), (1.0, 1.0)),
}
#: The same for a photograph of head and shoulders.
HEAD_PARTS: dict[str, tuple[float, tuple[float, float], tuple[float, float]]] = {
    "full": (0.75, (0.0, 0.0), (1.0, 1.0)),
    "head": (0.25, (0.0, 0.0), (0.6, 0.9)),
}
#: Kinds of samples and their shares.
KINDS: dict[str, float] = {"ccp": 0.24, "head": 0.1, "pasted": 0.46, "coco": 0.16, "background": 0.04}
#: Share of the backgrounds with cloth that is nobody's; of these behind a person, share with cloth behind the head.
DISTRACTED = 0.35
BEHIND_HEAD = 0.5
#: Share of the pasted people who are head and shoulders; of pasted people whose edges are made soft.
PASTED_HEADS = 0.4
SOFTENED = 0.7
HEAD_SOURCES = ("cc0_faces_pseudo", "pd_officials_pseudo")
#: The pipeline widens crops narrower than this (width / height).
MIN_ASPECT = 0.5
#: Below this scale a picture is halved before it is warped, against aliasing.
HALVE_BELOW = 0.6


@dataclass(frozen=True)
class Window:
    """A rectangle of a source picture, in its pixels; it may reach outside."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        """Width in source pixels."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Height in source pixels."""
        return self.y1 - self.y0

    def clipped(self, image: Image) -> "Window":
        """The part inside the picture."""
        height, width = image.shape[:2]
        return Window(max(self.x0, 0.0), max(self.y0, 0.0), min(self.x1, width), min(self.y1, height))

    def to_square(self, size_px: int, angle_deg: float = 0.0, flip: bool = False) -> Affine:
        """Affine map [2, 3] of source pixels to a square of `size_px`, turned about the centre."""
        scale_x, scale_y = size_px / self.width, size_px / self.height
        turn = np.deg2rad(angle_deg)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        linear = np.diag((-scale_x if flip else scale_x, scale_y)) @ rotation
        centre = np.array(((self.x0 + self.x1) / 2 - 0.5, (self.y0 + self.y1) / 2 - 0.5))
        return np.column_stack((linear, (size_px - 1) / 2 - linear @ centre))


def choose(rng: Generator, weights: dict[str, float]) -> str:
    """A random key, by weight."""
    names = list(weights)
    shares = np.array([weights[name] for name in names])
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def warp(image: Image, affine: Affine, size_px: int, border: int) -> Image:
    """Warp uint8 [H, W] or [H, W, 3] to a square of `size_px`; `border` is a cv2.BORDER_… constant."""
    scale = np.sqrt(abs(np.linalg.det(affine[:, :2])))
    while scale < HALVE_BELOW and min(image.shape[:2]) >= 16:
        height, width = image.shape[:2]
        image = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        stretch = np.array([width / (width // 2), height / (height // 2)])
        # A small pixel p covers the large ones around (p + 0.5) * stretch - 0.5.
        shift = affine[:, :2] @ (0.5 * stretch - 0.5)
        affine = np.column_stack((affine[:, :2] * stretch, affine[:, 2] + shift))
        scale *= 2
    return cv2.warpAffine(image, affine, (size_px, size_px), flags=cv2.INTER_LINEAR, borderMode=border)


def person_window(rng: Generator, picture: Picture, person: int) -> Window:
    """A window around a part of a person with the context that a pipeline would give it."""
    parts = HEAD_PARTS if picture.source in HEAD_SOURCES else PARTS
    part = choose(rng, {name: entry[0] for name, entry in parts.items()})
    _, (top_low, top_high), (bottom_low, bottom_high) = parts[part]
    x0, y0, x1, y1 = (float(value) for value in picture.boxes[person - 1])
    height = y1 - y0
    top, bottom = y0 + height * rng.uniform(top_low, top_high), y0 + height * rng.uniform(bottom_low, bottom_high)
    if part != "full":
        strip = picture.instances[int(top) : max(int(bottom), int(top) + 2)] == person
        columns = np.flatnonzero(strip.any(axis=0))
        if columns.size:
            x0, x1 = float(columns[0]), float(columns[-1] + 1)
    width, height = max(x1 - x0, 8.0), max(bottom - top, 8.0)
    context = rng.uniform(0.4, 1.5) if rng.random() < 0.1 else rng.uniform(0.03, 0.3)
    left, right, above, below = context * rng.uniform(0.4, 1.4, size=4)
    if part in ("upper", "bust", "head") and rng.random() < 0.85:
        below = -rng.uniform(0.0, 0.05)
    if part == "legs":
        above = -rng.uniform(0.0, 0.05)
    if rng.random() < 0.1:
        left = -rng.uniform(0.0, 0.3)
    if rng.random() < 0.1:
        right = -rng.uniform(0.0, 0.3)
    x0, x1 = x0 - left * width, x1 + right * width
    top, bottom = top - above * height, bottom + below * height
    missing = MIN_ASPECT * (bottom - top) - (x1 - x0)
    if missing > 0 and rng.random() < 0.8:
        share = rng.uniform(0.3, 0.7)
        x0, x1 = x0 - missing * share, x1 + missing * (1 - share)
    return Window(x0, top, x1, bottom)


def whole_window(rng: Generator, picture: Picture) -> Window:
    """The whole picture, or most of it."""
    height, width = picture.image.shape[:2]
    cut = rng.uniform(0.0, 0.2, size=4) * (rng.random() < 0.5)
    return Window(cut[0] * width, cut[1] * height, (1 - cut[2]) * width, (1 - cut[3]) * height)


def within_cuts(window: Window, picture: Picture) -> Window:
    """The window, ended where a person goes on beyond their picture: nobody is pasted with a sawn-off edge."""
    height, width = picture.alpha.shape
    left, top, right, bottom = picture.cut
    return Window(
        max(window.x0, 0.0) if left else window.x0,
        max(window.y0, 0.0) if top else window.y0,
        min(window.x1, float(width)) if right else window.x1,
        min(window.y1, float(height)) if bottom else window.y1,
    )


class SampleMaker:
    """Makes random samples of the pictures of one bank: of those to train on, or of those held out."""

    def __init__(self, bank: PictureBank, held_out: bool = False) -> None:
        self.ccp, coco, self.heads, backgrounds = (
            (bank.held_out_ccp, bank.held_out_coco, bank.held_out_heads, bank.held_out_backgrounds)
            if held_out
            else (bank.ccp, bank.coco, bank.heads, bank.backgrounds)
        )
        own = [each.background for each in self.ccp + coco * 3 if each.background is not None]
        self.backgrounds = own + backgrounds * 2
        self.scenes = [picture for picture in coco if picture.people()]

    def sample(self, rng: Generator, size_px: int, kinds: dict[str, float] = KINDS) -> tuple[Image, Image]:
        """One sample: uint8 RGB [S, S, 3] and uint8 alpha [S, S]."""
        kind = choose(rng, kinds)
        if kind == "background":
            image, alpha = self._background(rng, size_px), np.zeros((size_px, size_px), np.uint8)
        elif kind == "pasted":
            image, alpha = self._pasted(rng, size_px)
        else:
            pictures = {"ccp": self.ccp, "head": self.heads, "coco": self.scenes}[kind]
            image, alpha = self._cropped(rng, size_px, pictures)
        return degrade(rng, random_tone(rng, image, 0.6)), alpha

    def _cropped(self, rng: Generator, size_px: int, pictures: list[Picture]) -> tuple[Image, Image]:
        picture = pictures[rng.integers(len(pictures))]
        if rng.random() < (0.5 if picture.source in HEAD_SOURCES else 0.25):
            window = whole_window(rng, picture)
        else:
            window = person_window(rng, picture, int(rng.choice(picture.people()))).clipped(picture.image)
        affine = window.to_square(size_px, rng.normal(0, 4) * (rng.random() < 0.3), rng.random() < 0.5)
        image = warp(picture.image, affine, size_px, cv2.BORDER_REFLECT_101)
        return image, warp(picture.alpha, affine, size_px, cv2.BORDER_REFLECT_101)

    def _background(self, rng: Generator, size_px: int, head: tuple[float, float] | None = None) -> Image:
        if rng.random() < 0.06:
            return flat_background(rng, size_px)
        image = self.backgrounds[rng.integers(len(self.backgrounds))]
        height, width = image.shape[:2]
        share = rng.uniform(0.35, 1.0)
        part_w, part_h = width * share, height * min(1.0, share * rng.uniform(0.8, 1.25))
        x0, y0 = rng.uniform(0, width - part_w), rng.uniform(0, height - part_h)
        affine = Window(x0, y0, x0 + part_w, y0 + part_h).to_square(size_px, 0.0, rng.random() < 0.5)
        result = warp(image, affine, size_px, cv2.BORDER_REFLECT_101)
        if rng.random() < 0.25:
            result = cv2.GaussianBlur(result, (0, 0), rng.uniform(1.0, 5.0) * size_px / 384)
        if rng.random() < DISTRACTED:
            result = add_distractors(rng, result, self.ccp, head if rng.random() < BEHIND_HEAD else None)
        return random_tone(rng, result, 0.5)

    def _pasted(self, rng: Generator, size_px: int) -> tuple[Image, Image]:
        people = self.heads if self.heads and rng.random() < PASTED_HEADS else self.ccp
        main = people[rng.integers(len(people))]
        window = within_cuts(person_window(rng, main, 1), main)
        if rng.random() < 0.15:
            image, alpha = self._cropped(rng, size_px, self.scenes)
        else:
            box = main.boxes[0]
            head_x = ((box[0] + box[2]) / 2 - window.x0) / window.width
            image = self._background(rng, size_px, (float(head_x), float((box[1] - window.y0) / window.height)))
            alpha = np.zeros((size_px, size_px), np.uint8)
        layers = [(main, window)]
        for _ in range(int(rng.choice(3, p=(0.55, 0.3, 0.15)))):
            layers.append(self._neighbour(rng, window, main))
        order = rng.permutation(len(layers)) if rng.random() < 0.5 else range(len(layers) - 1, -1, -1)
        for index in order:
            image, alpha = paste(rng, image, alpha, *layers[index])
        return image, alpha

    def _neighbour(self, rng: Generator, window: Window, main: Picture) -> tuple[Picture, Window]:
        """Another person beside the aimed one, of like size or smaller: a window of their own picture."""
        other = self.ccp[rng.integers(len(self.ccp))]
        own = other.boxes[0]
        box = main.boxes[0]
        size = float(np.exp(rng.normal(-0.15, 0.35)))
        scale = (own[3] - own[1]) / ((box[3] - box[1]) * size)
        side = rng.choice((-1.0, 1.0)) * rng.uniform(0.3, 1.1) * (box[2] - box[0])
        centre_x, foot = (own[0] + own[2]) / 2, own[3]
        main_x, main_foot = (box[0] + box[2]) / 2 + side, box[3] - rng.uniform(-0.1, 0.25) * (box[3] - box[1])
        return other, Window(
            centre_x + (window.x0 - main_x) * scale,
            foot + (window.y0 - main_foot) * scale,
            centre_x + (window.x1 - main_x) * scale,
            foot + (window.y1 - main_foot) * scale,
        )


def paste(
    rng: Generator, image: Image, alpha: Image, picture: Picture, window: Window, matched: float = 0.25
) -> tuple[Image, Image]:
    """Put the person of `picture`, seen through `window`, over a scene; returns the new image and alpha."""
    size_px = image.shape[0]
    affine = window.to_square(size_px, rng.normal(0, 5) * (rng.random() < 0.4), rng.random() < 0.5)
    # Turned by some degrees, a head and shoulders would end before the corners of the picture.
    border = cv2.BORDER_REPLICATE if picture.source in HEAD_SOURCES else cv2.BORDER_CONSTANT
    cover = warp(picture.alpha, affine, size_px, border)
    colours = warp(picture.colours, affine, size_px, cv2.BORDER_REPLICATE)
    if rng.random() < matched:
        colours = match_tone(rng, colours, cover, image)
    colours = random_tone(rng, colours, 0.6, darken=0.15)
    if rng.random() < 0.2:
        sigma_px = rng.uniform(0.5, 1.2) * size_px / 384
        cover = cv2.GaussianBlur(cover, (0, 0), sigma_px)
        colours = cv2.GaussianBlur(colours, (0, 0), sigma_px)
    elif rng.random() < SOFTENED:
        colours, cover = soft_edges(rng, colours, cover)
    union = 255.0 - (255.0 - alpha.astype(np.float32)) * (1.0 - cover.astype(np.float32) / 255.0)
    return over(image, colours, cover), np.rint(union).astype(np.uint8)


def flat_background(rng: Generator, size_px: int) -> Image:
    """A plain wall: one colour fading into another, with grain."""
    first, second = rng.integers(0, 256, size=(2, 1, 1, 3))
    if rng.random() < 0.6:
        second = np.clip(first + rng.normal(0, 25, size=(1, 1, 3)), 0, 255)
    y, x = np.mgrid[0:size_px, 0:size_px] / size_px
    turn = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + (x - 0.5) * np.cos(turn) + (y - 0.5) * np.sin(turn), 0, 1)[..., None]
    grain = rng.normal(0, rng.uniform(0, 8), size=(size_px, size_px, 1))
    return np.clip(first + (second - first) * ramp + grain, 0, 255).astype(np.uint8)
