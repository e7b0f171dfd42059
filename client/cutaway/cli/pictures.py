"""``cutaway cut``, ``detect``, ``composite`` and ``upscale``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import cutaway
from cutaway.cli import options
from cutaway.cli.batch import Batch, Described, Form
from cutaway.cli.console import reason
from cutaway.cli.files import FORMS, STDOUT, Job, kind, plan
from cutaway.cli.options import option
from cutaway.composite import ANCHORS, CompositeResult, Placement
from cutaway.contract import limits
from cutaway.contract.errors import invalid_option
from cutaway.contract.headers import check_picture
from cutaway.contract.options import WhoKeywords, parse_options

DETECT_OPTIONS = ("select", "boxes", "min_confidence", "max_people")
COMPOSITE_OPTIONS = tuple(WhoKeywords.__annotations__)
SCALES = [str(each) for each in limits.UPSCALE_SCALES]


def _fields(source: Any, *names: str) -> Form:
    return {name: getattr(source, name) for name in names}


def _people(number: int) -> str:
    return {0: "nobody", 1: "1 person"}.get(number, f"{number} people")


def _output(context: click.Context, forms: Iterable[str]) -> str:
    """The form of the results: that of --output, else of the extension of -o."""
    named = [form for form in forms if FORMS[form] == kind(context.params["output_dir"])]
    given = context.get_parameter_source("output") is not ParameterSource.DEFAULT
    return str(context.params["output"]) if given or not named else named[0]


def _planned(context: click.Context, *extensions: str) -> list[Job]:
    if context.params["output_dir"] == STDOUT and context.params["json"]:
        raise click.UsageError("-o - and --json both want standard output")
    return plan(context.params["images"], context.params["output_dir"], *extensions)


def _describe_cut(result: Any, job: Job, files: Mapping[Path, tuple[bytes, Form]], words: str = "") -> Described:
    report, form = result.report, _fields(result, "requests", "from_cache", "timings_ms")
    form |= _fields(report, "width_px", "height_px", "profile", "device", "people")
    form["warnings"] = [asdict(each) | {"user_action": "", "request_id": result.request_id} for each in result.warnings]
    words += f"{_people(len(report.people))}, " * bool(report.people) + "from the cache, " * result.from_cache
    return _describe(result, job, files, words, form)


def _describe(result: Any, job: Job, files: Mapping[Path, tuple[bytes, Form]], words: str, more: Form) -> Described:
    """What is said of a result: its origin and `more` fields, and those of each file."""
    form = _fields(result, "provider", "tier", "request_id") | more
    form |= {"elapsed_ms": round(result.elapsed_ms, 1), "tried": [each.to_dict() for each in result.tried]}
    form["outputs"] = [{"path": str(path), **said, "bytes": len(data)} for path, (data, said) in files.items()]
    where = "standard output" if job.file == STDOUT else ", ".join(map(str, files))
    by = f", by {result.provider} (hosted)" if result.tier > 1 else ""
    line = f"{job.source} → {where} ({words}{result.elapsed_ms:,.0f} ms{by})"
    return form, [line], {path: data for path, (data, _) in files.items()}


@options.command(
    *options.results("cutouts", "NAME.png, or NAME-ID.png with --subject each"),
    *(*options.table(), *options.CLIENT, options.FALLBACK(), options.NONCOMMERCIAL),
)
async def cut(context: click.Context, **_: Any) -> int:
    """Cut people, or what pictures show, out of them."""
    row = limits.OPTIONS["output"]
    output = _output(context, row.choices)
    wanted = options.given_options(context, **({} if output == row.default else {"output": output}))
    jobs = _planned(context, FORMS[output])
    numbered = wanted.get("subject") == "each" and not jobs[0].file
    ids = parse_options(wanted).select or (0,)

    def describe(job: Job, result: cutaway.CutResult) -> Described:
        if job.file and len(result.cutouts) != 1:
            allowed = f"a folder, for {len(result.cutouts)} cut-outs (or choose one person with --select)"
            raise invalid_option("-o", job.file, allowed)
        files = {}
        for each in result.cutouts:
            path = job.target(each.id if numbered else None, FORMS.get(each.format, each.format))
            files[path] = each.image, _fields(each, "id", "people", "box", "score", "frame")
        return _describe_cut(result, job, files)

    batch = Batch(context, jobs, lambda job: [job.target(each if numbered else None, FORMS[output]) for each in ids])
    return await batch.run(lambda client, image: client.cut(image, **wanted), describe)


@options.command(*options.IMAGES, *options.table(DETECT_OPTIONS), *options.CLIENT)
async def detect(context: click.Context, images: Sequence[str], **_: Any) -> int:
    """List the people in pictures without cutting them out."""
    wanted = options.given_options(context, DETECT_OPTIONS)

    def describe(job: Job, found: cutaway.Detection) -> Described:
        report = found.report
        lines = [f"{job.source}: {report.width_px}×{report.height_px}, {_people(len(report.people))}"]
        lines += [f"{'id':>3} {'score':>6} {'x1':>7} {'y1':>7} {'x2':>7} {'y2':>7}"] if report.people else []
        for each in report.people:
            lines.append(f"{each.id:3d} {each.score:6.3f} {' '.join(f'{corner:7.1f}' for corner in each.box)}")
        return {"request_id": found.request_id, **report.raw}, lines, {}

    return await Batch(context, plan(images)).run(lambda client, image: client.detect(image, **wanted), describe)


@options.command(
    *options.results("composites", "NAME.png"),
    option("--onto", required=True, metavar="BACKGROUND", help="#RRGGBB, a picture, blur:<px>, or transparent."),
    option("--place", type=click.Choice(ANCHORS), help="Corner, edge or centre [default: where they were]."),
    option("--scale", type=click.FloatRange(*limits.COMPOSITE_SCALE), help="Height as a share of the picture's."),
    option("--match-colour", type=click.FloatRange(0, 1), default=0.0, help="How far towards the colours behind."),
    option("--output", type=click.Choice(limits.COMPOSITE_OUTPUTS), default="png", help="Form of the result."),
    option("--quality", type=click.IntRange(1, 100), default=limits.COMPOSITE_QUALITY, help="Of WebP and JPEG."),
    *(*options.table(COMPOSITE_OPTIONS), *options.CLIENT, options.FALLBACK(), options.NONCOMMERCIAL),
)
async def composite(context: click.Context, onto: Any, match_colour: float, quality: int, **given: Any) -> int:
    """Cut people out and put them onto something else."""
    output, is_picture = _output(context, limits.COMPOSITE_OUTPUTS), not re.match("#|blur:|transparent$", onto)
    how: Form = {"output": output, "quality": quality, "match_colour": match_colour}
    how |= options.given_options(context, COMPOSITE_OPTIONS)
    how["place"] = Placement(given["place"], given["scale"])
    try:  # before anything is sent
        onto = Path(onto).read_bytes() if is_picture else onto
        check_picture(onto) if is_picture else parse_options({"background": onto})
    except (cutaway.CutawayError, OSError) as error:
        raise click.UsageError(reason(error)) from None
    if (match_colour and not is_picture) or (onto == "transparent" and output == "jpeg"):
        raise click.UsageError("--match-colour takes a picture as --onto, and a JPEG cannot be transparent")

    def describe(job: Job, result: CompositeResult) -> Described:
        files = {job.target(None, FORMS[output]): (result.data, _fields(result, "width_px", "height_px", "frames"))}
        return _describe_cut(result.cut, job, files, f"{result.width_px}×{result.height_px}, ")

    batch = Batch(context, _planned(context, FORMS[output]), lambda job: [job.target(None, FORMS[output])])
    return await batch.run(lambda client, image: client.composite(image, onto, **how), describe)


@options.command(
    *options.results("upscaled", "NAME.png, .jpg or .webp, as it comes"),
    option("--scale", type=click.Choice(SCALES), default=SCALES[0], help="Times as many pixels along each side."),
    *(options.TIMEOUT, options.FALLBACK(required=True), options.NONCOMMERCIAL),
)
async def upscale(context: click.Context, scale: str, **_: Any) -> int:
    """Enlarge pictures of at most 2560×1440 by hosted models: they leave your network, and most providers charge."""
    extensions = [FORMS[each] for each in ("png", "jpeg", "webp")]

    def describe(job: Job, result: cutaway.UpscaleResult) -> Described:
        files: dict[Path, tuple[bytes, Form]] = {job.target(None, result.extension[1:]): (result.data, {})}
        more = _fields(result, "width_px", "height_px", "model", "licence", "cost")
        return _describe(result, job, files, f"{result.width_px}×{result.height_px}, ", more)

    batch = Batch(context, _planned(context, *extensions), lambda job: [job.target(None, each) for each in extensions])
    return await batch.run(lambda client, image: client.upscale(image, int(scale)), describe)
