"""Every constant that was chosen by measuring, with the reason.

Chosen on photographs held out of training, never on the ones that docs/quality.md reports.
"""

from __future__ import annotations

BEHIND_TRANSPARENCY = 128
"""Grey (0–255) that transparent input stands on for the models: dark and light clothes both stand out from it."""

NMS_IOU = 0.7
"""Ultralytics' own threshold: people who stand in front of one another overlap much."""

GIVEN_BOX_IOU = 0.5
"""A given box is the box of a detected person from this overlap on."""

CROP_CONTEXT = 0.1
"""Margin around a person's box, as a part of its sides, that the matting network sees."""

CROP_MIN_ASPECT = 0.5
"""A crop's shorter side is at least this part of its longer one: thin crops would be stretched too much."""

WHOLE_PICTURE_SHARE = 0.5
"""A crop of at least this part of the picture becomes the whole picture."""

GATE_GRID_PX = 192
"""Longer side of the grid on which gates are computed; instance masks hold no more detail than this."""

GATE_REACH = 0.05
"""A person's alpha is kept whole up to this distance from the instance mask, as a part of √(box area)…"""

GATE_FADE = 0.05
"""…and fades to nothing over this further distance."""

NEIGHBOUR_SHARPNESS = 4.0
"""Steepness of the border between people who touch, per unit of mask logit."""

COLOUR_GRID_PX = 384
"""Longer side of the small copy on which foreground and background colours are guessed."""

COLOUR_REACHES = (30, 3)
"""Radii, in pixels of that copy, of the guess from far and the guess from near."""

RIM_PX = 3
"""The foreground's colour goes on this far under full transparency: as far as bicubic scaling looks."""

ALPHA_FLOOR, ALPHA_CEILING = 6, 249
"""Alphas (0–255) up to the one are none and from the other are whole: a network says 252 and means 255."""

WEBP_QUALITY = 90
WEBP_METHOD = 2
"""Pillow's effort from 0 (fast) to 6 (small)."""
