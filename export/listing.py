"""`python -m export list`: the catalogue as a table, as JSON, or as the tables of export/README.md."""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from export.catalog import CATALOG, DETECTOR_SIDE_PX, Catalog, Profile, Weights, load_catalog

CHECKOUT = Path(__file__).resolve().parents[1]
MIB = 1024 * 1024
UNPINNED = "at first download"

_PROFILE_HEADS = ("profile", "for", "BiRefNet", "input", "speed", "detector", "licences")
_WEIGHTS_HEADS = ("weights", "from", "file", "size", "parameters", "licence", "SHA-256")


def size_text(size_bytes: int | None) -> str:
    """A size for people: 177634392 → "169 MiB"; "–" where it is not known."""
    return "–" if size_bytes is None else f"{size_bytes / MIB:.0f} MiB"


def profile_row(profile: Profile) -> tuple[str, ...]:
    width, height = profile.input_wh_px
    return (
        profile.name,
        profile.purpose,
        (profile.matte.repository or "own small network").rpartition("/")[2],
        f"{width}×{height}",
        profile.speed,
        profile.detector.network,
        ", ".join(sorted({each.licence for each in profile.weights})),
    )


def weights_row(weights: Weights) -> tuple[str, ...]:
    return (
        weights.name,
        f"{weights.repository} @ {weights.revision[:12]}" if weights.revision else "this repository",
        weights.file,
        size_text(weights.size_bytes),
        f"{weights.parameters / 1e6:.1f} M",
        weights.licence,
        f"{weights.sha256[:12]}…" if weights.sha256 else UNPINNED,
    )


def markdown(catalog: Catalog) -> str:
    """The two tables of export/README.md."""
    profiles = [profile_row(each) for each in catalog.profiles.values()]
    weights = [weights_row(each) for each in catalog.weights.values()]
    return (
        _markdown_table(_PROFILE_HEADS, [(f"`{first}`", *rest) for first, *rest in profiles])
        + f"\nDetectors see {DETECTOR_SIDE_PX}×{DETECTOR_SIDE_PX}.\n\n"
        + _markdown_table(_WEIGHTS_HEADS, [(f"`{first}`", *rest) for first, *rest in weights])
    )


def _markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain(catalog: Catalog) -> str:
    """One line for each profile, in columns; the purpose last, for it is long."""
    rows = [_PROFILE_HEADS, *(profile_row(each) for each in catalog.profiles.values())]
    rows = [(row[0], *row[2:], row[1]) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


def as_json(catalog: Catalog) -> dict[str, Any]:
    """Everything that the catalogue says, for programs; weights carry their licence's address and saved name too."""
    return {
        "profiles": {
            name: {
                **{key: value for key, value in dataclasses.asdict(profile).items() if key != "name"},
                "matte": profile.matte.name,
                "detector": profile.detector.name,
            }
            for name, profile in catalog.profiles.items()
        },
        "weights": {
            name: {
                **{key: value for key, value in dataclasses.asdict(weights).items() if key != "name"},
                "licence_url": weights.licence_url,
                "saved_as": weights.saved_as,
            }
            for name, weights in catalog.weights.items()
        },
    }


def add_catalog_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--catalog", metavar="FILE", type=Path, default=CATALOG, help="another table than export/catalog.toml"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "List the profiles of export/catalog.toml and what they are made of."
    add_catalog_argument(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything the catalogue says, for programs")
    form.add_argument("--markdown", action="store_true", help="the tables of export/README.md")


def run(arguments: argparse.Namespace) -> int:
    catalog = load_catalog(arguments.catalog)
    if arguments.json:
        print(json.dumps(as_json(catalog), indent=2, ensure_ascii=False))
    else:
        print(markdown(catalog) if arguments.markdown else plain(catalog), end="")
    return 0
