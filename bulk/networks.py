"""The networks of a profile in ONNX Runtime, for one worker alone, or for many with batches across pictures."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import ray
from cutaway.contract.limits import MODEL_MAX_BATCH
from numpy.typing import NDArray
from pipeline.run import Models

from export.plans.gate import judge_detector, judge_matte, one_by_one
from export.plans.pictures import find_pictures, take_pictures
from runtime.checks import RuntimeProblem
from runtime.compose import DETECTOR, MATTING
from runtime.demo import SAMPLES
from runtime.devices import has_vnni
from runtime.sessions import onnx_model
from runtime.weights import BUNDLED, WHOLE_MATTING, load_networks, profile_folder

Images = NDArray[np.uint8]
Arrays = dict[str, NDArray[Any]]
Run = Callable[[str, Images], Arrays]
"""A network's name, and (N, S, S, 3) uint8 → its outputs by name, each with N in front."""

SERVED = (DETECTOR, MATTING, WHOLE_MATTING)


class Session:
    """A network in ONNX Runtime."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]
        self.side_px = int(session.get_inputs()[0].shape[1])

    def run(self, calls: Sequence[Images]) -> list[Arrays]:
        """One run for several calls, each (N, …), as the model in Triton does it."""
        requests = [{"images": images} for images in calls]
        answers: list[Arrays] = onnx_model().run_stacked(self._session, requests, self._outputs)
        return answers

    def one(self, images: Images) -> Arrays:
        return self.run([images])[0]


class Batcher:
    """One network for many threads: what waited while it ran is the next batch.

    Nothing waits for a batch to become full: that would only cost time while there is nothing else to do.
    """

    def __init__(self, run: Callable[[Sequence[Images]], list[Arrays]]) -> None:
        self._run, self.waiting = run, queue.SimpleQueue[tuple[Images, Future[Arrays]]]()
        threading.Thread(target=self._work, name="batcher", daemon=True).start()

    def __call__(self, images: Images) -> Arrays:
        answer = Future[Arrays]()
        self.waiting.put((images, answer))
        return answer.result()

    def _work(self) -> None:
        following = self.waiting.get()
        while True:
            batch, size = [following], len(following[0])
            while size < MODEL_MAX_BATCH and not self.waiting.empty():
                following = self.waiting.get()
                size += len(following[0])
                if size <= MODEL_MAX_BATCH:
                    batch.append(following)
            self._answer(batch)
            if size <= MODEL_MAX_BATCH:
                following = self.waiting.get()

    def _answer(self, batch: list[tuple[Images, Future[Arrays]]]) -> None:
        try:
            answers = self._run([images for images, _ in batch])
        except Exception as error:  # ONNX Runtime raises types of its own
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:  # one picture, or all together, may be too much: each alone
                for one in batch:
                    self._answer([one])
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)


class Networks:
    """All networks of a profile, as a server on this machine would take them: 8-bit copies on a CPU with VNNI.

    Args:
        profile: its name, for the report.
        folder: where its files are; where None, the profile's own.
        device: "cpu", "cuda" or "tensorrt"; never silently another.
        threads: of one network's run on a CPU.
        shared: whether many threads call at once, whose pictures then become batches.

    Raises:
        RuntimeProblem, RuntimeError: a file is missing or damaged, or the device does not work.
    """

    def __init__(self, profile: str, folder: str | None, device: str, threads: int, shared: bool = False) -> None:
        self._profile, self._device = profile, device
        found = load_networks(weights_folder(profile, folder), int8=device == "cpu" and has_vnni())
        self._sha256 = {name: found[name].sha256 for name in SERVED if name in found}
        self._sessions = {name: Session(_open(found[name].path, name, device, threads)) for name in self._sha256}
        self._calls = {name: Batcher(each.run) if shared else each.one for name, each in self._sessions.items()}

    def run(self, name: str, images: Images) -> Arrays:
        return self._calls[name](images)

    def facts(self) -> dict[str, Any]:
        """What `models` needs to know: the profile, the device, and each network's digest and side in pixels."""
        sides_px = {name: each.side_px for name, each in self._sessions.items()}
        return {"profile": self._profile, "device": self._device, "sha256": self._sha256, "sides_px": sides_px}

    def node(self) -> str:
        """The node of a Ray cluster that this actor is on."""
        return str(ray.get_runtime_context().get_node_id())


