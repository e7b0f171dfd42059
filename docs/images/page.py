"""Makes page.jpg, page-batch.jpg and page-phone.jpg: `python docs/images/page.py URL` of a service that runs."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
SAMPLES = sorted((HERE.parents[1] / "samples").glob("*.jpg"))


def take(page: Page, name: str, width_px: int) -> None:
    """Write a screenshot of what is visible."""
    with Image.open(io.BytesIO(page.screenshot())) as image:
        picture = image.convert("RGB")
    picture.thumbnail((width_px, 4 * width_px), Image.Resampling.LANCZOS)
    picture.save(HERE / name, quality=88, optimize=True)


def cut(page: Page, path: Path) -> None:
    page.set_input_files("#file", path)
    page.wait_for_selector("#chips button", timeout=60_000)
    page.wait_for_timeout(500)


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1240, "height": 860})
    page.goto(sys.argv[1])
    cut(page, SAMPLES[0])
    page.click("[aria-label=Dusk]")
    page.fill("#match", "50")
    page.fill("#slide", "38")
    page.wait_for_timeout(500)
    take(page, "page.jpg", 1000)
    page.click("#tab-batch")
    page.set_input_files("#files", SAMPLES)
    page.wait_for_selector("#zip:not([disabled])")
    page.get_by_text(f"{len(SAMPLES)} of {len(SAMPLES)} done").wait_for(timeout=120_000)
    take(page, "page-batch.jpg", 1000)
    phone = browser.new_page(viewport={"width": 390, "height": 844}, device_scale_factor=2, color_scheme="dark")
    phone.goto(sys.argv[1])
    cut(phone, SAMPLES[-1])
    take(phone, "page-phone.jpg", 480)
    browser.close()
