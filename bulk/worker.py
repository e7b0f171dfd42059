"""What Ray runs: workers that cut pictures out, and the ledger of pictures under way."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import obstore.exceptions
import pyarrow as pa
import ray
from cutaway.cli.files import FORMS
from cutaway.contract.errors import CutawayError, GpuMemoryExhausted, InferenceError, InputError
from cutaway.contract.limits import RUN_GIVE_UP_FAILURES
from cutaway.contract.options import CutOptions
from pipeline.pixels import work_alone
from pipeline.run import Answer, run

from bulk.networks import Networks, models
from bulk.output import FILE_ERROR, OK, Output, digest_of, output_name
from bulk.sources import WEB, read

MAX_DEATHS = 2
"""A picture during which a worker's process ended so often is given up: there is too little memory for it, say. The
first death of all is not counted: it is only known in which block it was."""
READ_AHEAD, WRITTEN_LATER = 2, 4
"""Files that are read before they are wanted, and cut-outs that are written while the next pictures are cut out: a
bucket takes as long to answer as a picture to be cut out, and this is all that a worker holds."""
FILE_ERRORS = (OSError, obstore.exceptions.BaseError)


class JobStopped(RuntimeError):
    """So many pictures failed in a row, and not by their own fault, that further ones would, too."""


@dataclass(frozen=True)
class Settings:
    """What all workers of a job need to know; `root` is what names of pictures are relative to, see `sources.find`."""

    root: str
    output: str
    options: CutOptions
    profile: str
    weights: str | None
    device: str
    threads: int
    max_decompression_ratio: float


class Ledger:
    """Which blocks were begun and not ended, because a worker's process ended; of those then also which pictures.

    So a picture costs no message, unless it is near one that ends processes.
    """

    def __init__(self) -> None:
        self._begun = Counter[str]()

    def begin(self, name: str) -> int:
        """How often this block or picture was begun before and never ended."""
        self._begun[name] += 1
        return self._begun[name] - 1

    def end(self, name: str) -> None:
        del self._begun[name]


class Worker:
    """A process that cuts one picture out after the other, of which Ray Data has a pool.

    Args:
        settings: of the job.
        ledger: the `Ledger`.
        shared: actors of `Networks`, with the node of each; where there are none, the worker has networks of its own.
    """

    def __init__(self, settings: Settings, ledger: Any, shared: Sequence[tuple[str, Any]]) -> None:
        self._settings, self._ledger = settings, ledger
        cv2.setNumThreads(settings.threads)
        if settings.threads == 1:
            work_alone()
        if shared:
            here = ray.get_runtime_context().get_node_id()
            near = [actor for node, actor in shared if node == here] or [actor for _, actor in shared]
            turns = itertools.cycle(random.sample(near, len(near)))
            call, facts = lambda *given: ray.get(next(turns).run.remote(*given)), ray.get(near[0].facts.remote())
        else:
            own = Networks(settings.profile, settings.weights, settings.device, settings.threads)
            call, facts = own.run, own.facts()
        self._models, self._digests = models(call, facts), json.dumps(facts["sha256"])
        self._output = Output(settings.output)
        self._io = ThreadPoolExecutor(READ_AHEAD + WRITTEN_LATER)
        self._failures_in_a_row = 0

    def __call__(self, block: pa.Table) -> pa.Table:
        """Cut out the pictures of a block, and add their rows to the manifest; the code of each.

        Raises:
            JobStopped: see there.
        """
        names = block.column("path").to_pylist()
        rows, later = [], deque[Future[dict[str, Any]]]()
        part = digest_of(names)
        watched = ray.get(self._ledger.begin.remote(part)) > 0
        for name, data in self._read(names):
            later.append(self._cut(name, data, watched))
            while len(later) > WRITTEN_LATER:
                rows.append(self._checked(later.popleft().result()))
        rows += [self._checked(each.result()) for each in later]
        self._output.put_part(part, rows)
        self._ledger.end.remote(part)
        return pa.table({"code": [row["code"] for row in rows]})

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, Future[bytes]]]:
        ahead = deque[tuple[str, Future[bytes]]]()
        for name in names:
            ahead.append((name, self._io.submit(read, self._settings.root, name)))
            if len(ahead) > READ_AHEAD:
                yield ahead.popleft()
        yield from ahead

    def _cut(self, name: str, data: Future[bytes], watched: bool) -> Future[dict[str, Any]]:
        """Cut one picture out; its row, when its cut-outs are written. The ledger knows of it if it is watched."""
        begun = time.perf_counter()
        row: dict[str, Any] = {"path": name, "outputs": [], "sha256": [], "models": self._digests}
        deaths = ray.get(self._ledger.begin.remote(name)) if watched else 0
        answer: Answer | None = None
        try:
            answer = self._answer(data.result(), deaths)
        except Exception as error:  # whatever is wrong with one picture must not end the others
            row |= _failure(error, name)
        if watched:
            self._ledger.end.remote(name)
        row["seconds"] = time.perf_counter() - begun
        return self._io.submit(self._write, row, answer)

    def _answer(self, data: bytes, deaths: int) -> Answer:
        if deaths >= MAX_DEATHS:
            raise InferenceError(
                f"The worker's process ended {deaths} times during this picture, and before that once in its block."
            )
        ratio = self._settings.max_decompression_ratio
        return run(data, self._settings.options, self._models, max_decompression_ratio=ratio)

    def _write(self, row: dict[str, Any], answer: Answer | None) -> dict[str, Any]:
        if answer is None:
            return row
        options = self._settings.options
        ids = [cutout["id"] if options.subject == "each" else None for cutout in answer.report["cutouts"]]
        names = [output_name(self._settings.root, row["path"], each, FORMS[options.output]) for each in ids]
        try:
            digests = [self._output.put(*each) for each in zip(names, answer.images, strict=True)]
        except FILE_ERRORS as error:
            return row | {"code": FILE_ERROR, "message": f"not written: {_first_line(error)}"}
        report = json.dumps(answer.report, ensure_ascii=False)
        return row | {"code": OK, "outputs": names, "sha256": digests, "report": report}

    def _checked(self, row: dict[str, Any]) -> dict[str, Any]:
        if row.pop("own_fault", row["code"] == OK):
            self._failures_in_a_row = 0
        else:
            self._failures_in_a_row += 1
        if self._failures_in_a_row >= RUN_GIVE_UP_FAILURES:
            raise JobStopped(f"{self._failures_in_a_row} pictures failed in a row, the last one: {row['message']}")
        return row


def _failure(error: Exception, name: str) -> dict[str, Any]:
    """What a row says of a picture that could not be cut out.

    A missing file is the list's fault, and so is whatever a host on the web answers: one that is gone, or refuses,
    would else end the job at its pictures each time.
    """
    if isinstance(error, FILE_ERRORS) and not isinstance(error, CutawayError):
        own_fault = isinstance(error, FileNotFoundError) or name.startswith(WEB)
        return {"code": FILE_ERROR, "message": _first_line(error), "own_fault": own_fault}
    cause = getattr(error, "cause", None) or error  # of an actor's error
    text = str(cause).lower()
    if isinstance(cause, CutawayError):
        found = cause
    elif "out of memory" in text or "failed to allocate memory" in text:
        found = GpuMemoryExhausted("The GPU has no memory left for this picture.")
    elif isinstance(cause, MemoryError):
        found = InferenceError("The picture needs more memory than there is.")
    else:
        found = InferenceError(f"{type(cause).__name__}: {_first_line(cause)}")
    return {"code": found.code, "message": found.message, "own_fault": isinstance(found, InputError)}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
