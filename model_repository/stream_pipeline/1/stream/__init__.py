"""The pipeline behind ``stream_pipeline``: a video's frames, quickly.

    decode → fit → detect → people → smooth → alpha → backdrop → encode

:mod:`stream.run` is the flow for one frame; it takes the detector as a callable and keeps what it has to know of the
frames before in a :class:`stream.states.State`. :mod:`stream.triton` alone knows Triton. What :mod:`pipeline` has
already (decoding, suppression, blurring) is used from there. Frames are HWC uint8, alphas HW uint8.
"""
