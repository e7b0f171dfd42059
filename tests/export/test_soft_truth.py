"""Procedural soft edges: alpha is the truth of the picture that is made, held-out shapes are always the same."""

from itertools import count

import cv2
import numpy as np
import pytest

from export.nano.soft_truth import KINDS, _blurred, _strands, held_out_shapes, over, soft_edges, unknown_band

SIDE_PX = 192


def person() -> tuple[np.ndarray, np.ndarray]:
    """A head on shoulders in two colours, cut by the lower border."""
    cover = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    cv2.circle(cover, (96, 60), 26, 255, -1)
    cv2.ellipse(cover, (96, 190), (70, 100), 0, 0, 360, 255, -1)
    colours = np.full((SIDE_PX, SIDE_PX, 3), (60, 90, 140), np.uint8)
    colours[:80] = (50, 30, 20)
    return colours, cover


@pytest.mark.parametrize("kind", KINDS)
def test_edges_become_soft(kind: str) -> None:
    """More pixels are half transparent than before, near the outline and not elsewhere."""
    colours, cover = person()
    _, alpha = soft_edges(held_out_shapes(3), colours, cover, kind)
    soft = (alpha > 25) & (alpha < 230)
    assert np.count_nonzero(soft) > 60 > np.count_nonzero((cover > 25) & (cover < 230))
    assert alpha[150:, 90:100].min() == 255, "the middle of the body stays whole"
    assert not alpha[:8, :8].any(), "and the far background empty"
    assert unknown_band(alpha)[soft].all()


def test_held_out_shapes_are_fixed_and_different() -> None:
    first, again, other = (soft_edges(held_out_shapes(number), *person())[1] for number in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_blur_is_the_one_of_the_picture() -> None:
    """Over a plain background, a blurred layer gives what blurring the finished picture gives: alpha is exact."""
    colours, cover = person()
    cover[-20:] = 0
    seed = next(seed for seed in count() if np.random.default_rng(seed).random() >= 0.7)  # blurs everything
    kernel = np.full((9, 9), 1 / 81, np.float32)
    outline, inside = np.zeros((1, 2)), np.ones(1, bool)
    soft = _blurred(np.random.default_rng(seed), colours, cover, outline, inside, kernel)
    background = np.full_like(colours, (200, 220, 40))
    wanted = cv2.filter2D(over(background, colours, cover), -1, kernel, borderType=cv2.BORDER_REPLICATE)
    assert np.abs(over(background, *soft).astype(int) - wanted).max() <= 2


def test_strands_hide_what_their_alpha_says() -> None:
    """Strands over black and over white differ by exactly what is transparent."""
    colours, cover = person()
    layer = soft_edges(held_out_shapes(5), colours, cover, "hair")
    dark, light = (over(np.full_like(colours, grey), *layer).astype(int) for grey in (0, 255))
    assert np.abs((light - dark) - (255 - layer[1].astype(int))[..., None]).max() <= 1
    assert np.count_nonzero((layer[1] > 0) & (cover == 0)) > 100


@pytest.mark.parametrize("count", [1, 2, 3])
def test_next_to_no_outline_inside_the_picture(count: int) -> None:
    """Of somebody who fills the picture, a stretch of outline may have a point or two inside: fewer than shades."""
    colours, cover = person()
    outline = np.array([(70.0, 60.0), (70.0, 61.0), (70.0, 62.0)])
    _, alpha = _strands(np.random.default_rng(1), colours, cover, outline, np.arange(count), 20.0, count, 0.2)
    assert (alpha != cover).any() == (count == 3)
