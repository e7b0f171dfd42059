"""The command line. Numbers and option texts come from the table in :mod:`cutaway.contract.limits`."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cutaway import __version__
from cutaway.cli.codes import EPILOG, TOKEN_VARIABLE, URL_VARIABLE
from cutaway.cli.numbers import percent, pixels, positive_number, positive_whole, share, whole
from cutaway.cli.streams import writing
from cutaway.compositing.placing import ANCHORS
from cutaway.contract import limits
from cutaway.contract.limits import OPTIONS, STREAM_OPTIONS, Option

DETECT_OPTIONS = ("select", "boxes", "min_confidence", "max_people")
STREAM_FLAGS = ("background", "min_confidence", "smoothing")
COMPOSITE_OPTIONS = tuple(name for name in OPTIONS if name not in ("background", "output"))
SHELLS = ("bash", "zsh", "fish")

MANY = "IMAGE [IMAGE ...]"
IMAGES = "file, folder (and all below it) or pattern; - for standard input"
_METAVARS = {"int": "N", "float": "X", "ids": "ID,ID", "boxes": "X1,Y1,X2,Y2;…", "background": "BACKGROUND"}


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        """Not as argparse does it, which ignores that it cannot write: who asks for help gets it, or an error."""
        stream = file or sys.stderr
        with writing(stream):
            stream.write(message)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; `command` names the module that runs what was parsed."""
    parser = _Parser(
        prog="cutaway",
        description="Cut people and objects out of pictures with a Cutaway server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"cutaway {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_cut,
        _add_detect,
        _add_composite,
        _add_upscale,
        _add_stream,
        _add_health,
        _add_models,
        _add_completion,
    ):
        add(commands)
    return parser


# -------------------------------------------------------------------------------------------------- commands


def _add_cut(commands: Any) -> None:
    cut = _command(commands, "cut", "Cut people, or what pictures show, out of them.", takes=MANY)
    _add_pictures(cut, "cutouts", "NAME.png, or NAME-ID.png with --subject each")
    _add_json(cut, "print one JSON object per picture; words for people go to standard error")
    _add_server(cut, hosted=True)
    _add_fallback(cut, "ask these hosted models, in this order, where the server does not serve")
    _add_cache(cut)
    _add_options(cut.add_argument_group("what and how"), tuple(OPTIONS))


def _add_detect(commands: Any) -> None:
    detect = _command(commands, "detect", "List the people in pictures without cutting them out.", takes=MANY)
    detect.add_argument("images", nargs="+", metavar="IMAGE", help=IMAGES)
    _add_jobs(detect)
    _add_json(detect, "print the server's whole report as one JSON object per picture")
    detect.add_argument("--quiet", action="store_true", help="no progress and no summary")
    _add_server(detect)
    _add_cache(detect)
    _add_options(detect.add_argument_group("what and how"), DETECT_OPTIONS)


def _add_composite(commands: Any) -> None:
    about = "Cut people, or what pictures show, out and put them onto something else."
    composite = _command(commands, "composite", about, takes=f"--onto BACKGROUND {MANY}")
    _add_pictures(composite, "composites", "NAME.png")
    _add_json(composite, "print one JSON object per picture; words for people go to standard error")
    group = composite.add_argument_group("onto what, and how")
    group.add_argument(
        "--onto",
        required=True,
        metavar="BACKGROUND",
        help="a colour #RRGGBB, a picture's file, blur:<px> for the blurred original, or transparent",
    )
    least, most = limits.COMPOSITE_SCALE
    group.add_argument(
        "--place",
        choices=ANCHORS,
        metavar="WHERE",
        help=f"corner, edge or centre that they are put to: {', '.join(ANCHORS)} (default: where they were)",
    )
    group.add_argument(
        "--scale",
        type=positive_number,
        metavar="X",
        help=f"their height as a share of the picture's, {least:g} to {most:g} (default: as it was)",
    )
    group.add_argument(
        "--offset",
        type=pixels,
        metavar="X,Y",
        help="move them so many pixels to the right and down, or with -X,-Y to the left and up (default: 0,0)",
    )
    group.add_argument("--flip", action="store_true", help="mirror them left to right")
    group.add_argument(
        "--match-colour",
        type=share,
        default=0.0,
        metavar="X",
        help="how far their colours go towards those of the picture behind, 0 to 1 (default: 0)",
    )
    group.add_argument(
        "--shadow",
        type=share,
        default=0.0,
        metavar="X",
        help="strength of a soft shadow where feet touch the ground, 0 to 1 (default: 0)",
    )
    group.add_argument(
        "--size",
        type=pixels,
        metavar="WIDTH,HEIGHT",
        help="size of the result (default: the picture's behind, else the original's)",
    )
    group.add_argument(
        "--output",
        choices=limits.COMPOSITE_OUTPUTS,
        default=None,
        help="form of what comes out (default: png, or what the name that -o gives says)",
    )
    group.add_argument(
        "--quality",
        type=percent,
        default=limits.COMPOSITE_QUALITY,
        metavar="N",
        help=f"of a WebP or JPEG, 1 to 100 (default: {limits.COMPOSITE_QUALITY})",
    )
    _add_server(composite, hosted=True)
    _add_fallback(composite, "ask these hosted models, in this order, where the server does not serve")
    _add_cache(composite)
    _add_options(composite.add_argument_group("what and how"), COMPOSITE_OPTIONS)


def _add_upscale(commands: Any) -> None:
    bounds = limits.UPSCALE_LIMITS
    more = (
        f"Of at most {bounds.max_long_side_px}×{bounds.max_short_side_px}, by "
        f"{' or '.join(map(str, limits.UPSCALE_SCALES))} along each side. Cutaway servers do not do this: the pictures "
        "leave your network, and most providers charge."
    )
    upscale = _command(
        commands, "upscale", "Enlarge pictures by hosted models.", more=more, takes=f"--fallback SPEC {MANY}"
    )
    _add_pictures(upscale, "upscaled", "NAME.png, .jpg or .webp, as it comes")
    _add_json(upscale, "print one JSON object per picture; words for people go to standard error")
    scales = limits.UPSCALE_SCALES
    upscale.add_argument(
        "--scale",
        type=int,
        choices=scales,
        default=scales[0],
        help=f"times as many pixels along each side (default: {scales[0]})",
    )
    upscale.add_argument("-v", "--verbose", action="store_true", help="tell of hosted models that fail, and of repeats")
    _add_timeout(upscale, f"default: {limits.FALLBACK_TIMEOUT_S:g}")
    _add_fallback(upscale, "ask these hosted models, in this order; at least one", required=True)
    upscale.set_defaults(
        url=None, token_env=None, header=None, ca_file=None, cert_file=None, key_file=None, retries=None
    )


def _add_stream(commands: Any) -> None:
    more = (
        "Of a file every frame is sent, of a camera the latest one. Frames that cannot be worked on are written as "
        "they are, and counted. Needs OpenCV (pip install opencv-python-headless)."
    )
    about = "Put the people of a video before another background."
    stream = _command(commands, "stream", about, more=more, takes="VIDEO")
    stream.add_argument("source", metavar="VIDEO", help="a video's file, or a camera's number (0 is the first)")
    stream.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("stream.mp4"),
        metavar="FILE",
        help="what is written: .mp4, .avi or .mkv (default: stream.mp4)",
    )
    stream.add_argument("--force", action="store_true", help="replace a file that is there")
    stream.add_argument("--quiet", action="store_true", help="say nothing but what failed")
    _add_json(stream, "print the counts as one JSON object")
    _add_server(stream, repeats=False)
    group = stream.add_argument_group("what and how")
    default = STREAM_OPTIONS["background"].default
    group.add_argument(
        "--background",
        metavar="BACKGROUND",
        help=f"a colour #RRGGBB, a picture's file, or blur:<px> for the blurred frame (default: {default})",
    )
    _add_options(group, STREAM_FLAGS[1:], STREAM_OPTIONS)


