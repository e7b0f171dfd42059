"""Swin Transformer, the encoder of the released BiRefNet variants.

Source: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (Liu et al., 2021). Parameter and
buffer names are those of the detection code that was published with it, which the released BiRefNet state dicts use.

A feature map stays (N, H, W, C) between the patch embedding and the outputs. Sizes are read as plain integers, so a
traced graph is static in height and width and dynamic in the batch. Call `SwinTransformer.freeze` once the weights are
loaded and before tracing: what depends only on the weights or on the size then becomes a constant of the graph.

Stochastic depth is left out: it matters only to a training from scratch of the encoder.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH_PX = 4
# Added to the score of two tokens that only the cyclic shift has put side by side. Finite, so that no arithmetic on it
# makes a NaN, as ∞ - ∞ and 0 · ∞ do; it fits half precision, and after the softmax nothing of it is left.
SHIFT_PENALTY = -100.0


@dataclass(frozen=True)
class SwinConfig:
    """Size of a Swin encoder; `SWIN_T` and `SWIN_L` are the ones the released variants use.

    A small one, for tests: `SwinConfig(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window=4)`.
    """

    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]
    window: int
    mlp_ratio: int = 4

    @property
    def channels(self) -> tuple[int, int, int, int]:
        """Channels of the four outputs, at 1/4, 1/8, 1/16 and 1/32 of the input's side."""
        c = self.embed_dim
        return c, 2 * c, 4 * c, 8 * c

    def build(self) -> "SwinTransformer":
        return SwinTransformer(self)


SWIN_T = SwinConfig(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window=7)
SWIN_L = SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window=12)


def relative_position_index(window: int) -> np.ndarray:
    """Row of the bias table for each pair of tokens of a window.

    Shape (window², window²), int64, in [0, (2·window - 1)²): the vertical distance of the pair counts in steps of
    2·window - 1, the horizontal one in steps of 1, both moved to start from 0.
    """
    rows, columns = np.divmod(np.arange(window * window), window)
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right


