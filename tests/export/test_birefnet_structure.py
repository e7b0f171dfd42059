"""BiRefNet without any reference: small networks whose weights come from the verification's rule.

1. A batch gives what its images give alone.
2. Strict loading refuses, names what is missing, unknown or reshaped, and changes nothing.
3. Swin's precomputed masks and indices say what their definitions say.
4. Any backbone with four stages will do; all parameters learn; impossible input is refused.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.networks.birefnet import BiRefNet
from export.networks.birefnet_blocks import split_into_tiles
from export.networks.birefnet_config import VARIANTS, BiRefNetConfig
from export.networks.birefnet_weights import StateDictMismatch, load_strict
from export.networks.swin import (
    SHIFT_PENALTY,
    SwinConfig,
    from_windows,
    relative_position_index,
    shift_mask,
    to_windows,
)
from export.verify import image_for, weight_for

SMALL_SWIN = SwinConfig(embed_dim=16, depths=(2, 1, 2, 1), num_heads=(1, 2, 4, 8), window=4)
SMALL = BiRefNetConfig(SMALL_SWIN, block_width=16, branch_width=24, input_width=8, gate_width=4)


@dataclass(frozen=True)
class Pooling:
    """The least that a backbone can be: mean pooling, and a 1×1 convolution for each stage."""

    channels: tuple[int, int, int, int] = (8, 8, 16, 16)

    def build(self) -> nn.Module:
        return PoolingBackbone(self.channels)


class PoolingBackbone(nn.Module):
    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, c, 1) for c in channels)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            conv(nn.functional.avg_pool2d(image, 4 * 2**i, ceil_mode=True)) for i, conv in enumerate(self.convs)
        )


def filled(network: nn.Module) -> nn.Module:
    state = network.state_dict()
    floats = {key: value for key, value in state.items() if value.is_floating_point()}
    by_rule = {key: torch.from_numpy(np.asarray(weight_for(key, tuple(v.shape)))) for key, v in floats.items()}
    load_strict(network, state | by_rule)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return filled(BiRefNet(SMALL))


@torch.inference_mode()
def test_batch_equals_singles(network: nn.Module) -> None:
    first = torch.from_numpy(image_for(64, 64))
    images = torch.cat((first, first.flip(3)))
    together = network(images)
    alone = torch.cat([network(image[None]) for image in images])
    assert together.shape == (2, 1, 64, 64)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_freezing_changes_nothing_but_the_route(size: tuple[int, int]) -> None:
    network = filled(BiRefNet(SMALL))
    image = torch.from_numpy(image_for(*size))
    names, before = list(network.state_dict()), network(image)
    network.freeze(*size)
    assert network.bb.layers[0].blocks[0].attn.frozen_bias is not None
    assert list(network.state_dict()) == names
    assert torch.equal(network(image), before)


def test_loading_drops_frozen_biases() -> None:
    network = filled(BiRefNet(SMALL))
    network.freeze(64, 64)
    network.load_state_dict(network.state_dict())
    assert network.bb.layers[0].blocks[0].attn.frozen_bias is None


def test_strict_loading_lists_what_does_not_fit() -> None:
    network = BiRefNet(SMALL)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = {key: torch.zeros_like(value) for key, value in before.items()}
    state["decoder.conv_out2.bias"] = state.pop("decoder.conv_out1.0.bias")
    state["bb.norm0.weight"] = torch.zeros(7)
    with pytest.raises(StateDictMismatch) as refused:
        load_strict(network, state)
    assert str(refused.value).splitlines() == [
        "weights do not fit the network:",
        "1 missing:",
        "  decoder.conv_out1.0.bias",
        "1 unknown:",
        "  decoder.conv_out2.bias",
        "1 of another shape:",
        "  bb.norm0.weight: [7], not [16]",
    ]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_long_list_is_cut() -> None:
    with pytest.raises(StateDictMismatch) as refused:
        load_strict(BiRefNet(SMALL), {})
    lines = str(refused.value).splitlines()
    missing = len(refused.value.difference.missing)
    assert lines[1] == f"{missing} missing:"
    assert lines[-1] == f"  … and {missing - 20} more"
    assert len(lines) == 23


def test_any_backbone_with_four_stages_will_do() -> None:
    config = BiRefNetConfig(Pooling(), context_stages=2, block_width=8, branch_width=8, branch_kernels_px=(3,))
    network = filled(BiRefNet(config))
    with torch.inference_mode():
        assert network(torch.from_numpy(image_for(64, 96))).shape == (1, 1, 64, 96)


def test_supervision_reaches_every_parameter() -> None:
    network = filled(BiRefNet(SMALL)).train()
    outputs = network.supervise(torch.rand(2, 3, 64, 64))
    assert outputs.logits.shape == (2, 1, 64, 64)
    for heads in (outputs.stage_logits, outputs.gradient_logits):
        assert [tuple(x.shape[1:]) for x in heads] == [(1, 2, 2), (1, 4, 4), (1, 8, 8)]
    total = sum(x.square().mean() for x in (outputs.logits, *outputs.stage_logits, *outputs.gradient_logits))
    total.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 65), (0, 32)])
def test_sides_that_the_tiles_do_not_divide_are_refused(network: nn.Module, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 32, not {height} and {width}"):
        network(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_stages": 4}, "context_stages must be 0 to 3, not 4"),
        ({"branch_kernels_px": (1, 2)}, "branch kernels must be odd"),
        ({"backbone": Pooling((2, 4, 8, 16))}, "at least 4 channels"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiRefNetConfig(**{"backbone": SMALL_SWIN, **changes})


def test_released_sizes() -> None:
    assert VARIANTS["lite"].stage_channels == (192, 384, 768, 1536)
    assert VARIANTS["general"].stage_channels == (384, 768, 1536, 3072)
    assert VARIANTS["lite"].context_channels == 2880


def test_tiles_are_contiguous_cuts_of_the_image() -> None:
    image = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    tiles = split_into_tiles(image, 2, 3)
    assert tiles.shape == (2, 12, 2, 3)
    for channel in range(3):
        for down in range(2):
            for across in range(2):
                cut = image[:, channel, 2 * down : 2 * down + 2, 3 * across : 3 * across + 3]
                assert torch.equal(tiles[:, 4 * channel + 2 * down + across], cut)


def test_windows_come_back_as_they_were() -> None:
    x = torch.arange(2 * 6 * 9 * 5).reshape(2, 6, 9, 5)
    windows = to_windows(x, 3)
    assert torch.equal(windows[1, 4], x[1, 3:6, 3:6].reshape(9, 5))
    assert torch.equal(from_windows(windows, 3, 6, 9), x)


def test_relative_position_index_depends_on_the_distance_alone() -> None:
    window = 3
    index = relative_position_index(window)
    for i in range(9):
        for j in range(9):
            down, right = i // window - j // window, i % window - j % window
            assert index[i, j] == (down + 2) * 5 + right + 2


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 12)])
def test_shift_mask_parts_what_the_roll_brought_together(height: int, width: int) -> None:
    """Two tokens of a shifted window belong together exactly if they lay beside each other before the roll."""
    window, shift = 4, 2
    mask = shift_mask(height, width, window, shift)
    assert mask.shape == (height * width // 16, 1, 16, 16)
    assert mask.dtype == np.float32
    rows, columns = np.mgrid[:height, :width]
    places = torch.from_numpy(np.stack((rows, columns), axis=-1)[np.newaxis])
    rolled = to_windows(places.roll((-shift, -shift), dims=(1, 2)), window)[0].numpy()
    distance = np.abs(rolled[:, :, None] - rolled[:, None, :]).max(axis=-1)
    together = distance < window
    # Where a side is one window long, what wraps round is no further apart than a window: there the halves decide.
    halves = rolled < shift
    split = np.array([height == window, width == window])
    together &= ((halves[:, :, None] == halves[:, None, :]) | ~split).all(axis=-1)
    assert np.array_equal(mask[:, 0] == 0, together)
    assert set(np.unique(mask)) == {0.0, SHIFT_PENALTY}
