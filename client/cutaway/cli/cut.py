"""``cutaway cut``."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.cancel import Cancel
from cutaway.cli.batch import Batch, Finished
from cutaway.cli.connect import checked_options, open_client
from cutaway.cli.files import Job
from cutaway.cli.output import OutputFolder
from cutaway.cli.sources import Plan, planned, to_stdout
from cutaway.cli.talking import duration, notice_form, people, warning_lines
from cutaway.contract.errors import InvalidOption
from cutaway.contract.limits import OPTIONS
from cutaway.contract.options import Background, parse_options

if TYPE_CHECKING:
    from cutaway.many import Outcome
    from cutaway.result import Cutout, CutResult, Detection


WRITABLE = ("png", "webp")


def run(given: argparse.Namespace) -> int:
    """Cut the pictures that the command line names; returns the exit code."""
    if given.output is None and given.output_dir.suffix.lower() == ".webp":
        given.output = "webp"
    options = checked_options(given, tuple(OPTIONS))
    extension = "webp" if options.get("output") == "webp" else "png"
    with planned(given, (extension,), WRITABLE) as plan:
        return _cut(given, plan, options, extension)


def _cut(given: argparse.Namespace, plan: Plan, options: Mapping[str, Any], extension: str) -> int:
    numbered = options.get("subject") == "each" and plan.destination.takes_many
    output = plan.output(given, kept_options("cut", options), extension, numbered=numbered)

    def finish(job: Job, result: CutResult) -> Finished:
        return _kept(job, result, plan, output, numbered=numbered)

    with open_client(given) as client:

        def start(images: Iterable[Any], cancel: Cancel) -> Generator[Outcome, None, None]:
            return client.cut_many(images, jobs=given.jobs, cancel=cancel, **options)

        return Batch(plan.jobs, plan.teller, finish, output=output).run(start)


def _kept(job: Job, result: CutResult, plan: Plan, output: OutputFolder | None, *, numbered: bool) -> Finished:
    """Write a picture's cut-outs.

    Raises:
        InvalidOption, OSError: they cannot be written.
    """
    if not plan.destination.takes_many and len(result.cutouts) != 1:
        raise InvalidOption(
            f"There are {len(result.cutouts)} cut-outs, and one file to hold them.",
            user_action="Name a folder with -o, or choose one person with --select.",
            details={"name": "-o", "value": str(plan.destination.file or "-"), "allowed": "a folder"},
            request_id=result.request_id,
        )
    targets = {job.target(each.id if numbered else None, each.format): each for each in result.cutouts}
    who = f"{people(len(result.report.people))}, " if result.report.people else ""
    forms = [_output_form(target, each) for target, each in targets.items()]
    if output is None:
        to_stdout(result.cutouts[0].image)
        where = "standard output"
    else:
        output.finish(job, {target: each.image for target, each in targets.items()}, origin_of(result))
        where = ", ".join(map(str, targets))
    lines = [f"{job.source} → {where} ({who}{served(result)})", *warning_lines(result.warnings)]
    return Finished({"outputs": forms, **detection_form(result)}, lines, result.provider, result.tier)


def kept_options(command: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The command and those options that are not left at their defaults, as the journal has them."""
    parsed, defaults = parse_options(options), parse_options({})
    changed = {
        name: _plain(getattr(parsed, name)) for name in OPTIONS if getattr(parsed, name) != getattr(defaults, name)
    }
    return {"command": command, **changed}


def _plain(value: Any) -> Any:
    """An option's checked value as JSON has it."""
    if isinstance(value, Background):
        if value.colour_rgb is not None:
            return "#" + bytes(value.colour_rgb).hex().upper()
        return f"blur:{value.blur_px}" if value.blur_px is not None else "transparent"
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def served(result: Detection) -> str:
    """How long it took and who did it, where that is not the server itself."""
    words = duration(result.elapsed_ms)
    if result.from_cache:
        return f"{words}, from the cache"
    return words if result.tier == 1 else f"{words}, by {result.provider} (hosted)"


def origin_of(result: Detection) -> dict[str, Any]:
    """Who made it, for the journal."""
    return {"provider": result.provider, "tier": result.tier, "profile": result.report.profile}


def detection_form(result: Detection) -> dict[str, Any]:
    """What is known of a result, for programs."""
    report = result.report
    return {
        "width_px": report.width_px,
        "height_px": report.height_px,
        "people": [{"id": each.id, "box": list(each.box), "score": each.score} for each in report.people],
        "provider": result.provider,
        "tier": result.tier,
        "tried": [each.to_dict() for each in result.tried],
        "requests": result.requests,
        "from_cache": result.from_cache,
        "profile": report.profile,
        "device": report.device,
        "elapsed_ms": round(result.elapsed_ms, 1),
        "timings_ms": dict(result.timings_ms),
        "warnings": [notice_form(notice, result.request_id) for notice in result.warnings],
        "request_id": result.request_id,
    }


def _output_form(target: Path, cutout: Cutout) -> dict[str, Any]:
    return {
        "path": str(target),
        "id": cutout.id,
        "people": list(cutout.people),
        "box": list(cutout.box),
        "score": cutout.score,
        "frame": list(cutout.frame),
        "bytes": len(cutout.image),
    }
