"""BiRefNet: background removal at high resolution, after the published paper, for the released weights.

Source: "Bilateral Reference for High-Resolution Dichotomous Image Segmentation" (Zheng et al., 2024). This is the
project's own implementation; it loads the released state dicts by name (`birefnet_weights.load_strict`) and
`python -m export verify` holds it to figures of the public one.

    network = BiRefNet(VARIANTS["lite"]).eval()
    load_strict(network, state_dict)
    alpha = network(image).sigmoid()
"""

import torch
from torch import Tensor, nn

from export.networks.birefnet_blocks import DecoderBlock, resize, resize_like
from export.networks.birefnet_config import BiRefNetConfig
from export.networks.birefnet_decoder import Decoder, Supervised
from export.networks.swin import SwinTransformer

SIDE_MULTIPLE_PX = 32


class BiRefNet(nn.Module):
    """(N, 3, H, W) → logits (N, 1, H, W); H and W are multiples of 32.

    The image is RGB, float, normalised with ImageNet's mean and standard deviation. The sigmoid of the logits is the
    foreground's alpha in [0, 1].
    """

    def __init__(self, config: BiRefNetConfig) -> None:
        super().__init__()
        self.config = config
        self.bb = config.backbone.build()
        deepest = config.stage_channels[3]
        self.squeeze_module = nn.Sequential(DecoderBlock(config.context_channels, deepest, config))
        self.decoder = Decoder(config)

    def freeze(self, height: int, width: int) -> None:
        """Make constants of what depends only on weights and size: before tracing, after loading the weights."""
        self.eval()
        if isinstance(self.bb, SwinTransformer):
            self.bb.freeze(height, width)
            self.bb.freeze(height // 2, width // 2)

    def encode(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The squeezed context (N, C, H/32, W/32), and the encoder's maps at 1/4, 1/8 and 1/16.

        The backbone sees the image at its own scale and at half of it; each pair of maps is joined at the finer size.
        """
        height, width = int(image.shape[2]), int(image.shape[3])
        if height % SIDE_MULTIPLE_PX or width % SIDE_MULTIPLE_PX or not (height and width):
            raise ValueError(f"height and width must be multiples of {SIDE_MULTIPLE_PX}, not {height} and {width}")
        own = self.bb(image)
        half = self.bb(resize(image, height // 2, width // 2))
        first, second, third, deepest = (
            torch.cat((a, resize_like(b, a)), dim=1) for a, b in zip(own, half, strict=True)
        )
        laterals = first, second, third
        context = laterals[3 - self.config.context_stages :]
        joined = torch.cat([resize_like(x, deepest) for x in context] + [deepest], dim=1)
        return self.squeeze_module(joined), laterals

    def forward(self, image: Tensor) -> Tensor:
        squeezed, laterals = self.encode(image)
        return self.decoder(image, squeezed, laterals)

    def supervise(self, image: Tensor) -> Supervised:
        """The logits, and what the heads of the coarser stages say: for training."""
        squeezed, laterals = self.encode(image)
        return self.decoder.supervise(image, squeezed, laterals)
