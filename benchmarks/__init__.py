"""Figures: `quality` (masks against ground truth) and `pipeline` (milliseconds per stage)."""
