"""BiRefNet's export form computes what the network computes, and its ONNX file looks as it should.

1. Each rewrite alone, and all together, change nothing but rounding, at the edges too; the network stays as it is.
2. The file has standard operators only, each weight once, nothing of what the rewrites were to remove; only the batch
   is free, and a batch gives what its pictures give alone.
3. The file with ONNX's own DeformConv, which shares no sampling with it, says the same.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export import verify
from export.__main__ import main
from export.graphs import BehindImageNet, MatteGraph
from export.networks import birefnet_export
from export.networks.birefnet import BiRefNet
from export.networks.birefnet_blocks import DeformableBranch, DeformablePyramid
from export.networks.birefnet_config import BiRefNetConfig
from export.networks.birefnet_export import (
    BlockForm,
    LogitsForm,
    SplitAttention,
    StripBranch,
    StripFeedForward,
    StripPyramid,
    export_form,
    rows_at_once,
)
from export.networks.swin import FeedForward, SwinConfig, WindowAttention
from export.onnx_export import example_pictures, export_birefnet
from export.rewrites import fold_norm

SIDE_PX = 64
SMALL = BiRefNetConfig(
    SwinConfig(embed_dim=16, depths=(2, 1, 2, 1), num_heads=(1, 2, 4, 8), window=4),
    block_width=16,
    branch_width=24,
    input_width=8,
    gate_width=4,
)
STRIP_BYTES = 200_000
"""So that the largest maps of the files are cut into strips."""
DEFORMABLE = 20
"""Deformable convolutions of a BiRefNet: four branches in the squeeze block and in each of four decoder blocks."""


def filled(network: nn.Module) -> nn.Module:
    own = network.state_dict()
    verify.fill_by_rule(network, {k: verify.Entry(tuple(v.shape), not v.is_floating_point()) for k, v in own.items()})
    return network.eval()


@pytest.fixture(scope="module")
def network() -> BiRefNet:
    return filled(BiRefNet(SMALL))


@pytest.fixture
def narrow_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several strips, the last of them lower, even for small maps."""
    monkeypatch.setattr(birefnet_export, "STRIP_BYTES", 20_000)


