"""Cutaway: cut people and objects out of pictures with a Cutaway server on NVIDIA Triton."""
