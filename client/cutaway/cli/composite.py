"""``cutaway composite``."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cutaway.cancel import Cancel
from cutaway.cli.batch import Batch, Finished
from cutaway.cli.connect import checked_options, open_client, refuse
from cutaway.cli.cut import detection_form, kept_options, origin_of, served
from cutaway.cli.files import Job
from cutaway.cli.parser import COMPOSITE_OPTIONS
from cutaway.cli.sources import Plan, planned, to_stdout
from cutaway.cli.talking import people, readable, warning_lines
from cutaway.contract.errors import CutawayError, InvalidOption
from cutaway.contract.options import parse_options

if TYPE_CHECKING:
    from cutaway.composite import CompositeResult, Placement
    from cutaway.many import Outcome

EXTENSIONS = {"png": ("png",), "webp": ("webp",), "jpeg": ("jpg", "jpeg")}
WRITABLE = tuple(extensions[0] for extensions in EXTENSIONS.values())


def run(given: argparse.Namespace) -> int:
    """Cut out and put onto something else what the command line names; returns the exit code."""
    named = given.output_dir.suffix.lower().lstrip(".")
    if given.output is None:
        given.output = next((form for form, extensions in EXTENSIONS.items() if named in extensions), "png")
    who = checked_options(given, COMPOSITE_OPTIONS)
    onto, name = _onto(given)
    how: dict[str, Any] = {"place": _place(given)} | {
        each: getattr(given, each) for each in ("match_colour", "shadow", "output", "quality")
    }
    how["size_px"] = _size(given)
    with planned(given, EXTENSIONS[given.output], WRITABLE) as plan:
        return _put(given, plan, onto, who, how, kept_options("composite", who) | {"onto": name} | _changed(given))


def _put(
    given: argparse.Namespace,
    plan: Plan,
    onto: str | bytes,
    who: Mapping[str, Any],
    how: Mapping[str, Any],
    kept: Mapping[str, Any],
) -> int:
    extension = EXTENSIONS[given.output][0]
    output = plan.output(given, kept, extension)

    def finish(job: Job, result: CompositeResult) -> Finished:
        cut = result.cut
        assert cut is not None
        target = job.target(None, extension)
        if output is None:
            to_stdout(result.data)
        else:
            output.finish(job, {target: result.data}, origin_of(cut))
        where = target if output is not None else "standard output"
        who_is_there = f"{people(len(cut.report.people))}, " if cut.report.people else ""
        line = f"{job.source} → {where} ({result.width_px}×{result.height_px}, {who_is_there}{served(cut)})"
        made = {
            "path": str(target),
            "width_px": result.width_px,
            "height_px": result.height_px,
            "frames": [list(frame) for frame in result.frames],
            "bytes": len(result.data),
        }
        form = {"outputs": [made], **detection_form(cut)}
        return Finished(form, [line, *warning_lines(cut.warnings)], cut.provider, cut.tier)

    with open_client(given) as client:

        def put(image: Any, cancel: Cancel) -> CompositeResult:
            return client.composite(image, onto, cancel=cancel, **how, **who)

        def start(images: Iterable[Any], cancel: Cancel) -> Generator[Outcome, None, None]:
            from cutaway.many import run_many

            return run_many(cast("Any", put), images, jobs=given.jobs, ordered=False, cancel=cancel)

        return Batch(plan.jobs, plan.teller, finish, output=output).run(start)


def _onto(given: argparse.Namespace) -> tuple[str | bytes, str]:
    """What goes behind, and what the journal calls it; ends the command where it makes no sense."""
    text: str = given.onto
    if text == "transparent" or re.match("#|blur:", text):
        try:
            parse_options({"background": text})
        except InvalidOption as error:
            refuse(given, f"--onto: {error.message}")
        if given.match_colour:
            refuse(given, "--match-colour takes the colours of a picture: --onto names none")
        if text == "transparent" and given.output == "jpeg":
            refuse(given, "a JPEG cannot be transparent: use --output png or webp")
        return text, text.upper() if text.startswith("#") else text
    from cutaway.inputs import encode

    try:
        # Read once for all pictures, and checked before anything is sent.
        data = encode(Path(text)).data
    except (CutawayError, OSError) as error:
        refuse(given, f"--onto: {readable(error)}")
    return data, f"{Path(text).name} (sha256 {hashlib.sha256(data).hexdigest()[:16]})"


def _changed(given: argparse.Namespace) -> dict[str, Any]:
    """What is not left at its default, as the journal has it."""
    names = ["place", "scale", "offset", "flip", "match_colour", "shadow", "size"]
    if given.output != "png":  # which is lossless, and whose form stands in the file's name
        names.append("quality")
    found = {name: getattr(given, name) for name in names if getattr(given, name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _place(given: argparse.Namespace) -> Placement | None:
    if given.place is None and given.scale is None and given.offset is None and not given.flip:
        return None
    from cutaway.composite import Placement

    try:
        return Placement(anchor=given.place, scale=given.scale, offset_px=given.offset or (0, 0), flip=given.flip)
    except InvalidOption as error:
        refuse(given, error.message)


def _size(given: argparse.Namespace) -> tuple[int, int] | None:
    from cutaway.compositing.backgrounds import check_size

    try:
        return check_size(given.size)
    except CutawayError as error:
        refuse(given, f"--size: {error.message}")
