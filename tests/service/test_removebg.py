"""``/v1.0``: remove.bg's API, also as its published clients speak it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.service.services import Running, data_uri, encoded, opened

PATH = "/v1.0/removebg"


def asked(service: Running, path: Path, **fields: str) -> Any:
    return service.post(PATH, files={"image_file": (path.name, path.read_bytes())}, data=fields)


def test_the_default_is_a_small_png_with_remove_bgs_headers(service: Running, samples: list[Path]) -> None:
    answer = asked(service, samples[0])
    picture = opened(answer.content)
    assert (answer.headers["content-type"], picture.mode) == ("image/png", "RGBA")
    assert picture.width * picture.height <= 250_000
    assert (answer.headers["x-width"], answer.headers["x-height"]) == tuple(map(str, picture.size))
    assert int(answer.headers["x-credits-charged"]) == 0
    assert answer.headers["x-type"] == "person"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert int(answer.headers["x-ratelimit-limit"]) > 0
    box = picture.getchannel("A").getbbox()
    assert box is not None
    assert int(answer.headers["x-foreground-left"]) == pytest.approx(box[0], abs=2)
    assert int(answer.headers["x-foreground-height"]) == pytest.approx(box[3] - box[1], abs=2)


def test_full_size_colour_and_format(service: Running, samples: list[Path]) -> None:
    answer = asked(service, samples[0], size="full", bg_color="81d4fa", format="jpg")
    with Image.open(samples[0]) as sent:
        picture = opened(answer.content)
        assert (picture.format, picture.size) == ("JPEG", sent.size)
    assert max(abs(a - b) for a, b in zip(picture.getpixel((1, 1)), (0x81, 0xD4, 0xFA), strict=True)) < 12  # type: ignore[arg-type]


def test_auto_is_jpeg_on_an_opaque_background_alone(service: Running, samples: list[Path]) -> None:
    assert asked(service, samples[0], bg_color="white").headers["content-type"] == "image/jpeg"
    assert asked(service, samples[0], bg_color="ff000080").headers["content-type"] == "image/png"


def test_crop_with_a_margin_ends_at_the_subject(service: Running, samples: list[Path]) -> None:
    tight = opened(asked(service, samples[1], size="full", crop="true").content)
    wide = opened(asked(service, samples[1], size="full", crop="true", crop_margin="10%").content)
    box = tight.getchannel("A").getbbox()
    assert box == (0, 0, *tight.size)
    assert wide.width == pytest.approx(tight.width * 1.2, abs=2)
    assert opened(asked(service, samples[1], size="full", crop="true", crop_margin="").content).size == tight.size


def test_scale_and_position(service: Running, samples: list[Path]) -> None:
    answer = asked(service, samples[0], size="full", scale="50%", position="0% 100%")
    picture = opened(answer.content)
    left, top, right, bottom = picture.getchannel("A").getbbox()  # type: ignore[misc]
    assert (left, bottom) == (0, picture.height)
    assert max((right - left) / picture.width, (bottom - top) / picture.height) == pytest.approx(0.5, abs=0.02)


def test_nothing_outside_the_region_of_interest_is_foreground(service: Running, samples: list[Path]) -> None:
    picture = opened(asked(service, samples[0], size="full", roi="0% 0% 100% 50%").content)
    lower = picture.getchannel("A").crop((0, picture.height // 2 + 1, picture.width, picture.height))
    assert lower.getbbox() is None
    assert asked(service, samples[0], roi="0 0 100% 100%").status_code == 200


def test_alpha_and_zip(service: Running, samples: list[Path]) -> None:
    assert opened(asked(service, samples[0], channels="alpha").content).mode == "L"
    answer = asked(service, samples[0], format="zip")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        colour, alpha = (opened(archive.read(name)) for name in ("color.jpg", "alpha.png"))
    assert (colour.format, alpha.mode, alpha.size) == ("JPEG", "L", colour.size)


def test_a_background_picture_covers(service: Running, samples: list[Path]) -> None:
    behind = encoded(Image.new("RGB", (300, 900), "blue"))
    files = {"image_file": samples[0].read_bytes(), "bg_image_file": behind}
    picture = opened(service.post(PATH, files=files, data={"size": "full"}).content)
    assert picture.getpixel((1, 1))[2] > 200  # type: ignore[index]


def test_json_in_and_out(service: Running, samples: list[Path]) -> None:
    given = {"image_file_b64": base64.b64encode(samples[0].read_bytes()).decode(), "size": "medium", "crop": True}
    found = service.post(PATH, json=given, headers={"Accept": "application/json"}).json()["data"]
    picture = opened(base64.b64decode(found["result_b64"]))
    assert found["foreground_width"] == pytest.approx(picture.width, abs=1)
    assert set(found) == {"result_b64"} | {f"foreground_{name}" for name in ("top", "left", "width", "height")}


BAD: list[tuple[dict[str, str], str]] = [
    ({}, "missing_source"),
    ({"image_url": "http://127.0.0.1/a.png"}, "failed_image_download"),
    ({"image_url": "ftp://a/b"}, "invalid_image_url"),
    ({"image_file_b64": "AAAA", "image_url": "https://a.example/b.png"}, "multiple_sources"),
    ({"image_file_b64": "AAAA"}, "invalid_file_type"),
    ({"bg_color": "red", "bg_image_url": "https://a.example/b.png"}, "multiple_bg_sources"),
    ({"bg_color": "nocolour"}, "invalid_bg_color"),
    ({"size": "huge"}, "invalid_size"),
    ({"format": "gif"}, "invalid_format"),
    ({"channels": "rgb"}, "invalid_channels"),
    ({"position": "left"}, "invalid_position"),
    ({"scale": "5%"}, "invalid_scale"),
    ({"roi": "0 0"}, "invalid_roi"),
    ({"roi": "50% 0 50% 100%"}, "roi_region_empty"),
    ({"roi": "0 0 200% 100%"}, "roi_exceeds_bounds"),
    ({"crop": "true", "crop_margin": "60%"}, "invalid_crop_margin"),
    ({"semitransparency": "maybe"}, "invalid_semitransparency"),
]


@pytest.mark.parametrize(("fields", "code"), BAD, ids=[f"{code}-{index}" for index, (_, code) in enumerate(BAD)])
def test_errors_have_remove_bgs_codes(service: Running, samples: list[Path], fields: dict[str, str], code: str) -> None:
    sourced = any(name.startswith("image_") for name in fields) or not fields
    answer = service.post(PATH, data=fields) if sourced else asked(service, samples[0], **fields)
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["code"] == code.replace("invalid_image_url", "invalid_image_url")
    assert error["title"]


def test_the_account_has_what_is_left(service: Running) -> None:
    attributes = service.get("/v1.0/account").json()["data"]["attributes"]
    assert set(attributes["credits"]) == {"total", "subscription", "payg", "enterprise"}
    assert attributes["api"]["sizes"] == "all"


def test_pypi_removebg(service: Running, samples: list[Path], tmp_path: Path) -> None:
    program = f"""
