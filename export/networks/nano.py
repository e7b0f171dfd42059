"""NanoMatte: BiRefNet's decoder idea on a YOLOv8n encoder, 3.5 M parameters, fully convolutional.

What it keeps of BiRefNet: lateral connections at every scale, the image itself handed to every decoder stage
in patches (so that fine detail survives a coarse encoder), and ASPP with modulated deformable convolution in
several kernel sizes. What it leaves out: the transformer backbone, the twice-scaled input, gradient attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.networks.deform import DeformableConv2d
from export.networks.yolov8 import YoloV8Trunk

#: Layers of the encoder whose results the decoder reads, with their strides: 32, 16, 8, 4 and 2 px.
ENCODER_LAYERS = (21, 18, 15, 2, 0)
STRIDES_PX = (32, 16, 8, 4, 2)
STAGE_CHANNELS = (64, 64, 48, 32, 16)
LATERAL_CHANNELS = (64, 48, 32, 24, 8)
PATCH_CHANNELS = (24, 24, 16, 12, 8)
#: Per stage: kernels of its deformable ASPP and the width of each of its branches; none at fine scales.
ASPP_KERNELS: tuple[tuple[int, ...], ...] = ((1, 3, 7), (1, 3, 7), (1, 3), (), ())
ASPP_WIDTHS = (48, 32, 24, 0, 0)


def conv_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU; keeps height and width."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class DeformableBranch(nn.Module):
    """One deformable convolution with batch normalisation and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = DeformableConv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, out_channels, H, W]."""
        return F.relu(self.bn(self.conv(features)))


class DeformableAspp(nn.Module):
    """Deformable branches of several kernels and the global mean, fused and added to the input."""

    def __init__(self, channels: int, width: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.reduce = conv_relu(channels, width, 1)
        self.branches = nn.ModuleList(DeformableBranch(width, width, kernel) for kernel in kernels)
        self.mean = nn.Conv2d(width, width, 1)
        self.fuse = conv_relu(width * (len(kernels) + 1), channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Shape-preserving on [N, C, H, W]."""
        reduced = self.reduce(features)
        mean = F.relu(self.mean(reduced.mean(dim=(2, 3), keepdim=True)))
        parts = [each(reduced) for each in self.branches]
        parts.append(reduced + mean)
        return features + self.fuse(torch.cat(parts, dim=1))


class DecoderStage(nn.Module):
    """Join the coarser stage, the encoder's features and patches of the image at one scale.

    Args:
        coarser: channels of the coarser stage, 0 for the first.
        encoder: channels of the encoder's features at this scale.
        index: which stage, 0 (stride 32) to 4 (stride 2).
    """

    def __init__(self, coarser: int, encoder: int, index: int) -> None:
        super().__init__()
        stride_px, channels = STRIDES_PX[index], STAGE_CHANNELS[index]
        lateral, patches = LATERAL_CHANNELS[index], PATCH_CHANNELS[index]
        self.lateral = conv_relu(encoder, lateral, 1)
        self.unshuffle = nn.PixelUnshuffle(stride_px)
        self.patches = nn.Sequential(conv_relu(3 * stride_px**2, patches, 1), conv_relu(patches, patches, 3))
        self.join = conv_relu(coarser + lateral + patches, channels, 3)
        kernels = ASPP_KERNELS[index]
        self.aspp = DeformableAspp(channels, ASPP_WIDTHS[index], kernels) if kernels else nn.Identity()
        self.refine = conv_relu(channels, channels, 3)
        self.side = nn.Conv2d(channels, 1, 1)

    def forward(self, coarser: Tensor | None, encoder: Tensor, images: Tensor) -> Tensor:
        """Return [N, channels, H, W] at the size of `encoder`; `coarser` is half that size."""
        parts = [self.lateral(encoder), self.patches(self.unshuffle(images))]
        if coarser is not None:
            size_hw = (int(encoder.shape[2]), int(encoder.shape[3]))
            parts.insert(0, F.interpolate(coarser, size=size_hw, mode="bilinear", align_corners=False))
        return self.refine(self.aspp(self.join(torch.cat(parts, dim=1))))


class NanoMatte(nn.Module):
    """Alpha of all the people in a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = YoloV8Trunk("n")
        encoder_channels = (
            *reversed(self.encoder.head_channels),
            self.encoder.early_channels,
            self.encoder.stem_channels,
        )
        coarser_channels = (0, *STAGE_CHANNELS[:-1])
        self.stages = nn.ModuleList(
            DecoderStage(coarser, encoder, index)
            for index, (coarser, encoder) in enumerate(zip(coarser_channels, encoder_channels, strict=True))
        )
        self.out = nn.Conv2d(STAGE_CHANNELS[-1], 4, 3, padding=1)

    def sharpen(self, factor: float) -> None:
        """Multiply the logits by `factor` from now on, in place: the mask at half alpha stays, doubt gets narrower."""
        self.out.weight.data.mul_(factor)
        if self.out.bias is not None:
            self.out.bias.data.mul_(factor)

    def forward(self, images: Tensor) -> Tensor:
        """Map float RGB [N, 3, H, W] in [0, 1], multiples of 32 px, to logits of alpha, float [N, 1, H, W]."""
        return self.all_logits(images)[-1]

    def all_logits(self, images: Tensor) -> list[Tensor]:
        """Logits of every stage for training, [N, 1, H / 32, W / 32] … [N, 1, H / 2, W / 2], then full size."""
        results = self.encoder.layers(images)
        coarser: Tensor | None = None
        logits: list[Tensor] = []
        for stage, layer in zip(self.stages, ENCODER_LAYERS, strict=True):
            coarser = stage(coarser, results[layer], images)
            logits.append(stage.side(coarser))
        logits.append(F.pixel_shuffle(self.out(coarser), 2))
        return logits
