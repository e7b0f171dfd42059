"""`make demo`: a real Triton cuts people out of pictures, and one sheet shows before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cutaway
from cutaway.contract.limits import MEDIA_TYPES
from PIL import Image, ImageOps

from runtime.checks import RuntimeProblem
from runtime.compose import CHECKOUT
from runtime.server import Server, ServerOptions
from runtime.sheet import Row, draw_sheet

SAMPLES = CHECKOUT / "samples"
MORE_SAMPLES = SAMPLES / "more"
SHEET = "before-after.png"
GREEN = "#00FF00"
SUFFIXES = frozenset(f".{name}" for name in (*MEDIA_TYPES, "jpg"))


@dataclass(frozen=True)
class Cut:
    """What came of one picture."""

    picture: Path
    people: cutaway.CutResult
    each: Sequence[cutaway.Cutout]
    green: cutaway.CutResult


def run_demo(options: ServerOptions, *, pictures: Sequence[Path], output: Path, say: Callable[[str], None]) -> None:
    """Start a server, cut people (or what there is) out of pictures, write cut-outs and a sheet, stop the server.

    Args:
        options: the server.
        pictures: pictures or folders of pictures; the samples where empty.
        output: the folder to write to; files of an earlier run are replaced.
        say: takes each line for the user.

    Raises:
        RuntimeProblem: when there is no picture, the server does not start or nothing could be cut out.
    """
    found = find_pictures(pictures or [SAMPLES, MORE_SAMPLES])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeProblem(f"cannot make the folder {output}: {error.strerror}; name another: -o DIR") from None
    with Server(options, say=say) as server, cutaway.Client(server.grpc_url) as client:
        cuts = [cut for picture in found if (cut := _cut(client, picture, say)) is not None]
    if not cuts:
        raise RuntimeProblem("nobody was cut out of any picture; see the lines above")
    try:
        written = [path for cut in cuts for path in _write(cut, output)]
        sheet = output / SHEET
        report = cuts[0].people.report
        draw_sheet([_row(cut) for cut in cuts], sheet, subtitle=f"profile {report.profile} on {report.device}")
    except OSError as error:
        raise RuntimeProblem(f"cannot write to {output}: {error.strerror or error}; name another: -o DIR") from None
    say(f"{len(written)} cut-outs in {output}/, before and after in {sheet}")


def find_pictures(places: Sequence[Path]) -> list[Path]:
    """The pictures among files and folders, in order.

    Raises:
        RuntimeProblem: when a place is not there, or there is no picture in any.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
        elif place.is_file():
            found.append(place)
        else:
            raise RuntimeProblem(f"{place} is not there")
    if not found:
        raise RuntimeProblem(f"there is no picture in {', '.join(map(str, places))}")
    return found


def _cut(client: cutaway.Client, picture: Path, say: Callable[[str], None]) -> Cut | None:
    """All cut-outs of one picture; None, and a line that says why, where it cannot be cut."""
    begun = time.monotonic()
    try:
        people = client.cut(picture, subject="auto")
        elapsed_ms = (time.monotonic() - begun) * 1000
        cut = Cut(
            picture,
            people,
            client.cut(picture, subject="each").cutouts if people.report.people else (),
            client.cut(picture, subject="auto", background=GREEN),
        )
    except cutaway.InputError as error:
        say(f"{picture.name}: {error}")
        return None
    except cutaway.CutawayError as error:
        raise RuntimeProblem(f"{picture.name}: {error}") from None
    say(f"{picture.name}: {_who(people)} in {elapsed_ms:.0f} ms")
    return cut


def _who(result: cutaway.CutResult) -> str:
    count = len(result.report.people)
    return "no people" if not count else "1 person" if count == 1 else f"{count} people"


def _write(cut: Cut, output: Path) -> list[Path]:
    """The files of one picture's cut-outs."""
    stem = cut.picture.stem
    what = "people" if cut.each else "object"
    files = {f"{stem}-{what}": cut.people.cutouts[0], f"{stem}-green": cut.green.cutouts[0]}
    files |= {f"{stem}-person-{cutout.id}": cutout for cutout in cut.each}
    return [cutout.save(output / f"{name}.{cutout.format}") for name, cutout in files.items()]


def _row(cut: Cut) -> Row:
    with Image.open(cut.picture) as file:
        original = ImageOps.exif_transpose(file).convert("RGB")
    return Row(
        title=cut.picture.name,
        facts=f"{original.width} x {original.height}, {_who(cut.people)}, "
        f"{cut.people.timings_ms.get('total', cut.people.elapsed_ms):.0f} ms",
        original=original,
        cutout=cut.people.cutouts[0].pil().convert("RGBA"),
        green=cut.green.cutouts[0].pil().convert("RGB"),
    )
