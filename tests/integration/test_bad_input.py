"""Whatever file comes, over either protocol, past the SDK's own checks, the server

1. answers with the right code and INVALID_ARGUMENT, or with the right picture,
2. keeps its memory bounded,
3. and then cuts a good picture out as before, in the same processes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutaway.contract.limits import ERROR_CODES
from PIL import Image

from tests.integration import hostile
from tests.integration.kserve import PROTOCOLS, REFUSED, Answer, Ask, asking
from tests.integration.picture_files import QUADRANTS
from tests.integration.processes import forget_peak, peak_bytes, resident_bytes, server_processes

pytestmark = pytest.mark.triton

MIB = 1024 * 1024
CASES = hostile.cases()
REFUSED_CASES = [case for case in CASES if case.code and case.code != hostile.NOBODY]

PEAK_GROWTH_BYTES = 64 * MIB
"""Refused files, each of up to 10 MiB: a few copies of the file, never the picture that a header promises."""

GROWTH_BYTES = 256 * MIB
"""All files: what a process keeps after the largest picture allowed (33 megapixels, 100 MB of pixels) went through."""


@pytest.fixture(scope="module")
def processes(server: Any) -> dict[int, str]:
    """The server's processes before any hostile picture came."""
    found = server_processes()
    assert "tritonserver" in found.values()
    assert "stub" in found.values()
    return found


@pytest.fixture(scope="module")
def resident_before(processes: dict[int, str]) -> dict[int, int]:
    return {pid: resident_bytes(pid) for pid in processes}


@pytest.fixture(scope="module", params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ask(server: Any, protocol: str, resident_before: dict[int, int]) -> Iterator[Ask]:
    with asking(server, protocol) as ask:
        yield ask


def test_there_are_enough_and_each_once() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answer_is_right(case: hostile.Case, ask: Ask, protocol: str) -> None:
    answer = ask(case.data, case.options)
    if case.code:
        _assert_refused(answer, case.code, REFUSED[protocol])
    else:
        _assert_result(answer, case)


def _assert_refused(answer: Answer, code: str, status: str) -> None:
    assert answer.code == code, answer
    assert answer.status == status
    row = ERROR_CODES[code]
    assert set(answer.error) == {"code", "message", "tier", "user_action", "retry_after", "details"}
    assert answer.error["tier"] == row.tier
    assert answer.error["user_action"] == row.user_action
    assert answer.error["message"]
    assert isinstance(answer.error["details"], dict)


def _assert_result(answer: Answer, case: hostile.Case) -> None:
    assert answer.status == "", answer
    report = answer.outputs["report"]
    assert (report["picture"]["width_px"], report["picture"]["height_px"]) == case.size
    warned = {warning["code"] for warning in report["warnings"]} - {"EMPTY_CUTOUT"}
    assert warned == set(case.warnings)
    (image,) = answer.outputs["images"]
    result = Image.open(io.BytesIO(image))
    assert result.size == case.size
    if case.colours:
        _assert_fields(np.asarray(result.convert("RGB")).astype(int), case.tolerance)


def _assert_fields(pixels: np.ndarray[Any, Any], tolerance: int) -> None:
    height, width = pixels.shape[:2]
    for index, colour in enumerate(QUADRANTS):
        row, column = divmod(index, 2)
        centre = pixels[height // 4 + row * height // 2, width // 4 + column * width // 2]
        assert np.abs(centre - colour).max() <= tolerance, f"field {index} is {centre}, not {colour}"


def test_refused_files_take_no_memory(ask: Ask, processes: dict[int, str]) -> None:
    """Headers that promise gigabytes, and files that unfold to them, cost no more than the file itself."""
    before = {}
    for pid in processes:
        forget_peak(pid)
        before[pid] = resident_bytes(pid)
    for case in REFUSED_CASES:
        ask(case.data, case.options)
    grown = {f"{name} {pid}": (peak_bytes(pid) - before[pid]) // MIB for pid, name in processes.items()}
    assert max(grown.values()) * MIB <= PEAK_GROWTH_BYTES, f"MiB grown at the peak: {grown}"


def test_memory_stays_bounded(
    ask: Ask, processes: dict[int, str], resident_before: dict[int, int], samples: list[Path]
) -> None:
    ask(samples[0].read_bytes())
    grown = {f"{name} {pid}": (resident_bytes(pid) - resident_before[pid]) // MIB for pid, name in processes.items()}
    assert max(grown.values()) * MIB <= GROWTH_BYTES, f"MiB grown: {grown}"


def test_a_good_picture_follows(ask: Ask, processes: dict[int, str], samples: list[Path]) -> None:
    for sample in samples:
        answer = ask(sample.read_bytes())
        assert answer.status == "", answer
        alpha = np.asarray(Image.open(io.BytesIO(answer.outputs["images"][0])))[..., 3]
        with Image.open(sample) as picture:
            assert alpha.shape == picture.size[::-1]
        assert (alpha > 250).mean() > 0.1
        assert (alpha < 5).mean() > 0.1
        assert answer.outputs["scores"][0] > 0.5
    assert server_processes() == processes, "a process of the server died meanwhile"
