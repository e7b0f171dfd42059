"""The catalogue: the shipped table is complete and true to the repository, and a wrong one is refused by name."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from cutaway.contract.limits import PROFILES

from export.__main__ import main
from export.catalog import BUNDLED, HUB, CatalogError, UnknownProfile, load_catalog
from export.listing import as_json, markdown, plain

ROOT = Path(__file__).resolve().parents[2]

SMALL = """
[profiles.lite]
matte = "birefnet-lite"
detector = "yolov8n-seg"
input_wh_px = [1024, 1024]
speed = "fast"
purpose = "Everyday pictures."

[weights.birefnet-lite]
source = "hub"
network = "lite"
repository = "owner/name"
revision = "main"
file = "model.safetensors"
licence = "MIT"
parameters = 44_313_720

[weights.yolov8n-seg]
source = "release"
network = "yolov8n-seg"
repository = "owner/assets"
revision = "v1"
file = "yolov8n-seg.pt"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
licence = "AGPL-3.0"
parameters = 3_409_968
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "catalog.toml"
    path.write_text(text)
    return path


def test_every_profile_that_is_promised_is_there() -> None:
    catalog = load_catalog()
    assert set(PROFILES) <= set(catalog.profiles)
    variants = {profile.matte.repository for profile in catalog.profiles.values()}
    assert variants >= {
        f"ZhengPeng7/{name}"
        for name in (
            "BiRefNet",
            "BiRefNet_lite",
            "BiRefNet-portrait",
            "BiRefNet-matting",
            "BiRefNet_HR",
            "BiRefNet_dynamic",
            "BiRefNet_lite-2K",
            "BiRefNet_512x512",
            "BiRefNet-legacy",
            "BiRefNet-DIS5K",
        )
    }
    assert {catalog.detector(size).network for size in "nsmlx"} == {f"yolov8{size}-seg" for size in "nsmlx"}
    assert {profile.detector.network[6] for profile in catalog.profiles.values()} == set("nsmlx")


def test_input_sides() -> None:
    sides = {name: profile.input_wh_px for name, profile in load_catalog().profiles.items()}
    assert sides["general"] == (1024, 1024)
    assert sides["hr"] == (2048, 2048)
    assert sides["lite-2k"] == (2560, 1440)
    assert sides["512"] == (512, 512)
    assert load_catalog().profile("dynamic").side_range_px == (256, 2304)


def test_licences_follow_from_the_authors() -> None:
    for weights in load_catalog().weights.values():
        made = {HUB: "MIT"}.get(weights.source, "Apache-2.0" if weights.network == "modnet" else "AGPL-3.0")
        assert weights.licence == made, weights.name
        assert weights.licence_url.startswith("https://")


def test_bundled_weights_are_the_ones_in_the_repository() -> None:
    bundled = [each for each in load_catalog().weights.values() if each.source == BUNDLED]
    assert len(bundled) == 2
    for weights in bundled:
        content = (ROOT / weights.file).read_bytes()
        assert len(content) == weights.size_bytes
        assert hashlib.sha256(content).hexdigest() == weights.sha256


def test_a_digest_is_of_a_fixed_revision_and_of_one_file_alone() -> None:
    weights = load_catalog().weights.values()
    digests = [each.sha256 for each in weights if each.sha256]
    assert len(set(digests)) == len(digests) == 13
    for each in weights:
        if each.sha256 and each.source == HUB:
            assert each.is_fixed, f"{each.name} has a digest, but its revision can move"


def test_sizes_fit_the_number_of_parameters() -> None:
    """2 or 4 bytes for each; a `.pt` or `.safetensors` adds buffers and a header."""
    for each in load_catalog().weights.values():
        if each.size_bytes:
            assert 2.0 <= each.size_bytes / each.parameters <= 4.2, each.name


def test_parameters_are_those_of_the_networks() -> None:
    torch = pytest.importorskip("torch")
    from export.networks.birefnet import BiRefNet
    from export.networks.birefnet_config import VARIANTS
    from export.networks.modnet import MODNet
    from export.networks.yolov8 import YoloV8

    with torch.device("meta"):
        networks = {name: BiRefNet(config) for name, config in VARIANTS.items()}
        networks |= {f"yolov8{size}-seg": YoloV8(size) for size in "nsmlx"}
        networks["modnet"] = MODNet()
    counted = {name: sum(each.numel() for each in network.parameters()) for name, network in networks.items()}
    for weights in load_catalog().weights.values():
        assert weights.parameters == counted[weights.network], weights.name


