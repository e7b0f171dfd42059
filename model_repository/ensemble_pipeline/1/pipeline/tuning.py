"""Every constant that was chosen by measuring, with the reason.

Chosen on photographs held out of training, never on the ones that docs/quality.md reports.
"""

from __future__ import annotations

BEHIND_TRANSPARENCY = 128
"""Grey (0–255) that transparent input stands on for the models: dark and light clothes both stand out from it."""

NMS_IOU = 0.7
"""Ultralytics' own threshold: people who stand in front of one another overlap much."""

SLICE_FROM_SCALE = 4.0
"""Pictures that the letterbox shrinks further than this are looked at in slices: a person of 300 px is left with 75."""

SLICE_MIN_SIDE_PX = 1280
"""Slices have at least this side, half of which the detector sees."""

SLICE_OVERLAP = 0.25
"""Of neighbouring slices, as a part of their side: whoever is larger than that was found in the whole picture."""

LARGE_PERSON = 0.4
"""With somebody in it who fills this part of the letterbox's side a picture is not about small people."""

SLICE_IOU = 0.5
"""Two slices show the same person from this overlap on: their boxes differ by the shrinking, not by the detector."""

CUT_SHARED = 0.5
"""A box that a slice's border cuts goes where this part of the smaller one lies in another one."""

TURNED_MIN_CONFIDENCE = 0.5
"""People lying or upside down are believed from this score on: three more looks find more that is nobody."""

MAX_OWN_CROPS = 64
"""Of more people than these the smaller ones share the matte of the whole picture: the work stays at 8 batches."""

GIVEN_BOX_IOU = 0.5
"""A given box is the box of a detected person from this overlap on."""

CROP_CONTEXT = 0.1
"""Margin around a person's box, as a part of its sides, that the matting network sees."""

CROP_MIN_ASPECT = 0.5
"""A crop's shorter side is at least this part of its longer one: thin crops would be stretched too much."""

WHOLE_PICTURE_SHARE = 0.9
"""A crop of at least this part of the picture becomes the whole picture; from 0.75 on, held-out pictures lose .002."""

GATE_GRID_PX = 192
"""Longer side of the grid on which gates are computed; instance masks hold no more detail than this."""

ALONE_REACH, ALONE_FADE = 0.05, 0.08
"""Where nobody else is near, alpha is kept whole up to the first distance from the instance mask and fades out over the
second, both as parts of √(box area). Bags are part of a person and of no mask, so it is not tighter; a fade of 0.2
gains .001 on composites and loses as much on real scenes, where things beside a person look like clothes."""

CROWD_REACH, CROWD_FADE = 0.03, 0.05
"""The same where somebody else, who is to be kept out, is in the crop."""

NEIGHBOUR_MARGIN = 2.5
"""Somebody else's mask takes a pixel once its logit leads by this much. Masks of people who overlap are unsure of each
other, and the matte of the crop knows better who is in front."""

NEIGHBOUR_STEEPNESS = 2.0
"""Steepness of that border per unit of logit."""

SURE_FROM, SURE_OVER = 2.0, 2.0
"""Among others a person keeps what the own mask's logit puts above the first, wholly above the sum of both. Mask IoU of
people in real training scenes .690 → .708, of held-out ones and composites level; from lower logits on it hurts."""

ISLAND_ALPHA = 24
"""What is connected by alphas above this (0–255) is one part; a part that nowhere touches the person's instance mask is
not the person's. It hardly shows in IoU and much to the eye."""

SPECK_SHARE, SPECK_CELLS = 0.01, 4
"""A part that is smaller than this share of the largest one and further from the large ones than so many cells of the
gate is a speck, even where the instance mask, which is generous, holds it."""

ISLAND_EDGE_CELLS = 2
"""Cells of the gate around such a part that go with it: its soft edge."""

GUIDE_FROM_SCALE = 2.5
"""A matte that is enlarged by this factor or more is drawn to the picture's edges by a guided filter. On all mattes it
would add .001 to .002 of IoU on held-out pictures, but looks less clean than what a network gives at its own size."""

GUIDE_RADIUS_PX = 2
"""The filter's radius, in pixels of the matte."""

GUIDE_EPSILON = 65.0
"""Its regularization: variance of brightness (0 … 255) below which it averages."""

GUIDE_STEEPNESS = 1.3
"""How much steeper edges are made than the filter finds them."""

ALPHA_FLOOR, ALPHA_CEILING = 6, 249
"""Alphas (0–255) up to the one are none and from the other are whole: a network says 252 and means 255."""

CROP_ALPHA = 13
"""What is less than 5 % opaque does not widen a crop: nobody sees it, and haze lies far out."""

COLOUR_GRID_PX = 256
"""Longer side, at most, of the small copy on which foreground and background colours are guessed."""

COLOUR_SURE_POWER = 32
"""The first guess weighs pixels by alpha to this power: only what is nearly opaque (or nearly empty) is a model."""

COLOUR_SURE_WEIGHT = 0.1
"""A cell needs this mean weight to be its own model; one with less takes from further away in proportion."""

COLOUR_SMOOTH_POWER, COLOUR_SMOOTH_WEIGHT = 2, 0.5
"""The same for the second guess, which smooths the first one after its correction."""

RIM_PX = 3
"""The foreground's colour goes on this far under full transparency: as far as bicubic scaling looks."""

WEBP_METHOD = 2
"""Pillow's effort from 0 (fast) to 6 (small)."""
