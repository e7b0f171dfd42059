"""The gate: one process in front of Triton, which strangers reach instead of it.

What arrives is read by the gate's own bounded codec and framed anew: Triton's parsers see nothing of a caller's.
"""
