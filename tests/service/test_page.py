"""The page, driven in a real Chromium as a person would."""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from runtime.server import Server, ServerOptions
from tests.service.services import LIMIT_S, Running, encoded, opened

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
WAIT_MS = LIMIT_S * 1000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "CI installs chromium"
        pytest.skip("needs chromium (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *CAMERA])
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, service: Running) -> Iterator[Page]:
    """The page of the service; whatever it fails at in scripts fails the test, and it reaches no other host."""
    opened_page: Page = browser.new_page(viewport={"width": 1280, "height": 860})
    opened_page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    failures: list[str] = []
    opened_page.on("pageerror", lambda error: failures.append(str(error)))
    opened_page.on("request", lambda asked: failures.append(asked.url) if elsewhere(asked.url, service) else None)
    opened_page.goto(service.url)
    yield opened_page
    opened_page.close()
    assert failures == []


def elsewhere(url: str, service: Running) -> bool:
    return not url.startswith((service.url, service.url.replace("http", "ws"), "data:", "blob:"))


def cut(page: Page, path: Path) -> None:
    page.set_input_files("#file", path)
    expect(page.locator("#status")).to_contain_text("Cut out")
    expect(page.locator("#busy")).to_be_hidden()


def saved(page: Page, button: str = "#save") -> bytes:
    with page.expect_download() as download:
        page.click(button)
    return Path(download.value.path()).read_bytes()


def pixels(page: Page, canvas: str = "#after") -> list[int]:
    script = "id => [...document.querySelector(id).getContext('2d').getImageData(2, 2, 1, 1).data]"
    found: list[int] = page.evaluate(script, canvas)
    return found


def green(pixel: list[int]) -> bool:
    red, green_, blue, _ = pixel
    return green_ > 200 and max(red, blue) < 60


def until(reached: Callable[[], bool]) -> None:
    """Wait for something that the page draws."""
    end = time.monotonic() + LIMIT_S
    while not reached():
        assert time.monotonic() < end, "the page never drew it"
        time.sleep(0.1)


def test_a_picture_becomes_a_cut_out_of_its_size(page: Page, samples: list[Path]) -> None:
    cut(page, samples[0])
    expect(page.locator("#chips button")).to_have_count(1)
    picture = opened(saved(page))
    with Image.open(samples[0]) as sent:
        assert (picture.mode, picture.size) == ("RGBA", sent.size)
    assert picture.getchannel("A").getextrema() == (0, 255)


