"""Every constant that was chosen by measuring, with the reason (`make bench-stream` prints the figures)."""

from __future__ import annotations

STRIDE_PX = 32
"""The network's sides are multiples of this."""

MAX_ASPECT = 2.0
"""Of the network's input. Longer frames are letterboxed: their shape is too far from the training pictures'."""

LOGIT_SPAN = 4.0
"""Mask logits are clipped to ± this: beyond it the mask is certain, and differences are noise."""

HOLE_SHARE, ISLAND_SHARE = 0.02, 0.03
"""Holes below this share of all people's area are filled, islands below this share of the largest one removed. IoU of
30 training photographs of fashion .920 → .925, of 47 everyday scenes .712 → .714. Gaps between arms and bodies are
mostly larger."""

STAY_FACTOR = 0.6
"""A person of the last frame stays from this share of `min_confidence` on: no flicker at the threshold."""

STAY_IOU = 0.4
"""IoU from which a box is the person of the last frame."""

MOTION_FROM, MOTION_FULL = 4.0, 7.0
"""Motion of a cell rises from 0 to 1 between these multiples of the frame's noise. From three times on, most frames
have a false change somewhere, and each spreads to its neighbours."""

NOISE_LEAST, NOISE_MOST = 0.3, 2.0
"""Bounds of the noise in grey levels, over 3 × 3 cells. Cameras that denoise have none, so that any change would be
motion; a webcam in the dark has one and a half."""

MOTION_REACH_CELLS = 4
"""Radius in cells around a change that counts as changed: a mask's edge moves beside what moves."""

EDGE_STEEPNESS = 2.0
"""Factor of the alpha's slope over the mask's probability: an edge of about one cell of the mask."""

GIVES_WAY_S = 7.0
"""A stream that sent nothing for so long gives its place to a new one where all are taken: with 16 on two cores each
still has a frame every one or two seconds, on a machine that has much else to do every five."""

STREAMS_MAX = 16
"""Maximum of streams per instance: on two cores so many have one frame per second each; further ones are shed."""
