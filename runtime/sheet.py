"""Draws the before/after sheet: original, matte, cut-out on a checkerboard, cut-out on colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Everything is drawn at twice the size it is looked at, as screens have it today."""
TILE_HEIGHT_PX = 260 * SCALE
TILE_MAX_WIDTH_PX = 360 * SCALE
GAP_PX = 14 * SCALE
MARGIN_PX = 28 * SCALE
HEADER_PX = 80 * SCALE
CAPTION_PX = 34 * SCALE
CORNER_PX = 8 * SCALE
CHECKER_PX = 10 * SCALE

MAX_ROWS = 12
"""More would make a picture that no viewer opens gladly."""

PAPER = (250, 250, 249)
INK = (28, 30, 33)
FAINT = (112, 117, 124)
LIGHT, DARK = (255, 255, 255), (224, 226, 229)
STUDIO = ((253, 224, 196), (240, 150, 122))
"""Top and bottom of the backdrop on which soft edges show whether they carry their own colour."""

COLUMNS = ("Original", "Matte", "Cut-out", "On a new background", "Green screen")


@dataclass(frozen=True)
class Row:
    """One picture of the sheet.

    Attributes:
        title: the file's name.
        facts: what is worth knowing about it, in one line.
        original: RGB.
        cutout: RGBA of the original's size, all people.
        green: RGB of the original's size, the same on green.
    """

    title: str
    facts: str
    original: Image.Image
    cutout: Image.Image
    green: Image.Image


def draw_sheet(rows: Sequence[Row], path: Path, *, subtitle: str) -> None:
    """Write the sheet of one or more pictures as a PNG. The first `MAX_ROWS` are shown."""
    rows = rows[:MAX_ROWS]
    tiles = [_tiles(row) for row in rows]
    widths = [max(row[column].width for row in tiles) for column in range(len(COLUMNS))]
    heights = [max(tile.height for tile in row) for row in tiles]
    width = 2 * MARGIN_PX + sum(widths) + GAP_PX * (len(COLUMNS) - 1)
    height = HEADER_PX + sum(heights) + len(rows) * (CAPTION_PX + GAP_PX)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)

    draw.text((MARGIN_PX, MARGIN_PX - 10 * SCALE), "Cutaway", INK, _font(20))
    draw.text((MARGIN_PX + 90 * SCALE, MARGIN_PX - 4 * SCALE), subtitle, FAINT, _font(13))
    left = MARGIN_PX
    lefts = []
    for name, column_width in zip(COLUMNS, widths, strict=True):
        draw.text((left, HEADER_PX - 26 * SCALE), name, FAINT, _font(13))
        lefts.append(left)
        left += column_width + GAP_PX
    top = HEADER_PX
    for row, row_tiles, row_height in zip(rows, tiles, heights, strict=True):
        for x, tile in zip(lefts, row_tiles, strict=True):
            sheet.paste(tile, (x, top), _rounded(tile.size))
        top += row_height
        draw.text((MARGIN_PX, top + 9 * SCALE), row.title, INK, _font(13))
        offset = draw.textlength(row.title, _font(13)) + 10 * SCALE
        draw.text((MARGIN_PX + offset, top + 9 * SCALE), row.facts, FAINT, _font(13))
        top += CAPTION_PX + GAP_PX
    sheet.save(path, optimize=True)


def draw_cutouts(rows: Sequence[tuple[str, Sequence[Image.Image]]], path: Path, *, columns: int = 2) -> None:
    """Write captioned rows of pictures of one size, in columns; transparency shows a checkerboard."""
    tiles = []
    for title, pictures in rows:
        height = TILE_HEIGHT_PX // SCALE
        size = max(1, round(pictures[0].width * height / pictures[0].height)), height
        tile = Image.new("RGB", (len(pictures) * size[0], height + CAPTION_PX), PAPER)
        ImageDraw.Draw(tile).text((4, 4), title, INK, _font(12))
        for number, picture in enumerate(pictures):
            tile.paste(_on(_checkerboard(size), _resize_rgba(picture, size)), (number * size[0], CAPTION_PX))
        tiles.append(tile)
    parts = [tiles[start::columns] for start in range(columns)]
    width = max(tile.width for tile in tiles) + GAP_PX
    sheet = Image.new("RGB", (columns * width, max(sum(tile.height for tile in part) for part in parts)), PAPER)
    for column, part in enumerate(parts):
        for row, tile in enumerate(part):
            sheet.paste(tile, (column * width, row * tile.height))
    sheet.save(path)


def _tiles(row: Row) -> list[Image.Image]:
    """The five pictures of a row, all of one size, RGB."""
    scale = min(TILE_HEIGHT_PX / row.original.height, TILE_MAX_WIDTH_PX / row.original.width)
    size = (max(1, round(row.original.width * scale)), max(1, round(row.original.height * scale)))
    original, green = (picture.resize(size, Image.Resampling.LANCZOS) for picture in (row.original, row.green))
    cutout = _resize_rgba(row.cutout, size)
    matte = Image.merge("RGB", [cutout.getchannel("A")] * 3)
    return [original, matte, _on(_checkerboard(size), cutout), _on(_backdrop(size), cutout), green]


def _resize_rgba(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize without letting the colour behind transparent pixels bleed into the edge."""
    return picture.convert("RGBA").convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def _on(background: Image.Image, cutout: Image.Image) -> Image.Image:
    background.paste(cutout, (0, 0), cutout)
    return background


def _checkerboard(size: tuple[int, int]) -> Image.Image:
    board = Image.new("RGB", size, LIGHT)
    draw = ImageDraw.Draw(board)
    for y in range(0, size[1], CHECKER_PX):
        for x in range((y // CHECKER_PX % 2) * CHECKER_PX, size[0], 2 * CHECKER_PX):
            draw.rectangle((x, y, x + CHECKER_PX - 1, y + CHECKER_PX - 1), DARK)
    return board


def _backdrop(size: tuple[int, int]) -> Image.Image:
    """A gradient from top to bottom."""
    shade = Image.linear_gradient("L").resize(size)
    return Image.composite(Image.new("RGB", size, STUDIO[1]), Image.new("RGB", size, STUDIO[0]), shade)


def _rounded(size: tuple[int, int]) -> Image.Image:
    """A mask with round corners. Drawn larger and scaled down, since Pillow's own are jagged."""
    mask = Image.new("L", (size[0] * 2, size[1] * 2))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] * 2 - 1, size[1] * 2 - 1), CORNER_PX * 2, fill=255)
    return mask.resize(size, Image.Resampling.BOX)


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px * SCALE)
