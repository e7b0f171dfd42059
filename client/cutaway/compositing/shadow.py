"""A soft shadow where somebody touches the ground."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutaway.compositing.layers import Layer, tile_of
from cutaway.compositing.placing import Mapping, SizeWH

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

# Shares of the height of whoever throws it.
_FEET = 0.10
"""What is lower than this counts as touching the ground."""
_FLATNESS = 0.045
"""The shadow is as wide as the feet and this high: light comes from above."""
_BLUR = 0.012


def cast(canvas: PILImage, layer: Layer, mapping: Mapping, source_wh: SizeWH, strength: float) -> None:
    """Darken a canvas in place below a layer's lowest part, unless the picture's lower edge cut that off.

    Args:
        canvas: RGB or RGBA.
        layer, mapping, source_wh: as for :func:`.layers.draw`.
        strength: 0 for none to 1 for black where the shadow is deepest.
    """
    from PIL import Image, ImageFilter

    if layer.box is None or layer.box[3] >= source_wh[1]:
        return
    box = mapping.box(layer.box, source_wh)
    height = box[3] - box[1]
    ground = round(box[3])
    rows = max(0, round(box[3] - _FEET * height)), min(canvas.height, ground)
    tile = tile_of(layer, mapping, source_wh, canvas.width, rows)
    if tile is None:
        return
    feet = tile.image.getchannel("A")
    flat = max(1, round(_FLATNESS * height))
    margin = max(2, round(4 * _BLUR * height))
    mask = Image.new("L", (feet.width + 2 * margin, flat + 2 * margin), 0)
    mask.paste(feet.resize((feet.width, flat), Image.Resampling.BOX), (margin, margin))
    mask = mask.filter(ImageFilter.GaussianBlur(max(0.5, _BLUR * height)))
    mask = mask.point(lambda value: round(value * strength))
    left, top = tile.left - margin, ground - round(0.6 * flat) - margin
    inside = max(0, -left), max(0, -top), min(mask.width, canvas.width - left), min(mask.height, canvas.height - top)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return
    mask = mask.crop(inside)
    place = left + inside[0], top + inside[1]
    if canvas.mode == "RGBA":
        dark = Image.new("RGBA", mask.size, (0, 0, 0, 0))
        dark.putalpha(mask)
        canvas.alpha_composite(dark, place)
    else:
        canvas.paste((0, 0, 0), place, mask)
