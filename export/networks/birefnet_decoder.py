"""BiRefNet's decoder: from the encoder's four maps, and the image itself, to logits at full resolution."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from export.networks.birefnet_blocks import (
    DecoderBlock,
    InputBlock,
    LateralBlock,
    resize_like,
    split_into_tiles,
)
from export.networks.birefnet_config import BiRefNetConfig

RGB = 3


class Supervised(NamedTuple):
    """What a training step compares with its targets. Logits all, float32, the coarsest stage first."""

    logits: Tensor
    """(N, 1, H, W), the result."""
    stage_logits: list[Tensor]
    """(N, 1, ·, ·) at 1/32, 1/16 and 1/8: the same mask, as each decoder stage sees it."""
    gradient_logits: list[Tensor]
    """(N, 1, ·, ·) at 1/32, 1/16 and 1/8: where the image has edges that belong to the mask."""


class GatedStage(NamedTuple):
    """What one gated stage computed, for the heads that only training uses."""

    number: int
    block: Tensor
    edges: Tensor


class Decoder(nn.Module):
    """Four stages, numbered 4 (1/32 of the side) to 1 (1/4), each with the image's tiles beside its input.

    Stages 4 to 2 are gated: features that training teaches to predict the mask's gradient yield one attention value
    per position, which the stage's output is multiplied with.
    """

    def __init__(self, config: BiRefNetConfig) -> None:
        super().__init__()
        finest, fine, coarse, coarsest = config.stage_channels
        from_tiles = {5: coarsest // 8, 4: coarsest // 8, 3: coarse // 8, 2: fine // 8, 1: finest // 8}
        # Stage 4 works on 1/32 of the side: 32 · 32 tiles, and so on; the last block reads the image as it is.
        tiles_per_side = {5: 32, 4: 16, 3: 8, 2: 4, 1: 1}
        for number, channels in from_tiles.items():
            block = InputBlock(RGB * tiles_per_side[number] ** 2, channels, config.input_width)
            self.add_module(f"ipt_blk{number}", block)

        into = {4: coarsest, 3: coarse, 2: fine, 1: finest}
        out_of = {4: coarse, 3: fine, 2: finest, 1: finest // 2}
        for number in into:
            block = DecoderBlock(into[number] + from_tiles[number + 1], out_of[number], config)
            self.add_module(f"decoder_block{number}", block)
        self.conv_out1 = nn.Sequential(nn.Conv2d(out_of[1] + from_tiles[1], 1, 1))

        gated = (4, 3, 2)
        for number in gated:
            self.add_module(f"lateral_block{number}", LateralBlock(out_of[number]))
        for number in gated:
            self.add_module(f"conv_ms_spvn_{number}", nn.Conv2d(out_of[number], 1, 1))
        width = config.gate_width
        for number in gated:
            edges = nn.Sequential(nn.Conv2d(out_of[number], width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            self.add_module(f"gdt_convs_{number}", edges)
        for head in ("pred", "attn"):
            for number in gated:
                self.add_module(f"gdt_convs_{head}_{number}", nn.Sequential(nn.Conv2d(width, 1, 1)))

    def part(self, name: str, number: int) -> nn.Module:
        return self.get_submodule(f"{name}{number}")

    def with_tiles(self, x: Tensor, image: Tensor, number: int) -> Tensor:
        """`x` with what input block `number` reads from the image, as further channels."""
        tiles = split_into_tiles(image, int(x.shape[2]), int(x.shape[3]))
        return torch.cat((x, self.part("ipt_blk", number)(tiles)), dim=1)

    def run(self, image: Tensor, squeezed: Tensor, laterals: tuple[Tensor, ...]) -> tuple[Tensor, list[GatedStage]]:
        """What the last stage computed (N, C, H/4, W/4), and what the gated stages did on the way."""
        x, gated = squeezed, []
        for number, lateral in zip((4, 3, 2), reversed(laterals), strict=True):
            block = self.part("decoder_block", number)(self.with_tiles(x, image, number + 1))
            edges = self.part("gdt_convs_", number)(block)
            gated.append(GatedStage(number, block, edges))
            x = block * torch.sigmoid(self.part("gdt_convs_attn_", number)(edges))
            x = resize_like(x, lateral) + self.part("lateral_block", number)(lateral)
        return self.part("decoder_block", 1)(self.with_tiles(x, image, 2)), gated

    def to_logits(self, x: Tensor, image: Tensor) -> Tensor:
        """(N, C, H/4, W/4) → (N, 1, H, W), with the image beside it."""
        return self.conv_out1(self.with_tiles(resize_like(x, image), image, 1))

    def forward(self, image: Tensor, squeezed: Tensor, laterals: tuple[Tensor, ...]) -> Tensor:
        """Logits (N, 1, H, W).

        `image` (N, 3, H, W), normalised; `squeezed` (N, C, H/32, W/32); `laterals` the encoder's maps at 1/4, 1/8 and
        1/16, in this order.
        """
        return self.to_logits(self.run(image, squeezed, laterals)[0], image)

    def supervise(self, image: Tensor, squeezed: Tensor, laterals: tuple[Tensor, ...]) -> Supervised:
        """As `forward`, with the outputs of the heads that only training uses."""
        x, gated = self.run(image, squeezed, laterals)
        return Supervised(
            self.to_logits(x, image),
            [self.part("conv_ms_spvn_", stage.number)(stage.block) for stage in gated],
            [self.part("gdt_convs_pred_", stage.number)(stage.edges) for stage in gated],
        )
