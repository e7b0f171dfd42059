"""The command ``cutaway``: cut, detect, health."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from cutaway import __version__
from cutaway.client import DEFAULT_URL, Client
from cutaway.errors import CutawayError, InvalidOption
from cutaway.files import Job, Writer, find_pictures, plan
from cutaway.limits import OPTIONS, PROCESSING_TIMEOUT_S, Option
from cutaway.options import parse_options
from cutaway.report import Notice

URL_VARIABLE = "CUTAWAY_URL"
RATIO_VARIABLE = "CUTAWAY_MAX_DECOMPRESSION_RATIO"

OK, FAILED, USAGE, UNAVAILABLE, INTERRUPTED = 0, 1, 2, 3, 130

EPILOG = f"""exit codes:
  {OK}    everything worked
  {FAILED}    a picture failed; the others were done
  {USAGE}    the command line makes no sense, or names no picture
  {UNAVAILABLE}    the server is not there or does not work; pictures that were left were not tried
  {INTERRUPTED}  interrupted

environment:
  {URL_VARIABLE}
      the server's address where --url is not given
  {RATIO_VARIABLE}
      the largest decompression ratio, where the server's operator raised it
"""

DETECT_OPTIONS = ("select", "boxes", "min_confidence", "max_people")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows another one
            stream.reconfigure(errors="replace")
    given = build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings(), _client(given) as client:
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            code: int = given.run(given, client)
            return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def build_parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="cutaway",
        description="Cut people and objects out of pictures with a Cutaway server.",
        epilog=EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=f"cutaway {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    about = "Cut people, or what the picture shows, out of pictures."
    cut = commands.add_parser("cut", help=about, description=about, epilog=EPILOG, formatter_class=formatter)
    cut.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder (and all below it) or pattern")
    cut.add_argument(
        "-o",
        "--output-dir",
        type=Path,
        default=Path("cutouts"),
        metavar="DIR",
        help="where cut-outs go, as NAME.png, or NAME-ID.png with --subject each (default: cutouts)",
    )
    cut.add_argument("--force", action="store_true", help="replace cut-outs that are there already")
    cut.add_argument("--quiet", action="store_true", help="say nothing but what failed")
    _add_server(cut)
    _add_options(cut, tuple(OPTIONS))
    cut.set_defaults(run=run_cut, parser=cut)

    about = "List the people in a picture without cutting them out."
    detect = commands.add_parser("detect", help=about, description=about, epilog=EPILOG, formatter_class=formatter)
    detect.add_argument("image", metavar="IMAGE", help="file")
    detect.add_argument("--json", action="store_true", help="print the server's whole report as JSON")
    _add_server(detect)
    _add_options(detect, DETECT_OPTIONS)
    detect.set_defaults(run=run_detect, parser=detect)

    about = "Send a small picture through the server's pipeline."
    health = commands.add_parser("health", help=about, description=about, epilog=EPILOG, formatter_class=formatter)
    health.add_argument("--json", action="store_true", help="print JSON")
    _add_server(health)
    health.set_defaults(run=run_health, parser=health)
    return parser


# -------------------------------------------------------------------------------------------------- commands


def run_cut(given: argparse.Namespace, client: Client) -> int:
    options = _options(given, tuple(OPTIONS))
    try:
        jobs = plan(find_pictures(given.images, given.output_dir), given.output_dir)
    except OSError as error:
        _refuse(given, str(error))
    writer = Writer(
        jobs,
        force=given.force,
        extension="webp" if options.get("output") == "webp" else "png",
        numbered=options.get("subject") == "each",
    )
    done, failed, gone = 0, 0, False
    with tqdm(jobs, unit="picture", leave=False, disable=True if given.quiet else None) as bar:
        for job in bar:
            try:
                lines = _cut_one(client, job, writer, options)
            except (CutawayError, OSError) as error:
                failed += 1
                _say(f"{job.source}: {_readable(error)}", sys.stderr)
                gone = isinstance(error, CutawayError) and error.code == "UNAVAILABLE"
                if gone:
                    break
            else:
                done += 1
                for line in () if given.quiet else lines:
                    _say(line, sys.stdout)
    if not given.quiet or failed:
        left = len(jobs) - done - failed
        parts = [f"{done} of {len(jobs)} done"]
        parts += [f"{number} {what}" for number, what in ((failed, "failed"), (left, "not tried")) if number]
        print(", ".join(parts), file=sys.stderr)
    if gone:
        return UNAVAILABLE
    return FAILED if failed else OK


def _cut_one(client: Client, job: Job, writer: Writer, options: dict[str, Any]) -> list[str]:
    """Cut one picture; the lines to print."""
    barred = writer.in_the_way(job)
    if barred is not None:
        raise FileExistsError(f"{barred} is there already; --force replaces cut-outs of earlier runs")
    result = client.cut(job.source, **options)
    targets = writer.write(job, result.cutouts)
    where = ", ".join(str(target) for target in targets)
    people = f"{_people(len(result.report.people))}, " if result.report.people else ""
    return [f"{job.source} → {where} ({people}{result.elapsed_ms:.0f} ms)", *_warning_lines(result.warnings)]


def run_detect(given: argparse.Namespace, client: Client) -> int:
    options = _options(given, DETECT_OPTIONS)
    try:
        found = client.detect(given.image, **options)
    except (CutawayError, OSError) as error:
        _say(f"{given.image}: {_readable(error)}", sys.stderr)
        return UNAVAILABLE if isinstance(error, CutawayError) and error.code == "UNAVAILABLE" else FAILED
    if given.json:
        print(json.dumps({"request_id": found.request_id, **found.report.raw}, indent=2))
        return OK
    report = found.report
    _say(f"{given.image}: {report.width_px}×{report.height_px}, {_people(len(found))}", sys.stdout)
    if len(found):
        print(f"{'id':>3} {'score':>6} {'x1':>7} {'y1':>7} {'x2':>7} {'y2':>7}")
    for person in report.people:
        corners = " ".join(f"{corner:7.1f}" for corner in person.box)
        print(f"{person.id:3d} {person.score:6.3f} {corners}")
    for line in _warning_lines(found.warnings):
        _say(line, sys.stdout)
    return OK


def run_health(given: argparse.Namespace, client: Client) -> int:
    health = client.health()
    error = health.error
    if given.json:
        form = {
            "url": health.url,
            "ok": health.ok,
            "server_ready": health.server_ready,
            "model_ready": health.model_ready,
            "round_trip_ms": health.round_trip_ms,
            "profile": health.profile,
            "device": health.device,
            "error": error.to_dict() if error else None,
        }
        print(json.dumps(form, indent=2))
        return OK if health.ok else UNAVAILABLE
    rows = {
        "server": f"{health.url} is {'ready' if health.server_ready else 'not ready'}",
        "pipeline": "ready" if health.model_ready else "not ready",
        "picture": "no answer" if health.round_trip_ms is None else f"came back in {health.round_trip_ms:.0f} ms",
        "profile": health.profile,
        "device": health.device,
    }
    for name, text in rows.items():
        if text:
            _say(f"{name:<9} {text}", sys.stdout)
    if error is not None:
        _say(_readable(error), sys.stderr)
    return OK if health.ok else UNAVAILABLE


# ---------------------------------------------------------------------------------------- the command line


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url",
        default=None,
        help=f"grpc://HOST:8001 or http://HOST:8000; grpcs:// and https:// for TLS (default: ${URL_VARIABLE}, "
        f"else {DEFAULT_URL})",
    )
    group.add_argument(
        "--timeout-s",
        type=float,
        default=PROCESSING_TIMEOUT_S,
        metavar="SECONDS",
        help=f"give a picture up after this long (default: {PROCESSING_TIMEOUT_S:g})",
    )


def _add_options(parser: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    group = parser.add_argument_group("what and how")
    for option in (OPTIONS[name] for name in names):
        flag = f"--{option.name.replace('_', '-')}"
        text = f"{option.help} ({_allowed(option)})".replace("%", "%%")
        if option.kind == "bool":
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif option.kind == "choice":
            group.add_argument(flag, choices=option.choices, default=None, help=text)
        else:
            group.add_argument(flag, default=None, metavar=_METAVARS[option.kind], help=text)


_METAVARS = {"int": "N", "float": "X", "ids": "ID,ID", "boxes": "X1,Y1,X2,Y2;…", "background": "BACKGROUND"}


def _allowed(option: Option) -> str:
    parts = [] if option.kind in ("choice", "bool") else [option.allowed]
    if option.default is not None:
        default = ("no", "yes")[option.default] if isinstance(option.default, bool) else option.default
        parts.append(f"default: {default}")
    return "; ".join(parts)


def _options(given: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    options = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    # Lists come as JSON or, which is easier to type, with commas.
    for name, opened, closed in (("select", "[", "]"), ("boxes", "[[", "]]")):
        text = options.get(name)
        if isinstance(text, str) and not text.lstrip().startswith("["):
            options[name] = opened + text.replace(";", "],[") + closed
    try:
        parse_options(options)
    except InvalidOption as error:
        _refuse(given, error.message)
    return options


def _client(given: argparse.Namespace) -> Client:
    ratio = os.environ.get(RATIO_VARIABLE)
    try:
        return Client(
            given.url or os.environ.get(URL_VARIABLE) or DEFAULT_URL,
            timeout_s=given.timeout_s,
            max_decompression_ratio=float(ratio) if ratio else None,
        )
    except ValueError as error:
        _refuse(given, str(error))


def _refuse(given: argparse.Namespace, message: str) -> NoReturn:
    """End with the subcommand's usage line."""
    parser: argparse.ArgumentParser = given.parser
    parser.error(message)


# ------------------------------------------------------------------------------------------------- talking


def _say(text: str, stream: TextIO) -> None:
    """Print a line beside the progress bar; names and servers' words cannot steer the terminal."""
    tqdm.write("".join(c if c.isprintable() else "�" for c in text), file=stream)


def _readable(error: Exception) -> str:
    if isinstance(error, CutawayError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _warning_lines(notices: Sequence[Notice]) -> list[str]:
    return [f"  warning: {notice.message} ({notice.code})" for notice in notices]


def _people(number: int) -> str:
    return {0: "nobody", 1: "1 person"}.get(number, f"{number} people")


def _show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    _say(f"warning: {message}", sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
