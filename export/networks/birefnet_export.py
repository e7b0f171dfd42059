"""BiRefNet in the form that is exported: the same function at one side, written for the least time and memory.

Everything here is an exact rewrite, so the result differs from the network's own by the rounding of float32 alone:

- Batch norms are part of the convolutions before them, the factor 2 of the modulation mask and Swin's scale of the
  queries part of weights. What depends only on weights and side is a constant.
- Swin makes queries, keys and values apart, so that they need not be taken apart; where its feed-forward networks are
  wide, they work through the map in strips.
- A deformable convolution takes its offsets and its mask from one convolution, and works through the map in strips:
  all taps of some rows are sampled, weighted, combined and narrowed before the next rows are begun.
- The pyramid's last convolution, over all branches side by side, is the sum of one for each branch. The branch of the
  global mean becomes one vector for each image.
- A convolution over two maps side by side is the sum of one over each, so they need not be joined.
- The last convolution comes before the last upsampling, and with what it reads of the image it is two small
  convolutions at full resolution in place of two wide ones.
- Heads that only training uses are left out.
"""

import copy
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.networks.birefnet import BiRefNet
from export.networks.birefnet_blocks import (
    DecoderBlock,
    DeformableBranch,
    DeformablePyramid,
    InputBlock,
    resize_like,
    split_into_tiles,
)
from export.networks.birefnet_decoder import Decoder
from export.networks.swin import FeedForward, SwinBlock, WindowAttention
from export.rewrites import convolution, fold_norm, norm_as_scale

STRIP_BYTES = 50 * 2**20
"""The most that the largest map of one strip takes, as float32 and for one image. All taps of a 7×7 kernel on 64
channels of 256×256 would be 822 MB; strips of 16 rows are 51 MB, and faster, since more of them stays in the caches."""


