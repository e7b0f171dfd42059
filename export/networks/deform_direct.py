"""Deformable convolution straight from its definition, in float64: what every other form is checked against.

Each tap reads the four pixels around its place by their indices and weighs them by hand: no `grid_sample`, no
normalised coordinates, no code shared with `deform`.
"""

import torch
from torch import Tensor, nn

from export.networks.deform import DeformableConv2d, deformable_conv2d

ROWS_BYTES = 256 * 2**20
"""About how much of the output's rows, times channels and corners, is held at once."""


def direct_deformable_conv2d(
    features: Tensor,
    offsets: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding_hw: tuple[int, int] = (0, 0),
) -> Tensor:
    """Arguments and result as `deform.deformable_conv2d`; computed in float64, returned in the dtype of `features`."""
    count, channels, height, width = features.shape
    out_channels, _, kernel_h, kernel_w = weight.shape
    out_h, out_w = offsets.shape[2:]
    # A border of zeros stands for everything outside; places further out are brought to its edge, where all is zero.
    source = torch.nn.functional.pad(features.double(), (1, 2, 1, 2)).flatten(2)
    padded_w = width + 3
    rows_at_once = max(1, ROWS_BYTES // (8 * 5 * channels * out_w))
    result = torch.zeros(count, out_channels, out_h, out_w, dtype=torch.float64)
    for top in range(0, out_h, rows_at_once):
        rows = slice(top, min(top + rows_at_once, out_h))
        i = torch.arange(rows.start, rows.stop, dtype=torch.float64)[:, None] * stride - padding_hw[0]
        j = torch.arange(out_w, dtype=torch.float64)[None, :] * stride - padding_hw[1]
        for tap in range(kernel_h * kernel_w):
            tap_y, tap_x = divmod(tap, kernel_w)
            y = (i + tap_y + offsets[:, 2 * tap, rows].double()).clamp(-1, height)
            x = (j + tap_x + offsets[:, 2 * tap + 1, rows].double()).clamp(-1, width)
            above, left = y.floor(), x.floor()
            down, right = y - above, x - left
            first = (above.long() + 1) * padded_w + left.long() + 1
            value = torch.zeros(count, channels, first[0].numel(), dtype=torch.float64)
            for step, share in (
                (0, (1 - down) * (1 - right)),
                (1, (1 - down) * right),
                (padded_w, down * (1 - right)),
                (padded_w + 1, down * right),
            ):
                index = (first + step).reshape(count, 1, -1).expand(-1, channels, -1)
                value += source.gather(2, index) * share.reshape(count, 1, -1)
            value *= mask[:, tap, rows].double().reshape(count, 1, -1)
            part = weight[:, :, tap_y, tap_x].double() @ value
            result[:, :, rows] += part.reshape(count, out_channels, -1, out_w)
    if bias is not None:
        result += bias.double()[None, :, None, None]
    return result.to(features.dtype)


def use_definition(network: nn.Module, use: bool = True) -> None:
    """Let every deformable convolution of a network be computed by its definition, or let it be again."""
    for module in network.modules():
        if isinstance(module, DeformableConv2d):
            module.convolve = direct_deformable_conv2d if use else deformable_conv2d