def _add_health(commands: Any) -> None:
    health = _command(commands, "health", "Send a small picture through each server's pipeline.")
    _add_json(health, "print one JSON object per server")
    _add_server(health)


def _add_models(commands: Any) -> None:
    models = _command(commands, "models", "List the models that each server runs, with what goes in and comes out.")
    _add_json(models, "print one JSON object per server")
    _add_server(models)


def _add_completion(commands: Any) -> None:
    about = "Print a script that makes a shell complete this command."
    completion = _command(commands, "completion", about, takes=f"{{{','.join(SHELLS)}}}", epilog=_HOW_TO_COMPLETE)
    completion.add_argument("shell", choices=SHELLS, help="which shell")


_HOW_TO_COMPLETE = """where it goes:
  bash    cutaway completion bash > ~/.local/share/bash-completion/completions/cutaway
  zsh     cutaway completion zsh > a folder of $fpath, as _cutaway
  fish    cutaway completion fish > ~/.config/fish/completions/cutaway.fish
"""


# ---------------------------------------------------------------------------------------- what several share


def _command(
    commands: Any, name: str, about: str, *, more: str = "", takes: str = "", epilog: str = EPILOG
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        usage=f"%(prog)s [OPTION ...] {takes}".rstrip(),
        help=about.rstrip("."),
        description="\n\n".join(textwrap.fill(text, 79) for text in (about, more) if text),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=name, parser=parser)
    # No option begins like a number, so that -40,0 is a value. argparse has no public way to say it.
    parser._negative_number_matcher = re.compile(r"-\.?\d")
    return parser


