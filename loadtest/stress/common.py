"""What the scripts have in common: claims with figures, and where they are written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import head, load_before, publish, sentence
from loadtest.running import OUTPUT, PACKAGES, end_in_order
from runtime.checks import RuntimeProblem


@dataclass(frozen=True)
class Claim:
    """What has to hold, with its limit; what was found, both in words; and whether it holds."""

    what: str
    figure: str
    holds: bool


@dataclass(frozen=True)
class Found:
    """What came of a script: claims, JSON values for further use, and further Markdown."""

    claims: Sequence[Claim]
    figures: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


Measure = Callable[[argparse.Namespace, Path], Found]


def script_main(name: str, doc: str | None, measure: Measure, options: Mapping[str, tuple[Any, str]]) -> int:
    """Run a script: 0 where all claims hold, 1 where one does not, 2 where it could not run.

    The doc's first paragraph is the command's description; `options` are default and help by name.
    """
    parser = argparse.ArgumentParser(prog=f"python -m loadtest.stress.{name}", description=(doc or "").split("\n\n")[0])
    for option, (default, text) in {**options, "profile": ("nano", "of the server that is started")}.items():
        parser.add_argument(f"--{option}", type=type(default), default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, metavar="DIR", help="(default: %(default)s)")
    given = parser.parse_args()
    end_in_order()
    load = load_before()
    folder = given.output / f"stress-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = measure(given, folder)
    except RuntimeProblem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    report = {
        **head(PACKAGES, load),
        **asdict(found),
    }
    rows = [f"| {each.what} | {each.figure} | {'holds' if each.holds else '**MISSED**'} |" for each in found.claims]
    table = "\n".join(["| wanted | found | |", "|---|---|---|", *rows])
    title = f"# Under stress: {name}, {report['date'][:10]}"
    publish(folder, "stress", report, f"{title}\n\n{table}\n\n{found.text}\n\nOn {sentence(report)}\n")
    return 0 if all(claim.holds for claim in found.claims) else 1
