"""The client's README and its pages: their Python and their commands run as they stand, against a real server.

Only addresses are exchanged. The blocks of a page run one after the other in one namespace, in a folder with pictures.
Where a line says `# → text`, the block prints that line. Tables of options, limits and errors are those of the code.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import cutaway
import cv2
import numpy as np
import pytest
import trustme
from cutaway.contract import limits
from cutaway.contract.errors import ERRORS_BY_CODE, CutawayError
from PIL import Image

from tests.client.hosted import peers as hosted
from tests.client.tls_front import picture_host, server_context, tls_front

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "client"
PAGES = [
    ROOT / "client" / "README.md",
    *sorted(DOCS.glob("*.md")),
    ROOT / "docs" / "hosted-fallback.md",
]
HTTP_STATUSES = {"INVALID_ARGUMENT": "400", "UNAVAILABLE": "503", "INTERNAL": "500", "CANCELLED": "–"}
"""Of Triton, by its gRPC status; whoever cancels gets none."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROMISE = re.compile(r"# → (.*)$", re.MULTILINE)
VARIABLES = ("CUTAWAY_URL", "CUTAWAY_TOKEN", "CUTAWAY_API_KEY", "HF_TOKEN", "HUGGINGFACE_TOKEN", "REPLICATE_API_TOKEN")


@pytest.fixture(scope="module")
def addresses(server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the pages write, and what is there in its place."""
    authority = trustme.CA()
    folder = tmp_path_factory.mktemp("certificates")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    photo = (ROOT / "samples" / "astronaut.jpg").read_bytes()
    demanding = server_context(authority, demand_client=True)
    with contextlib.ExitStack() as stack:
        grpc, http = (
            stack.enter_context(tls_front(demanding if secure else server_context(authority), urlsplit(url).port))
            for url, secure in ((server.grpc_url, False), (server.http_url, True))
        )
        pictures = stack.enter_context(picture_host(server_context(authority), {"/photo.jpg": photo}))
        replicate = stack.enter_context(hosted.Peer(_prediction))
        yield {
            "grpc://localhost:8001": server.grpc_url,
            "grpc://gpu-1:8001": server.grpc_url,
            "grpc://gpu-2:8001": server.grpc_url,
            "http://localhost:8000": server.http_url,
            "grpcs://cutaway.example.com": f"grpcs://localhost:{grpc}",
            "https://cutaway.example.com": f"https://localhost:{http}",
            '{"images.example.com"}': '{"localhost"}',
            "images.example.com": f"localhost:{pictures}",
            "Replicate()": f'Replicate(base_url="{replicate.base_url}", token="t")',
            "certificates": str(folder),
        }


@pytest.fixture
def folder(addresses: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the pages' pictures lie; the current folder."""
    samples = [Image.open(ROOT / "samples" / name).convert("RGB") for name in ("astronaut.jpg", "admiral.jpg")]
    samples[0].save(tmp_path / "photo.jpg", quality=95)
    team = Image.new("RGB", (1124, 600), "#808890")
    team.paste(samples[0], (0, 88))
    team.paste(samples[1], (612, 0))
    team.save(tmp_path / "team.jpg", quality=95)
    Image.linear_gradient("L").rotate(90).resize((640, 480)).convert("RGB").save(tmp_path / "beach.jpg")
    clip = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (320, 320))
    for _ in range(3):
        clip.write(np.asarray(samples[0].resize((320, 320)))[..., ::-1])
    clip.release()
    (tmp_path / "holiday").mkdir()
    for number, sample in enumerate(samples):
        sample.save(tmp_path / "holiday" / f"{number}.jpg", quality=90)
    for certificate in Path(addresses["certificates"]).iterdir():
        (tmp_path / certificate.name).write_bytes(certificate.read_bytes())
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("cutaway")
    level = logger.level
    yield tmp_path
    logger.setLevel(level)


def _prediction(received: hosted.Received) -> hosted.Reply:
    """Replicate's answer: the picture twice as large."""
    given = Image.open(io.BytesIO((ROOT / "samples" / "astronaut.jpg").read_bytes()))
    larger = hosted.encoded(given.resize((given.width * 2, given.height * 2)), "image/png")
    output = "data:image/png;base64," + base64.b64encode(larger).decode()
    return hosted.as_json({"id": "p1", "status": "succeeded", "output": output}, 201)


@pytest.mark.triton
@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_python_runs(page: Path, folder: Path, addresses: dict[str, str]) -> None:
    text = page.read_text()
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for block in BLOCK.finditer(text):
            if block[1] != "python":
                continue
            code = block[2]
            for written, there in addresses.items():
                code = code.replace(written, there)
            # Tracebacks shall name the page's own lines.
            before = "\n" * text.count("\n", 0, block.start(2))
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(before + code, str(page), "exec"), names)
            for promise in PROMISE.findall(code):
                assert promise.strip() in printed.getvalue().splitlines(), f"{page.name}: not printed: {promise}"
    finally:
        for value in names.values():
            if isinstance(value, cutaway.Client):
                value.close()