def _add_pictures(parser: argparse.ArgumentParser, folder: str, names: str) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=IMAGES)
    parser.add_argument(
        "-o",
        "--output-dir",
        type=Path,
        default=Path(folder),
        metavar="DIR",
        help=f"folder for what is made, as {names} (default: {folder}); of one picture also a file, "
        "or - for standard output",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="make again what was done earlier, and replace what is there; otherwise what is done is skipped",
    )
    _add_jobs(parser)
    parser.add_argument("--quiet", action="store_true", help="say nothing but what failed")


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs",
        type=positive_whole,
        default=limits.CUT_MANY_JOBS,
        metavar="N",
        help=f"pictures in flight at once (default: {limits.CUT_MANY_JOBS})",
    )


def _add_json(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--json", action="store_true", help=text)


def _add_server(parser: argparse.ArgumentParser, *, hosted: bool = False, repeats: bool = True) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--url",
        action="append",
        help="grpc://HOST:8001 or http://HOST:8000; grpcs:// and https:// for TLS; may be given several times for "
        f"equal servers (default: ${URL_VARIABLE}, else {limits.DEFAULT_URL})",
    )
    group.add_argument(
        "-v", "--verbose", action="store_true", help="tell of servers and hosted models that fail, and of repeats"
    )
    with_fallback = f", with --fallback {limits.FALLBACK_TIMEOUT_S:g}" if hosted else ""
    _add_timeout(group, f"default: {limits.PROCESSING_TIMEOUT_S:g}{with_fallback}")
    if repeats:
        group.add_argument(
            "--retries",
            type=whole,
            metavar="N",
            help=f"repeat what may succeed later so often (default: {limits.RETRIES})",
        )
    group.add_argument(
        "--token-env",
        metavar="VARIABLE",
        help=f"the environment variable that holds the bearer token (default: {TOKEN_VARIABLE})",
    )
    group.add_argument(
        "--header", action="append", metavar="'NAME: VALUE'", help="sent with every request; may be given several times"
    )
    for flag, text in (
        ("--ca-file", "trust only what these authorities signed (PEM)"),
        ("--cert-file", "the client's own certificate (PEM)"),
        ("--key-file", "the certificate's key (PEM)"),
    ):
        group.add_argument(flag, type=Path, metavar="FILE", help=text)


def _add_timeout(parser: Any, default: str) -> None:
    parser.add_argument(
        "--timeout-s",
        type=positive_number,
        metavar="SECONDS",
        help=f"give a picture up after this long, everything included ({default})",
    )


def _add_fallback(parser: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    group = parser.add_argument_group("hosted models", "Pictures leave your network, without metadata.")
    group.add_argument(
        "--fallback",
        action="append",
        required=required,
        metavar="SPEC",
        help=f"{text}: huggingface[:MODEL], replicate[:MODEL], space:OWNER/NAME; with commas, or several times",
    )
    group.add_argument(
        "--accept-noncommercial",
        action="store_true",
        help="weights that may not be used commercially are all right, such as those of briaai/RMBG-1.4",
    )


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep answers in this folder, and take them from there"
    )


def _add_options(group: Any, names: Sequence[str], table: Mapping[str, Option] = OPTIONS) -> None:
    for option in (table[name] for name in names):
        flag = f"--{option.name.replace('_', '-')}"
        text = f"{option.help} ({_allowed(option)})".replace("%", "%%")
        if option.kind == "bool":
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif option.kind == "choice":
            group.add_argument(flag, choices=option.choices, default=None, help=text)
        else:
            group.add_argument(flag, default=None, metavar=_METAVARS[option.kind], help=text)


def _allowed(option: Option) -> str:
    parts = [] if option.kind in ("choice", "bool") else [option.allowed]
    if option.default is not None:
        default = ("no", "yes")[option.default] if isinstance(option.default, bool) else option.default
        parts.append(f"default: {default}")
    return "; ".join(parts)
