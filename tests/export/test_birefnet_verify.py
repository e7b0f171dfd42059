"""`python -m export verify`, on references of a small network made here.

1. The rule for weights and images gives the numbers it must.
2. Agreement exits with 0, any difference of a logit, name or shape with 1, an unusable folder with 2.
3. What the user reads is one line for each thing, never a traceback.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from export import verify
from export.__main__ import main
from export.networks.birefnet import BiRefNet
from export.networks.birefnet_config import BiRefNetConfig
from export.networks.swin import SwinConfig

SMALL_SWIN = SwinConfig(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2), window=4)
SMALL = BiRefNetConfig(SMALL_SWIN, block_width=8, branch_width=8, input_width=8, gate_width=4)


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reference folder of a variant `small`, which is then the only one there is."""
    monkeypatch.setattr(verify, "VARIANTS", {"small": SMALL})
    network = BiRefNet(SMALL).eval()
    state = network.state_dict()
    listed = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()}
    (tmp_path / "keys_small.json").write_text(json.dumps(listed))
    verify.fill_by_rule(network, {k: verify.Entry(tuple(s), d.startswith("int")) for k, (s, d) in listed.items()})
    with torch.inference_mode():
        logits = {
            f"logits_{h}x{w}": network(torch.from_numpy(verify.image_for(h, w))).numpy()
            for h, w in ((64, 32), (32, 32))
        }
    np.savez(tmp_path / "expected_small.npz", **logits)
    return tmp_path


def change_logits(folder: Path, name: str, by: float) -> None:
    path = folder / "expected_small.npz"
    with np.load(path) as arrays:
        changed = dict(arrays)
    changed[name] = changed[name].copy()
    changed[name][0, 0, 3, 5] += by
    np.savez(path, **changed)


def change_keys(folder: Path, change: dict[str, object]) -> None:
    path = folder / "keys_small.json"
    entries = json.loads(path.read_text())
    for key, value in change.items():
        if value is None:
            del entries[key]
        else:
            entries[key] = value
    path.write_text(json.dumps(entries))


def test_agreement(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--reference", str(reference)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "names and shapes agree, in order" in lines[0]
    assert [line.split()[1] for line in lines[1:]] == ["64x32", "32x32"]
    assert all("  ok  " in line for line in lines[1:])


@pytest.mark.parametrize(("by", "status"), [(0.0009, 0), (0.0011, 1), (-5.0, 1), (float("nan"), 1)])
def test_tolerance(reference: Path, by: float, status: int) -> None:
    change_logits(reference, "logits_32x32", by)
    assert main(["verify", "--reference", str(reference)]) == status


def test_tolerance_can_be_set(reference: Path) -> None:
    change_logits(reference, "logits_32x32", 0.1)
    assert main(["verify", "--reference", str(reference), "--tolerance", "0.2"]) == 0


def test_keys_that_differ_are_listed(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_keys(
        reference,
        {
            "bb.norm0.bias": None,
            "bb.norm4.bias": [[8], "float32"],
            "bb.norm1.bias": [[15], "float32"],
            "bb.layers.0.blocks.0.attn.relative_position_index": [[9, 9], "int64"],
        },
    )
    assert main(["verify", "--reference", str(reference)]) == 1
    printed = capsys.readouterr().out
    assert "1 missing:\n  bb.norm4.bias" not in printed
    assert "1 missing:\n  bb.norm0.bias\n1 unknown:\n  bb.norm4.bias\n2 of another shape:\n" in printed
    assert "  bb.layers.0.blocks.0.attn.relative_position_index: [9, 9], not [16, 16]\n" in printed
    assert "  bb.norm1.bias: [15], not [16]\n" in printed


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("keys_small.json", None, "no keys_small.json in"),
        ("expected_small.npz", None, "no expected_small.npz in"),
        ("keys_small.json", b"[1, 2]", "keys_small.json is not a list of state-dict entries"),
        ("keys_small.json", b"{", "keys_small.json is not a list of state-dict entries"),
        ("expected_small.npz", b"", "expected_small.npz is not an archive of arrays"),
        ("expected_small.npz", b"PK\x03\x04 and no more", "expected_small.npz is not an archive of arrays"),
        ("expected_small.npz", b"no archive", "expected_small.npz is not an archive of arrays"),
    ],
)
def test_a_file_that_cannot_be_used(
    reference: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, message: str
) -> None:
    path = reference / name
    path.unlink() if content is None else path.write_bytes(content)
    assert main(["verify", "--reference", str(reference)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_archive_without_logits(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(reference / "expected_small.npz", something=np.zeros(3))
    assert main(["verify", "--reference", str(reference)]) == 2
    assert "holds no logits_<h>x<w>" in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--reference", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("export: no reference folder at ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["verify"], ["verify", "--threads", "0"]])
def test_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m export")


@pytest.mark.parametrize(
    ("key", "shape", "first", "last"),
    [
        ("bb.layers.0.blocks.0.attn.qkv.weight", (288, 96), 0.210101, 0.329107),
        ("bb.layers.0.blocks.0.attn.relative_position_bias_table", (169, 3), -0.094877, -0.096113),
        ("bb.norm0.weight", (96,), 1.102295, 0.876530),
        ("decoder.decoder_block4.dec_att.aspp1.bn.running_mean", (256,), -0.010216, 0.022803),
        ("decoder.decoder_block4.dec_att.aspp1.bn.running_var", (256,), 0.826223, 1.136719),
        (
            "decoder.decoder_block4.dec_att.aspp_deforms.2.atrous_conv.offset_conv.weight",
            (98, 64, 7, 7),
            -0.043500,
            0.023755,
        ),
        (
            "decoder.decoder_block4.dec_att.aspp_deforms.2.atrous_conv.modulator_conv.bias",
            (49,),
            -0.233192,
            -0.183343,
        ),
        ("decoder.conv_out1.0.weight", (1, 120, 1, 1), -0.004532, -0.022349),
        ("decoder.conv_out1.0.bias", (1,), 0.019284, 0.019284),
    ],
)
def test_rule_for_weights(key: str, shape: tuple[int, ...], first: float, last: float) -> None:
    """Numbers of the reference's own rule: with others, the comparison would be with another network."""
    values = verify.weight_for(key, shape)
    assert values.dtype == np.float32
    assert values.shape == shape
    assert values.reshape(-1)[[0, -1]] == pytest.approx([first, last], abs=1e-6)


def test_rule_for_images() -> None:
    image = verify.image_for(64, 96)
    assert image.dtype == np.float32
    assert image.shape == (1, 3, 64, 96)
    assert image[0, :, 5, 7] == pytest.approx([0.6754234, 0.82244766, 0.00600689], abs=1e-6)
    assert image[0, 2, -1, -1] == pytest.approx(0.47601432, abs=1e-6)
