"""Every constant that was chosen by measuring, with the reason.

Chosen on photographs held out of training, never on the ones that docs/quality.md reports.
"""

from __future__ import annotations

BEHIND_TRANSPARENCY = 128
"""Grey (0–255) onto which transparent input is composited for the models: dark and light clothes contrast with it."""

NMS_IOU = 0.7
"""Ultralytics' own threshold: people in front of one another overlap much."""

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

SURE_CONFIDENCE, TURNED_LEAD = 0.7, 0.15
"""With somebody found at the first score a picture is not turned; else a turn has to lead by the second. Of 197 upright
pictures of `train` none is turned; of the same upside down, 100 are turned although something was found in them."""

MAX_OWN_CROPS = 64
"""Of more people than these the smaller ones share the matte of the whole picture: the work stays at 8 batches."""

GIVEN_BOX_IOU = 0.5
"""A given box is the box of a detected person from this overlap on."""

CROP_CONTEXT = 0.1
"""Margin of a crop around a person's box, as a share of its sides."""

CROP_MIN_ASPECT = 0.5
"""Minimum ratio of a crop's sides, shorter to longer: thin crops would be stretched too much."""

WHOLE_PICTURE_SHARE = 0.9
"""A crop of at least this part of the picture becomes the whole picture; from 0.75 on, held-out pictures lose .002."""

DOMINANT_SHARE = 0.45
"""The only person of a picture, whose box has at least this part of it, is matted with the whole picture."""

DOMINANT_REACH, DOMINANT_FADE = 0.3, 0.2
"""As `ALONE_REACH` and `ALONE_FADE` for that person: a helmet in an arm lies far from the mask."""

PEOPLE_SHARE = 0.1
"""Whole pictures of which people's boxes cover this part are matted by the network that knows people, where another one
is there for objects. On 11 hard scenes of `train` that reaches an IoU of .846 with the people, the other one .594."""

GATE_GRID_PX = 192
"""Longer side of the grid on which gates are computed; instance masks have no more detail."""

ALONE_REACH, ALONE_FADE = 0.05, 0.08
"""Without other people in the crop, alpha is kept up to the first distance from the instance mask and fades out over
the second, both as shares of √(box area). Smaller distances cut off bags, which no mask includes; a fade of 0.2 gains
.001 on composites and loses as much on real scenes, where things beside a person look like clothes."""

CROWD_REACH, CROWD_FADE = 0.02, 0.04
"""The same where another person, who is excluded, is in the crop."""

NEIGHBOUR_MARGIN = 2.5
"""A pixel belongs to another person from this difference of logits on. Below it, masks of overlapping people are
uncertain, and the matte of the crop is more accurate about who is in front."""

NEIGHBOUR_STEEPNESS = 2.0
"""Steepness of that border per unit of logit."""

SURE_FROM, SURE_OVER = 2.0, 2.0
"""Beside other people, alpha has a lower bound that rises from 0 at the first logit of the own mask to 1 at the sum of
both. Mask IoU of people in real training scenes .690 → .708, of held-out ones and composites unchanged; worse from
lower logits on."""

ISLAND_ALPHA = 24
"""Connected components of alphas above this (0–255) that do not touch the person's instance mask are removed: little
difference in IoU, much to the eye."""

SPECK_SHARE, SPECK_CELLS = 0.01, 4
"""A component smaller than this share of the largest one, and further from the large ones than so many cells of the
gate, is removed even inside the instance mask, which is too wide."""

ISLAND_EDGE_CELLS = 2
"""Cells of the gate around such a component that are removed with it: its soft edge."""

GUIDE_FROM_SCALE = 2.5
"""A matte that is enlarged by this factor or more is aligned with the picture's edges by a guided filter. On all mattes
it would add .001 to .002 of IoU on held-out pictures, but edges are less clean than the network's at its own size."""

GUIDE_RADIUS_PX = 1
"""The filter's radius, in pixels of the matte. With 2, and slopes 1.3 times as steep for it, held-out hair was 15 %
further from the truth, and the outlines of whole people 6 %."""

GUIDE_EPSILON = 65.0
"""Its regularization: variance of brightness (0 … 255) below which it averages."""

ALPHA_FLOOR, ALPHA_CEILING = 6, 249
"""Alphas (0–255) up to the first become 0, from the second 255: networks give 252 for opaque pixels."""

CROP_ALPHA = 13
"""What is less than 5 % opaque does not widen a crop: nobody sees it, and haze lies far out."""

COLOUR_GRID_PX = 256
"""Maximum longer side of the small copy on which foreground and background colours are estimated."""

COLOUR_SURE_POWER = 32
"""The first estimate weighs pixels by alpha to this power: it uses nearly opaque (or nearly empty) ones only."""

COLOUR_SURE_WEIGHT = 0.1
"""A cell with this mean weight uses its own colour alone; one with less, coarser scales in proportion."""

COLOUR_SMOOTH_POWER, COLOUR_SMOOTH_WEIGHT = 2, 0.5
"""The same for the second estimate, which smooths the corrected first one."""

RIM_PX = 3
"""Width of the foreground's colour under full transparency: the radius of bicubic scaling."""

WEBP_METHOD = 2
"""Pillow's effort from 0 (fast) to 6 (small)."""
