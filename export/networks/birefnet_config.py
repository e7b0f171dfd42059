"""What a BiRefNet is made of: one frozen record per network, and the table of the released sizes.

Source: "Bilateral Reference for High-Resolution Dichotomous Image Segmentation" (Zheng et al., 2024), in the
configuration of the released weights. The names in brackets are those of the public implementation's settings.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from export.networks.swin import SWIN_L, SWIN_T

Channels = tuple[int, int, int, int]


class BackboneConfig(Protocol):
    """A recipe for an encoder; `SwinConfig` is one, and so is any small record with these two members.

    `build()` makes a module that maps images (N, 3, H, W) to four maps whose channels are `channels`, at 1/4, 1/8,
    1/16 and 1/32 of the side (rounded up), the finest first.
    """

    @property
    def channels(self) -> Channels: ...

    def build(self) -> nn.Module: ...


@dataclass(frozen=True)
class BiRefNetConfig:
    """Structure of one network; the defaults are the released variants'.

    A released variant is `BiRefNetConfig(SWIN_T)`; a small one, for instance,
    `BiRefNetConfig(small_backbone, block_width=32, branch_width=64, input_width=16)`.
    """

    backbone: BackboneConfig
    context_stages: int = 3
    """How many of the three finer encoder stages join the deepest before the squeeze block, counted from the deep
    end [cxt_num]."""
    block_width: int = 64
    """Channels inside a decoder block, whatever goes in and comes out [dec_channels_inter]."""
    branch_width: int = 256
    """Channels of each branch of the deformable pyramid in a block."""
    branch_kernels_px: tuple[int, ...] = (1, 3, 7)
    """Kernel side of the deformable branches beside the first, whose kernel is 1."""
    input_width: int = 64
    """Channels between the two convolutions that read the image's tiles [dec_ipt]."""
    gate_width: int = 16
    """Channels of the gradient features that gate a decoder stage [out_ref]."""

    def __post_init__(self) -> None:
        if not 0 <= self.context_stages <= 3:
            raise ValueError(f"context_stages must be 0 to 3, not {self.context_stages}")
        if any(kernel < 1 or kernel % 2 == 0 for kernel in self.branch_kernels_px):
            raise ValueError(f"branch kernels must be odd, not {self.branch_kernels_px}")
        if any(channels < 4 for channels in self.backbone.channels):
            raise ValueError(f"a backbone needs at least 4 channels in each stage, not {self.backbone.channels}")

    @property
    def stage_channels(self) -> Channels:
        """Channels of the four encoder maps, the finest first: the backbone's at full and at half scale together."""
        first, second, third, fourth = self.backbone.channels
        return 2 * first, 2 * second, 2 * third, 2 * fourth

    @property
    def context_channels(self) -> int:
        """Channels that go into the squeeze block."""
        return sum(self.stage_channels[3 - self.context_stages :])


VARIANTS: dict[str, BiRefNetConfig] = {
    "lite": BiRefNetConfig(SWIN_T),
    "general": BiRefNetConfig(SWIN_L),
}
"""The two sizes in which BiRefNet was released. `general` also carries the portrait, matting, HR and dynamic weights,
`lite` the lite-2K ones."""