@pytest.mark.triton
@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_commands_run(page: Path, folder: Path, server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_URL", server.grpc_url)
    for language, block in BLOCK.findall(page.read_text()):
        for line in block.splitlines() if language == "sh" else ():
            command = shlex.split(line, comments=True)
            if command[:1] == ["cutaway"]:
                done = subprocess.run(
                    [sys.executable, "-m", "cutaway", *command[1:]], capture_output=True, text=True, timeout=120
                )
                assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.triton
def test_sheet_of_compositing_can_be_made_again(folder: Path, server) -> None:
    script = ROOT / "docs" / "images" / "compositing.py"
    subprocess.run([sys.executable, script, server.grpc_url, "sheet.jpg"], check=True, timeout=120)
    with Image.open("sheet.jpg") as made, Image.open(script.with_suffix(".jpg")) as shown:
        assert made.size == shown.size
    assert script.with_suffix(".jpg").stat().st_size < 300_000


# ------------------------------------------------------------------------------------------------- the tables


def options_table() -> list[str]:
    return [
        f"| `{option.name}` | {_default(option.default)} | {option.allowed} | {option.help} |".replace("<", "\\<")
        for option in limits.OPTIONS.values()
    ]


def errors_table() -> list[str]:
    rows = []
    for code, row in limits.ERROR_CODES.items():
        cls = ERRORS_BY_CODE[code]
        again = "no" if not row.retry else f"after {row.retry_after_s:g} s"
        rows.append(
            f"| `{code}` | `{cls.__name__}` | {_builtin(cls)} | {int(row.tier)} | {again} "
            f"| {row.grpc_status}, {HTTP_STATUSES[row.grpc_status]} | {row.user_action} |"
        )
    return rows


def limits_table() -> list[str]:
    bounds = limits.INPUT_LIMITS
    return [
        f"| formats | {', '.join(name.upper() for name in bounds.formats)} | `INVALID_FORMAT` |",
        f"| size of the file | {bounds.max_file_bytes // limits.MIB} MiB | `FILE_TOO_LARGE` |",
        f"| sides, in either orientation | {bounds.max_long_side_px} × {bounds.max_short_side_px} px "
        "| `RESOLUTION_TOO_LARGE` |",
        f"| pixels | {bounds.max_pixels:,} | `TOO_MANY_PIXELS` |",
        f"| shortest side | {bounds.min_side_px} px | `RESOLUTION_TOO_SMALL` |",
        f"| width · height · 4 ÷ bytes of the file | {bounds.max_decompression_ratio:g} | `IMAGE_BOMB` |",
        f"| scans of a progressive JPEG | {bounds.max_jpeg_scans} | `IMAGE_BOMB` |",
    ]


@pytest.mark.parametrize("table", [options_table, errors_table, limits_table], ids=lambda table: table.__name__)
def test_tables_are_those_of_the_code(table) -> None:
    page = ROOT / "docs" / "errors.md" if table is errors_table else DOCS / "cutting.md"
    lines = page.read_text().splitlines()
    expected = table()
    assert expected[0] in lines, "\n".join(["the page lacks this table:", *expected])
    start = lines.index(expected[0])
    found = lines[start : start + len(expected)]
    assert found == expected, "\n".join(["the table is now:", *expected])
    assert not lines[start + len(expected)].startswith("|")


def test_numbers_of_the_page_about_streams() -> None:
    text = (DOCS / "stream.md").read_text()
    for option in limits.STREAM_OPTIONS.values():
        row = f"| `{option.name}` | {_default(option.default)} | {option.allowed} | {option.help} |"
        assert row.replace("<", "\\<") in text.splitlines(), row
    page = " ".join(text.split())
    bounds = limits.STREAM_LIMITS
    for words in (
        f"up to {bounds.max_long_side_px} × {bounds.max_short_side_px} pixels",
        f"at least {bounds.min_side_px} along each side",
        f"the last {limits.STREAM_RESULTS_KEPT} are kept",
        f"within `timeout_s` ({limits.STREAM_TIMEOUT_S:g} s)",
        f"for {limits.STREAM_BACK_OFF_FIRST_S:g} s, doubling up to {limits.STREAM_BACK_OFF_MAX_S:g} s",
        f"sends nothing for {limits.STREAM_IDLE_S:g} s is forgotten",
        f"the code `{limits.UNTOUCHED}`",
    ):
        assert words in page, words


def test_numbers_of_the_servers_page() -> None:
    page = " ".join((DOCS / "servers.md").read_text().split())
    for words in (
        f"{limits.PROCESSING_TIMEOUT_S:g} s, or {limits.FALLBACK_TIMEOUT_S:g} s with a fallback",
        f"{limits.RETRIES} times at most",
        f"{limits.RETRY_FIRST_DELAY_S:g} s, doubling up to {limits.RETRY_MAX_DELAY_S:g} s",
        f"up to {limits.RETRY_AFTER_MAX_S:g} s is obeyed",
        f"{limits.BREAKER_FAIL_MAX} failures in a row",
        f"After {limits.BREAKER_RESET_S:g} s it is half-open",
        f"exceeds {limits.SERVER_LATE_MAX} deadlines in a row",
        f"tried last for {limits.SERVER_BACK_S:g} s, or for its `Retry-After`",
        f"doubles the time, up to {limits.BREAKER_RESET_S:g} s",
        f"costs one of {limits.RETRY_BUDGET_TOKENS:g} tokens",
    ):
        assert words in page, words
    assert "shortened by up to a quarter" in page and limits.RETRY_JITTER == 0.25
    assert "a success returns a tenth" in page and limits.RETRY_BUDGET_PER_SUCCESS == 0.1


def _default(value: object) -> str:
    return "–" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _builtin(cls: type[CutawayError]) -> str:
    found = [base for base in cls.__mro__ if issubclass(base, Exception) and not issubclass(base, CutawayError)]
    return "–" if found[0] is Exception else f"`{found[0].__name__}`"
