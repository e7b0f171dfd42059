"""Exact rewrites of networks: the same sums in another order.

Done on a network that is about to be traced; what has been rewritten is for inference only.
"""

import torch
from torch import Tensor, nn


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
