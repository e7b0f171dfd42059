"""Colour at soft edges, where the truth is known: a known foreground before a known background by a known alpha.

No halo (light ground around dark hair), no dark fringe, as near to the truth as pymatting's multi-level estimate; and
nothing foreign under full transparency, neither for who scales the cut-out nor for who looks.
"""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pipeline.foreground import clean_colours

Picture = NDArray[np.uint8]

DARK_ON_LIGHT = ((60, 40, 30), (235, 235, 240))
LIGHT_ON_DARK = ((245, 245, 240), (20, 20, 25))
SKIN_ON_GREEN = ((220, 180, 150), (30, 190, 40))
PAIRS = [DARK_ON_LIGHT, LIGHT_ON_DARK, SKIN_ON_GREEN]


def texture(rng: np.random.Generator, size: tuple[int, int], colour: tuple[int, int, int], amount: float) -> Picture:
    height, width = size
    noise = sum(
        cv2.resize(rng.normal(0, 1, (height // cell, width // cell, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
        for cell in (4, 16, 64)
    )
    return np.clip(np.array(colour) + amount * noise, 0, 255).astype(np.uint8)


def head_with_hair(size: tuple[int, int] = (420, 340)) -> Picture:
    """A solid head and strands of one to three pixels around it, as alpha."""
    rng = np.random.default_rng(4)
    height, width = size[0] * 2, size[1] * 2
    alpha = np.zeros((height, width), np.uint8)
    cv2.ellipse(alpha, (width // 2, height // 2), (width // 4, height // 3), 0, 0, 360, 255, -1)
    for _ in range(250):
        turn = rng.uniform(0, 2 * np.pi)
        point = np.array([width / 2 + width / 4 * np.cos(turn), height / 2 + height / 3 * np.sin(turn)])
        strand = [point]
        for _ in range(10):
            turn += rng.normal(0, 0.2)
            strand.append(strand[-1] + 5 * np.array([np.cos(turn), np.sin(turn)]))
        thickness, opacity = int(rng.integers(1, 4)), int(rng.integers(120, 256))
        cv2.polylines(alpha, [np.array(strand, np.int32)], False, opacity, thickness, cv2.LINE_AA)
    return cv2.resize(cv2.GaussianBlur(alpha, (0, 0), 1.5), size[::-1], interpolation=cv2.INTER_AREA)


def composed(pair: tuple[tuple[int, int, int], tuple[int, int, int]]) -> tuple[Picture, Picture, Picture]:
    """The picture, its alpha, and the foreground that is in it."""
    rng = np.random.default_rng(5)
    alpha = head_with_hair()
    foreground, background = texture(rng, alpha.shape, pair[0], 8), texture(rng, alpha.shape, pair[1], 20)
    share = alpha[..., None] / 255
    return np.rint(share * foreground + (1 - share) * background).astype(np.uint8), alpha, foreground


def error(colours: NDArray[np.generic], truth: Picture, alpha: Picture) -> float:
    """Mean absolute difference at soft edges, of 255, weighted by alpha: as it shows on another background."""
    soft = (alpha > 0) & (alpha < 255)
    difference = np.abs(colours.astype(float) - truth).mean(axis=2)
    return float(np.average(difference[soft], weights=alpha[soft]))


@pytest.mark.parametrize("pair", PAIRS)
def test_edges_have_the_foregrounds_own_colour(pair: tuple[tuple[int, int, int], tuple[int, int, int]]) -> None:
    picture, alpha, truth = composed(pair)
    before = error(picture, truth, alpha)
    after = error(clean_colours(picture, alpha, True), truth, alpha)
    assert before > 30
    assert after < 6
    assert after < before / 7


@pytest.mark.parametrize("pair", PAIRS)
def test_as_near_to_the_truth_as_pymatting(pair: tuple[tuple[int, int, int], tuple[int, int, int]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pymatting import estimate_foreground_ml

        picture, alpha, truth = composed(pair)
        reference = estimate_foreground_ml(picture / 255.0, alpha / 255.0) * 255
    assert error(clean_colours(picture, alpha, True), truth, alpha) < 1.25 * error(reference, truth, alpha)


def test_no_dark_fringe_and_no_halo() -> None:
    """A grey disc of 200 cut from white, from black: its edge stays 200, the reproach to others being 50."""
    alpha = np.zeros((200, 200), np.uint8)
    cv2.circle(alpha, (100, 100), 60, 255, -1)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 4)
    for ground in (0, 255):
        picture = np.rint(200 * (alpha / 255) + ground * (1 - alpha / 255)).astype(np.uint8)
        colours = clean_colours(cv2.merge([picture] * 3), alpha, True)
        seen = colours[alpha > 8].astype(int)
        assert (seen.min(), seen.max()) >= (194, 194)
        assert seen.max() <= 206


def test_scaling_the_cutout_brings_no_fringe() -> None:
    """Tools that scale colours and alpha apart mix in what stands under full transparency."""
    picture, alpha, _ = composed(SKIN_ON_GREEN)
    colours = clean_colours(picture, alpha, True)
    small_alpha = cv2.resize(alpha, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = cv2.resize(colours, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    assert np.abs(small[small_alpha > 25].astype(int) - SKIN_ON_GREEN[0]).max() < 60


def test_opaque_pixels_are_the_pictures() -> None:
    picture, alpha, _ = composed(DARK_ON_LIGHT)
    colours = clean_colours(picture, alpha, True)
    assert np.array_equal(colours[alpha == 255], picture[alpha == 255])


def test_nothing_of_what_was_removed_is_left() -> None:
    picture, alpha, _ = composed(SKIN_ON_GREEN)
    colours = clean_colours(picture, alpha, True)
    removed = colours[alpha == 0].astype(int)
    assert (removed[:, 0] > removed[:, 1]).all()  # skin everywhere, and no green
    corner = colours[:20, :20].reshape(-1, 3)
    assert (corner == corner[0]).all()


def test_without_decontamination_edges_keep_the_pictures_colour() -> None:
    picture, alpha, _ = composed(DARK_ON_LIGHT)
    colours = clean_colours(picture, alpha, False)
    assert np.array_equal(colours[alpha > 0], picture[alpha > 0])
    assert not np.array_equal(colours[:20, :20], picture[:20, :20])


@pytest.mark.parametrize("value", [0, 255, 100])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (700, 1), (64, 7680 // 8), (257, 511)])
def test_any_size_and_flat_alphas(size: tuple[int, int], value: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    colours = clean_colours(picture, np.full(size, value, np.uint8), True)
    assert colours.shape == picture.shape
    if value == 255:
        assert np.array_equal(colours, picture)