def weights_folder(profile: str, folder: str | None) -> Path:
    """The folder of a profile's files; each node has a checkout of its own."""
    return Path(folder) if folder else profile_folder(profile)


def models(run: Run, facts: dict[str, Any]) -> Models:
    """The networks as the pipeline wants them."""
    sha256, sides_px = facts["sha256"], facts["sides_px"]

    def described(matter: str, whole: Models | None = None) -> Models:
        description = {
            "profile": facts["profile"],
            "detector": {"name": DETECTOR, "version": sha256[DETECTOR][:12]},
            "matte": {"name": matter, "version": sha256[matter][:12], "side_px": sides_px[matter]},
        }
        return Models(
            lambda images: run(DETECTOR, images),
            lambda images: run(matter, images)["alphas"],
            sides_px[matter],
            description,
            facts["device"],
            facts["device"] == "tensorrt",
            whole=whole,
        )

    return described(MATTING, described(WHOLE_MATTING) if WHOLE_MATTING in sha256 else None)


def _open(path: Path, name: str, device: str, threads: int) -> ort.InferenceSession:
    if device != "tensorrt":
        return onnx_model().open_session(path, device, threads)
    session = _open_tensorrt(path)
    check_same(Session(session), Session(onnx_model().open_session(path, "cpu", 0)), name)
    return session


def _open_tensorrt(path: Path) -> ort.InferenceSession:
    """A session of TensorRT's execution provider, which builds an engine for batches of 1 to the largest."""
    if "TensorrtExecutionProvider" not in ort.get_available_providers():
        raise RuntimeProblem(f"this onnxruntime has no TensorRT, only {', '.join(ort.get_available_providers())}")
    ort.preload_dlls()
    side = Session(ort.InferenceSession(path, providers=["CPUExecutionProvider"])).side_px
    sizes = {"min": 1, "opt": MODEL_MAX_BATCH, "max": MODEL_MAX_BATCH}
    settings: dict[str, Any] = {
        f"trt_profile_{which}_shapes": f"images:{count}x{side}x{side}x3" for which, count in sizes.items()
    }
    # An engine takes minutes to build, and fits the TensorRT and the GPU that built it: the provider keeps both apart.
    settings |= {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(Path.home() / ".cache" / "cutaway-bulk"),
    }
    session = ort.InferenceSession(path, providers=[("TensorrtExecutionProvider", settings)])
    if session.get_providers()[0] != "TensorrtExecutionProvider":
        raise RuntimeProblem(f"{path.name} was to run with TensorRT, and ONNX Runtime came up without it")
    return session


def check_same(found: Session, wanted: Session, name: str) -> None:
    """See that a network computes on a device what it computes on the CPU, as plans are judged.

    Several versions of TensorRT sample wrongly without an error.

    Raises:
        RuntimeProblem: it does not.
    """
    detector = Session(onnx_model().open_session(BUNDLED / "nano" / f"{DETECTOR}.onnx", "cpu", 0))
    taken = take_pictures(find_pictures(SAMPLES), detector.one, wanted.side_px)
    images, judge = (taken.squares, judge_detector) if name == DETECTOR else (taken.crops, judge_matte)
    verdict = judge(found.one, images, one_by_one(wanted.one, images), MODEL_MAX_BATCH)
    if not verdict.passed:
        raise RuntimeProblem(f"{name} is wrong on this device: {'; '.join(verdict.reasons)}; use --device cuda or cpu")