import removebg.removebg as client
client.API_ENDPOINT = {service.url + PATH!r}
client.RemoveBg("key", "error.log").remove_background_from_img_file("photo.jpg")
"""
    shutil.copy(samples[0], tmp_path / "photo.jpg")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    assert opened((tmp_path / "photo.jpg_no_bg.png").read_bytes()).format == "PNG"


def test_pypi_remove_bg_api(service: Running, samples: list[Path], tmp_path: Path) -> None:
    program = f"""
import remove_bg_api as client
client.API_URL = {service.url + "/v1.0"!r}
client.RemoveBg("key").remove_bg_file({str(samples[0])!r}, out_path="out.png", size="preview", raw=False)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").exists()


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_npm_remove_bg(service: Running, samples: list[Path], tmp_path: Path) -> None:
    subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "remove.bg@1.3.0"], cwd=tmp_path, check=True, timeout=240
    )
    installed = tmp_path / "node_modules" / "remove.bg"
    for path in installed.rglob("*.js"):
        if "api.remove.bg" in (text := path.read_text()):
            path.write_text(text.replace("https://api.remove.bg", service.url))
    program = f"""
const {{ removeBackgroundFromImageFile }} = require("remove.bg");
removeBackgroundFromImageFile({{
  path: {json.dumps(str(samples[0]))}, apiKey: "key", size: "regular", outputFile: "out.png" }})
  .then((result) => console.log(JSON.stringify({{ width: result.resultWidth, charged: result.creditsCharged }})),
        (errors) => {{ console.error(JSON.stringify(errors)); process.exit(1); }});
"""
    done = subprocess.run(["node", "-e", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(json.loads(done.stdout)["width"]) > 0
    assert opened((tmp_path / "out.png").read_bytes()).mode == "RGBA"


def test_a_data_uri_is_base64_too(service: Running, samples: list[Path]) -> None:
    answer = service.post(PATH, data={"image_file_b64": data_uri(samples[0].read_bytes())})
    assert answer.status_code == 200
