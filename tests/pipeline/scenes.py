"""Pictures whose foreground, background and alpha are known, and pymatting's estimate of the foreground's colour."""

from __future__ import annotations

import warnings
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

SCENES: dict[str, tuple[Colour, Colour]] = {
    "dark hair on light ground": ((60, 40, 30), (235, 235, 240)),
    "light hair on dark ground": ((245, 245, 240), (20, 20, 25)),
    "skin on green": ((220, 180, 150), (30, 190, 40)),
}
"""Foreground and background colours, of which textures are made."""


def texture(rng: np.random.Generator, size: tuple[int, int], colour: Colour, amount: float) -> NDArray[np.float64]:
    """(height, width, 3) float64: a colour with noise of three sizes."""
    height, width = size
    noise = np.zeros((height, width, 3))
    for cell in (4, 16, 64):
        coarse = rng.normal(0, 1, (height // cell, width // cell, 3))
        noise += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(np.array(colour) + amount * noise, 0, 255))


def head_with_hair(size: tuple[int, int] = (420, 340)) -> Picture:
    """Alpha (height, width) uint8 of a solid head and strands of one to three pixels around it."""
    rng = np.random.default_rng(4)
    height, width = size[0] * 2, size[1] * 2
    alpha = np.zeros((height, width), np.uint8)
    cv2.ellipse(alpha, (width // 2, height // 2), (width // 4, height // 3), 0, 0, 360, (255,), -1)
    for _ in range(250):
        turn = rng.uniform(0, 2 * np.pi)
        strand = [np.array([width / 2 + width / 4 * np.cos(turn), height / 2 + height / 3 * np.sin(turn)])]
        for _ in range(10):
            turn += rng.normal(0, 0.2)
            strand.append(strand[-1] + 5 * np.array([np.cos(turn), np.sin(turn)]))
        thickness, opacity = int(rng.integers(1, 4)), int(rng.integers(120, 256))
        cv2.polylines(alpha, [np.array(strand, np.int32)], False, (opacity,), thickness, cv2.LINE_AA)
    small = cv2.resize(cv2.GaussianBlur(alpha, (0, 0), 1.5), size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def composed(pair: tuple[Colour, Colour]) -> tuple[Picture, Picture, Picture]:
    """A picture (h, w, 3) made of a foreground, a background and an alpha; that alpha (h, w); that foreground."""
    rng = np.random.default_rng(5)
    alpha = head_with_hair()
    size = (alpha.shape[0], alpha.shape[1])
    foreground = np.rint(texture(rng, size, pair[0], 8))
    background = texture(rng, size, pair[1], 20)
    share = alpha[..., None] / 255
    picture = np.rint(share * foreground + (1 - share) * background)
    return picture.astype(np.uint8), alpha, foreground.astype(np.uint8)


def edge_error(colours: NDArray[Any], truth: Picture, alpha: Picture) -> float:
    """Mean absolute difference at soft edges, of 255, weighted by alpha: as it shows on another background."""
    soft = (alpha > 0) & (alpha < 255)
    difference = np.abs(colours.astype(float) - truth).mean(axis=2)
    return float(np.average(difference[soft], weights=alpha[soft]))


def pymatting_estimate(picture: Picture, alpha: Picture) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pymatting import estimate_foreground_ml

        return np.asarray(estimate_foreground_ml(picture / 255.0, alpha / 255.0) * 255)