@pytest.fixture(scope="module")
def files(network: BiRefNet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network as both kinds of file, each of which agreed with PyTorch within one grey level."""
    folder = tmp_path_factory.mktemp("birefnet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(birefnet_export, "STRIP_BYTES", STRIP_BYTES)
        found = {}
        for deform in ("grid", "native"):
            found[deform] = folder / f"{deform}.onnx"
            differences = export_birefnet(network, SIDE_PX, found[deform], deform=deform)
            assert [each.batch for each in differences] == [1, 3]
            assert max(each.largest for each in differences) <= 1
    return found


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)


def test_strips_cover_the_height_evenly() -> None:
    for height in (1, 7, 32, 256):
        for row_bytes in (1, 10_000, 10**9):
            rows = rows_at_once(height, row_bytes)
            assert 1 <= rows <= height
            assert rows == 1 or rows * row_bytes <= birefnet_export.STRIP_BYTES + row_bytes


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
def test_norm_becomes_part_of_the_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=bias), nn.BatchNorm2d(5)
    filled(norm)
    x = torch.randn(2, 3, 9, 8)
    close(fold_norm(conv, norm)(x), norm(conv(x)))


@torch.inference_mode()
@pytest.mark.parametrize("kernel_px", [1, 3, 7])
@pytest.mark.usefixtures("narrow_strips")
def test_branch_in_strips(kernel_px: int) -> None:
    branch = filled(DeformableBranch(6, 10, kernel_px))
    narrow = torch.randn(4, 10, dtype=torch.float64)
    x = torch.from_numpy(verify.image_for(22, 17)).repeat(2, 2, 1, 1) * torch.tensor([1.0, -0.7]).reshape(2, 1, 1, 1)
    form = StripBranch(branch, narrow, 22, 17)
    assert (form.strip_rows < 22) == (kernel_px > 1)
    close(form(x), torch.einsum("od,ndyx->noyx", narrow.float(), branch(x)))


@torch.inference_mode()
@pytest.mark.usefixtures("narrow_strips")
def test_pyramid_is_a_sum_of_branches() -> None:
    pyramid = filled(DeformablePyramid(6, 10, (1, 3, 7)))
    x = torch.from_numpy(verify.image_for(16, 24)).repeat(2, 2, 1, 1)
    close(StripPyramid(pyramid, 16, 24)(x), pyramid(x))


@torch.inference_mode()
def test_blocks_take_their_two_maps_apart(network: BiRefNet) -> None:
    block = network.decoder.decoder_block1
    tiles = network.decoder.ipt_blk2.conv_out.out_channels
    x = torch.from_numpy(verify.image_for(24, 24)).repeat(1, 20, 1, 1)[:, : block.conv_in.in_channels]
    assert x.shape[1] == block.conv_in.in_channels
    own = x.shape[1] - tiles
    close(BlockForm(block, tiles, 24)(x[:, :own], x[:, own:]), block(x))


@torch.inference_mode()
def test_logits_without_wide_maps(network: BiRefNet) -> None:
    """At the edges too, where the second convolution sees zeros and not what the first makes of zeros."""
    image = torch.from_numpy(verify.image_for(64, 64))
    x = torch.randn(1, network.decoder.decoder_block1.conv_out.out_channels, 16, 16)
    found, wanted = LogitsForm(network.decoder)(x, image), network.decoder.to_logits(x, image)
    close(found, wanted)
    close(found[..., :2, :], wanted[..., :2, :])


@torch.inference_mode()
def test_attention_with_separate_maps() -> None:
    attention = filled(WindowAttention(16, 2, 4))
    x, mask = torch.randn(2, 6, 16, 16), torch.randn(6, 1, 16, 16)
    close(SplitAttention(attention)(x, mask), attention(x, mask))
    close(SplitAttention(attention)(x, None), attention(x, None))


@torch.inference_mode()
@pytest.mark.usefixtures("narrow_strips")
def test_feed_forward_in_strips() -> None:
    whole = filled(FeedForward(8, 32))
    x = torch.randn(2, 23, 20, 8)
    assert rows_at_once(23, 4 * 32 * 20) < 23
    close(StripFeedForward(whole)(x), whole(x))


@torch.inference_mode()
@pytest.mark.parametrize("side_px", [64, 96])
def test_whole_form_equals_the_network(network: BiRefNet, side_px: int) -> None:
    image = torch.from_numpy(verify.image_for(side_px, side_px))
    images = torch.cat((image, image.flip(2)))
    assert float((export_form(network, side_px)(images) - network(images)).abs().max()) < verify.TOLERANCE / 2


def test_the_network_stays_as_it_is() -> None:
    network = filled(BiRefNet(SMALL)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modules = {name: type(module) for name, module in network.named_modules()}
    form = export_form(network, 64)
    assert not form.training
    assert network.training
    assert {name: type(module) for name, module in network.named_modules()} == modules
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    # What the encoder keeps is not there twice.
    assert form.bb.patch_embed.proj.weight is network.bb.patch_embed.proj.weight


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_file_has_standard_operators_only(files: dict[str, Path]) -> None:
    for deform, opset in (("grid", 18), ("native", 19)):
        model = onnx.load(files[deform])
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
        assert {node.domain for node in model.graph.node} == {""}
        assert not any(node.doc_string for node in model.graph.node)


def test_file_holds_nothing_that_the_rewrites_remove(network: BiRefNet, files: dict[str, Path]) -> None:
    found = operators(files["grid"])
    unwanted = (
        "BatchNormalization DeformConv ScatterND Where Range Shape ConstantOfShape Expand Equal Identity Gather NonZero"
    )
    assert {name: found[name] for name in unwanted.split() if found[name]} == {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(birefnet_export, "STRIP_BYTES", STRIP_BYTES)
        branches = [each for each in export_form(network, SIDE_PX).modules() if isinstance(each, StripBranch)]
    strips = sum(-(-each.height // each.strip_rows) for each in branches)
    assert len(branches) == DEFORMABLE
    assert found["GridSample"] == strips > DEFORMABLE
    # To float and back to uint8.
    assert found["Cast"] == 2


def test_grids_are_bilinear_and_float32(files: dict[str, Path]) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(files["grid"]))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "GridSample":
            settings = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            assert settings == {"align_corners": 0, "mode": b"bilinear", "padding_mode": b"zeros"}
            assert types[node.input[1]] == onnx.TensorProto.FLOAT


def test_every_weight_is_there_once(network: BiRefNet, files: dict[str, Path]) -> None:
    """The encoder runs twice, its weights are stored once; besides them there are only masks and places."""
    stored = onnx.load(files["grid"]).graph.initializer
    contents = Counter((each.data_type, tuple(each.dims), each.raw_data) for each in stored)
    assert max(contents.values()) == 1
    backbone_bytes = 4 * sum(each.numel() for name, each in network.bb.named_parameters() if "table" not in name)
    matrices = {tuple(each.dims): each for each in stored if len(each.dims) == 2}
    assert matrices
    bytes_of_all = sum(len(each.raw_data) for each in stored)
    parameters_bytes = 4 * sum(each.numel() for each in network.parameters())
    form_bytes = 4 * sum(each.numel() for each in export_form(network, SIDE_PX).buffers())
    assert bytes_of_all <= parameters_bytes + form_bytes
    assert bytes_of_all > backbone_bytes


def test_contract(files: dict[str, Path]) -> None:
    for path in files.values():
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (images,), (alphas,) = session.get_inputs(), session.get_outputs()
        assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", SIDE_PX, SIDE_PX, 3])
        assert (alphas.name, alphas.type, alphas.shape) == ("alphas", "tensor(uint8)", ["batch", SIDE_PX, SIDE_PX])


def test_every_shape_is_known_but_for_the_batch(files: dict[str, Path]) -> None:
    """Each reshape keeps the first dimension as it is, so that a runtime knows the size of everything behind it."""
    model = onnx.shape_inference.infer_shapes(onnx.load(files["grid"]))
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    constants = {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    targets = [node for node in model.graph.node if node.op_type == "Reshape"]
    assert targets
    for node in targets:
        assert onnx.numpy_helper.to_array(constants[node.input[1]])[0] == 0
        assert all(dimension.dim_value for dimension in shapes[node.output[0]][1:])


def run(path: Path, pictures: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["alphas"], {"images": pictures})[0].astype(int)


def test_both_files_and_the_network_agree(network: BiRefNet, files: dict[str, Path]) -> None:
    pictures = example_pictures(4, SIDE_PX)
    with torch.inference_mode():
        wanted = MatteGraph(BehindImageNet(network))(torch.from_numpy(pictures)).numpy().astype(int)
    assert wanted.std() > 5
    for path in files.values():
        assert np.abs(run(path, pictures) - wanted).max() <= 1


def test_a_batch_gives_what_its_pictures_give_alone(files: dict[str, Path]) -> None:
    pictures = example_pictures(4, SIDE_PX)
    together = run(files["grid"], pictures)
    alone = np.concatenate([run(files["grid"], picture[None]) for picture in pictures])
    assert np.abs(together - alone).max() <= 1
    assert np.abs(together[0] - together[1]).max() > 10


@pytest.mark.parametrize("side_px", [0, 100])
def test_sides_that_do_not_fit_are_refused(network: BiRefNet, tmp_path: Path, side_px: int) -> None:
    with pytest.raises(ValueError, match=f"a multiple of 32 px, not {side_px}"):
        export_birefnet(network, side_px, tmp_path / "no.onnx")


@pytest.fixture
def small_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "VARIANTS", {"small": SMALL})


@pytest.mark.usefixtures("small_variant")
def test_verify_export_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--export-form", "--side", "64"]) == 0
    printed = capsys.readouterr().out
    assert "small    64x64  export form: largest difference " in printed
    assert "  ok  " in printed


@pytest.mark.usefixtures("small_variant")
def test_verify_finds_places_that_are_off(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Taps that lie a twentieth of a pixel beside their places are found out."""
    base = StripBranch.base
    monkeypatch.setattr(
        StripBranch, "base", staticmethod(lambda tap, padding, side: base(tap, padding, side) + 0.1 / side)
    )
    assert main(["verify", "--export-form", "--side", "64"]) == 1
    assert "FAILED (over 0.001)" in capsys.readouterr().out


@pytest.mark.usefixtures("small_variant")
def test_verify_refuses_a_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--export-form", "--side", "100"]) == 2
    assert capsys.readouterr().err == "export: --side must be a multiple of 32 px, not 100\n"
