"""YOLOv8 and YOLOv8-seg in five sizes, with the module names of Ultralytics' released state dicts.

The architecture is the published one; a state dict taken from a released checkpoint loads with
`load_state_dict(…, strict=True)`. Only inference (and the training of the mask branches, which needs no more)
is meant: decoding is in the forward pass, suppression of overlapping boxes is left to the caller.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Size letter → depth multiple, width multiple, widest layer before multiplication.
SCALES: dict[str, tuple[float, float, int]] = {
    "n": (0.33, 0.25, 1024),
    "s": (0.33, 0.50, 1024),
    "m": (0.67, 0.75, 768),
    "l": (1.00, 1.00, 512),
    "x": (1.00, 1.25, 512),
}
#: Layers whose results the head reads, and their distance in input pixels between neighbouring cells.
HEAD_LAYERS = (15, 18, 21)
HEAD_STRIDES_PX = (8, 16, 32)
#: Each side of a box is a distribution over this many distances, in cells.
DISTANCE_BINS = 16
MASK_COEFFICIENTS = 32


class ConvBlock(nn.Module):
    """Convolution without bias, batch normalisation, SiLU. `same` padding for odd kernels."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, out_channels, H / stride, W / stride]."""
        return F.silu(self.bn(self.conv(features)))


class Bottleneck(nn.Module):
    """Two 3x3 blocks, added to the input where `shortcut` is set."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = ConvBlock(channels, channels, 3)
        self.cv2 = ConvBlock(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        """Shape-preserving on [N, C, H, W]."""
        result = self.cv2(self.cv1(features))
        return features + result if self.shortcut else result


class C2f(nn.Module):
    """Split the channels, send one half through a chain of bottlenecks, fuse every intermediate result."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int, shortcut: bool) -> None:
        super().__init__()
        self.half = out_channels // 2
        self.cv1 = ConvBlock(in_channels, 2 * self.half)
        self.cv2 = ConvBlock((2 + repeats) * self.half, out_channels)
        self.m = nn.ModuleList(Bottleneck(self.half, shortcut) for _ in range(repeats))

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H, W]."""
        parts = list(self.cv1(features).split(self.half, dim=1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))


class SPPF(nn.Module):
    """Spatial pyramid pooling by three 5x5 poolings, one after another."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.cv1 = ConvBlock(in_channels, in_channels // 2)
        self.cv2 = ConvBlock(in_channels // 2 * 4, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H, W]."""
        parts = [self.cv1(features)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, stride=1, padding=2))
        return self.cv2(torch.cat(parts, dim=1))


class Upsample(nn.Module):
    """Repeat each cell twice in both directions."""

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, 2H, 2W]."""
        return F.interpolate(features, scale_factor=2.0, mode="nearest")


class Join(nn.Module):
    """Concatenate the last result with an earlier layer's (the trunk passes both)."""

    def __init__(self, earlier: int) -> None:
        super().__init__()
        self.earlier = earlier

    def forward(self, features: Tensor, skipped: Tensor) -> Tensor:
        """Map [N, A, H, W] and [N, B, H, W] to [N, A + B, H, W]."""
        return torch.cat((features, skipped), dim=1)


