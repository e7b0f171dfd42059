"""Parts of bulk jobs without Ray: batches, networks that compute wrongly, names, conflicts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutaway.contract.limits import RUN_GIVE_UP_FAILURES
from numpy.typing import NDArray
from obstore.exceptions import PermissionDeniedError
from PIL import Image

from bulk.networks import Batcher, Networks, Session, check_same
from bulk.output import FILE_ERROR, OK, JobProblem, Output, output_name
from bulk.sources import SourceProblem, find
from bulk.worker import JobStopped, Worker, _failure
from runtime.checks import RuntimeProblem
from runtime.compose import DETECTOR, MATTING
from runtime.sessions import onnx_model
from runtime.weights import BUNDLED

NANO = BUNDLED / "nano"


def session(name: str) -> Session:
    return Session(onnx_model().open_session(NANO / f"{name}.onnx", "cpu", 1))


@pytest.fixture(scope="module")
def crops(samples: list[Path]) -> NDArray[np.uint8]:
    """Two pictures of four parts each, at the matting network's size."""
    side = session(MATTING).side_px
    parts = []
    for path in samples:
        with Image.open(path) as image:
            whole = image.convert("RGB").resize((2 * side, 2 * side))
            parts += [whole.crop((x, y, x + side, y + side)) for x in (0, side) for y in (0, side)]
    return np.stack([np.asarray(part) for part in parts])


def test_what_waits_becomes_one_batch(crops: NDArray[np.uint8]) -> None:
    network, began, busy, sizes = session(MATTING), threading.Event(), threading.Event(), []

    def run(calls: Any) -> Any:
        began.set()
        busy.wait(60)
        sizes.append([len(call) for call in calls])
        return network.run(calls)

    batcher = Batcher(run)
    calls = [crops[:1], crops[1:3], crops[3:4], crops[:6], crops[4:5]]
    with ThreadPoolExecutor(len(calls)) as pool:
        first = pool.submit(batcher, calls[0])
        began.wait(60)  # the first one is under way: others wait
        others = []
        for number, call in enumerate(calls[1:], 1):
            others.append(pool.submit(batcher, call))
            while batcher.waiting.qsize() < number:
                time.sleep(0.01)
        busy.set()
        answers = [each.result(60)["alphas"] for each in (first, *others)]
    assert sizes == [[1], [2, 1], [6, 1]], "at most eight in a batch, and none left behind"
    for call, answer in zip(calls, answers, strict=True):
        alone = np.concatenate([network.one(part[None])["alphas"] for part in call])
        assert np.abs(answer.astype(int) - alone).max() <= 1, "an answer went to somebody else"


def test_a_call_that_fails_does_not_fail_others(crops: NDArray[np.uint8]) -> None:
    network, busy = session(MATTING), threading.Event()

    def run(calls: Any) -> Any:
        busy.wait(60)
        return network.run(calls)

    batcher = Batcher(run)
    wrong = np.zeros((1, 8, 8, 3), np.uint8)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(batcher, call) for call in (crops[:1], wrong, crops[1:2])]
        busy.set()
        assert futures[0].result(60)["alphas"].shape == futures[2].result(60)["alphas"].shape
        with pytest.raises(Exception, match="Got invalid dimensions"):
            futures[1].result(60)


@pytest.mark.parametrize("name", [DETECTOR, MATTING])
def test_a_device_that_computes_wrongly_is_refused(name: str) -> None:
    right = session(name)
    if name == MATTING:
        check_same(right, right, name)

    class Wrong(Session):
        def one(self, images: Any) -> Any:
            return super().one(np.roll(images, 8, axis=2))

    wrong = Wrong(onnx_model().open_session(NANO / f"{name}.onnx", "cpu", 1))
    with pytest.raises(RuntimeProblem, match="wrong on this device"):
        check_same(wrong, right, name)


# ONNX Runtime itself only warns, and takes the CPU.
@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.parametrize(("device", "words"), [("tensorrt", "has no TensorRT"), ("cuda", "without it")])
def test_a_device_that_is_not_there_is_refused(device: str, words: str) -> None:
    with pytest.raises((RuntimeError, RuntimeProblem), match=words):
        Networks("nano", None, device, 1)


def test_failures_that_are_no_picture_s_own_end_a_job() -> None:
    worker = Worker.__new__(Worker)  # without networks
    worker._failures_in_a_row = 0
    broken, missing, good = (
        {"code": FILE_ERROR, "message": "disk full"},
        {"code": FILE_ERROR, "own_fault": True},
        {"code": OK},
    )
    for _ in range(3):
        for row in [broken] * (RUN_GIVE_UP_FAILURES - 1) + [missing, good]:
            assert "own_fault" not in worker._checked(dict(row))
    for _ in range(RUN_GIVE_UP_FAILURES - 1):
        worker._checked(dict(broken))
    with pytest.raises(JobStopped, match="10 pictures failed in a row, the last one: disk full"):
        worker._checked(dict(broken))


def test_what_a_host_refuses_ends_no_job() -> None:
    refused = PermissionDeniedError("403 Forbidden")
    assert _failure(refused, "https://host/a.jpg") == {
        "code": FILE_ERROR,
        "message": "403 Forbidden",
        "own_fault": True,
    }
    assert not _failure(refused, "s3://bucket/a.jpg")["own_fault"]


def test_what_another_run_may_allow_is_tried_again(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    output.put_part("0", [{"path": code, "code": code} for code in (OK, "IMAGE_BOMB", "CORRUPT_IMAGE", FILE_ERROR)])
    assert output.done() == {OK: OK, "CORRUPT_IMAGE": "CORRUPT_IMAGE"}


def test_names_differ_whatever_the_pictures_are_called() -> None:
    names = ["a.jpg", "a.png", "a", "a.0", "a.jpg.0", "b/a.jpg", "b_a.jpg", "x" * 300, "x" * 301, "a/a.jpg"]
    for root in ("/photos", ""):
        for ids in ([None], [0, 1]):
            made = [output_name(root, name, each, "png") for name in names for each in ids]
            assert len(set(made)) == len(made)
            assert max(len(part) for name in made for part in name.split("/")) < 255


def test_a_folder_belongs_to_one_job(tmp_path: Path) -> None:
    job = {"options": {"subject": "each"}, "networks": {"a": "1"}}
    Output(str(tmp_path / "out")).claim(job)
    Output(str(tmp_path / "out")).claim(job)
    with pytest.raises(JobProblem, match="networks was"):
        Output(str(tmp_path / "out")).claim(job | {"networks": {"a": "2"}})


def test_what_names_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,uri\n1,a.jpg\n")
    (tmp_path / "list.parquet").write_text("no parquet")
    (tmp_path / "empty").mkdir()
    for source, words in (
        ("list.csv", "no column 'path', only id, uri"),
        ("list.parquet", "cannot be read"),
        ("none.csv", "is not there"),
        ("none", "is no folder"),
        ("empty", "there is no picture"),
    ):
        with pytest.raises(SourceProblem, match=words):
            find(str(tmp_path / source), str(tmp_path / "out"), "path")
