"""U²-Net-P (Qin et al., 2020), which finds salient objects, with batch normalisation folded and without its last stage.

That stage decodes at full size once more: more than half of the time, and no difference in IoU. Here the logits of the
stage at half size are enlarged.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, NARROW = 64, 16
"""Channels between the stages and within them."""
DEPTHS = (7, 6, 5, 4)
"""Scales within each of the first stages, finest first; two more, dilated, follow."""
PUBLISHED, SECOND_SIDE = 119, -6
"""Convolutions of the published network, and the one that makes logits of what is the last stage here."""


def conv(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """A 3×3 convolution with bias, and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)
    )


def enlarge(maps: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize to another tensor's height and width."""
    # Numbers, so that a traced graph has constant sizes.
    size = [int(side) for side in like.shape[2:]]
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


class ResidualU(nn.Module):
    """A small U-Net whose result is added to its own input.

    Args:
        in_channels: of the input; the result has `WIDTH`.
        depth: how many convolutions go down, the last one with dilation.
        dilated: keep the size and dilate by 1, 2, 4 and 8 instead of shrinking.
    """

    def __init__(self, in_channels: int, depth: int = 4, dilated: bool = False) -> None:
        super().__init__()
        dilations = [2**level for level in range(depth)] if dilated else [1] * (depth - 1) + [2]
        self.dilated = dilated
        self.first = conv(in_channels, WIDTH)
        self.down = nn.ModuleList(
            conv(NARROW if level else WIDTH, NARROW, dilation) for level, dilation in enumerate(dilations)
        )
        self.up = nn.ModuleList(
            conv(2 * NARROW, NARROW if level else WIDTH, dilations[level] if dilated else 1)
            for level in reversed(range(depth - 1))
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, WIDTH, H, W]."""
        features = self.first(features)
        levels = [self.down[0](features)]
        for level, block in enumerate(self.down[1:], 1):
            shrinks = not self.dilated and level < len(self.down) - 1
            levels.append(block(shrink(levels[-1]) if shrinks else levels[-1]))
        result = levels.pop()
        for block in self.up:
            finer = levels.pop()
            result = block(torch.cat((enlarge(result, finer), finer), dim=1))
        return result + features


def shrink(maps: Tensor) -> Tensor:
    """Halve height and width by their maximum, odd ones upwards."""
    return F.max_pool2d(maps, 2, stride=2, ceil_mode=True)


class U2Net(nn.Module):
    """U²-Net-P without its stage at full size."""

    def __init__(self) -> None:
        super().__init__()
        dilated = [ResidualU(WIDTH, dilated=True) for _ in range(2)]
        self.encoder = nn.ModuleList(
            [*(ResidualU(WIDTH if level else 3, depth) for level, depth in enumerate(DEPTHS)), *dilated]
        )
        scales = (ResidualU(2 * WIDTH, depth) for depth in DEPTHS[:0:-1])
        self.decoder = nn.ModuleList([ResidualU(2 * WIDTH, dilated=True), *scales])
        self.side = nn.Conv2d(WIDTH, 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map float RGB [N, 3, H, W], normalised with ImageNet's mean and deviation, to logits [N, 1, H, W]."""
        levels: list[Tensor] = []
        for stage in self.encoder:
            levels.append(stage(shrink(levels[-1]) if levels else pictures))
        result = levels.pop()
        for stage in self.decoder:
            finer = levels.pop()
            result = stage(torch.cat((enlarge(result, finer), finer), dim=1))
        return enlarge(self.side(result), pictures)


class Mirrored(nn.Module):
    """A network that sees each picture mirrored as well; the mean of both logits [N, 1, S, S]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        """Map [N, 3, S, S] to [N, 1, S, S]."""
        size = [int(side) for side in pictures.shape[2:]]
        logits = self.model(torch.cat((pictures, pictures.flip(3)))).reshape(2, -1, 1, *size)
        return ((logits[0] + logits[1].flip(3)) / 2).reshape(-1, 1, *size)


def load_published(path: Path) -> U2Net:
    """The published ONNX file's weights, whose convolutions stand in the order of the forward pass.

    Behind those of the stages come the sides', finest first, and the one that joins them.

    Raises:
        ValueError: the file is another network's.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    published = [[arrays[name] for name in node.input[1:]] for node in graph.node if node.op_type == "Conv"]
    network = U2Net()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if len(published) != PUBLISHED:
        raise ValueError(f"{path} has {len(published)} convolutions, not {PUBLISHED}")
    kept = [*published[: len(convolutions) - 1], published[SECOND_SIDE]]
    for target, (weight, bias) in zip(convolutions, kept, strict=True):
        if target.weight.shape != weight.shape:
            raise ValueError(f"{path}: a convolution has {weight.shape}, not {tuple(target.weight.shape)}")
        target.load_state_dict({"weight": torch.from_numpy(weight.copy()), "bias": torch.from_numpy(bias.copy())})
    return network
