"""The parts that BiRefNet's decoder is built of. Module names are those of the released state dicts."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.networks.birefnet_config import BiRefNetConfig
from export.networks.deform import DeformableConv2d


def resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with the corner pixels' centres held in place, as the weights were trained with."""
    own = int(x.shape[2]), int(x.shape[3])
    if own == (height, width):
        return x
    factors = height / own[0], width / own[1]
    if all(math.frexp(factor)[0] == 0.5 for factor in factors):
        # A power of two says the same as the size, and in a traced graph it is a constant, whatever the batch.
        return F.interpolate(x, scale_factor=factors, mode="bilinear", align_corners=True)
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)


def resize_like(x: Tensor, other: Tensor) -> Tensor:
    return resize(x, int(other.shape[2]), int(other.shape[3]))


def split_into_tiles(image: Tensor, height: int, width: int) -> Tensor:
    """Cut the image into tiles of height × width and stack them as channels.

    (N, C, H, W) → (N, C · H/height · W/width, height, width). A channel is one contiguous tile, not every n-th pixel:
    a position of the result sees as many places of the image as there are tiles, and each decoder stage the image at
    its full resolution.
    """
    channels, image_h, image_w = (int(size) for size in image.shape[1:])
    down, across = image_h // height, image_w // width
    tiles = image.reshape(-1, channels, down, height, across, width).transpose(3, 4)
    return tiles.reshape(-1, channels * down * across, height, width)


class DeformableBranch(nn.Module):
    """A deformable convolution, batch norm and ReLU: (N, C, h, w) → (N, D, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_px: int) -> None:
        super().__init__()
        self.atrous_conv = DeformableConv2d(in_channels, out_channels, kernel_px, padding=kernel_px // 2)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class DeformablePyramid(nn.Module):
    """Deformable branches of several kernels and the global mean, side by side, mapped back to the input's width."""

    def __init__(self, channels: int, branch_width: int, kernels_px: tuple[int, ...]) -> None:
        super().__init__()
        self.aspp1 = DeformableBranch(channels, branch_width, 1)
        self.aspp_deforms = nn.ModuleList(DeformableBranch(channels, branch_width, k) for k in kernels_px)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, branch_width, 1, bias=False),
            nn.BatchNorm2d(branch_width),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(branch_width * (2 + len(kernels_px)), channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.global_avg_pool(x).expand(-1, -1, int(x.shape[2]), int(x.shape[3]))
        branches = [self.aspp1(x), *(branch(x) for branch in self.aspp_deforms), mean]
        return self.dropout(F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1)))))


class DecoderBlock(nn.Module):
    """Narrow to `block_width`, look around with the deformable pyramid, widen to `out_channels`."""

    def __init__(self, in_channels: int, out_channels: int, config: BiRefNetConfig) -> None:
        super().__init__()
        width = config.block_width
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.dec_att = DeformablePyramid(width, config.branch_width, config.branch_kernels_px)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)
        self.bn_in = nn.BatchNorm2d(width)
        self.bn_out = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_in(self.conv_in(x)))
        return self.bn_out(self.conv_out(self.dec_att(x)))


class LateralBlock(nn.Module):
    """A 1×1 convolution from an encoder map to the decoder stage of the same resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class InputBlock(nn.Module):
    """Two 3×3 convolutions, nothing between them, that read the image's tiles into a decoder stage."""

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.conv_out(self.conv1(tiles))
