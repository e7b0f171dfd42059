"""Modulated deformable convolution (DCNv2) written in operators that every ONNX runtime has.

The result is the one of `torchvision.ops.deform_conv2d` with a mask; neither torchvision nor the ONNX
operator `DeformConv` (opset 19, a deprecated plugin in TensorRT) is needed. Each kernel tap is a bilinear
`grid_sample` of the input at its shifted place, and the taps are combined by a matrix product.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Largest number of taps sampled by one GridSample. A 7x7 kernel on a 256x256x64 map would otherwise hold
#: 822 MB of samples at once; one row of seven taps holds 117 MB and is faster too.
MAX_TAPS_PER_SAMPLE = 9


def tap_groups(kernel_hw: tuple[int, int], max_taps: int = MAX_TAPS_PER_SAMPLE) -> list[tuple[int, int]]:
    """Split the taps of a kernel, counted row by row, into ranges that are sampled together.

    Returns:
        Half-open ranges `(first, last)`; a kernel of at most `max_taps` taps is one range, a larger one is
        cut at its rows.

    >>> tap_groups((3, 3)), tap_groups((2, 7))
    ([(0, 9)], [(0, 7), (7, 14)])
    """
    rows, columns = kernel_hw
    if rows * columns <= max_taps:
        return [(0, rows * columns)]
    return [(row * columns, (row + 1) * columns) for row in range(rows)]


class DeformableConv2d(nn.Module):
    """Convolution whose taps move by learned offsets and are weighted by a learned mask, `2·sigmoid(·)`.

    Submodules are named as in the released BiRefNet weights. Offsets and masks start at zero, so that an
    untrained module is exactly its `regular_conv`.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side, or (height, width), of the kernel.
        stride: the same step in both directions.
        padding: zeros around the input, one number or (vertical, horizontal).
        bias: whether `regular_conv` has a bias.
    """

    convolve: Callable[..., Tensor]
    """What does the arithmetic, with the arguments and result of `deformable_conv2d`, which it is unless another
    implementation is set on the module: ONNX's own operator, or one to check against."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int = 1,
        padding: int | tuple[int, int] = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.convolve = deformable_conv2d
        self.kernel_hw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.padding_hw = (padding, padding) if isinstance(padding, int) else padding
        self.stride = stride
        taps = self.kernel_hw[0] * self.kernel_hw[1]
        geometry = {"kernel_size": self.kernel_hw, "stride": stride, "padding": self.padding_hw}
        #: Channels (dy, dx) interleaved per tap, in pixels of the input: torchvision's layout.
        self.offset_conv = nn.Conv2d(in_channels, 2 * taps, **geometry)
        self.modulator_conv = nn.Conv2d(in_channels, taps, **geometry)
        self.regular_conv = nn.Conv2d(in_channels, out_channels, bias=bias, **geometry)
        for conv in (self.offset_conv, self.modulator_conv):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map float [N, C, H, W] to float [N, out_channels, H', W']."""
        offsets = self.offset_conv(features)
        mask = 2.0 * torch.sigmoid(self.modulator_conv(features))
        return self.convolve(
            features, offsets, mask, self.regular_conv.weight, self.regular_conv.bias, self.stride, self.padding_hw
        )


def deformable_conv2d(
    features: Tensor,
    offsets: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding_hw: tuple[int, int] = (0, 0),
) -> Tensor:
    """Apply a modulated deformable convolution.

    Args:
        features: float [N, C, H, W].
        offsets: float [N, 2·kh·kw, H', W'], (dy, dx) interleaved per tap, pixels of `features`.
        mask: float [N, kh·kw, H', W'], multiplies each tap.
        weight: float [O, C, kh, kw].
        bias: float [O], or none.
        stride: step of the kernel in both directions.
        padding_hw: zeros above and below, left and right. Samples outside the input read zero, too.

    Returns:
        float [N, O, H', W'], of the dtype of `weight` under no autocast. Coordinates are always float32:
        in half precision they would be off by up to a tenth of a pixel on large maps.
    """
    out_channels, channels, kernel_h, kernel_w = (int(size) for size in weight.shape)
    height, width = int(features.shape[2]), int(features.shape[3])
    out_h, out_w = int(offsets.shape[2]), int(offsets.shape[3])
    taps = kernel_h * kernel_w
    device = features.device

    tap_y = torch.arange(kernel_h, device=device).repeat_interleave(kernel_w).float()
    tap_x = torch.arange(kernel_w, device=device).repeat(kernel_h).float()
    rows = (torch.arange(out_h, device=device) * stride - padding_hw[0]).float()
    columns = (torch.arange(out_w, device=device) * stride - padding_hw[1]).float()
    # Pixel p of n lies at (2p + 1) / n - 1 in grid_sample's coordinates (align_corners=False).
    base_y = (2.0 * (tap_y[:, None] + rows[None, :]) + 1.0) / height - 1.0
    base_x = (2.0 * (tap_x[:, None] + columns[None, :]) + 1.0) / width - 1.0
    shifts = offsets.float().reshape(-1, taps, 2, out_h, out_w)
    grid_y = shifts[:, :, 0] * (2.0 / height) + base_y[None, :, :, None]
    grid_x = shifts[:, :, 1] * (2.0 / width) + base_x[None, :, None, :]
    grid = torch.stack((grid_x, grid_y), dim=-1)

    flat_weight = weight.reshape(out_channels, channels, taps)
    source = features.float()
    total: Tensor | None = None
    for first, last in tap_groups((kernel_h, kernel_w)):
        count = last - first
        samples = F.grid_sample(
            source,
            grid[:, first:last].reshape(-1, count * out_h, out_w, 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        samples = samples.reshape(-1, channels, count, out_h * out_w)
        weighted = samples * mask[:, first:last].reshape(-1, 1, count, out_h * out_w)
        taps_weight = flat_weight[:, :, first:last].reshape(out_channels, channels * count)
        part = torch.matmul(taps_weight, weighted.reshape(-1, channels * count, out_h * out_w))
        total = part if total is None else total + part
    result = total.reshape(-1, out_channels, out_h, out_w)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)
