"""The pipeline behind ``ensemble_pipeline``: one module per stage, none of which depends on Triton.

    decode → letterbox → detect → people → crop → matte → layers (masks, refine) → foreground → composite → encode

:mod:`pipeline.run` calls the stages in order and takes the two models as callables. :mod:`pipeline.tuning` has every
constant that was chosen by measuring. Pictures are HWC uint8 RGB, alphas HW uint8 (0 background … 255 person), boxes
``x1, y1, x2, y2`` in pixels of the upright picture, with the picture's corner (not a pixel's centre) as origin.
"""