class YoloV8Trunk(nn.Module):
    """Backbone and neck: layers 0 to 21 as `model.0` … `model.21`.

    Args:
        scale: a key of `SCALES`.
    """

    def __init__(self, scale: str = "n") -> None:
        super().__init__()
        depth, width, widest = SCALES[scale]

        def channels(base: int) -> int:
            return -int(-min(base, widest) * width // 8) * 8

        def repeats(base: int) -> int:
            return max(round(base * depth), 1)

        c64, c128, c256, c512, c1024 = (channels(base) for base in (64, 128, 256, 512, 1024))
        #: Channels of the results of `HEAD_LAYERS`.
        self.head_channels = (c256, c512, c1024)
        self.proto_channels = c256
        self.model = nn.ModuleList(
            [
                ConvBlock(3, c64, 3, 2),
                ConvBlock(c64, c128, 3, 2),
                C2f(c128, c128, repeats(3), True),
                ConvBlock(c128, c256, 3, 2),
                C2f(c256, c256, repeats(6), True),
                ConvBlock(c256, c512, 3, 2),
                C2f(c512, c512, repeats(6), True),
                ConvBlock(c512, c1024, 3, 2),
                C2f(c1024, c1024, repeats(3), True),
                SPPF(c1024, c1024),
                Upsample(),
                Join(6),
                C2f(c1024 + c512, c512, repeats(3), False),
                Upsample(),
                Join(4),
                C2f(c512 + c256, c256, repeats(3), False),
                ConvBlock(c256, c256, 3, 2),
                Join(12),
                C2f(c256 + c512, c512, repeats(3), False),
                ConvBlock(c512, c512, 3, 2),
                Join(9),
                C2f(c512 + c1024, c1024, repeats(3), False),
            ]
        )

    def layers(self, images: Tensor) -> list[Tensor]:
        """Run float RGB [N, 3, H, W] in [0, 1], H and W multiples of 32, and return all 22 results."""
        results: list[Tensor] = []
        features = images
        for layer in self.model[:22]:
            features = layer(features, results[layer.earlier]) if isinstance(layer, Join) else layer(features)
            results.append(features)
        return results


class Distances(nn.Module):
    """Expected value of the distribution of each side's distance (`dfl` in the state dict)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(DISTANCE_BINS, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(DISTANCE_BINS).float().reshape(1, -1, 1, 1)

    def forward(self, logits: Tensor) -> Tensor:
        """Map [N, 4·16, A] to distances in cells, [N, 4, A]."""
        anchors = int(logits.shape[2])
        bins = logits.reshape(-1, 4, DISTANCE_BINS, anchors).transpose(1, 2).softmax(dim=1)
        return self.conv(bins).reshape(-1, 4, anchors)


class Prototypes(nn.Module):
    """The mask prototypes at a quarter of the input's size."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.cv1 = ConvBlock(in_channels, channels, 3)
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.cv2 = ConvBlock(channels, channels, 3)
        self.cv3 = ConvBlock(channels, MASK_COEFFICIENTS)

    def forward(self, features: Tensor) -> Tensor:
        """Map the stride-8 result [N, C, H, W] to [N, 32, 2H, 2W]."""
        return self.cv3(self.cv2(self.upsample(self.cv1(features))))


class Head(nn.Module):
    """Boxes, class scores and, where `masks` is set, mask coefficients and prototypes."""

    def __init__(self, in_channels: tuple[int, ...], proto_channels: int, classes: int, masks: bool) -> None:
        super().__init__()
        box_width = max(16, in_channels[0] // 4, DISTANCE_BINS * 4)
        class_width = max(in_channels[0], min(classes, 100))
        self.cv2 = nn.ModuleList(branch(each, box_width, 4 * DISTANCE_BINS) for each in in_channels)
        self.cv3 = nn.ModuleList(branch(each, class_width, classes) for each in in_channels)
        self.dfl = Distances()
        self.cv4: nn.ModuleList | None = None
        self.proto: Prototypes | None = None
        if masks:
            self.proto = Prototypes(in_channels[0], proto_channels)
            mask_width = max(in_channels[0] // 4, MASK_COEFFICIENTS)
            self.cv4 = nn.ModuleList(branch(each, mask_width, MASK_COEFFICIENTS) for each in in_channels)


def branch(in_channels: int, width: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 blocks and a 1x1 convolution with bias."""
    return nn.Sequential(
        ConvBlock(in_channels, width, 3), ConvBlock(width, width, 3), nn.Conv2d(width, out_channels, 1)
    )


class Detections(NamedTuple):
    """What YOLOv8 says about every anchor, before suppression.

    `boxes` float [N, A, 4], x1, y1, x2, y2 in input pixels; `class_scores` float [N, A, classes] in [0, 1];
    `coefficients` float [N, A, 32] and `prototypes` float [N, 32, H/4, W/4], or none without mask branches.
    """

    boxes: Tensor
    class_scores: Tensor
    coefficients: Tensor | None
    prototypes: Tensor | None


class YoloV8(YoloV8Trunk):
    """The whole network: the trunk and its head as `model.22`.

    Args:
        scale: a key of `SCALES`.
        classes: classes that the head tells apart.
        masks: whether it is YOLOv8-seg.
    """

    def __init__(self, scale: str = "n", classes: int = 80, masks: bool = True) -> None:
        super().__init__(scale)
        self.model.append(Head(self.head_channels, self.proto_channels, classes, masks))

    @property
    def head(self) -> Head:
        """The last layer."""
        return self.model[22]

    def forward(self, images: Tensor) -> Detections:
        """Run float RGB [N, 3, H, W] in [0, 1], H and W multiples of 32."""
        results = self.layers(images)
        return self.detect([results[index] for index in HEAD_LAYERS])

    def detect(self, features: list[Tensor]) -> Detections:
        """Run the head on the three results of `HEAD_LAYERS`, [N, C, H / stride, W / stride] each."""
        head = self.head
        sides = torch.cat([conv(each).flatten(2) for conv, each in zip(head.cv2, features, strict=True)], dim=2)
        logits = torch.cat([conv(each).flatten(2) for conv, each in zip(head.cv3, features, strict=True)], dim=2)
        distances = head.dfl(sides)
        centres, strides_px = anchors([(int(each.shape[2]), int(each.shape[3])) for each in features])
        centres, strides_px = centres.to(sides.device), strides_px.to(sides.device)
        corners = torch.cat((centres - distances[:, :2], centres + distances[:, 2:]), dim=1) * strides_px
        coefficients, prototypes = None, None
        if head.cv4 is not None and head.proto is not None:
            coefficients, prototypes = self.masks(features)
        return Detections(corners.transpose(1, 2), logits.sigmoid().transpose(1, 2), coefficients, prototypes)

    def masks(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The mask branches alone: coefficients [N, A, 32] and prototypes [N, 32, H/4, W/4]."""
        head = self.head
        parts = [conv(each).flatten(2) for conv, each in zip(head.cv4, features, strict=True)]
        return torch.cat(parts, dim=2).transpose(1, 2), head.proto(features[0])


def anchors(sizes_hw: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Centres of all cells, in cells, float [2, A] (x, y), and their strides in pixels, float [1, A]."""
    centres, strides = [], []
    for (height, width), stride_px in zip(sizes_hw, HEAD_STRIDES_PX, strict=True):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centres.append(torch.stack((x.flatten(), y.flatten())))
        strides.append(torch.full((1, height * width), float(stride_px)))
    return torch.cat(centres, dim=1), torch.cat(strides, dim=1)