def test_a_picture_is_dropped_or_pasted(page: Page, samples: list[Path]) -> None:
    import base64

    give = """([kind, data]) => {
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], 'a.jpg', { type: 'image/jpeg' }));
      const event = kind === 'drop' ? new DragEvent('drop', { dataTransfer: transfer, bubbles: true })
        : new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true });
      document.body.dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        page.reload()
        page.evaluate(give, [kind, base64.b64encode(samples[0].read_bytes()).decode()])
        expect(page.locator("#status")).to_contain_text("Cut out")


def test_edges_change_in_the_page_without_a_request(page: Page, samples: list[Path]) -> None:
    cut(page, samples[0])
    expect(page.locator("#chips button")).to_have_count(1)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/api/" in request.url else None)

    def covered() -> int:
        return sum(opened(saved(page)).getchannel("A").histogram()[128:])

    plain = covered()
    page.locator("#shrink").fill("6")
    assert covered() < plain
    page.locator("#shrink").fill("0")
    page.locator("#hair").fill("100")
    assert covered() > plain
    page.locator("#hair").fill("0")
    page.locator("#feather").fill("12")
    alpha = opened(saved(page)).getchannel("A").histogram()
    assert sum(alpha[10:245]) > 0.02 * sum(alpha)
    assert [url for url in asked if "health" not in url] == []


def test_backgrounds_and_matched_colours(page: Page, samples: list[Path]) -> None:
    cut(page, samples[0])
    page.click("[aria-label=White]")
    until(lambda: pixels(page)[3] == 255)
    assert pixels(page) == [255, 255, 255, 255]
    page.locator("#colour").fill("#ff0000")
    until(lambda: pixels(page)[1] == 0)
    for name in ("Blurred", "Studio", "Dusk", "Sea", "Garden", "Paper"):
        page.click(f"[aria-label={name}]")
        expect(page.locator(f"[aria-label={name}]")).to_have_attribute("aria-checked", "true")
        assert opened(saved(page)).getchannel("A").getextrema() == (255, 255)
    blue = {"name": "b.png", "mimeType": "image/png", "buffer": encoded(Image.new("RGB", (60, 40), (0, 0, 255)), "PNG")}
    page.set_input_files("#own", files=[blue])  # type: ignore[list-item]
    until(lambda: pixels(page)[2] > 250)
    before = opened(saved(page)).convert("RGB").resize((1, 1)).getpixel((0, 0))
    page.locator("#match").fill("100")
    after = opened(saved(page)).convert("RGB").resize((1, 1)).getpixel((0, 0))
    assert after[2] - after[0] > before[2] - before[0]  # type: ignore[index]


def test_formats_and_crops(page: Page, samples: list[Path]) -> None:
    cut(page, samples[1])
    page.select_option("#crop", "1")
    square = opened(saved(page))
    assert abs(square.width - square.height) <= 1
    page.select_option("#format", "image/jpeg")
    assert opened(saved(page)).format == "JPEG"
    page.select_option("#format", "image/webp")
    page.select_option("#crop", "subject")
    page.locator("#margin").fill("0")
    picture = opened(saved(page))
    assert picture.format == "WEBP"
    left, top, right, bottom = picture.getchannel("A").point(lambda value: 255 * (value > 40)).getbbox()  # type: ignore[misc]
    assert left <= 6
    assert top <= 6
    assert right >= picture.width - 6
    assert bottom >= picture.height - 6


def test_people_are_taken_in_and_out(page: Page, samples: list[Path]) -> None:
    cut(page, samples[0].parent / "more" / "crew.jpg")
    chips = page.locator("#chips button")
    expect(chips).to_have_count(3)
    chips.nth(0).click()
    expect(page.locator("#status")).to_contain_text("Cut out 2 people")
    expect(chips.nth(0)).to_have_attribute("aria-pressed", "false")
    expect(chips.nth(0)).to_be_focused()
    expect(page.locator("#curl")).to_contain_text("select=[1,2]")
    chips.nth(1).click()
    expect(page.locator("#status")).to_contain_text("Cut out one person")
    chips.nth(2).click()
    expect(page.locator("#status")).to_contain_text("At least one person stays")
    page.locator("#people polygon").nth(0).dispatch_event("click")
    expect(chips.nth(0)).to_have_attribute("aria-pressed", "true")


def test_before_and_after(page: Page, samples: list[Path]) -> None:
    cut(page, samples[0])
    page.locator("#slide").fill("50")
    expect(page.locator("#divider")).to_be_visible()
    assert "50%" in page.evaluate("document.querySelector('#after').style.clipPath")


def test_code_is_what_is_on_screen(page: Page, samples: list[Path]) -> None:
    cut(page, samples[0])
    page.locator("#colour").fill("#00ff00")
    page.locator("#feather").fill("3")
    for place in ("#curl", "#python"):
        expect(page.locator(place)).to_contain_text("#00FF00")
        expect(page.locator(place)).to_contain_text("feather_px=3")


def test_errors_are_in_words(page: Page, tmp_path: Path, service: Running) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    page.set_input_files("#file", tmp_path / "a.jpg")
    expect(page.locator("#error")).to_contain_text("not a picture this server reads")
    Image.new("RGB", (40, 40)).save(tmp_path / "small.png")
    page.set_input_files("#file", tmp_path / "small.png")
    expect(page.locator("#error")).to_contain_text("at least 64 pixels")
    Image.new("RGB", (640, 480), "white").save(tmp_path / "white.png")
    page.check("input[value=people]", force=True)
    page.set_input_files("#file", tmp_path / "white.png")
    expect(page.locator("#error")).to_contain_text("No person was found")
    page.route("**/api/background-removal/remove", lambda route: route.abort())
    page.set_input_files("#file", tmp_path / "white.png")
    expect(page.locator("#error")).to_contain_text("cannot be reached")


def test_several_pictures_and_a_zip(page: Page, samples: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    page.click("#tab-batch")
    page.set_input_files("#files", [*samples, tmp_path / "broken.jpg"])
    expect(page.locator("#batch-count")).to_have_text(f"{len(samples) + 1} of {len(samples) + 1} done, 1 failed")
    with zipfile.ZipFile(io.BytesIO(saved(page, "#zip"))) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == len(samples)
        assert opened(archive.read(archive.namelist()[0])).mode == "RGBA"


def test_a_camera_is_green_screened_and_counted(page: Page) -> None:
    page.click("#tab-live")
    page.click("#webcam")
    expect(page.locator("#fps")).not_to_have_text("–")
    expect(page.locator("#latency")).to_contain_text("ms")
    until(lambda: green(pixels(page, "#live")))
    page.check("input[value=colour]")
    until(lambda: not green(pixels(page, "#live")))
    page.click("#stop")
    expect(page.locator("#stop")).to_be_disabled()


def test_a_video_is_green_screened_and_shown_with_a_mark_while_the_model_hangs(
    browser: Any, samples: list[Path], tmp_path: Path
) -> None:
    with Server(ServerOptions(cache_dir=tmp_path / "cache", service_port=0)) as harmed:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        expect.set_options(timeout=WAIT_MS)
        page.goto(harmed.service_url)
        page.click("#tab-live")
        page.set_input_files("#clip", video(samples[0], tmp_path / "clip.webm"))
        until(lambda: green(pixels(page, "#live")))
        expect(page.locator("#untouched")).to_be_hidden()
        harmed.stop_supervision()  # it would load the model anew within two seconds, and Triton never does
        assert harmed._launcher is not None
        (stub,) = (each for each in harmed._launcher.stubs if each.model == "stream_pipeline")
        os.kill(stub.pid, signal.SIGSTOP)
        expect(page.locator("#untouched")).to_be_visible()
        expect(page.locator("#as-came")).not_to_have_text("0")
        until(lambda: not green(pixels(page, "#live")))
        page.close()


def video(picture: Path, path: Path) -> Path:
    """A second of somebody who stands still, VP8."""
    image = cv2.resize(cv2.imread(str(picture)), (320, 240))
    image[:16, :16] = (200, 60, 60)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"VP80"), 10, (320, 240))
    for _ in range(10):
        writer.write(image)
    writer.release()
    return path


def test_axe_finds_nothing_serious_in_light_and_dark_at_desktop_and_phone(page: Page, samples: list[Path]) -> None:
    cut(page, samples[0])
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 844})
            for tab in ("picture", "batch", "live"):
                page.click(f"#tab-{tab}")
                found = Axe().run(page).response["violations"]
                serious = [each["id"] for each in found if each["impact"] in ("serious", "critical")]
                assert serious == [], (scheme, width, tab)
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_keyboard_is_enough(page: Page, samples: list[Path]) -> None:
    cut(page, samples[0])
    page.focus("#tab-picture")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#panel-batch")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#panel-picture")).to_be_visible()
    page.focus("#swatches [aria-checked=true]")
    page.keyboard.press("ArrowRight")
    expect(page.locator("[aria-label=White]")).to_have_attribute("aria-checked", "true")
    expect(page.locator("[aria-label=White]")).to_be_focused()