def rows_at_once(height: int, row_bytes: int) -> int:
    """Rows of a strip: as few strips as `STRIP_BYTES` allows, all of about one height.

    >>> rows_at_once(256, 3_211_264), rows_at_once(256, 589_824), rows_at_once(32, 65_536)
    (16, 86, 32)
    """
    strips = -(-height // max(1, STRIP_BYTES // row_bytes))
    return -(-height // strips)


class StripBranch(nn.Module):
    """A deformable branch of the pyramid with its share of the pyramid's last convolution: (N, C, h, w) → (N, D, h, w).

    Args:
        branch: the branch; its batch norm is folded.
        narrow: float64 (D, branch width), what the last convolution does to this branch.
        height: of the maps it will see.
        width: likewise.
    """

    columns: Tensor
    rows: Tensor

    def __init__(self, branch: DeformableBranch, narrow: Tensor, height: int, width: int) -> None:
        super().__init__()
        conv = branch.atrous_conv
        channels = conv.regular_conv.in_channels
        self.height, self.width = height, width
        self.taps = conv.kernel_hw[0] * conv.kernel_hw[1]
        # Offsets to the right, offsets downwards, mask: each for all taps. The public layout interleaves the offsets.
        order = [*range(1, 2 * self.taps, 2), *range(0, 2 * self.taps, 2)]
        self.steer = convolution(
            torch.cat((conv.offset_conv.weight.detach()[order], conv.modulator_conv.weight.detach())),
            torch.cat((conv.offset_conv.bias.detach()[order], conv.modulator_conv.bias.detach())),
            padding=conv.padding_hw[0],
        )
        tap_y, tap_x = torch.meshgrid(*(torch.arange(side).double() for side in conv.kernel_hw), indexing="ij")
        self.register_buffer("columns", self.base(tap_x, conv.padding_hw[1], width).reshape(1, self.taps, 1, width))
        self.register_buffer("rows", self.base(tap_y, conv.padding_hw[0], height).reshape(1, self.taps, height, 1))
        factor, summand = norm_as_scale(branch.bn)
        weight = conv.regular_conv.weight.detach().double().flatten(1)
        if conv.regular_conv.bias is not None:
            summand = summand + conv.regular_conv.bias.detach().double() * factor
        # The mask is twice a sigmoid: the 2 stands here.
        self.combine = constant(2.0 * weight * factor[:, None])
        self.bias = constant(summand[:, None])
        self.narrow = constant(narrow)
        self.strip_rows = rows_at_once(height, 4 * channels * self.taps * width)

    @staticmethod
    def base(tap: Tensor, padding: int, side: int) -> Tensor:
        """Where each tap lies, without offset, in grid_sample's coordinates: pixel p of n at (2p + 1) / n - 1."""
        place = torch.arange(side).double()[None, :] - padding + tap.reshape(-1, 1)
        return ((2 * place + 1) / side - 1).float()

    def forward(self, x: Tensor) -> Tensor:
        steering = self.steer(x)
        if self.strip_rows == self.height:
            joined = self.strip(x, steering, self.rows)
        else:
            cuts = [slice(top, top + self.strip_rows) for top in range(0, self.height, self.strip_rows)]
            joined = torch.cat([self.strip(x, steering[:, :, cut], self.rows[:, :, cut]) for cut in cuts], dim=2)
        return joined.reshape(-1, int(joined.shape[1]), self.height, self.width)

    def strip(self, x: Tensor, steering: Tensor, rows: Tensor) -> Tensor:
        """Some rows of the result: (N, D, rows · w)."""
        count, width, channels = int(rows.shape[2]), self.width, int(x.shape[1])
        right, down, mask = steering.split(self.taps, dim=1)
        # Places are float32 whatever the rest is: in half precision they are off by up to a tenth of a pixel.
        grid = torch.stack(
            (right.float() * (2 / self.width) + self.columns, down.float() * (2 / self.height) + rows), dim=-1
        )
        samples = F.grid_sample(
            x.float(),
            grid.reshape(-1, self.taps * count, width, 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        ).to(x.dtype)
        weighted = samples.reshape(-1, channels, self.taps, count * width) * mask.sigmoid().reshape(
            -1, 1, self.taps, count * width
        )
        features = F.relu(self.combine @ weighted.reshape(-1, channels * self.taps, count * width) + self.bias)
        return self.narrow @ features


class StripPyramid(nn.Module):
    """`DeformablePyramid` as the sum of what each branch adds: (N, C, h, w) → the same shape."""

    def __init__(self, pyramid: DeformablePyramid, height: int, width: int) -> None:
        super().__init__()
        factor, summand = norm_as_scale(pyramid.bn1)
        joined = pyramid.conv1.weight.detach().double().flatten(1) * factor[:, None]
        branches = [pyramid.aspp1, *pyramid.aspp_deforms]
        *shares, mean_share = joined.chunk(len(branches) + 1, dim=1)
        self.branches = nn.ModuleList(
            StripBranch(branch, share, height, width) for branch, share in zip(branches, shares, strict=True)
        )
        pool, conv, norm, _ = pyramid.global_avg_pool
        self.mean = nn.Sequential(
            pool, fold_norm(conv, norm), nn.ReLU(), convolution(mean_share[:, :, None, None], summand)
        )

    def forward(self, x: Tensor) -> Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return F.relu(total + self.mean(x))


class LogitsForm(nn.Module):
    """`Decoder.to_logits` without its wide maps: (N, C, H/4, W/4) and (N, 3, H, W) → (N, 1, H, W).

    The decoder upsamples, joins what two 3×3 convolutions read of the image, and narrows the lot to one channel by a
    1×1 convolution. Nothing in this is nonlinear. Narrowing commutes with upsampling; and narrowed to one channel, the
    second 3×3 convolution is nine numbers for each pixel, each of which goes to one neighbour. Those nine are what the
    first convolution, narrowed likewise, yields. The zeros beyond the edge stay where they were: around the nine.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        last: nn.Conv2d = decoder.conv_out1[0]
        block = decoder.part("ipt_blk", 1)
        assert isinstance(block, InputBlock)
        own = last.in_channels - block.conv_out.out_channels
        weight, bias = last.weight.detach().double().flatten(), last.bias.detach().double()
        of_map, of_image = weight[:own], weight[own:]
        self.narrow = convolution(
            of_map.reshape(1, -1, 1, 1), bias + (of_image @ block.conv_out.bias.detach().double()).reshape(1)
        )
        taps = torch.einsum("c,cmyx->yxm", of_image, block.conv_out.weight.detach().double()).flatten(0, 1)
        first = block.conv1
        self.nine = convolution(
            torch.einsum("tm,mcyx->tcyx", taps, first.weight.detach().double()),
            taps @ first.bias.detach().double(),
            padding=1,
        )
        self.gather = convolution(torch.eye(9).reshape(1, 9, 3, 3), None, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        # They are added without their channel: a runtime that makes sums part of convolutions would otherwise compute
        # the nine maps, for which it needs nothing else, first of all and hold them until the end.
        return (resize_like(self.narrow(x), image).squeeze(1) + self.gather(self.nine(image)).squeeze(1)).unsqueeze(1)


class SplitAttention(nn.Module):
    """`WindowAttention` with a map of its own for queries, keys and values; the queries' has the scale in it."""

    bias: Tensor

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        weights = attention.qkv.weight.detach().double().chunk(3)
        biases = attention.qkv.bias.detach().double().chunk(3)
        factors = (attention.scale, 1.0, 1.0)
        self.query, self.key, self.value = (
            linear(weight * factor, bias * factor)
            for weight, bias, factor in zip(weights, biases, factors, strict=True)
        )
        self.proj = attention.proj
        self.register_buffer("bias", attention.position_bias().detach())

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """As `WindowAttention.forward`."""
        windows, tokens, channels = (int(size) for size in x.shape[1:])

        def heads(y: Tensor) -> Tensor:
            return y.reshape(-1, windows, tokens, self.num_heads, channels // self.num_heads).transpose(2, 3)

        scores = heads(self.query(x)) @ heads(self.key(x)).transpose(-2, -1) + self.bias
        if mask is not None:
            scores = scores + mask
        mixed = (scores.softmax(dim=-1) @ heads(self.value(x))).transpose(2, 3)
        return self.proj(mixed.reshape(-1, windows, tokens, channels))


class StripFeedForward(nn.Module):
    """`FeedForward` on (N, H, W, C), some rows at a time where its hidden layer would be larger than a strip."""

    def __init__(self, whole: FeedForward) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        height, width = int(x.shape[1]), int(x.shape[2])
        rows = rows_at_once(height, 4 * self.whole.fc1.out_features * width)
        if rows == height:
            return self.whole(x)
        return torch.cat([self.whole(x[:, top : top + rows]) for top in range(0, height, rows)], dim=1)


class BlockForm(nn.Module):
    """A `DecoderBlock` that takes apart what it would be given side by side: two (N, ·, h, w) → (N, D, h, w)."""

    def __init__(self, block: DecoderBlock, tile_channels: int, side: int) -> None:
        super().__init__()
        joined = fold_norm(block.conv_in, block.bn_in)
        own = joined.in_channels - tile_channels
        weight, bias = joined.weight.detach(), joined.bias.detach()
        self.conv_in = convolution(weight[:, :own], bias, padding=1)
        self.conv_tiles = convolution(weight[:, own:], None, padding=1) if tile_channels else None
        self.pyramid = StripPyramid(block.dec_att, side, side)
        self.conv_out = fold_norm(block.conv_out, block.bn_out)

    def forward(self, x: Tensor, tiles: Tensor | None = None) -> Tensor:
        x = self.conv_in(x)
        if self.conv_tiles is not None and tiles is not None:
            x = x + self.conv_tiles(tiles)
        return self.conv_out(self.pyramid(F.relu(x)))


class DecoderForm(nn.Module):
    """The decoder without the heads that only training uses; arguments and result as those of `Decoder`."""

    def __init__(self, decoder: Decoder, side_px: int) -> None:
        super().__init__()
        blocks, edges = [], []
        for number in (4, 3, 2, 1):
            block: DecoderBlock = decoder.part("decoder_block", number)
            tiles: InputBlock = decoder.part("ipt_blk", number + 1)
            blocks.append(BlockForm(block, tiles.conv_out.out_channels, side_px // 2 ** (number + 1)))
            if number > 1:
                conv, norm, _ = decoder.part("gdt_convs_", number)
                edges.append(nn.Sequential(fold_norm(conv, norm), nn.ReLU()))
        self.blocks, self.edges = nn.ModuleList(blocks), nn.ModuleList(edges)
        self.tiles = nn.ModuleList(decoder.part("ipt_blk", number) for number in (5, 4, 3, 2))
        self.gates = nn.ModuleList(decoder.part("gdt_convs_attn_", number) for number in (4, 3, 2))
        self.lateral = nn.ModuleList(decoder.part("lateral_block", number) for number in (4, 3, 2))
        self.logits = LogitsForm(decoder)

    def forward(self, image: Tensor, squeezed: Tensor, laterals: tuple[Tensor, ...]) -> Tensor:
        x = squeezed
        for i, lateral in enumerate(reversed(laterals)):
            x = self.blocks[i](x, self.read(i, image, x))
            x = x * torch.sigmoid(self.gates[i](self.edges[i](x)))
            x = resize_like(x, lateral) + self.lateral[i](lateral)
        return self.logits(self.blocks[3](x, self.read(3, image, x)), image)

    def read(self, i: int, image: Tensor, like: Tensor) -> Tensor:
        return self.tiles[i](split_into_tiles(image, int(like.shape[2]), int(like.shape[3])))


def export_form(network: BiRefNet, side_px: int) -> BiRefNet:
    """The network's export form for square images of this side, a multiple of 32: (N, 3, S, S) → logits (N, 1, S, S).

    The network stays as it is. What is not rewritten, above all most of the encoder's weights, is shared with it, so
    neither should change while the other is in use. For inference only.
    """
    # The modules are copied, their tensors are not.
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    form = copy.deepcopy(network, shared).eval()
    form.freeze(side_px, side_px)
    for module in list(form.bb.modules()):
        if isinstance(module, SwinBlock):
            module.attn = SplitAttention(module.attn)
            module.mlp = StripFeedForward(module.mlp)
    form.squeeze_module = BlockForm(form.squeeze_module[0], 0, side_px // 32)
    form.decoder = DecoderForm(form.decoder, side_px)
    return form


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A float32 module for the weight [out, in] and the bias [out]."""
    module = nn.Linear(weight.shape[1], weight.shape[0])
    module.weight, module.bias = constant(weight), constant(bias)
    return module


def constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.float().contiguous(), requires_grad=False)