def test_the_readme_has_the_table_of_the_catalogue() -> None:
    page = (ROOT / "export" / "README.md").read_text()
    found = re.search(r"<!-- python -m export list --markdown -->\n\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert found, "export/README.md has no place for the table"
    assert found[1] == markdown(load_catalog())


def test_list_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    catalog = load_catalog()
    assert [line.split()[0] for line in lines] == ["profile", *catalog.profiles]
    for line, profile in zip(lines[1:], catalog.profiles.values(), strict=True):
        assert profile.detector.network in line
        assert line.endswith(profile.purpose)


def test_list_as_json_holds_the_whole_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    catalog = load_catalog()
    assert list(told["profiles"]) == list(catalog.profiles)
    for name, weights in catalog.weights.items():
        row = told["weights"][name]
        assert (row["sha256"], row["revision"], row["parameters"]) == (
            weights.sha256,
            weights.revision,
            weights.parameters,
        )
    assert told["profiles"]["hr"]["matte"] == "birefnet-hr"
    assert told["profiles"]["hr"]["input_wh_px"] == [2048, 2048]


def test_another_table_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--catalog", str(written(tmp_path, SMALL))]) == 0
    assert capsys.readouterr().out == plain(load_catalog(tmp_path / "catalog.toml"))


def test_what_is_not_known_is_told_as_such(tmp_path: Path) -> None:
    catalog = load_catalog(written(tmp_path, SMALL))
    weights = catalog.profile("lite").matte
    assert (weights.sha256, weights.size_bytes, weights.is_fixed) == (None, None, False)
    assert "| – |" in markdown(catalog)
    assert as_json(catalog)["weights"]["birefnet-lite"]["sha256"] is None


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        (
            "parameters = 44_313_720",
            "parameters = 0",
            "weights.birefnet-lite: parameters must be a whole number above 0",
        ),
        ("parameters = 44_313_720", "parameters = true", "parameters must be a whole number above 0, not True"),
        ('licence = "MIT"', 'licence = "GPL"', "licence must be one of MIT, Apache-2.0, AGPL-3.0, not 'GPL'"),
        ('licence = "MIT"', 'licence = "MIT"\nsha256 = "abc"', "sha256 must be 64 hexadecimal digits, not 'abc'"),
        ('licence = "MIT"', 'licence = "MIT"\nsha_256 = "abc"', "unknown: sha_256; known are: source, network"),
        ("model.safetensors", "pytorch_model.bin", "file must end in .safetensors where the source is hub"),
        ("model.safetensors", "model.pt", "file must end in .safetensors where the source is hub"),
        ("model.safetensors", "../model.safetensors", "file must be a path inside its source"),
        ("model.safetensors", "/model.safetensors", "file must be a path inside its source"),
        ("owner/name", "owner", "repository must be owner/name, not 'owner'"),
        ("owner/name", "owner/../x", "repository must be owner/name"),
        ('revision = "main"', 'revision = "a/b"', "revision must be a commit, branch or tag, not 'a/b'"),
        ('source = "hub"', 'source = "ftp"', "source must be one of hub, release, bundled, not 'ftp'"),
        ('source = "hub"', "", "needs source, a text"),
        ('sha256 = "' + "0" * 64 + '"', "", "weights.yolov8n-seg: needs sha256"),
        (
            'network = "lite"',
            'network = "yolov8s-seg"',
            "matte cannot be 'birefnet-lite', which are weights of yolov8s-seg",
        ),
        ('matte = "birefnet-lite"', 'matte = "other"', "profiles.lite: matte names the weights 'other', which are not"),
        ("[1024, 1024]", "[1024]", "input_wh_px must be two whole numbers, not [1024]"),
        ("[1024, 1024]", "[1024, 1000]", "input_wh_px must be multiples of 32, not [1024, 1000]"),
        ("[1024, 1024]", "[1024, 1024]\nside_range_px = [512, 256]", "side_range_px must rise, not [512, 256]"),
        ('speed = "fast"', 'speed = "quick"', "speed must be one of fastest, fast, medium, slow, not 'quick'"),
        ("[profiles.lite]", "[profiles.Lite]", "profiles.Lite: a name is lower-case"),
        ("[profiles.lite]", "[other]\n[profiles.lite]", "unknown: other; known are: profiles, weights"),
        ("[weights.yolov8n-seg]", "[weights.unused-one]", "detector names the weights 'yolov8n-seg'"),
        ("[profiles.lite]", "[profiles.lite", "catalog.toml is not TOML"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(tmp_path: Path, before: str, after: str, complaint: str) -> None:
    assert before in SMALL
    path = written(tmp_path, SMALL.replace(before, after, 1))
    with pytest.raises(CatalogError, match=re.escape(complaint)) as refused:
        load_catalog(path)
    assert "catalog.toml" in str(refused.value)
    assert "\n" not in str(refused.value).split("is not TOML")[0]


def test_weights_that_no_profile_names_are_refused(tmp_path: Path) -> None:
    extra = SMALL[SMALL.index("[weights.birefnet-lite]") : SMALL.index("[weights.yolov8n-seg]")]
    path = written(tmp_path, SMALL + extra.replace("birefnet-lite", "birefnet-spare"))
    with pytest.raises(CatalogError, match=r"weights\.birefnet-spare: no profile names them"):
        load_catalog(path)


def test_a_catalogue_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="cannot be read: No such file"):
        load_catalog(tmp_path / "none.toml")


def test_names_that_it_does_not_have() -> None:
    with pytest.raises(UnknownProfile, match="no profile 'genral'; there are: nano, lite, 512, general,"):
        load_catalog().profile("genral")
    with pytest.raises(UnknownProfile, match="no detector of size 'q'"):
        load_catalog().detector("q")