@lru_cache(maxsize=32)
def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Penalties that keep tokens apart that are neighbours only because of the cyclic shift.

    `height` and `width` are those of the padded map, multiples of `window`. Shape (windows, 1, window², window²),
    float32, each value 0 or `SHIFT_PENALTY`; the second axis is the attention heads'.
    """

    def band(length: int) -> np.ndarray:
        position = np.arange(length)
        return (position >= length - window).astype(np.int64) + (position >= length - shift)

    region = 3 * band(height)[:, None] + band(width)[None, :]
    tiles = region.reshape(height // window, window, width // window, window).transpose(0, 2, 1, 3)
    tokens = tiles.reshape(-1, window * window)
    apart = tokens[:, None, :, None] != tokens[:, None, None, :]
    return np.where(apart, np.float32(SHIFT_PENALTY), np.float32(0))


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def to_windows(x: Tensor, window: int) -> Tensor:
    """(N, H, W, C) → (N, H/window · W/window, window², C), row by row."""
    height, width, channels = (int(size) for size in x.shape[1:])
    x = x.reshape(-1, height // window, window, width // window, window, channels).transpose(2, 3)
    return x.reshape(-1, height * width // window**2, window**2, channels)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`."""
    x = x.reshape(-1, height // window, width // window, window, window, int(x.shape[-1])).transpose(2, 3)
    return x.reshape(-1, height, width, int(x.shape[-1]))


class PatchEmbedding(nn.Module):
    """(N, 3, H, W) → (N, ⌈H/4⌉, ⌈W/4⌉, C): a linear map of each patch of 4×4 pixels, then a layer norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, PATCH_PX, stride=PATCH_PX)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        height, width = (int(size) for size in image.shape[2:])
        missing_h, missing_w = round_up(height, PATCH_PX) - height, round_up(width, PATCH_PX) - width
        if missing_h or missing_w:
            image = F.pad(image, (0, missing_w, 0, missing_h))
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class WindowAttention(nn.Module):
    """Self-attention among the tokens of one window, with a learned bias for each relative position."""

    frozen_bias: Tensor | None
    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", torch.from_numpy(relative_position_index(window)))
        self.register_buffer("frozen_bias", None, persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.register_load_state_dict_post_hook(lambda module, _: module.thaw())

    def position_bias(self) -> Tensor:
        """Shape (heads, window², window²), added to the scores."""
        if self.frozen_bias is not None and not self.training:
            return self.frozen_bias
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).contiguous()

    def freeze(self) -> None:
        self.thaw()
        self.frozen_bias = self.position_bias().detach()

    def thaw(self) -> None:
        self.frozen_bias = None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`x` (N, windows, window², C) → the same shape; `mask` as `shift_mask` makes it, or none."""
        windows, tokens, channels = (int(size) for size in x.shape[1:])
        qkv = self.qkv(x).reshape(-1, windows, tokens, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        scores = (query * self.scale) @ key.transpose(-2, -1) + self.position_bias()
        if mask is not None:
            scores = scores + mask
        mixed = (scores.softmax(dim=-1) @ value).transpose(2, 3)
        return self.proj(mixed.reshape(-1, windows, tokens, channels))


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them, on the last axis."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Window attention and a feed-forward network, both residual; every second block shifts its windows by half."""

    def __init__(self, channels: int, num_heads: int, window: int, shift: int, mlp_ratio: int) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, num_heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, mlp_ratio * channels)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        height, width = (int(size) for size in x.shape[1:3])
        padded_h, padded_w = round_up(height, self.window), round_up(width, self.window)
        if (padded_h, padded_w) != (height, width):
            # Zeros after the norm, as published: the padding takes part in the attention as tokens of its own.
            x = F.pad(x, (0, 0, 0, padded_w - width, 0, padded_h - height))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        x = self.attn(to_windows(x, self.window), mask if self.shift else None)
        x = from_windows(x, self.window, padded_h, padded_w)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        if (padded_h, padded_w) != (height, width):
            x = x[:, :height, :width]
        return x

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """(N, H, W, C) → (N, ⌈H/2⌉, ⌈W/2⌉, 2C): four neighbours side by side, normed and mapped."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width, channels = (int(size) for size in x.shape[1:])
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        half_h, half_w = (height + 1) // 2, (width + 1) // 2
        # The published order of the four: down before right.
        x = x.reshape(-1, half_h, 2, half_w, 2, channels).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(-1, half_h, half_w, 4 * channels)))


class SwinStage(nn.Module):
    """The blocks of one resolution, and the merging that leads to the next."""

    def __init__(self, channels: int, depth: int, num_heads: int, window: int, mlp_ratio: int, last: bool) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2
        self.blocks = nn.ModuleList(
            SwinBlock(channels, num_heads, window, self.shift if i % 2 else 0, mlp_ratio) for i in range(depth)
        )
        self.downsample = None if last else PatchMerging(channels)

    def mask_name(self, height: int, width: int) -> str:
        return f"shift_mask_{round_up(height, self.window)}x{round_up(width, self.window)}"

    def make_mask(self, height: int, width: int, like: Tensor) -> Tensor:
        padded = round_up(height, self.window), round_up(width, self.window)
        return torch.from_numpy(shift_mask(*padded, self.window, self.shift)).to(like)

    def freeze_mask(self, height: int, width: int) -> None:
        like = self.blocks[0].norm1.weight
        self.register_buffer(self.mask_name(height, width), self.make_mask(height, width, like), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (int(size) for size in x.shape[1:3])
        mask = getattr(self, self.mask_name(height, width), None)
        if mask is None:
            mask = self.make_mask(height, width, x)
        for block in self.blocks:
            x = block(x, mask)
        return x


class SwinTransformer(nn.Module):
    """Four stages; each one's blocks end in an output of its own, behind a layer norm."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(config.embed_dim)
        self.layers = nn.ModuleList(
            SwinStage(channels, depth, num_heads, config.window, config.mlp_ratio, last=i == 3)
            for i, (channels, depth, num_heads) in enumerate(
                zip(config.channels, config.depths, config.num_heads, strict=True)
            )
        )
        for i, channels in enumerate(config.channels):
            self.add_module(f"norm{i}", nn.LayerNorm(channels))

    def freeze(self, height: int, width: int) -> None:
        """Turn position biases, and the masks for inputs of this size, into buffers that are no part of the state dict.

        For inference only; may be called for several sizes. Loading weights afterwards drops the frozen biases.
        """
        height, width = round_up(height, PATCH_PX) // PATCH_PX, round_up(width, PATCH_PX) // PATCH_PX
        for stage in self.layers:
            stage.freeze_mask(height, width)
            height, width = (height + 1) // 2, (width + 1) // 2
            for block in stage.blocks:
                block.attn.freeze()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`image` (N, 3, H, W), float, normalised → four maps (N, C, ·, ·) at 1/4, 1/8, 1/16, 1/32, rounded up."""
        x = self.patch_embed(image)
        outputs = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            outputs.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None:
                x = stage.downsample(x)
        first, second, third, fourth = outputs
        return first, second, third, fourth
