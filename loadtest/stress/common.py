"""What the scripts have in common: claims with figures, and where they are written."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import load_before, machine, sentence, versions
from loadtest.running import OUTPUT, PACKAGES, end_in_order, installed, say
from runtime.checks import RuntimeProblem


@dataclass(frozen=True)
class Claim:
    """Something that has to hold.

    Attributes:
        what: in words, with the limit.
        figure: what was found, in words.
        holds: whether it does.
    """

    what: str
    figure: str
    holds: bool


@dataclass(frozen=True)
class Found:
    """What came of a script.

    Attributes:
        claims: what was to be shown.
        figures: JSON values, for whoever wants to reckon further.
        text: Markdown between the claims and the machine: tables.
        plots: SVG by the file's name, without its ending.
    """

    claims: Sequence[Claim]
    figures: Mapping[str, Any]
    text: str
    plots: Mapping[str, str]


def script_main(
    name: str,
    description: str | None,
    add_options: Callable[[argparse.ArgumentParser], None],
    measure: Callable[[argparse.Namespace, Path], Found],
    arguments: Sequence[str] | None,
) -> int:
    """Run a script: 0 where all claims hold, 1 where one does not, 2 where it could not run."""
    parser = argparse.ArgumentParser(prog=f"python -m loadtest.stress.{name}", description=description)
    add_options(parser)
    parser.add_argument("--profile", default="nano", help="of the server that is started (default: nano)")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, metavar="DIR", help=f"default: {OUTPUT}")
    options = parser.parse_args(arguments)
    end_in_order()
    load, warning = load_before()
    if warning:
        say(warning)
    folder = options.output / f"stress-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = measure(options, folder)
    except RuntimeProblem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    report = {
        "name": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(load),
        "versions": versions(installed(PACKAGES)),
        "claims": [asdict(claim) for claim in found.claims],
        "figures": found.figures,
    }
    text = markdown(report, found)
    (folder / "stress.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "stress.md").write_text(text)
    for title, svg in found.plots.items():
        (folder / f"{title}.svg").write_text(svg)
    print(text)
    say(f"written to {folder}")
    return 0 if all(claim.holds for claim in found.claims) else 1


def markdown(report: Mapping[str, Any], found: Found) -> str:
    lines = [f"# Under stress: {report['name']}, {report['date'][:10]}", "", "| wanted | found | |", "|---|---|---|"]
    lines += [
        f"| {claim.what} | {claim.figure} | {'holds' if claim.holds else '**MISSED**'} |" for claim in found.claims
    ]
    lines += ["", found.text, "", f"On {sentence(dict(report))}", ""]
    return "\n".join(lines)
