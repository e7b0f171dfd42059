"""Colour at soft edges, where the truth is known: a known foreground before a known background by a known alpha.

No halo (light ground around dark hair), no dark fringe, as near to the truth as pymatting's multi-level estimate; and
nothing foreign under full transparency, neither for who scales the cut-out nor for who looks.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pipeline.foreground import clean_colours

from tests.pipeline.scenes import SCENES, Colour, composed, edge_error, pymatting_estimate

DARK_ON_LIGHT, _, SKIN_ON_GREEN = PAIRS = tuple(SCENES.values())
Pair = tuple[Colour, Colour]


@pytest.mark.parametrize("pair", PAIRS)
def test_edges_have_the_foregrounds_own_colour(pair: Pair) -> None:
    picture, alpha, truth = composed(pair)
    before = edge_error(picture, truth, alpha)
    after = edge_error(clean_colours(picture, alpha, True).array(), truth, alpha)
    assert before > 30
    assert after < 6
    assert after < before / 7


@pytest.mark.timeout(1200)  # numba compiles pymatting's estimate first: minutes where every core is busy
@pytest.mark.parametrize("pair", PAIRS)
def test_as_near_to_the_truth_as_pymatting(pair: Pair) -> None:
    picture, alpha, truth = composed(pair)
    reference = pymatting_estimate(picture, alpha)
    assert edge_error(clean_colours(picture, alpha, True).array(), truth, alpha) < 1.25 * edge_error(
        reference, truth, alpha
    )


def test_no_dark_fringe_and_no_halo() -> None:
    """A grey disc of 200 cut from white, from black: its edge stays 200, the reproach to others being 50."""
    alpha = np.zeros((200, 200), np.uint8)
    cv2.circle(alpha, (100, 100), 60, 255, -1)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 4)
    for ground in (0, 255):
        picture = np.rint(200 * (alpha / 255) + ground * (1 - alpha / 255)).astype(np.uint8)
        colours = clean_colours(cv2.merge([picture] * 3), alpha, True).array()
        seen = colours[alpha > 8].astype(int)
        assert (seen.min(), seen.max()) >= (194, 194)
        assert seen.max() <= 206


def test_scaling_the_cutout_brings_no_fringe() -> None:
    """Tools that scale colours and alpha apart mix in what stands under full transparency."""
    picture, alpha, _ = composed(SKIN_ON_GREEN)
    colours = clean_colours(picture, alpha, True).array()
    small_alpha = cv2.resize(alpha, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = cv2.resize(colours, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    assert np.abs(small[small_alpha > 25].astype(int) - SKIN_ON_GREEN[0]).max() < 60


def test_opaque_pixels_are_the_pictures() -> None:
    picture, alpha, _ = composed(DARK_ON_LIGHT)
    colours = clean_colours(picture, alpha, True).array()
    assert np.array_equal(colours[alpha == 255], picture[alpha == 255])


def test_nothing_of_what_was_removed_is_left() -> None:
    picture, alpha, _ = composed(SKIN_ON_GREEN)
    colours = clean_colours(picture, alpha, True).array()
    removed = colours[alpha == 0].astype(int)
    assert (removed[:, 0] > removed[:, 1]).all()  # skin everywhere, and no green
    corner = colours[:20, :20].reshape(-1, 3)
    assert (corner == corner[0]).all()


def test_without_decontamination_edges_keep_the_pictures_colour() -> None:
    picture, alpha, _ = composed(DARK_ON_LIGHT)
    colours = clean_colours(picture, alpha, False).array()
    assert np.array_equal(colours[alpha > 0], picture[alpha > 0])
    assert not np.array_equal(colours[:20, :20], picture[:20, :20])


@pytest.mark.parametrize("value", [0, 255, 100])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (700, 1), (64, 7680 // 8), (257, 511)])
def test_any_size_and_flat_alphas(size: tuple[int, int], value: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    colours = clean_colours(picture, np.full(size, value, np.uint8), True).array()
    assert colours.shape == picture.shape
    if value == 255:
        assert np.array_equal(colours, picture)
