"""BiRefNet in the form that is exported: the same function at one side, written for the least time and memory.

Everything here is an exact rewrite, so the result differs from the network's own by the rounding of float32 alone:

- Batch norms are part of the convolutions before them, the factor 2 of the modulation mask and Swin's scale of the
  queries part of weights. What depends only on weights and side is a constant.
- A deformable convolution takes its offsets and its mask from one convolution, and works through the map in strips:
  all taps of some rows are sampled, weighted, combined and narrowed before the next rows are begun.
- The pyramid's last convolution, over all branches side by side, is the sum of one for each branch. The branch of the
  global mean becomes one vector for each image.
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
from export.networks.birefnet_blocks import DeformableBranch, DeformablePyramid, InputBlock, resize_like
from export.networks.birefnet_decoder import Decoder
from export.networks.swin import SwinTransformer, WindowAttention
from export.rewrites import convolution, fold_norm, norm_as_scale

STRIP_BYTES = 50 * 2**20
"""The most that the samples of one strip take, as float32 and for one image. All taps of a 7×7 kernel on 64 channels of
256×256 would be 822 MB; strips of 16 rows are 51 MB, and faster, since more of them stays in the caches."""


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
        return resize_like(self.narrow(x), image) + self.gather(self.nine(image))


class ExportForm(nn.Module):
    """The network at one side: (N, 3, S, S) → logits (N, 1, S, S). Make one with `export_form`."""

    def __init__(self, network: BiRefNet, logits: LogitsForm) -> None:
        super().__init__()
        self.network = network
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        squeezed, laterals = self.network.encode(image)
        x, _ = self.network.decoder.run(image, squeezed, laterals)
        return self.logits(x, image)


def export_form(network: BiRefNet, side_px: int) -> ExportForm:
    """The network's export form for square images of this side, a multiple of 32.

    The network stays as it is. What is not rewritten, above all the encoder's weights, is shared with it, so neither
    should change while the other is in use. For inference only.
    """
    # The modules are copied, their tensors are not.
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    form = copy.deepcopy(network, shared).eval()
    form.freeze(side_px, side_px)
    if isinstance(form.bb, SwinTransformer):
        for module in form.bb.modules():
            if isinstance(module, WindowAttention):
                scale_queries(module)
    decoder = form.decoder
    blocks = [(form.squeeze_module[0], 32), *((decoder.part("decoder_block", n), 2 ** (n + 1)) for n in (4, 3, 2, 1))]
    for block, step_px in blocks:
        side = side_px // step_px
        block.conv_in = fold_norm(block.conv_in, block.bn_in)
        block.conv_out = fold_norm(block.conv_out, block.bn_out)
        block.bn_in, block.bn_out = nn.Identity(), nn.Identity()
        block.dec_att = StripPyramid(block.dec_att, side, side)
    logits = LogitsForm(decoder)
    for number in (4, 3, 2):
        edges = decoder.part("gdt_convs_", number)
        edges[0], edges[1] = fold_norm(edges[0], edges[1]), nn.Identity()
        for head in ("conv_ms_spvn_", "gdt_convs_pred_"):
            delattr(decoder, f"{head}{number}")
    del decoder.conv_out1, decoder.ipt_blk1
    return ExportForm(form, logits)


def scale_queries(attention: WindowAttention) -> None:
    """Put the scale of the queries into the weights that make them, which become the module's own."""
    qkv, channels = attention.qkv, attention.qkv.in_features
    factor = torch.ones(3 * channels, dtype=torch.float64)
    factor[:channels] = attention.scale
    scaled = nn.Linear(channels, 3 * channels)
    scaled.weight = nn.Parameter((qkv.weight.detach().double() * factor[:, None]).float(), requires_grad=False)
    scaled.bias = nn.Parameter((qkv.bias.detach().double() * factor).float(), requires_grad=False)
    attention.qkv, attention.scale = scaled, 1.0


def constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.float().contiguous(), requires_grad=False)
