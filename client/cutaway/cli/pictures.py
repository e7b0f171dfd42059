"""``cutaway cut``, ``detect``, ``composite`` and ``upscale``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import cutaway
from cutaway.cli import options
from cutaway.cli.batch import Batch, Made, run
from cutaway.cli.console import reason
from cutaway.cli.files import Destination, Job, destination, plan
from cutaway.cli.options import option
from cutaway.contract import limits
from cutaway.contract.headers import PictureHeader, check_dimensions, check_picture
from cutaway.contract.options import parse_options

DETECT_OPTIONS = ("select", "boxes", "min_confidence", "max_people")
COMPOSITE_OPTIONS = tuple(name for name in limits.OPTIONS if name not in ("background", "output"))
EXTENSIONS = {"png": ("png",), "webp": ("webp",), "jpeg": ("jpg", "jpeg")}
UPSCALED = ("png", "jpg", "jpeg", "webp")
SCALES = [str(each) for each in limits.UPSCALE_SCALES]
ANCHORS = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")


def _duration(elapsed_ms: float) -> str:
    return f"{elapsed_ms:.0f} ms" if elapsed_ms < 10_000 else f"{elapsed_ms / 1000:.1f} s"


def _people(number: int) -> str:
    return {0: "nobody", 1: "1 person"}.get(number, f"{number} people")


def _output(context: click.Context, forms: Sequence[str]) -> str:
    """The form of the cut-outs: that of --output, else of the extension of -o."""
    kind = context.params["output_dir"].suffix.lower().lstrip(".")
    named = [form for form in forms if kind in EXTENSIONS[form]]
    given = context.get_parameter_source("output") is not ParameterSource.DEFAULT
    return str(context.params["output"]) if given or not named else named[0]


def _planned(context: click.Context, extensions: Sequence[str]) -> tuple[Destination, list[Job]]:
    to = destination(context.params["output_dir"], extensions)
    if to.stdout and context.params["json"]:
        raise click.UsageError("-o - and --json both want standard output")
    return to, plan(context.params["images"], to)


def _made(
    job: Job, result: Any, files: Mapping[Path, tuple[bytes, Mapping[str, Any]]], to: Destination, size: str = ""
) -> Made:
    """The JSON fields, lines and files of a result."""
    report, where = result.report, "standard output" if to.stdout else ", ".join(map(str, files))
    who = f"{_people(len(report.people))}, " if report.people else ""
    by = ", from the cache" if result.from_cache else f", by {result.provider} (hosted)" if result.tier > 1 else ""
    line = f"{job.source} → {where} ({size}{who}{_duration(result.elapsed_ms)}{by})"
    form = {name: getattr(result, name) for name in ("provider", "tier", "requests", "from_cache", "request_id")}
    form |= {name: getattr(report, name) for name in ("width_px", "height_px", "profile", "device")}
    form["outputs"] = [{"path": str(path), **said, "bytes": len(data)} for path, (data, said) in files.items()]
    form["people"] = [asdict(each) for each in report.people]
    form["tried"] = [each.to_dict() for each in result.tried]
    form["elapsed_ms"], form["timings_ms"] = round(result.elapsed_ms, 1), dict(result.timings_ms)
    more = {"user_action": "", "request_id": result.request_id}
    form["warnings"] = [{**asdict(each), **more} for each in result.warnings]
    return Made(result, form, [line], {path: data for path, (data, _) in files.items()})


@options.command(
    *options.results("cutouts", "NAME.png, or NAME-ID.png with --subject each"),
    *(*options.table(limits.OPTIONS), *options.server(hosted=True), *options.fallback()),
)
def cut(context: click.Context, /, **_: Any) -> int:
    """Cut people, or what pictures show, out of them."""
    output = _output(context, ("png", "webp"))
    wanted = options.given_options(context) | ({"output": output} if output == "webp" else {})
    extension = "webp" if output == "webp" else "png"
    to, jobs = _planned(context, (extension,))
    numbered = wanted.get("subject") == "each" and not to.takes_one
    ids = parse_options(wanted).select or (0,)

    def made(job: Job, result: cutaway.CutResult) -> Made:
        if to.takes_one and len(result.cutouts) != 1:
            raise cutaway.InvalidOption(
                f"There are {len(result.cutouts)} cut-outs, and one file to hold them.",
                user_action="Name a folder with -o, or choose one person with --select.",
                details={"name": "-o", "value": str(to.file or "-"), "allowed": "a folder"},
                request_id=result.request_id,
            )
        files = {}
        for each in result.cutouts:
            form = {name: getattr(each, name) for name in ("id", "people", "box", "score", "frame")}
            files[job.target(each.id if numbered else None, each.format)] = (each.image, form)
        return _made(job, result, files, to)

    batch = Batch(context, jobs, to, lambda job: [job.target(each if numbered else None, extension) for each in ids])
    return run(batch.run(lambda client, image: client.cut(image, **wanted), made))


@options.command(*options.IMAGES, *options.table(DETECT_OPTIONS), *options.server())
def detect(context: click.Context, /, **_: Any) -> int:
    """List the people in pictures without cutting them out."""
    wanted = options.given_options(context, DETECT_OPTIONS)

    def made(job: Job, found: cutaway.Detection) -> Made:
        report = found.report
        lines = [f"{job.source}: {report.width_px}×{report.height_px}, {_people(len(report.people))}"]
        lines += [f"{'id':>3} {'score':>6} {'x1':>7} {'y1':>7} {'x2':>7} {'y2':>7}"] if report.people else []
        for each in report.people:
            lines.append(f"{each.id:3d} {each.score:6.3f} {' '.join(f'{corner:7.1f}' for corner in each.box)}")
        return Made(found, {"request_id": found.request_id, **report.raw}, lines)

    batch = Batch(context, plan(context.params["images"]))
    return run(batch.run(lambda client, image: client.detect(image, **wanted), made))


def _pair(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, int] | None:
    try:
        first, second = map(int, text.split(",")) if text else (0, 0)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not two whole numbers with a comma") from None
    return (first, second) if text else None


@options.command(
    *options.results("composites", "NAME.png"),
    option("--onto", required=True, metavar="BACKGROUND", help="#RRGGBB, a picture, blur:<px>, or transparent."),
    option("--place", type=click.Choice(ANCHORS), help="Corner, edge or centre [default: where they were]."),
    option("--scale", type=click.FloatRange(*limits.COMPOSITE_SCALE), help="Height as a share of the picture's."),
    option("--offset", callback=_pair, metavar="X,Y", help="Move them so many pixels to the right and down."),
    option("--flip", is_flag=True, help="Mirror them left to right."),
    option("--match-colour", type=click.FloatRange(0, 1), default=0.0, help="How far towards the colours behind."),
    option("--size", callback=_pair, metavar="WIDTH,HEIGHT", help="Of the result [default: of what is behind]."),
    option("--output", type=click.Choice(limits.COMPOSITE_OUTPUTS), default="png", help="Form of the result."),
    option("--quality", type=click.IntRange(1, 100), default=limits.COMPOSITE_QUALITY, help="Of WebP and JPEG."),
    *(*options.table(COMPOSITE_OPTIONS), *options.server(hosted=True), *options.fallback()),
)
def composite(context: click.Context, /, onto: Any, match_colour: float, quality: int, **given: Any) -> int:
    """Cut people out and put them onto something else."""
    from cutaway.composite import CompositeResult, Placement

    output, is_picture = _output(context, tuple(EXTENSIONS)), not re.match("#|blur:|transparent$", onto)
    who = options.given_options(context, COMPOSITE_OPTIONS)
    how: dict[str, Any] = {"output": output, "quality": quality, "match_colour": match_colour}
    blamed = "--onto"
    try:  # all of it before anything is sent
        onto = Path(onto).read_bytes() if is_picture else onto
        check_picture(onto) if is_picture else parse_options({"background": onto})
        blamed = "--offset"
        how["place"] = Placement(given["place"], given["scale"], given["offset"] or (0, 0), given["flip"])
        blamed = "--size"
        if given["size"]:
            check_dimensions(PictureHeader("png", *given["size"]), limits.COMPOSITE_LIMITS)
            how["size_px"] = given["size"]
    except (cutaway.CutawayError, OSError) as error:
        raise click.UsageError(f"{blamed}: {reason(error)}") from None
    if match_colour and not is_picture:
        raise click.UsageError("--match-colour takes the colours of a picture: --onto names none")
    if onto == "transparent" and output == "jpeg":
        raise click.UsageError("a JPEG cannot be transparent: use --output png or webp")
    to, jobs = _planned(context, EXTENSIONS[output])

    def made(job: Job, result: CompositeResult) -> Made:
        form = {name: getattr(result, name) for name in ("width_px", "height_px", "frames")}
        files = {job.target(None, EXTENSIONS[output][0]): (result.data, form)}
        return _made(job, result.cut, files, to, f"{result.width_px}×{result.height_px}, ")

    batch = Batch(context, jobs, to, lambda job: [job.target(None, EXTENSIONS[output][0])])
    return run(batch.run(lambda client, image: client.composite(image, onto, **how, **who), made))


@options.command(
    *options.results("upscaled", "NAME.png, .jpg or .webp, as it comes"),
    option("--scale", type=click.Choice(SCALES), default=SCALES[0], help="Times as many pixels along each side."),
    *(options.timeout(f"{limits.FALLBACK_TIMEOUT_S:g}"), options.VERBOSE, *options.fallback(required=True)),
)
def upscale(context: click.Context, /, scale: str, **_: Any) -> int:
    """Enlarge pictures by hosted models.

    Of at most 2560×1440. They leave your network, and most providers charge.
    """
    to, jobs = _planned(context, UPSCALED)

    def made(job: Job, result: cutaway.UpscaleResult) -> Made:
        kind = result.extension.lstrip(".")
        target = job.target(None, kind)
        if target.suffix.lower().lstrip(".").replace("jpeg", "jpg") != kind:
            target = target.with_suffix(f".{kind}")  # it was paid for: keep it, by a name that fits
        names = ("width_px", "height_px", "provider", "tier", "model", "licence", "cost", "request_id")
        form = {name: getattr(result, name) for name in names}
        form["outputs"] = [{"path": str(target), "bytes": len(result.data)}]
        form["tried"] = [each.to_dict() for each in result.tried]
        form["elapsed_ms"] = round(result.elapsed_ms, 1)
        size = f"{result.width_px}×{result.height_px}, {_duration(result.elapsed_ms)}"
        where = "standard output" if to.stdout else target
        line = f"{job.source} → {where} ({size}, by {result.provider}: {result.model})"
        return Made(result, form, [line], {target: result.data})

    batch = Batch(context, jobs, to, lambda job: [job.target(None, each) for each in UPSCALED])
    return run(batch.run(lambda client, image: client.upscale(image, int(scale)), made, upscales=True))
