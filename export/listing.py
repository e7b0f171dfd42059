"""`python -m export list`: the catalogue as a table, as JSON, or as the table of export/README.md."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from export.catalog import BUNDLED, CATALOG, Catalog, Profile, load_catalog

CHECKOUT = Path(__file__).resolve().parents[1]
MIB = 1024 * 1024

_HEADS = ("profile", "for", "BiRefNet", "input", "speed", "detector", "download", "licences")


def size_text(size_bytes: int | None) -> str:
    """A size for people: 177634392 → "169 MiB"; "–" where it is not known."""
    return "–" if size_bytes is None else f"{size_bytes / MIB:.0f} MiB"


def profile_row(profile: Profile) -> tuple[str, ...]:
    width, height = profile.input_wh_px
    sizes = [each.size_bytes for each in profile.weights if each.source != BUNDLED]
    return (
        profile.name,
        profile.purpose,
        (profile.matte.repository or "MODNet, trained further").rpartition("/")[2],
        f"{width}×{height}",
        profile.speed,
        profile.detector.network,
        "–" if not sizes or None in sizes else size_text(sum(size or 0 for size in sizes)),
        ", ".join(sorted({each.licence for each in profile.weights})),
    )


def markdown(catalog: Catalog) -> str:
    """The table of export/README.md."""
    rows = [profile_row(each) for each in catalog.profiles.values()]
    lines = [_HEADS, ("---",) * len(_HEADS), *((f"`{first}`", *rest) for first, *rest in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plain(catalog: Catalog) -> str:
    """One line for each profile, in columns; the purpose last, for it is long."""
    rows = [_HEADS, *(profile_row(each) for each in catalog.profiles.values())]
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
    form.add_argument("--markdown", action="store_true", help="the table of export/README.md")


def run(arguments: argparse.Namespace) -> int:
    catalog = load_catalog(arguments.catalog)
    if arguments.json:
        print(json.dumps(as_json(catalog), indent=2, ensure_ascii=False))
    else:
        print(markdown(catalog) if arguments.markdown else plain(catalog), end="")
    return 0
