"""Every constant that was chosen by measuring, with the reason (`make bench-stream` prints the figures)."""

from __future__ import annotations

STRIDE_PX = 32
"""Sides that the network takes are multiples of this."""

MAX_ASPECT = 2.0
"""Of the network's input. Longer frames are letterboxed into that: further from what it was trained with."""

LOGIT_SPAN = 4.0
"""Mask logits are kept between this and its negative: beyond it the network is sure, and how sure is noise."""

HOLE_SHARE, ISLAND_SHARE = 0.02, 0.03
"""Holes below this part of all people's area are filled, islands below this part of the largest one go. IoU of 30
training photographs of fashion .920 → .925, of 47 everyday scenes .712 → .714. Gaps between arms and bodies are mostly
larger."""

STAY_FACTOR = 0.6
"""Somebody who was there in the last frame stays from this part of `min_confidence` on: no blinking at the limit."""

STAY_IOU = 0.4
"""…and is the same if the boxes overlap by so much."""

MOTION_FROM, MOTION_FULL = 4.0, 7.0
"""A cell has changed from so many times the frame's own noise on, and wholly from the second. At three times there
would be a false change somewhere in most frames, and each spreads to its neighbours."""

NOISE_LEAST, NOISE_MOST = 0.3, 2.0
"""Grey levels of noise, over 3 × 3 cells. Cameras that denoise show none at all, and the least change would be motion;
a webcam in the dark has one and a half."""

MOTION_REACH_CELLS = 4
"""Cells around a change count as changed: a mask's edge moves beside what moves."""

EDGE_STEEPNESS = 2.0
"""How much steeper the alpha is than the mask's probability: an edge of about one cell of the mask."""

STREAMS_MAX = 16
"""Streams that an instance serves. On two cores so many have a frame a second each; one more is better told so."""
