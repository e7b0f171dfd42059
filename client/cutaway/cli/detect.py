"""``cutaway detect``."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, cast

from cutaway.cancel import Cancel
from cutaway.cli.batch import Batch, Finished
from cutaway.cli.connect import checked_options, open_client, refuse
from cutaway.cli.files import Job
from cutaway.cli.parser import DETECT_OPTIONS
from cutaway.cli.sources import jobs_of
from cutaway.cli.talking import Teller, people, readable, warning_lines

if TYPE_CHECKING:
    from cutaway.many import Outcome
    from cutaway.result import Detection


def run(given: argparse.Namespace) -> int:
    """Look for people in the pictures that the command line names; returns the exit code."""
    options = checked_options(given, DETECT_OPTIONS)
    try:
        jobs = jobs_of(given)
    except OSError as error:
        refuse(given, readable(error))
    teller = Teller(as_json=given.json, quiet=given.quiet)
    with open_client(given) as client:

        def look(image: Any, cancel: Cancel) -> Detection:
            return client.detect(image, cancel=cancel, **options)

        def start(images: Iterable[Any], cancel: Cancel) -> Generator[Outcome, None, None]:
            from cutaway.many import run_many

            return run_many(cast("Any", look), images, jobs=given.jobs, ordered=True, cancel=cancel)

        return Batch(jobs, teller, _told).run(start)


def _told(job: Job, found: Detection) -> Finished:
    report = found.report
    lines = [f"{job.source}: {report.width_px}×{report.height_px}, {people(len(found))}"]
    if len(found):
        lines.append(f"{'id':>3} {'score':>6} {'x1':>7} {'y1':>7} {'x2':>7} {'y2':>7}")
    for person in report.people:
        corners = " ".join(f"{corner:7.1f}" for corner in person.box)
        lines.append(f"{person.id:3d} {person.score:6.3f} {corners}")
    return Finished({"request_id": found.request_id, **report.raw}, [*lines, *warning_lines(found.warnings)])
