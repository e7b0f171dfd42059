"""The project's BiRefNet against the public implementation's figures, in both released sizes.

1. The names, shapes and order of the state dict are the public ones.
2. For weights and images made by rule, every stored output agrees to 1e-3.
3. The check has teeth: with plain convolutions in place of the deformable ones, or with offsets of zero, it fails.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from export import verify
from export.networks.birefnet import BiRefNet
from export.networks.birefnet_config import VARIANTS
from export.networks.deform import DeformableConv2d

SIZES = [(256, 256), (320, 256)]


class Subject(NamedTuple):
    variant: str
    reference: verify.Reference
    network: BiRefNet


@pytest.fixture(scope="module", params=list(VARIANTS))
def subject(request: pytest.FixtureRequest, birefnet_reference: Path) -> Iterator[Subject]:
    reference = verify.read_reference(birefnet_reference, request.param)
    yield Subject(request.param, reference, verify.build(request.param, reference))
    gc.collect()


@pytest.fixture
def lite(birefnet_reference: Path) -> Subject:
    reference = verify.read_reference(birefnet_reference, "lite")
    return Subject("lite", reference, verify.build("lite", reference))


def test_state_dict_has_the_public_names_in_order(subject: Subject) -> None:
    assert list(subject.network.state_dict()) == list(subject.reference.entries)


def test_every_size_is_covered(subject: Subject) -> None:
    assert subject.reference.sizes == SIZES


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_logits_agree(subject: Subject, height: int, width: int) -> None:
    result = verify.compare_logits(subject.network, subject.variant, subject.reference, height, width)
    assert verify.agrees(result, verify.TOLERANCE), verify.report(result, verify.TOLERANCE)
    assert len(result.modules) == 6
    assert max(result.modules.values()) < verify.TOLERANCE


def test_freezing_changes_nothing(lite: Subject) -> None:
    lite.network.freeze(256, 256)
    result = verify.compare_logits(lite.network, "lite", lite.reference, 256, 256)
    assert verify.agrees(result, verify.TOLERANCE), verify.report(result, verify.TOLERANCE)


def test_plain_convolutions_fail(lite: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeformableConv2d, "forward", lambda self, features: self.regular_conv(features))
    result = verify.compare_logits(lite.network, "lite", lite.reference, 256, 256)
    assert result.largest_difference > 1000 * verify.TOLERANCE
    # The departure shows where it begins: before the first deformable convolution all is well.
    assert result.modules["bb.norm0"] < verify.TOLERANCE
    assert result.modules["squeeze_module"] > verify.TOLERANCE


def test_zero_offsets_fail(lite: Subject) -> None:
    with torch.no_grad():
        for module in lite.network.modules():
            if isinstance(module, DeformableConv2d):
                module.offset_conv.weight.zero_()
                module.offset_conv.bias.zero_()
    result = verify.compare_logits(lite.network, "lite", lite.reference, 256, 256)
    assert result.largest_difference > 1000 * verify.TOLERANCE
