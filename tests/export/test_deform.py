"""The deformable convolution in standard operators is the one of its definition.

The reference below follows the definition of modulated deformable convolution tap by tap in float64 (bilinear
interpolation whose four corners read zero outside the input); it shares no code with the module.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export.networks import deform_direct
from export.networks.deform import DeformableConv2d, deformable_conv2d, tap_groups
from export.networks.deform_direct import direct_deformable_conv2d


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """Value of a plane at (y, x); pixels outside are zero."""
    height, width = plane.shape
    top, left = int(np.floor(y)), int(np.floor(x))
    total = 0.0
    for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                total += plane[row, column] * weight_y * weight_x
    return total


def reference(
    features: np.ndarray,
    offsets: np.ndarray,
    mask: np.ndarray,
    weight: np.ndarray,
    stride: int,
    padding: tuple[int, int],
) -> np.ndarray:
    """Modulated deformable convolution by definition: loops in float64."""
    count, channels, _, _ = features.shape
    out_channels, _, kernel_h, kernel_w = weight.shape
    out_h, out_w = offsets.shape[2:]
    result = np.zeros((count, out_channels, out_h, out_w))
    for n, i, j in np.ndindex(count, out_h, out_w):
        for tap, (ky, kx) in enumerate(np.ndindex(kernel_h, kernel_w)):
            y = i * stride - padding[0] + ky + offsets[n, 2 * tap, i, j]
            x = j * stride - padding[1] + kx + offsets[n, 2 * tap + 1, i, j]
            for channel in range(channels):
                sample = bilinear(features[n, channel], y, x) * mask[n, tap, i, j]
                result[n, :, i, j] += weight[:, channel, ky, kx] * sample
    return result


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "reach_px"),
    [
        ((1, 1), 1, (0, 0), 1.5),
        ((3, 3), 1, (1, 1), 0.7),
        ((3, 3), 2, (1, 1), 4.0),
        ((3, 3), 1, (0, 0), 30.0),
        ((7, 7), 1, (3, 3), 3.0),
        ((1, 5), 1, (0, 2), 2.0),
        ((5, 3), 2, (2, 0), 2.0),
    ],
)
@pytest.mark.parametrize("implementation", [deformable_conv2d, direct_deformable_conv2d])
def test_equals_the_definition(
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    reach_px: float,
    implementation: Callable[..., torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For any kernel, stride, padding and offsets, far outside too, the result is the definition's."""
    monkeypatch.setattr(deform_direct, "ROWS_BYTES", 3 * 8 * 5 * 3 * 11)  # three rows at a time
    rng = np.random.default_rng(3)
    height, width, taps = 8, 11, kernel[0] * kernel[1]
    out_h = (height + 2 * padding[0] - kernel[0]) // stride + 1
    out_w = (width + 2 * padding[1] - kernel[1]) // stride + 1
    features = rng.normal(size=(2, 3, height, width)).astype(np.float32)
    offsets = (rng.normal(size=(2, 2 * taps, out_h, out_w)) * reach_px).astype(np.float32)
    mask = rng.uniform(0, 2, size=(2, taps, out_h, out_w)).astype(np.float32)
    weight = rng.normal(size=(4, 3, *kernel)).astype(np.float32)
    wanted = reference(*(each.astype(np.float64) for each in (features, offsets, mask, weight)), stride, padding)
    tensors = (torch.from_numpy(each) for each in (features, offsets, mask, weight))
    found = implementation(*tensors, stride=stride, padding_hw=padding).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-4 if implementation is deformable_conv2d else 3e-6)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_untrained_module_is_a_plain_convolution(kernel: int) -> None:
    """Offsets start at zero and masks at one, so a new module equals its own `regular_conv`."""
    torch.manual_seed(0)
    module = DeformableConv2d(4, 6, kernel, padding=kernel // 2, bias=True)
    features = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(module(features), module.regular_conv(features), atol=1e-5, rtol=1e-5)


def test_mask_is_twice_a_sigmoid() -> None:
    """A large negative modulator switches a tap off, a large positive one doubles it."""
    module = DeformableConv2d(2, 2, 1, padding=0)
    features = torch.randn(1, 2, 5, 5)
    for bias, factor in ((-50.0, 0.0), (50.0, 2.0)):
        torch.nn.init.constant_(module.modulator_conv.bias, bias)
        torch.testing.assert_close(module(features), factor * F.conv2d(features, module.regular_conv.weight))


def test_offsets_are_y_before_x() -> None:
    """Of each tap's two offset channels the first moves down, the second right: torchvision's layout."""
    module = DeformableConv2d(1, 1, 1, padding=0)
    torch.nn.init.ones_(module.regular_conv.weight)
    features = torch.arange(20.0).reshape(1, 1, 4, 5)
    with torch.no_grad():
        module.offset_conv.bias[0] = 1.0
    torch.testing.assert_close(module(features)[0, 0, :3], features[0, 0, 1:])
    torch.testing.assert_close(module(features)[0, 0, 3], torch.zeros(5))


def test_gradients_reach_offsets_and_masks() -> None:
    """All three convolutions learn."""
    module = DeformableConv2d(3, 5, 3)
    module(torch.randn(1, 3, 6, 6)).square().sum().backward()
    for conv in (module.offset_conv, module.modulator_conv, module.regular_conv):
        assert conv.weight.grad is not None
        assert float(conv.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (7, 7), (2, 9)])
def test_groups_cover_every_tap_once(kernel: tuple[int, int]) -> None:
    """The groups are ranges in order without gap or overlap."""
    taps = [tap for first, last in tap_groups(kernel) for tap in range(first, last)]
    assert taps == list(range(kernel[0] * kernel[1]))
