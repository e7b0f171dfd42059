"""Deformable convolution as ONNX's own operator `DeformConv`: the published structure, node for node.

It is the oracle that graphs of standard sampling are held to, and the yardstick of their speed. It is not what is
served: TensorRT takes it by a deprecated plugin, TensorRT for RTX not at all.
"""

from typing import Any

import torch
from torch import Tensor, nn

from export.networks.deform import DeformableConv2d, deformable_conv2d

DEFORM_CONV_OPSET = 19
"""The first opset that has `DeformConv`."""


class OnnxDeformConv(torch.autograd.Function):
    """Computes as `deformable_conv2d` does, and leaves one node `DeformConv` in a traced graph."""

    @staticmethod
    def forward(
        _ctx: Any,
        features: Tensor,
        offsets: Tensor,
        mask: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding_hw: tuple[int, int],
    ) -> Tensor:
        return deformable_conv2d(features, offsets, mask, weight, bias, stride, padding_hw)

    @staticmethod
    def symbolic(
        g: Any,
        features: Any,
        offsets: Any,
        mask: Any,
        weight: Any,
        bias: Any,
        stride: int,
        padding_hw: tuple[int, int],
    ) -> Any:
        # ONNX keeps torchvision's layout of offsets and masks, but has the bias before the mask.
        out_channels, _, kernel_h, kernel_w = weight.type().sizes()
        none = g.op("Constant", value_t=torch.zeros(out_channels)) if bias is None or bias.node().mustBeNone() else bias
        result = g.op(
            "DeformConv",
            features,
            weight,
            offsets,
            none,
            mask,
            kernel_shape_i=[kernel_h, kernel_w],
            strides_i=[stride, stride],
            pads_i=[padding_hw[0], padding_hw[1]] * 2,
            dilations_i=[1, 1],
            group_i=1,
            offset_group_i=1,
        )
        return result.setType(features.type().with_sizes([None, out_channels, None, None]))


def use_onnx_operator(network: nn.Module, use: bool = True) -> None:
    """Let every deformable convolution of a network become one node when it is traced, or let it be again."""
    for module in network.modules():
        if isinstance(module, DeformableConv2d):
            module.convolve = OnnxDeformConv.apply if use else deformable_conv2d
