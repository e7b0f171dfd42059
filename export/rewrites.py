"""Exact rewrites that both matting networks share, and those of `nano`: the same sums in another order.

Done on a network that is about to be traced; what has been rewritten is for inference only.
"""

import torch
from torch import Tensor, nn

from export.networks.nano import DecoderStage, DeformableBranch


def norm_as_scale(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and summand, float64 [C] each, that the batch normalisation is in inference."""
    factor = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return factor, norm.bias.detach().double() - norm.running_mean.double() * factor


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution with bias that does what `conv` and the `norm` behind it do. Neither is changed."""
    factor, summand = norm_as_scale(norm)
    weight = conv.weight.detach().double() * factor[:, None, None, None]
    bias = summand if conv.bias is None else summand + conv.bias.detach().double() * factor
    return convolution(weight, bias, padding=conv.padding[0], stride=conv.stride[0])


def convolution(weight: Tensor, bias: Tensor | None, padding: int = 0, stride: int = 1) -> nn.Conv2d:
    """A float32 module for the weight [out, in, height, width] and the bias [out] or none."""
    out_channels, in_channels, *kernel = weight.shape
    conv = nn.Conv2d(in_channels, out_channels, tuple(kernel), stride, padding, bias=bias is not None)
    conv.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.float(), requires_grad=False)
    return conv


def fold_deformable_norms(model: nn.Module) -> None:
    """Put the batch normalisation that follows each deformable convolution into its weights, in place.

    The exporter does this for plain convolutions; a deformable one is a matrix product by then.
    """
    for branch in model.modules():
        if isinstance(branch, DeformableBranch) and isinstance(branch.bn, nn.BatchNorm2d):
            norm, conv = branch.bn, branch.conv.regular_conv
            scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
            conv.weight.data.mul_(scale[:, None, None, None])
            bias = conv.bias.detach() if conv.bias is not None else torch.zeros_like(scale)
            conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias.detach())
            branch.bn = nn.Identity()


def fold_patches(model: nn.Module) -> None:
    """Make one strided convolution of the cutting into patches and the 1x1 convolution that follows, in place.

    The same sums in another order; as a transpose, the cutting alone takes a fifth of the network's time.
    """
    for stage in model.modules():
        if isinstance(stage, DecoderStage) and isinstance(stage.unshuffle, nn.PixelUnshuffle):
            side_px = stage.unshuffle.downscale_factor
            narrow = stage.patches[0][0]
            strided = nn.Conv2d(3, narrow.out_channels, side_px, stride=side_px, bias=False)
            strided.weight.data.copy_(narrow.weight.detach().reshape(strided.weight.shape))
            stage.patches[0][0] = strided
            stage.unshuffle = nn.Identity()
