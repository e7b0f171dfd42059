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

MOTION_FROM, MOTION_FULL = 2.5, 6.0
"""A cell has changed from so many times the frame's own noise on, and wholly from the second. Noise that is smoothed
over 5 × 5 cells stays below the first."""

NOISE_LEAST = 0.6
"""Grey levels of noise, at least: cameras that denoise show none at all, and the least change would be motion."""

MOTION_REACH_CELLS = 3
"""Cells around a change count as changed: a mask's edge moves beside what moves."""

EDGE_STEEPNESS = 2.0
"""How much steeper the alpha is than the mask's probability: an edge of about one cell of the mask."""

STATES_MAX = 64
"""Streams that an instance remembers: twice what Triton lets in, so that none is forgotten early."""
