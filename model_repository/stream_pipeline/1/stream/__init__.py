"""The pipeline behind ``stream_pipeline``: a video's frames, quickly.

    decode → fit → detect → people → smooth → alpha → backdrop → encode

:mod:`stream.run` calls the stages for one frame; it takes the detector as a callable, and a stream's state between two
frames is a :class:`stream.states.State`. Only :mod:`stream.triton` depends on Triton. Decoding, suppression and
blurring are those of :mod:`pipeline`. Frames are HWC uint8, alphas HW uint8.
"""
