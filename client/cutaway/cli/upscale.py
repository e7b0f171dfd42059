"""``cutaway upscale``."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, cast

from cutaway.cancel import Cancel
from cutaway.cli.batch import Batch, Finished
from cutaway.cli.connect import open_client
from cutaway.cli.files import Job
from cutaway.cli.sources import Plan, planned, to_stdout
from cutaway.cli.talking import duration

if TYPE_CHECKING:
    from cutaway.many import Outcome
    from cutaway.result import UpscaleResult

FORMATS = ("png", "jpg", "jpeg", "webp")
WRITABLE = ("png", "jpg", "webp")


def run(given: argparse.Namespace) -> int:
    """Enlarge the pictures that the command line names; returns the exit code."""
    with planned(given, FORMATS, WRITABLE) as plan:
        return _upscale(given, plan)


def _upscale(given: argparse.Namespace, plan: Plan) -> int:
    output = plan.output(given, {"command": "upscale", "scale": given.scale}, FORMATS[0], others=FORMATS[1:])

    def finish(job: Job, result: UpscaleResult) -> Finished:
        extension = result.extension.lstrip(".")
        target = job.target(None, extension)
        if target.suffix.lower().lstrip(".").replace("jpeg", "jpg") != extension:
            target = target.with_suffix(f".{extension}")  # it was paid for: keep it, by a name that fits
        if output is None:
            to_stdout(result.data)
        else:
            origin = {"provider": result.provider, "tier": result.tier, "model": result.model}
            output.finish(job, {target: result.data}, origin)
        size = f"{result.width_px}×{result.height_px}"
        where = target if output is not None else "standard output"
        line = f"{job.source} → {where} ({size}, {duration(result.elapsed_ms)}, by {result.provider}: {result.model})"
        form = {
            "outputs": [{"path": str(target), "bytes": len(result.data)}],
            "width_px": result.width_px,
            "height_px": result.height_px,
            "provider": result.provider,
            "tier": result.tier,
            "tried": [each.to_dict() for each in result.tried],
            "model": result.model,
            "licence": result.licence,
            "cost": result.cost,
            "elapsed_ms": round(result.elapsed_ms, 1),
            "request_id": result.request_id,
        }
        return Finished(form, [line], result.provider, result.tier)

    with open_client(given, upscales=True) as client:

        def enlarge(image: Any, cancel: Cancel) -> UpscaleResult:
            return client.upscale(image, given.scale, cancel=cancel)

        def start(images: Iterable[Any], cancel: Cancel) -> Generator[Outcome, None, None]:
            from cutaway.many import run_many

            return run_many(cast("Any", enlarge), images, jobs=given.jobs, ordered=False, cancel=cancel)

        return Batch(plan.jobs, plan.teller, finish, output=output).run(start)
